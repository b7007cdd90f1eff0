"""Whether the bytes on the disk are what was meant, and how far each tensor is from its source.

What is peculiar here:
- Hashes are of what was handed over for writing, and are compared with what is read back.
- What was only copied must be equal bit for bit. What was quantized must at least be nearer to its source than
  zeros would be; how near is told per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..files.folders import read_json
from ..files.safetensors import Checkpoint, CheckpointError
from ..model.source import OpenCheckpoint
from .plan import ConversionPlan, PlannedTensor
from .shards import Shards, digest_of


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from its source: ‖w - ŵ‖ / ‖w‖, and the same in decibels (infinite where equal)."""

    name: str
    relative_error: float
    sqnr_db: float


def check_written(shards: Shards, plan: ConversionPlan) -> None:
    """Raises CheckpointError where the disk does not hold what was written to it."""
    for tensor in plan.tensors:
        for output in tensor.outputs:
            if shards.digest(output.name) != shards.digests.get(output.name):
                raise CheckpointError(f"{shards.folder}: {output.name} is not what was written; is the disk all right?")


def tensor_errors(shards: Shards, opened: OpenCheckpoint, plan: ConversionPlan) -> Iterator[TensorError]:
    """The error of each tensor of the plan, in its order. Raises CheckpointError where one cannot be right."""
    for tensor in plan.tensors:
        if tensor.work == "copy":
            _check_copied(shards, opened, tensor)
            yield TensorError(tensor.name, 0.0, math.inf)
            continue
        difference = power = 0.0
        for start in range(0, tensor.shape[0], tensor.rows_at_a_time):
            stop = min(start + tensor.rows_at_a_time, tensor.shape[0])
            exact = opened.source.weight(tensor.name, start, stop, mx.float32)
            sums = _squares(exact, _stored(shards, tensor, start, stop))
            difference, power = difference + sums[0], power + sums[1]
            mx.clear_cache()
        if difference and not difference < power:
            raise CheckpointError(f"{tensor.name} is further from its source than zeros would be: it went wrong")
        relative = math.sqrt(difference / power) if difference else 0.0
        yield TensorError(tensor.name, relative, -20 * math.log10(relative) if relative else math.inf)


def _squares(exact: mx.array, stored: mx.array) -> tuple[float, float]:
    """The sums of squares of the difference and of the source. Scaled before they are squared: float32 is small."""
    largest = float(mx.max(mx.abs(exact)).item())  # type: ignore[arg-type]
    unit = largest or 1.0
    sums = mx.sum(mx.square(exact / unit - stored / unit)), mx.sum(mx.square(exact / unit))
    mx.eval(sums)
    return unit * unit * float(sums[0].item()), unit * unit * float(sums[1].item())  # type: ignore[arg-type]


def _check_copied(shards: Shards, opened: OpenCheckpoint, tensor: PlannedTensor) -> None:
    for output in tensor.outputs:
        rows = max(1, tensor.rows_at_a_time)
        for start in range(0, output.shape[0], rows):
            source = opened.checkpoint.read(output.name, start, start + rows)
            if not mx.array_equal(shards.written.read(output.name, start, start + rows), source, equal_nan=True).item():
                raise CheckpointError(f"{output.name} was to be copied, and differs from its source")


def _stored(shards: Shards, tensor: PlannedTensor, start: int, stop: int) -> mx.array:
    """Rows as they are written, in float32. (mx.dequantize would round to the dtype of the scales.)"""
    parts = [shards.written.read(output.name, start, stop) for output in tensor.outputs]
    parts = [part.astype(mx.float32) if mx.issubdtype(part.dtype, mx.floating) else part for part in parts]
    weight = parts[0] if tensor.quantization is None else tensor.quantization.dequantized(parts)
    return weight.astype(mx.float32)


def check_folder(folder: Path) -> None:
    """Raises CheckpointError where a finished folder does not hold the bytes that its report.json tells of."""
    digests = read_json(folder / "report.json").get("sha256", {})
    for name, info in Checkpoint(folder).tensors.items():
        if digest_of(info) != digests.get(name):
            raise CheckpointError(f"{folder}: {name} is not what was converted; convert it again (--overwrite)")
