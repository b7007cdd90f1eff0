"""The part of a checkpoint that one rank of several has: some heads and some rows of the MLP.

Notes:
- Query, key, value, gate and up projections are cut into rows, `o_proj` and `down_proj` into columns. The sum of the
  outputs of all ranks is the output of the whole layer.
- Everything else is in each rank. Only rank 0 has an output head of its own: the others compute no logits.
- A quantized weight is cut between two groups of columns, so that each rank has the same codes and scales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..files.safetensors import Checkpoint
from .quantize import Quantization

ROWS, COLUMNS = 0, 1
AXES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ROWS),
    **dict.fromkeys(("o_proj", "down_proj"), COLUMNS),
}
#: The sizes of a config that are divided.
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
OWN_HEAD = "lm_head.weight"
FIRST_BYTES = 4096  # of a tensor, in the fingerprint of a checkpoint


@dataclass(frozen=True)
class Cut:
    """The part of an array of rank `rank`, of `size` equal parts along `axis`."""

    axis: int
    rank: int
    size: int

    def span(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The first index along the axis, and the one after the last."""
        width = shape[self.axis] // self.size
        return self.rank * width, (self.rank + 1) * width

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part."""
        return (*shape[: self.axis], shape[self.axis] // self.size, *shape[self.axis + 1 :])

    def of(self, array: mx.array) -> mx.array:
        """The part of an array, in memory of its own."""
        start, stop = self.span(array.shape)
        return mx.contiguous(array[start:stop] if self.axis == ROWS else array[:, start:stop])

    def read(self, checkpoint: Checkpoint, name: str) -> mx.array:
        """The part of a stored tensor. No other byte of it is read."""
        span = self.span(checkpoint.tensors[name].shape)
        return checkpoint.read(name, *span) if self.axis == ROWS else checkpoint.read_columns(name, *span)


@dataclass(frozen=True)
class Share:
    """The part of rank `rank` of `size` ranks."""

    rank: int
    size: int

    def cut(self, name: str) -> Cut | None:
        """How the weight of this name is cut; None for one that each rank has."""
        module = name.split(".")[-2] if "." in name else ""
        return Cut(AXES[module], self.rank, self.size) if module in AXES else None

    def has(self, name: str) -> bool:
        """Whether the rank has a part of this weight."""
        return self.rank == 0 or name != OWN_HEAD

    def divided(self, config: Any) -> dict[str, int]:
        """The sizes of a rank's part of a config. Raises ValueError for one that cannot be divided."""
        for name in DIVIDED:
            if getattr(config, name) % self.size:
                raise ValueError(
                    f"{name} {getattr(config, name)} is not a multiple of {self.size} ranks: use as many ranks as "
                    f"divide {', '.join(f'{getattr(config, name)} ({name})' for name in DIVIDED)}"
                )
        return {name: getattr(config, name) // self.size for name in DIVIDED}

    def check_groups(self, settings: Mapping[str, Quantization], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError for a quantized weight whose columns are not whole groups in each rank."""
        for name, quantization in settings.items():
            if (cut := self.cut(name)) is None or cut.axis == ROWS:
                continue
            columns, group = shapes[name][COLUMNS], quantization.group_size
            if columns % (self.size * group):
                raise ValueError(
                    f"{name} has {columns} columns: each of {self.size} ranks would have {columns / self.size:g}, "
                    f"which are {columns / self.size / group:g} groups of {group}; quantize it in smaller groups, "
                    "or use fewer ranks"
                )


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of config.json, of all headers, and of the first bytes of each tensor."""
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {info.dtype} {info.shape}".encode())
        with info.file.open("rb") as stream:
            stream.seek(info.offset)
            digest.update(stream.read(min(info.nbytes, FIRST_BYTES)))
    config = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    return {"config.json": config.hexdigest()[:12], "weights": digest.hexdigest()[:12]}
