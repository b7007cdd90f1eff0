"""The work of a conversion, tensor by tensor, before any tensor is read or written.

Notes:
- A plan is made of headers alone. It knows the name, shape and size of each output, so the headers of the shards
  are written first.
- Two conversions with the same digest write the same bytes. An interrupted run is resumed only by its own digest.
- Tensors are in the order of the network, as the calibrated methods need them.
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

from ..checkpoint.layouts import StoredTensor
from ..checkpoint.quantize import Quantization
from ..files.safetensors import DTYPE_NAMES
from ..model.pretrained import OpenCheckpoint

MAX_SHARD_BYTES = 5 << 30  # mlx-lm's
NORM = "norm.weight"  # the end of the names of the weights that distillation tunes in full precision
#: Weights that are read and written in one chunk.
CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class PlannedTensor:
    """The conversion of one weight of the model.

    `work` is "copy" (bit for bit), "repack" (the same codes in MLX's layout), "cast", "dequantize", "quantize",
    "requantize", "fuse" (a weight in full precision with adapters added), or "tune" (one whose values distillation
    changes).
    """

    name: str
    shape: tuple[int, ...]
    work: str
    quantization: Quantization | None
    outputs: tuple[OutputTensor, ...]
    source_bytes: int

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def rows_at_a_time(self) -> int:
        return max(1, CHUNK_WEIGHTS // max(1, math.prod(self.shape[1:])))


@dataclass(frozen=True)
class ConversionPlan:
    """All tensors of a conversion. `options`, as JSON values, also determine the bytes of the result."""

    tensors: tuple[PlannedTensor, ...]
    options: Mapping[str, Any]
    source: tuple[Any, ...] = field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights of the result."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters

    @property
    def shards(self) -> dict[str, list[PlannedTensor]]:
        """File name -> its tensors: consecutive, and together at most MAX_SHARD_BYTES."""
        shards: list[list[PlannedTensor]] = [[]]
        nbytes = 0
        for tensor in self.tensors:
            nbytes += tensor.nbytes
            if shards[-1] and nbytes > MAX_SHARD_BYTES:
                shards.append([])
                nbytes = tensor.nbytes
            shards[-1].append(tensor)
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}

    @property
    def digest(self) -> str:
        content = {
            "tensors": [
                [t.name, t.work, t.quantization.as_dict() if t.quantization else None]
                + [[o.name, DTYPE_NAMES[o.dtype], o.shape] for o in t.outputs]
                for t in self.tensors
            ],
            "options": dict(self.options),
            "source": self.source,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_plan(
    opened: OpenCheckpoint,
    settings: Mapping[str, Quantization],
    keep_packed: bool,
    dtype: mx.Dtype | None,
    options: Mapping[str, Any],
) -> ConversionPlan:
    """The plan that quantizes each weight by `settings` and keeps the other weights in full precision.

    With `keep_packed` a weight keeps its codes where its stored quantization is the wanted one.
    """
    is_tuned = options.get("calibrate") == "distill"
    tensors = tuple(
        _planned(opened, opened.source.tensors[name], settings.get(name), keep_packed, dtype, is_tuned)
        for name in in_network_order(opened.shapes)
    )
    return ConversionPlan(tensors, options, source_identity(opened))


def source_identity(opened: OpenCheckpoint) -> tuple[Any, ...]:
    """Names, sizes and times of the weight files. Two checkpoints with equal values count as one."""
    stored = [part for name in opened.shapes for part in opened.source.tensors[name].stored]
    files = sorted({opened.checkpoint.tensors[part].file for part in stored})
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def in_network_order(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Embedding, layers by number, norm, head."""

    def position(name: str) -> tuple[int, int, str]:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        stage = 1 if layer else {"model.embed_tokens": 0, "model.norm": 2}.get(name.rpartition(".")[0], 3)
        return stage, int(layer[1]) if layer else 0, name

    return sorted(names, key=position)


def _planned(
    opened: OpenCheckpoint,
    stored: StoredTensor,
    quantization: Quantization | None,
    keep_packed: bool,
    dtype: mx.Dtype | None,
    is_tuned: bool,
) -> PlannedTensor:
    if keep_packed and quantization is not None and quantization == stored.exact:
        scales = stored.scale_dtype
        result = scales if dtype is None else dtype
        outputs = _packed(stored, quantization, result)
        same_names = [output.name for output in outputs] == list(stored.stored)
        same = same_names and (quantization.mode != "affine" or result == scales)
        return PlannedTensor(
            stored.name, stored.shape, "copy" if same else "repack", quantization, outputs, stored.nbytes
        )
    result = stored.dtype if dtype is None else dtype
    if quantization is not None:
        work = "requantize" if stored.is_quantized else "quantize"
        outputs = _packed(stored, quantization, result)
    else:
        work = "dequantize" if stored.is_quantized else "copy" if result == stored.dtype else "cast"
        if stored.name in opened.source.changed:
            work = "fuse"
        if is_tuned and stored.name.endswith(NORM):
            work = "tune"
        outputs = (OutputTensor(stored.name, result, stored.shape),)
    return PlannedTensor(stored.name, stored.shape, work, quantization, outputs, stored.nbytes)


def _packed(stored: StoredTensor, quantization: Quantization, dtype: mx.Dtype) -> tuple[OutputTensor, ...]:
    stand_ins = quantization.tensors(stored.name, mx.zeros(stored.shape, dtype))  # lazy: never evaluated
    return tuple(OutputTensor(name, array.dtype, array.shape) for name, array in stand_ins)
