"""A model whose layers are in several ranks, one after the other: hidden states go from rank to rank.

Notes:
- A rank builds its layers as a model of one process does. In place of the embedding it receives the hidden states of
  the rank before it, and in place of the norm it sends its own. The last stage is rank 0.
- To receive depends on no array. So what was built before is queued first, and what is received at once: else MLX could
  order it before the sum of the ids, and the ranks would wait for each other for ever.
- Rank 0 also has caches of the layers of the others. They count rows and store none, so that rank 0 knows how far each
  layer of each rank can go back. In files they are arrays without numbers.

Shapes: B batch, L new tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.share import EMBEDDING, Stage
from ..cluster.ranks import Ranks
from .cache import Cache
from .kv import KVBuffer
from .layer import Projection


class Elsewhere(nn.Module):
    """A module of another rank."""

    def __call__(self, x: mx.array) -> mx.array:
        raise ValueError("this module is in another rank: use model.fused()")


class NoRows(KVBuffer):
    """The rows of a layer of another rank: how many there are is known, and nothing is stored."""

    def parts(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        return ()

    def layout(self, head_dim: int) -> dict[str, tuple[int, mx.DtypeCategory]]:
        return {"keys": (0, mx.floating)}

    def resize(self, capacity: int, start: int, stop: int, parts: tuple[mx.array, ...]) -> None:
        self.capacity = capacity

    def write(self, start: int, parts: tuple[mx.array, ...]) -> None:
        pass

    def append(self, start: int, stop: int, keys: mx.array, values: mx.array, since: int) -> tuple[mx.array, mx.array]:
        return keys, values

    def copy(self, start: int, stop: int) -> tuple[mx.array, ...]:
        return (mx.zeros((1, 0, stop - start, 0)),) if stop > start else ()

    views = copy


class Pipeline:
    """The layers of one rank among those of all, and the way of hidden states."""

    def __init__(self, stage: Stage, ranks: Ranks, model: Any) -> None:
        """All ranks make it together, after they have their weights."""
        self.stage, self._ranks, self._width = stage, ranks, model.config.hidden_size
        found = [getattr(mx, name) for name in ranks.exchange(_dtype_name(model, stage))]
        self._incoming = reduce(mx.result_type, found[ranks.rank + 1 :], found[-1])
        self._outgoing = reduce(mx.result_type, found[ranks.rank :])

    def ends(self, embedding: Projection, norm: Projection) -> tuple[Projection, Projection]:
        """What stands before and after the layers of this rank."""
        return embedding if self.stage.is_first else self._received, self._sent if self.stage.rank else norm

    def own_caches(self, cache: Sequence[Cache], ids: mx.array) -> Sequence[Cache]:
        """The caches of the layers of this rank. Those of the other ranks count the new `ids` [B, L]."""
        rows = ids[:, None, :, None]
        for other in self.of_others(cache):
            other.update(rows, rows)
        return cache[self.stage.own]

    def of_others(self, cache: Sequence[Cache]) -> Sequence[Cache]:
        """The caches of the layers of the other ranks."""
        return *cache[: self.stage.own.start], *cache[self.stage.own.stop :]

    def _received(self, ids: mx.array) -> mx.array:
        """The hidden states of ids [B, L] after the layers of the rank before this one, [B, L, E]."""
        self._ranks.queued(ids)
        shape, source = (*ids.shape, self._width), self._ranks.rank + 1
        x = mx.distributed.recv(shape, self._incoming, source, group=self._ranks.group)
        self._ranks.queued(x)
        return x

    def _sent(self, x: mx.array) -> mx.array:
        """Sends hidden states to the rank after this one."""
        x = mx.distributed.send(x.astype(self._outgoing), self._ranks.rank - 1, group=self._ranks.group)
        self._ranks.queued(x)
        return x


def keep_stage(model: Any, stage: Stage) -> None:
    """Makes a causal language model whose weights are those of `stage` have its layers only."""
    network = model.model
    network.layers = network.layers[stage.own]
    for block in network.layers:
        block.total = whole
    if not stage.has(EMBEDDING):
        network.embed_tokens = Elsewhere()
    if stage.rank:
        network.norm = Elsewhere()


def whole(x: mx.array) -> mx.array:
    """The sum over the ranks that have a part of a layer: one."""
    return x


def _dtype_name(model: Any, stage: Stage) -> str:
    """The dtype that hidden states have at least after the layers of this rank."""
    modules = [*model.layers, *([model.model.embed_tokens] if stage.is_first else [])]
    dtypes = {array.dtype for module in modules for _, array in tree_flatten(module.parameters())}
    floating = [dtype for dtype in dtypes if mx.issubdtype(dtype, mx.floating)]
    return str(reduce(mx.result_type, floating)).removeprefix("mlx.core.")
