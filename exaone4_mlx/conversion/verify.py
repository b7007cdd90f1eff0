"""Checks the bytes on the disk, and measures the error of each tensor.

Notes:
- Hashes of the bytes before they were written are compared with hashes of the bytes that are read back.
- A copied tensor must equal its source bit for bit. The error of any other tensor must be less than that of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..files.folders import read_json
from ..files.safetensors import Checkpoint, CheckpointError
from ..model.pretrained import OpenCheckpoint
from .plan import ConversionPlan, PlannedTensor
from .shards import Shards, digest_of


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor: ‖w - ŵ‖ / ‖w‖, and the signal-to-noise ratio in decibels (infinite where equal)."""

    name: str
    relative_error: float
    sqnr_db: float


def check_written(shards: Shards, plan: ConversionPlan) -> None:
    """Raises CheckpointError where the bytes on the disk are not the written ones."""
    for tensor in plan.tensors:
        for output in tensor.outputs:
            if shards.digest(output.name) != shards.digests.get(output.name):
                raise CheckpointError(f"{shards.folder}: {output.name} differs from the written bytes; check the disk")


def tensor_errors(shards: Shards, opened: OpenCheckpoint, plan: ConversionPlan) -> Iterator[TensorError]:
    """The error of each tensor, in the order of the plan. Raises CheckpointError for an impossible one."""
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
            raise CheckpointError(f"the error of {tensor.name} is larger than that of zeros: the conversion failed")
        relative = math.sqrt(difference / power) if difference else 0.0
        yield TensorError(tensor.name, relative, -20 * math.log10(relative) if relative else math.inf)


def _squares(exact: mx.array, stored: mx.array) -> tuple[float, float]:
    """The sums of squares of the difference and of the source. Values are scaled first, for the range of float32."""
    largest = float(mx.max(mx.abs(exact)).item())  # type: ignore[arg-type]
    unit = largest or 1.0
    sums = mx.sum(mx.square(exact / unit - stored / unit)), mx.sum(mx.square(exact / unit))
    mx.eval(sums)
    return unit * unit * float(sums[0].item()), unit * unit * float(sums[1].item())  # type: ignore[arg-type]


def _check_copied(shards: Shards, opened: OpenCheckpoint, tensor: PlannedTensor) -> None:
    for output in tensor.outputs:
        rows = tensor.rows_at_a_time
        for start in range(0, output.shape[0], rows):
            source = opened.checkpoint.read(output.name, start, start + rows)
            if not mx.array_equal(shards.written.read(output.name, start, start + rows), source, equal_nan=True).item():
                raise CheckpointError(f"{output.name} is a copy, but differs from its source")


def _stored(shards: Shards, tensor: PlannedTensor, start: int, stop: int) -> mx.array:
    """The written rows in float32. (mx.dequantize rounds to the dtype of its scales.)"""
    parts = [shards.written.read(output.name, start, stop) for output in tensor.outputs]
    parts = [part.astype(mx.float32) if mx.issubdtype(part.dtype, mx.floating) else part for part in parts]
    weight = parts[0] if tensor.quantization is None else tensor.quantization.dequantized(parts)
    return weight.astype(mx.float32)


def check_folder(folder: Path) -> None:
    """Raises CheckpointError where the bytes of a finished folder do not have the hashes of its report.json."""
    digests = read_json(folder / "report.json").get("sha256", {})
    for name, info in Checkpoint(folder).tensors.items():
        if digest_of(info) != digests.get(name):
            raise CheckpointError(f"{folder}: {name} was changed after the conversion; convert again (--overwrite)")
