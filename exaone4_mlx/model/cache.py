"""What a layer keeps of earlier tokens, and the attention mask for it.

A cache has `offset`, `update(keys, values)`, `mask(length)` and `rewind(n)`. `snapshot()` and `restore(snapshot)` go
back further.

Notes:
- `RotatingKVCache` is not a ring. It is a linear buffer with spare rows: rows are appended in place, attention reads
  the last `window` of them as one slice, and when the buffer is full, the rows that are still needed move to its front.
  So `rewind` is arithmetic, also after the window has moved.
- A snapshot of a global layer is a number, because its rows stay in place. Only local layers copy rows.
- `kv.py` knows how keys and values are stored.

Shapes: B batch, L new tokens, S attended tokens, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .config import Exaone4Config
from .kv import KVBuffer, KVQuantization, Stored, grown_capacity
from .mlx_lm_caches import ForMlxLm


def causal_mask(past: int, length: int, window: int | None = None) -> mx.array | str | None:
    """The mask of `length` new tokens that attend to `past` earlier rows and to themselves.

    None if every row is visible, "causal" if the kernel's own causal mask is enough, else booleans [L, past + L]: a
    query sees the last `window` rows, its own included.
    """
    if window is None or past + length <= window:
        return None if length == 1 else "causal"
    return visible(past, length, window)


def visible(past: int, length: int, window: int | None = None) -> mx.array:
    """The same mask, always as booleans [L, past + L]."""
    query = mx.arange(past, past + length)[:, None]
    key = mx.arange(past + length)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


@dataclass(frozen=True)
class Snapshot:
    """The state of a cache after `offset` tokens: copies of its last rows, or no arrays if the cache keeps the rows.

    The arrays are not evaluated. Evaluate them before the next step, because until then they hold the buffers.
    """

    offset: int
    arrays: tuple[mx.array, ...] = ()

    @property
    def rows(self) -> int:
        return self.arrays[0].shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class KVCache(ForMlxLm):
    """All tokens of a global layer. The buffer grows beyond `max_length` tokens only if there are more tokens."""

    def __init__(self, max_length: int | None = None, kv: KVQuantization | None = None) -> None:
        self.max_length = max_length
        self.offset = 0  # tokens seen
        self.rows = KVBuffer(kv)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Appends [B, K, L, D] and returns the keys and values that the new tokens attend to, [B, K, S, D]."""
        stop = self.offset + keys.shape[2]
        if stop > self.rows.capacity:
            capacity = grown_capacity(stop, self.rows.capacity, self.max_length)
            self.rows.resize(capacity, 0, self.offset, self.rows.parts(keys, values))
        attended = self.rows.append(self.offset, stop, keys, values, 0)
        self.offset = stop
        return attended

    def mask(self, length: int) -> mx.array | str | None:
        """The mask for the next `length` tokens. Call it before `update`."""
        return causal_mask(self.past, length)

    @property
    def past(self) -> int:
        """The number of earlier rows that the next tokens attend to."""
        return self.offset

    @property
    def rewindable(self) -> int:
        """The number of tokens that `rewind` can remove."""
        return self.offset

    def rewindable_from(self, snapshot: Snapshot) -> int:
        """The value of `rewindable` after `restore(snapshot)`."""
        return snapshot.offset

    def rewind(self, n: int) -> None:
        """Removes the last `n` tokens. Raises ValueError for more than `rewindable`."""
        _check_rewind(n, self.rewindable, self.offset)
        self.offset -= n

    def undo(self, n: int) -> bool:
        """As `RotatingKVCache.undo`. A global layer keeps all rows."""
        self.rewind(n)
        return True

    def snapshot(self, whole: bool = False) -> Snapshot:
        """The present state: only the offset, because rows are only appended. With `whole` also the rows, as views."""
        return Snapshot(self.offset, self.rows.views(0, self.offset) if whole else ())

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot of this cache, or to a whole snapshot of another cache.

        Raises ValueError for a snapshot without rows whose offset is larger than this cache's.
        """
        if snapshot.arrays:
            self.rows.fill(snapshot.arrays, self.max_length)
        elif snapshot.offset > self.offset:
            raise ValueError(f"cannot restore {snapshot.offset} tokens: this cache holds {self.offset}")
        self.offset = snapshot.offset

    @property
    def buffers(self) -> list[mx.array]:
        """The buffers, for evaluation; empty before the first token."""
        return self.rows.buffers

    def is_trimmable(self) -> bool:
        return True

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Any:
        """For mlx-lm's `kv_bits`: mlx-lm's `QuantizedKVCache` with the same tokens."""
        return self.to_mlx_lm().to_quantized(group_size, bits)


class RotatingKVCache(ForMlxLm):
    """The last tokens of a local layer: `window` of them, and `rewind_capacity` more for `rewind`.

    `slack` rows are appended before the buffer is compacted. An example with window 3, rewind_capacity 2 and slack 2:
    the buffer has 3 - 1 + 2 + 2 = 6 rows, and eight tokens are processed.

        tokens 0-5      0 1 2 3 4 5     full
        token 6         2 3 4 5 6 .     the last window - 1 + rewind_capacity = 4 rows move, then 6 is appended
        token 7         2 3 4 5 6 7     token 7 attends to the slice 5 6 7
        rewind(2)       2 3 4 5 . .     the next token, 6 again, attends to 4 5 6

    A prompt chunk that is longer than the buffer gets a longer buffer, which shrinks in the same step.
    """

    def __init__(
        self, window: int, rewind_capacity: int = 64, slack: int = 512, kv: KVQuantization | None = None
    ) -> None:
        if window < 1 or rewind_capacity < 0 or slack < 1:
            raise ValueError(
                f"window {window} and slack {slack} must be at least 1, rewind_capacity {rewind_capacity} 0"
            )
        self.window = window
        self.rewind_capacity = rewind_capacity
        self.max_rows = window - 1 + rewind_capacity + slack
        self.offset = 0  # tokens seen
        self.stop = 0  # rows used: the tokens offset - stop … offset - 1
        self.rows = KVBuffer(kv)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Appends [B, K, L, D] and returns the attended keys and values [B, K, S, D], S < window + L."""
        length = keys.shape[2]
        if self.stop + length > self.rows.capacity:
            full = self.stop + length > self.max_rows
            kept = min(self.stop, self.needed_rows) if full else self.stop
            self._move(kept, grown_capacity(kept + length, self.rows.capacity, self.max_rows), keys, values)
        attended = self.rows.append(self.stop, self.stop + length, keys, values, self.stop - self.past)
        self.stop += length
        self.offset += length
        if self.rows.capacity > self.max_rows:
            self._move(min(self.stop, self.needed_rows), self.max_rows, keys, values)
        return attended

    def _move(self, kept: int, capacity: int, keys: mx.array, values: mx.array) -> None:
        """Moves the newest `kept` rows to the front of buffers of `capacity` rows."""
        self.rows.resize(capacity, self.stop - kept, self.stop, self.rows.parts(keys, values))
        self.stop = kept

    @property
    def needed_rows(self) -> int:
        """The rows that every compaction keeps. With one row less, the longest rewind would lose a key."""
        return self.window - 1 + self.rewind_capacity

    def mask(self, length: int) -> mx.array | str | None:
        """The mask for the next `length` tokens. Call it before `update`."""
        return causal_mask(self.past, length, self.window)

    @property
    def past(self) -> int:
        """The number of earlier rows that the next tokens attend to."""
        return min(self.stop, self.window - 1)

    @property
    def rewindable(self) -> int:
        """The number of tokens that `rewind` can remove: all while the buffer holds all, else rewind_capacity.

        It is smaller after a rewind, and grows again with new tokens.
        """
        return self._rewindable(self.stop, self.offset)

    def rewindable_from(self, snapshot: Snapshot) -> int:
        """The value of `rewindable` after `restore(snapshot)`."""
        return self._rewindable(snapshot.rows, snapshot.offset)

    def _rewindable(self, rows: int, offset: int) -> int:
        return offset if rows == offset else min(self.rewind_capacity, rows - (self.window - 1))

    def rewind(self, n: int) -> None:
        """Removes the last `n` tokens. Raises ValueError for more than `rewindable`."""
        _check_rewind(n, self.rewindable, self.offset)
        self.stop -= n
        self.offset -= n

    def undo(self, n: int) -> bool:
        """Removes the `n` tokens of the last update; returns whether the buffer holds the window before them.

        It does after an update of at most `slack` tokens, and as long as the buffer holds all tokens.
        """
        if self.stop - n < min(self.offset - n, self.window - 1):
            return False
        self.stop -= n
        self.offset -= n
        return True

    def snapshot(self, whole: bool = False) -> Snapshot:
        """A copy of the rows that a compaction keeps, whatever `whole` is. It can be rewound as far as the cache."""
        return Snapshot(self.offset, self.rows.copy(self.stop - min(self.stop, self.needed_rows), self.stop))

    def restore(self, snapshot: Snapshot) -> None:
        """Takes the state of a snapshot of any cache with this window and rewind_capacity."""
        self.rows.fill(snapshot.arrays, self.max_rows)
        self.stop, self.offset = snapshot.rows, snapshot.offset

    @property
    def buffers(self) -> list[mx.array]:
        """The buffers, for evaluation; empty before the first token."""
        return self.rows.buffers

    def is_trimmable(self) -> bool:
        return self.stop == self.offset or self.rewind_capacity > 0


Cache = KVCache | RotatingKVCache


def make_caches(
    windows: Sequence[int | None], max_length: int | None = None, kv: KVQuantization | None = None
) -> list[Cache]:
    """A new cache for each layer, given its window, or None for a global layer. `kv` comes from `coerce`."""
    return [
        KVCache(max_length, kv and kv.of_layer(window))
        if window is None
        else RotatingKVCache(window, kv=kv and kv.of_layer(window))
        for window in windows
    ]


def new_caches(config: Exaone4Config, kv: KVQuantization | int | None = None) -> list[Cache]:
    """A new cache for each layer of a model; `kv` is 8, 4, a KVQuantization or None."""
    windows = [layer.window for layer in config.layers]
    return make_caches(windows, config.max_position_embeddings, KVQuantization.coerce(kv, config))


def _check_rewind(n: int, rewindable: int, offset: int) -> None:
    if not 0 <= n <= rewindable:
        raise ValueError(
            f"cannot rewind {n} tokens: this cache has processed {offset} and can remove {rewindable}; "
            "process the prompt again with a new cache"
        )
