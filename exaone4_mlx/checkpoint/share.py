"""The part of a checkpoint that one rank of several has: some heads and rows of the MLP, or in a pipeline some layers.

Notes:
- In a pipeline rank 0 has the last layers, because it draws the tokens. The last rank has the first layers.
- Query, key, value, gate and up projections are cut into rows, `o_proj` and `down_proj` into columns. The sum of the
  outputs of all ranks is the output of the whole layer.
- Everything else is then in each rank. Only rank 0 has an output head of its own: the others compute no logits.
- A quantized weight is cut between two groups of columns, so that each rank has the same codes and scales.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..cluster.ranks import Ranks
from ..files.safetensors import Checkpoint
from .quantize import Quantization

ROWS, COLUMNS = 0, 1
AXES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ROWS),
    **dict.fromkeys(("o_proj", "down_proj"), COLUMNS),
}
#: The sizes of a config that are divided.
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
LAYER = re.compile(r"(?:\w+\.)?layers\.(\d+)\.")
INSTEAD = "give each rank some layers (--pipeline)"
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

    own = slice(None)  # its layers: all

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} with some heads"

    def cut(self, name: str) -> Cut | None:
        """How the weight of this name is cut; None for one that each rank has."""
        module = name.split(".")[-2] if "." in name else ""
        return Cut(AXES[module], self.rank, self.size) if module in AXES else None

    def has(self, name: str) -> bool:
        """Whether the rank has it, or a part of it."""
        return self.rank == 0 or name != HEAD

    def divided(self, config: Any) -> dict[str, Any]:
        """The sizes of a rank's part of a config. Raises ValueError for one that cannot be divided."""
        for name in DIVIDED:
            if getattr(config, name) % self.size:
                raise ValueError(
                    f"{name} {getattr(config, name)} is not a multiple of {self.size} ranks: use as many ranks as "
                    f"divide {', '.join(f'{getattr(config, name)} ({name})' for name in DIVIDED)}, or {INSTEAD}"
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
                    f"use fewer ranks, or {INSTEAD}"
                )


@dataclass(frozen=True)
class Stage:
    """The part of rank `rank` in a pipeline. `layers` are the numbers of layers of all ranks.

    `tied` says whether the output head is the embedding, which rank 0 then has, too.
    """

    rank: int
    layers: tuple[int, ...]
    tied: bool

    def __str__(self) -> str:
        return f"rank {self.rank} of {len(self.layers)} with pipeline {','.join(map(str, self.layers))}"

    @property
    def own(self) -> slice:
        """The layers of this rank."""
        start = sum(self.layers[self.rank + 1 :])
        return slice(start, start + self.layers[self.rank])

    @property
    def is_first(self) -> bool:
        """Whether this rank has the first layers, and the embedding."""
        return self.rank == len(self.layers) - 1

    def cut(self, name: str) -> Cut | None:
        """As `Share.cut`: no weight is cut."""
        return None

    def divided(self, config: Any) -> dict[str, Any]:
        """As `Share.divided`."""
        return {"num_hidden_layers": self.layers[self.rank], "layer_types": config.layer_types[self.own]}

    def check_groups(self, settings: Mapping[str, Quantization], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """As `Share.check_groups`: no group is cut."""

    def has(self, name: str) -> bool:
        """As `Share.has`."""
        if match := LAYER.match(name):
            return self.own.start <= int(match[1]) < self.own.stop
        if name == EMBEDDING and self.is_first:
            return True
        return self.rank == 0 and (name != EMBEDDING or self.tied)  # norm and head


def part_of(ranks: Ranks, config: Any, tensors: Iterable[Any]) -> Share | Stage:
    """The part of this rank of a model with these stored tensors. Raises ValueError for one that cannot be divided."""
    if not ranks.pipeline:
        part = Share(ranks.rank, ranks.size)
        part.divided(config)
        return part
    layers = layers_of_ranks(ranks.pipeline, config, {tensor.name: tensor.nbytes for tensor in tensors}, ranks.memory)
    return Stage(ranks.rank, layers, config.tie_word_embeddings)


def layers_of_ranks(
    wanted: bool | Sequence[int], config: Any, sizes: Mapping[str, int], memory: Sequence[int]
) -> tuple[int, ...]:
    """The numbers of layers of the ranks of a pipeline: `wanted`, or for True by memory.

    Then the weights of each rank are the same part of its memory, about. `sizes` are the bytes of all weights by name,
    `memory` the bytes that each rank may use. Raises ValueError for numbers that are not those of `config`.
    """
    total, size = config.num_hidden_layers, len(memory)
    if not isinstance(wanted, bool):
        text = ",".join(map(str, wanted))
        if len(wanted) != size:
            raise ValueError(f"pipeline {text} has the layers of {len(wanted)} ranks, and there are {size}")
        if any(type(count) is not int or count < 1 for count in wanted) or sum(wanted) != total:
            raise ValueError(f"pipeline {text} must be the layers of each rank, {total} in all, and one at least")
        return tuple(wanted)
    if total < size:
        raise ValueError(f"the model has {total} layers, and a pipeline of {size} ranks needs one for each")
    ends = [Stage(rank, (0,) * size, config.tie_word_embeddings) for rank in range(size)]
    fixed = [sum(nbytes for name, nbytes in sizes.items() if stage.has(name)) for stage in ends]
    layer = sum(nbytes for name, nbytes in sizes.items() if LAYER.match(name)) / total
    part = (layer * total + sum(fixed)) / sum(memory)
    room = [(part * own - extra) / layer for own, extra in zip(memory, fixed, strict=True)]
    found = [1] * size
    for _ in range(total - size):
        found[max(range(size), key=lambda rank: room[rank] - found[rank])] += 1
    return tuple(found)


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
