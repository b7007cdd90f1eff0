"""A model that several ranks compute: what rank 0 does with its part, the others do with theirs.

Notes:
- Rank 0 tells the others each call of the model before it builds it, and each change of a cache. It decides
  everything else alone: prompts, sampling, stops, drafts, batches. So the others cannot part from it.
- What is told travels beside MLX. The ids of a step, which may not be computed yet, travel as a sum: so the others
  build a step while the one before it is computed.
- Each call of the model is queued as it is built. Its sums run in all ranks, or in none.

Shapes: B batch, L new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from ..checkpoint.share import Share, Stage
from ..cluster.ranks import Ranks
from .cache import Cache, KVCache, RotatingKVCache, Snapshot
from .config import Exaone4Config
from .fused import FusedModel, Row
from .kv import KVQuantization
from .layer import Pause
from .pipeline import NoRows, Pipeline, keep_stage

#: A change of a cache: the name of the method and its arguments, for the others.
Change = list[Any]
PART = 256  # tokens of a prompt that a rank of a pipeline processes at once


@dataclass(frozen=True)
class NumberedSnapshot(Snapshot):
    """A snapshot that the other ranks have taken, too."""

    number: int = 0


class Journal:
    """The changes of the caches of rank 0 that the others have not been told yet."""

    def __init__(self) -> None:
        self._changes: deque[Change] = deque()
        self.numbers = itertools.count(1)

    def add(self, *change: Any) -> None:
        """Any thread may call it, the garbage collector too."""
        self._changes.append(list(change))

    def numbered(self, snapshot: Snapshot) -> NumberedSnapshot:
        """The snapshot with a number, which the other ranks are told to forget when nothing refers to it."""
        numbered = NumberedSnapshot(snapshot.offset, snapshot.arrays, next(self.numbers))
        weakref.finalize(numbered, self.add, "drop", numbered.number).atexit = False
        return numbered

    def take(self) -> list[Change]:
        return [self._changes.popleft() for _ in range(len(self._changes))]


class Recorded:
    """A cache whose changes are told to the other ranks. `update` is a part of each call of the model."""

    journal: Journal
    number: int

    def record(self, journal: Journal, number: int) -> None:
        self.journal, self.number = journal, number
        weakref.finalize(self, journal.add, "free", number)

    def rewind(self, n: int) -> None:
        super().rewind(n)  # type: ignore[misc]
        if n:
            self.journal.add("rewind", self.number, n)

    def snapshot(self, whole: bool = False) -> Snapshot:
        return self.numbered(super().snapshot(whole), "snapshot", whole)  # type: ignore[misc]

    def numbered(self, snapshot: Snapshot, kind: str, *values: Any) -> Snapshot:
        """A snapshot for this cache that the others make by the change `kind`; as it is if it has no rows."""
        if not snapshot.arrays:
            return snapshot
        numbered = self.journal.numbered(snapshot)
        self.journal.add(kind, self.number, *values, numbered.number)
        return numbered

    def restore(self, snapshot: Snapshot) -> None:
        if snapshot.arrays and not isinstance(snapshot, NumberedSnapshot):
            raise ValueError("caches from elsewhere cannot be restored in a model of several ranks")
        super().restore(snapshot)  # type: ignore[misc]
        self.journal.add("restore", self.number, number_of(snapshot), snapshot.offset)


def number_of(snapshot: Snapshot) -> int:
    """The number of a snapshot; 0 for one without rows."""
    return getattr(snapshot, "number", 0)


class RecordedKVCache(Recorded, KVCache):
    """A global layer's."""


class RecordedRotatingKVCache(Recorded, RotatingKVCache):
    """A local layer's."""

    def undo(self, n: int) -> bool:
        is_done = super().undo(n)
        if n and is_done:
            self.journal.add("undo", self.number, n)
        return is_done


class LedModel(FusedModel):
    """The inference form of rank 0."""

    def __init__(self, model: Any, previous: FusedModel | None = None) -> None:
        if previous is not None:
            raise ValueError("the weights of a model of several ranks cannot change: load it again")
        super().__init__(model)
        self.ranks: Ranks = model.ranks
        self.journal = Journal()

    def together(self, rows: Sequence[Row]) -> list[mx.array]:
        found = super().together([(ids, self._own(cache, ids)) for ids, cache in self._tell_step(rows)])
        self.ranks.queued(*found)
        return found

    def prefill(self, ids: mx.array, cache: Sequence[Cache], whole_length: int, pause: Pause | None = None) -> mx.array:
        if self.pipeline is not None:
            return self._prefill_in_parts(self.pipeline, ids, cache, whole_length, pause)
        self._tell("prefill", number_of_caches(cache), whole_length, pause is not None, ids.tolist())
        hidden = super().prefill(ids, cache, whole_length, pause and self._told(pause))
        self.ranks.queued(hidden)
        return hidden

    def _prefill_in_parts(
        self, pipeline: Pipeline, ids: mx.array, cache: Sequence[Cache], whole_length: int, pause: Pause | None
    ) -> mx.array:
        """As `prefill`, in parts of the chunk: while rank 0 computes one, the ranks before it compute the next."""
        parts = mx.split(ids, list(range(PART, ids.shape[1], PART)), axis=1)

        def tell(part: mx.array) -> Sequence[Cache]:
            self._tell("prefill", number_of_caches(cache), whole_length, False, part.tolist())
            return pipeline.own_caches(cache, part)

        def check(start: int, layers: int, x: mx.array) -> None:
            if pause is not None:
                pause((start + layers) // len(parts), x)

        own = tell(parts[0])
        for i, part in enumerate(parts):
            following, start = parts[i + 1 : i + 2], i * len(cache) + pipeline.stage.own.start
            for ahead in following:
                tell(ahead)
            try:
                hidden = super().prefill(part, own, whole_length, partial(check, start))
                self.ranks.queued(hidden)
                for _ in following:
                    check((i + 1) * len(cache), 0, hidden)
            except BaseException:
                for ahead in following:
                    self.embed(ahead)  # what the others send of it
                raise
        return hidden

    def make_cache(self, kv: KVQuantization | int | None = None) -> list[Cache]:
        kv = KVQuantization.coerce(kv, self.config)
        length, caches = self.config.max_position_embeddings, list[Any]()
        for layer in self.config.layers:
            stored = kv and kv.of_layer(layer.window)
            caches.append(
                RecordedKVCache(length, stored)
                if layer.window is None
                else RecordedRotatingKVCache(layer.window, kv=stored)
            )
        if self.pipeline is not None:
            for cache in self.pipeline.of_others(caches):
                cache.rows = NoRows()
        numbers = [next(self.journal.numbers) for _ in caches]
        self.journal.add("caches", numbers, kv and dataclasses.asdict(kv))
        for cache, number in zip(caches, numbers, strict=True):
            cache.record(self.journal, number)
        return caches

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        """Lets the other ranks do something that is no call of the model. Returns the answers of ranks 1, 2, …"""
        self.ranks.in_order()
        self.ranks.tell({"ask": [what, *arguments], "changes": self.journal.take()})
        return self.ranks.gather(None)[1:]

    def _tell(self, call: str, *arguments: Any) -> None:
        self.ranks.in_order()
        self.ranks.tell({"call": [call, *arguments], "changes": self.journal.take()}, is_work=True)

    def _tell_step(self, rows: Sequence[Row]) -> list[Row]:
        """Tells a step. Returns its rows, whose ids the other ranks get as they are computed."""
        self._tell("step", [(number_of_caches(cache), *ids.shape) for ids, cache in rows])
        return shared_ids(self.ranks, [ids for ids, _ in rows], [cache for _, cache in rows])

    def _own(self, cache: Sequence[Cache], ids: mx.array) -> Sequence[Cache]:
        """The caches of the layers of rank 0. Those of other layers in a pipeline count the new ids."""
        return cache if self.pipeline is None else self.pipeline.own_caches(cache, ids)

    def _told(self, pause: Pause) -> Pause:
        """The others go on after each layer, or stop, as this pause does."""

        def told(layers: int, x: mx.array) -> None:
            try:
                pause(layers, x)
            except BaseException:
                self.ranks.tell({"stop": True}, is_work=True)
                raise
            self.ranks.tell({"go": True}, is_work=True)

        return told


def shared_ids(ranks: Ranks, ids: Sequence[mx.array], caches: Sequence[Sequence[Cache]]) -> list[Row]:
    """Rows with the ids of rank 0: the sum of its ids [B, L] and of the zeros of the others."""
    total = ranks.total(mx.concatenate([part.reshape(-1).astype(mx.int32) for part in ids]))
    ends = list(itertools.accumulate(part.size for part in ids))[:-1]
    parts = mx.split(total, ends) if ends else [total]
    return [(part.reshape(old.shape), cache) for part, old, cache in zip(parts, ids, caches, strict=True)]


def spread(model: Any, ranks: Ranks, part: Share | Stage | None = None) -> None:
    """Makes a causal language model, whose weights are `part`, compute as one of `ranks`. None is some heads."""
    model.part = part = part or Share(ranks.rank, ranks.size)
    if isinstance(part, Share):
        divided = part.divided(model.config)
        for block in model.layers:
            heads, key_heads = divided["num_attention_heads"], divided["num_key_value_heads"]
            block.self_attn.spec = dataclasses.replace(block.self_attn.spec, heads=heads, key_heads=key_heads)
            block.total = ranks.total
    else:
        keep_stage(model, part)
        model.pipeline = Pipeline(part, ranks, model)
    model.ranks = ranks
    if ranks.rank and not model.config.tie_word_embeddings:
        del model.lm_head  # rank 0 computes the logits


def own_config(model: Any) -> Exaone4Config:
    """The config with the sizes that this process has: of several ranks, those of this one's part."""
    return model.config if model.part is None else model.config.replace(**model.part.divided(model.config))


def number_of_caches(cache: Sequence[Any]) -> int:
    """The number of the first layer's cache, which stands for all of them."""
    if not isinstance(cache[0], Recorded):
        raise ValueError("a model of several ranks takes the caches of its own make_cache()")
    return cache[0].number
