"""A piece of the tokens that a model has read, and its rows in the caches of all layers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from ..model.cache import Cache, KVCache, Snapshot
from ..model.led import Recorded, number_of

MAX_PIECE = 512  # tokens
TurnStarts = Set[int | None]  # the ids of the tokens that begin a turn


@dataclass(eq=False)
class PrefixEntry:
    """The rows of the tokens `ids` after the entry `parent`, which ends after `start` tokens.

    `layers` are the rows of each layer, None while only a file has them. Local layers have the last `local_rows` rows.
    """

    parent: str
    start: int
    ids: list[int]
    local_rows: int
    nbytes: int
    layers: tuple[Snapshot, ...] | None = None
    file_bytes: int = 0  # 0 without a file
    used: int = 0

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(f"{self.parent} {self.start} {self.ids}".encode()).hexdigest()[:40]

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)

    @property
    def span(self) -> Span:
        return self.start, self.stop

    @property
    def first(self) -> int:
        """The position of the first token whose rows local layers have."""
        return self.stop - self.local_rows


Span = Sequence[int]  # the positions of an entry's first token and of the token after its last
Chain = tuple[PrefixEntry, ...]  # an entry after its parents, the first one first


def usable_length(chain: Chain, length: int, window: int | None) -> int:
    """The largest number of tokens, at most `length`, after which the entries hold all that the next token attends to.

    `window` is that of the local layers, None if there are none.
    """
    for k in reversed(range(len(chain))):
        stop, first = min(length, chain[k].stop), chain[k].first
        if stop <= chain[k].start:
            continue
        for entry in reversed(chain[:k]):
            if first != entry.stop:
                break
            first = entry.first
        if window is None or first == 0 or stop - first >= window - 1:
            return stop
    return 0


def end_of_piece(ids: list[int], start: int, turn_start_ids: TurnStarts) -> int:
    """The end of the piece that begins at `start`: where a turn begins, or after MAX_PIECE tokens."""
    end = min(start + MAX_PIECE, len(ids))
    return next((i for i in range(start + 1, end) if ids[i] in turn_start_ids), end)


def _held_from(layer: Cache) -> int:
    """The position of the first token whose rows the cache of a layer holds."""
    return 0 if isinstance(layer, KVCache) else layer.offset - layer.stop


def local_rows_of(layers: Sequence[Cache], start: int, stop: int) -> int:
    """How many rows of the tokens start:stop every local layer holds; all if there is no local layer."""
    return max(0, stop - max(start, *map(_held_from, layers)))


def taken_rows(layer: Cache, start: int, stop: int) -> Snapshot:
    """A copy of the rows of the tokens start:stop that the cache of a layer holds."""
    held = _held_from(layer)
    taken = Snapshot(stop, layer.rows.copy(max(start, held) - held, max(stop, held) - held))
    return layer.numbered(taken, "take", start, stop) if isinstance(layer, Recorded) else taken


def joined_rows(layer: Cache, pieces: Sequence[Snapshot], spans: Sequence[Span], length: int) -> Snapshot:
    """The rows before position `length` that a layer keeps. `pieces` are its rows in entries of these spans."""
    missing = length if isinstance(layer, KVCache) else layer.needed_rows
    parts: list[tuple[mx.array, ...]] = []
    for snapshot, (begin, end) in zip(reversed(pieces), reversed(spans), strict=True):
        stop = snapshot.rows - max(0, end - length)
        start = max(0, stop - missing)
        if stop > start:
            parts.insert(0, tuple(array[:, :, start:stop] for array in snapshot.arrays))
            missing -= stop - start
        if missing == 0 or snapshot.rows < end - begin:
            break
    joined = Snapshot(length, tuple(mx.concatenate([*arrays], axis=2) for arrays in zip(*parts, strict=True)))
    if isinstance(layer, Recorded):
        return layer.numbered(joined, "join", [number_of(piece) for piece in pieces], spans, length)
    return joined
