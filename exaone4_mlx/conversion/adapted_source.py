"""A checkpoint with adapters: its weights are read with the adapters added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from ..checkpoint.formats import Source
from ..files.safetensors import CheckpointError
from ..model.adapter import WeightedAdapter, adapted_rows, cast_adapted, check_adapters
from ..model.pretrained import OpenCheckpoint


class AdaptedSource(Source):
    """The weights of a source with adapters added, in float32 and rounded once. Changed ones have no `exact` form."""

    def __init__(self, source: Source, adapters: Sequence[WeightedAdapter]) -> None:
        self.__dict__.update(source.__dict__)
        self._base, self._adapters = source, tuple(adapters)
        arrays = {name.replace(".lora_a", ".weight") for adapter, _ in adapters for name in adapter.arrays}
        self.changed = {name: tensor.exact for name, tensor in source.tensors.items() if name in arrays}
        self.tensors = {
            name: replace(tensor, exact=None) if name in self.changed else tensor
            for name, tensor in source.tensors.items()
        }

    def weight(self, name: str, start: int = 0, stop: int | None = None, dtype: mx.Dtype | None = None) -> mx.array:
        if name not in self.changed:
            return self._base.weight(name, start, stop, dtype)
        rows = self._base.weight(name, start, stop, mx.float32)
        fused = adapted_rows(self._adapters, name, rows, start)
        return cast_adapted(fused, dtype or self.tensors[name].dtype, name, self._adapters)


def adapters_digest(adapters: Sequence[WeightedAdapter]) -> str:
    """A digest of everything of adapters that changes weights."""
    digest = hashlib.sha256()
    for adapter, scale in adapters:
        config = adapter.config
        digest.update(f"{config.fine_tune_type} {config.scale} {scale}".encode())
        for name, array in sorted(adapter.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(memoryview(mx.contiguous(array).view(mx.uint8)))  # type: ignore[arg-type]
    return digest.hexdigest()


def with_adapters(opened: OpenCheckpoint, adapters: Sequence[WeightedAdapter]) -> OpenCheckpoint:
    """A checkpoint with adapters added to its weights. Raises ValueError that names the array that does not fit."""
    if not adapters:
        return opened
    check_adapters(adapters, opened.config)
    for adapter, _ in adapters:
        for name, array in adapter.arrays.items() if adapter.config.fine_tune_type == "full" else ():
            own: Any = opened.source.tensors.get(name)
            if own is None or own.shape != array.shape:
                found = "does not have" if own is None else f"has in shape {own.shape}, not {array.shape}"
                raise CheckpointError(f"{adapter.name} has {name}, which {opened.folder} {found}")
    return replace(opened, source=AdaptedSource(opened.source, adapters))
