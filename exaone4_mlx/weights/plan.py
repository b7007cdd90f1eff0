"""What a conversion is going to do, tensor by tensor, before anything is read or written.

What is peculiar here:
- A plan is made of headers alone, so the result's every name, shape and size is known, and with them its
  shards: their headers are written first.
- Two conversions with the same digest write the same bytes. That is how a stopped one is gone on with.
- Tensors stand in the order of the network, which is that of the calibrated methods too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..model.files import DTYPE_NAMES
from .checkpoint import Opened
from .layouts import StoredTensor
from .quantize import Quantization

MAX_SHARD_BYTES = 5 << 30  # mlx-lm's
#: Weights that are read and written at a time.
CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Output:
    """One tensor of the result."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class Planned:
    """What becomes of one weight of the model.

    `work` is "copy" (as it is stored, packed or not), "cast", "dequantize", "quantize" or "requantize".
    """

    name: str
    shape: tuple[int, ...]
    work: str
    quantization: Quantization | None
    outputs: tuple[Output, ...]
    source_bytes: int

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def rows_at_a_time(self) -> int:
        return max(1, CHUNK_WEIGHTS // max(1, math.prod(self.shape[1:])))


@dataclass(frozen=True)
class Plan:
    """A whole conversion. `options` are what else decides about the bytes of the result; JSON values."""

    tensors: tuple[Planned, ...]
    options: Mapping[str, Any]
    source: tuple[Any, ...] = field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Of the weights of the result."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters

    @property
    def shards(self) -> dict[str, list[Planned]]:
        """File name -> its tensors: consecutive ones, together at most MAX_SHARD_BYTES."""
        shards: list[list[Planned]] = [[]]
        for tensor in self.tensors:
            if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > MAX_SHARD_BYTES:
                shards.append([])
            shards[-1].append(tensor)
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}

    @property
    def digest(self) -> str:
        told = {
            "tensors": [
                [t.name, t.work, t.quantization.as_dict() if t.quantization else None]
                + [[o.name, DTYPE_NAMES[o.dtype], o.shape] for o in t.outputs]
                for t in self.tensors
            ],
            "options": dict(self.options),
            "source": self.source,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def make_plan(
    opened: Opened,
    settings: Mapping[str, Quantization] | None,
    dtype: mx.Dtype | None,
    options: Mapping[str, Any],
) -> Plan:
    """The plan that gives each weight what `settings` say: quantized, or else in full precision.

    Without settings what is stored quantized stays as it is, where MLX has it so.
    """
    stored = opened.source.tensors
    tensors = tuple(_planned(opened, stored[name], settings, dtype) for name in in_network_order(opened.shapes))
    files = sorted({opened.checkpoint.tensors[part].file for t in tensors for part in stored[t.name].stored})
    identity = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return Plan(tensors, options, identity)


def in_network_order(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Embedding, layers by number, norm, head."""

    def place(name: str) -> tuple[int, int, str]:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        stage = 1 if layer else {"model.embed_tokens": 0, "model.norm": 2}.get(name.rpartition(".")[0], 3)
        return stage, int(layer[1]) if layer else 0, name

    return sorted(names, key=place)


def _planned(
    opened: Opened, stored: StoredTensor, settings: Mapping[str, Quantization] | None, dtype: mx.Dtype | None
) -> Planned:
    quantization = stored.exact if settings is None else settings.get(stored.name)
    result = stored.dtype if dtype is None else dtype
    if quantization is not None and settings is None:
        work = "copy"
        result = opened.source.scale_dtype(stored.name) if dtype is None else dtype
    elif quantization is not None:
        work = "requantize" if stored.is_quantized else "quantize"
    elif stored.is_quantized:
        work = "dequantize"
    else:
        work = "copy" if result == stored.dtype else "cast"
    if quantization is None:
        outputs = [Output(stored.name, result, stored.shape)]
    else:
        stand_ins = quantization.tensors(stored.name, mx.zeros(stored.shape, result))  # lazy: nothing is made
        outputs = [Output(name, array.dtype, array.shape) for name, array in stand_ins]
    return Planned(stored.name, stored.shape, work, quantization, tuple(outputs), stored.nbytes)
