"""What one layer remembers of the tokens before, and the mask that goes with it.

A cache answers four questions: `offset`, `update(keys, values)`, `mask(length)` and `rewind(n)`; and it can
be taken back further by `snapshot()` and `restore(snapshot)`.

What is peculiar here:
- `RotatingKVCache` is no ring. It is a straight buffer with some slack: rows are appended in place, the
  last `window` of them are attended as one slice, and when the buffer is full the rows still needed move
  to its front. Rewinding is then arithmetic, also past the window.
- `Rows` alone knows how keys and values are stored; a quantized storage would be a second such class.
- What `update` returns are views. They must not outlive the step: a live view makes the next write copy
  the whole buffer.
- A snapshot of a global layer is a number: its rows stay where they are. Only a local layer's are copied.

Shapes: B batch, L new tokens, S attended tokens, K key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

BUCKET = 256  # buffers grow in multiples of this many rows
GROWTH = 1.5  # and by this factor, so that the copies made while growing stay in proportion


def causal_mask(past: int, length: int, window: int | None = None) -> mx.array | str | None:
    """The mask of `length` new tokens that attend to `past` earlier rows and to themselves.

    Returns None where every row is seen, "causal" where the kernel's own causal mask says it all, and
    otherwise booleans [L, past + L]: a query sees the last `window` rows up to its own.
    """
    if window is None or past + length <= window:
        return None if length == 1 else "causal"
    return visible(past, length, window)


def visible(past: int, length: int, window: int | None = None) -> mx.array:
    """The same as booleans in any case, [L, past + L]."""
    query = mx.arange(past, past + length)[:, None]
    key = mx.arange(past + length)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


@dataclass(frozen=True)
class Snapshot:
    """What a cache held after `offset` tokens: its last rows, [B, K, rows, D], or none where they are shared.

    The arrays are not evaluated yet. Evaluate them before the next step: until then they hold the buffers.
    """

    offset: int
    arrays: tuple[mx.array, ...] = ()

    @property
    def rows(self) -> int:
        return self.arrays[0].shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class Rows:
    """Keys and values [B, K, rows, D] of consecutive tokens, in buffers that may be longer than what is used."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def capacity(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes

    @property
    def arrays(self) -> list[mx.array]:
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def resize(self, capacity: int, start: int, stop: int, keys: mx.array, values: mx.array) -> None:
        """Moves the rows start:stop to the front of fresh buffers of `capacity` rows, like `keys` and `values`."""

        def moved(old: mx.array | None, like: mx.array) -> mx.array:
            fresh = mx.zeros((*like.shape[:2], capacity, like.shape[3]), like.dtype)
            if old is not None and stop > start:
                fresh[:, :, : stop - start] = old[:, :, start:stop]
            return fresh

        self.keys, self.values = moved(self.keys, keys), moved(self.values, values)

    def write(self, start: int, keys: mx.array, values: mx.array) -> None:
        assert self.keys is not None and self.values is not None
        stop = start + keys.shape[2]
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values

    def read(self, start: int, stop: int) -> tuple[mx.array, mx.array]:
        """Keys and values [B, K, stop - start, D]."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, start:stop], self.values[:, :, start:stop]

    def copy(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """The same in buffers of their own; none where there are no rows."""
        if self.keys is None or self.values is None or start == stop:
            return ()
        rows = mx.arange(start, stop)  # a gather copies; a slice, or assigning all of one, would share the buffer
        return mx.take(self.keys, rows, axis=2), mx.take(self.values, rows, axis=2)

    def fill(self, arrays: tuple[mx.array, ...], limit: int | None) -> None:
        """Takes copies of `arrays` as the first rows. Buffers grow as in `grown_capacity`."""
        if arrays:
            if arrays[0].shape[2] > self.capacity:
                self.resize(grown_capacity(arrays[0].shape[2], 0, limit), 0, 0, *arrays)
            self.write(0, *arrays)


def grown_capacity(needed: int, current: int, limit: int | None) -> int:
    """Rows to allocate when `needed` no longer fit into `current`: a whole bucket, and never `limit` in vain."""
    wanted = max(needed, int(current * GROWTH))
    wanted = -(-wanted // BUCKET) * BUCKET
    return wanted if limit is None else max(needed, min(wanted, limit))


class KVCache:
    """Everything a global layer has seen.

    `max_length` (tokens) is the length beyond which the buffer need not grow in advance.
    """

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.offset = 0  # tokens seen
        self.rows = Rows()

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends [B, K, L, D] and returns what the new tokens attend to, [B, K, S, D]."""
        stop = self.offset + keys.shape[2]
        if stop > self.rows.capacity:
            capacity = grown_capacity(stop, self.rows.capacity, self.max_length)
            self.rows.resize(capacity, 0, self.offset, keys, values)
        self.rows.write(self.offset, keys, values)
        self.offset = stop
        return self.rows.read(0, stop)

    def mask(self, length: int) -> mx.array | str | None:
        """The mask for the next `length` tokens, asked before `update`."""
        return causal_mask(self.past, length)

    @property
    def past(self) -> int:
        """How many earlier rows the next tokens attend to."""
        return self.offset

    @property
    def rewindable(self) -> int:
        """How many of the last tokens can be forgotten."""
        return self.offset

    def rewindable_from(self, snapshot: Snapshot) -> int:
        """`rewindable` as it will be after `restore(snapshot)`."""
        return snapshot.offset

    def rewind(self, n: int) -> None:
        """Forgets the last `n` tokens. Raises ValueError for more than `rewindable`."""
        _check_rewind(n, self.rewindable, self.offset)
        self.offset -= n

    def snapshot(self, whole: bool = False) -> Snapshot:
        """The state now: the offset alone, since rows are only appended. With `whole` the rows too, as views."""
        return Snapshot(self.offset, self.rows.read(0, self.offset) if whole and self.offset else ())

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot of this cache, or to a whole one of another.

        Raises ValueError for an offset alone that lies ahead.
        """
        if snapshot.arrays:
            self.rows.fill(snapshot.arrays, self.max_length)
        elif snapshot.offset > self.offset:
            raise ValueError(f"cannot go on to token {snapshot.offset}: this cache holds {self.offset}")
        self.offset = snapshot.offset

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    @property
    def state(self) -> list[mx.array]:
        """The buffers, for evaluation; empty before the first token."""
        return self.rows.arrays

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """mlx-lm's name for `rewind`; returns `n`."""
        self.rewind(n)
        return n


class RotatingKVCache:
    """The last tokens that a local layer saw: `window` of them, and `rewind_capacity` more to go back.

    `slack` rows are appended before the buffer is compacted. After eight tokens with window 3,
    rewind_capacity 2 and slack 2, the buffer of 3 - 1 + 2 + 2 = 6 rows went through

        tokens 0-5      0 1 2 3 4 5     full
        token 6         2 3 4 5 6 .     the last window - 1 + rewind_capacity = 4 rows moved, then 6 appended
        token 7         2 3 4 5 6 7     token 7 attends to the slice 5 6 7
        rewind(2)       2 3 4 5 . .     the next token, 6 again, attends to 4 5 6

    A prompt chunk longer than the buffer is attended in a longer one, which shrinks in the same step.
    """

    def __init__(self, window: int, rewind_capacity: int = 64, slack: int = 512) -> None:
        if window < 1 or rewind_capacity < 0 or slack < 1:
            raise ValueError(
                f"window {window} and slack {slack} must be at least 1, rewind_capacity {rewind_capacity} 0"
            )
        self.window = window
        self.rewind_capacity = rewind_capacity
        self.max_rows = window - 1 + rewind_capacity + slack
        self.offset = 0  # tokens seen
        self.stop = 0  # rows used: the tokens offset - stop … offset - 1
        self.rows = Rows()

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends [B, K, L, D] and returns what the new tokens attend to, [B, K, S, D] with S < window + L."""
        length = keys.shape[2]
        past = self.past
        if self.stop + length > self.rows.capacity:
            full = self.stop + length > self.max_rows
            kept = min(self.stop, self.needed_rows) if full else self.stop
            self._move(kept, grown_capacity(kept + length, self.rows.capacity, self.max_rows), keys, values)
        self.rows.write(self.stop, keys, values)
        self.stop += length
        self.offset += length
        attended = self.rows.read(self.stop - past - length, self.stop)
        if self.rows.capacity > self.max_rows:
            self._move(min(self.stop, self.needed_rows), self.max_rows, keys, values)
        return attended

    def _move(self, kept: int, capacity: int, keys: mx.array, values: mx.array) -> None:
        """Moves the newest `kept` rows to the front of buffers of `capacity` rows."""
        self.rows.resize(capacity, self.stop - kept, self.stop, keys, values)
        self.stop = kept

    @property
    def needed_rows(self) -> int:
        """Rows that survive every compaction. One less, and a key is gone after the longest rewind."""
        return self.window - 1 + self.rewind_capacity

    def mask(self, length: int) -> mx.array | str | None:
        """The mask for the next `length` tokens, asked before `update`."""
        return causal_mask(self.past, length, self.window)

    @property
    def past(self) -> int:
        """How many earlier rows the next tokens attend to."""
        return min(self.stop, self.window - 1)

    @property
    def rewindable(self) -> int:
        """How many of the last tokens can be forgotten: all while none has left the buffer, else rewind_capacity.

        It is less right after a rewind, and fills up again with new tokens.
        """
        return self._rewindable(self.stop, self.offset)

    def rewindable_from(self, snapshot: Snapshot) -> int:
        """`rewindable` as it will be after `restore(snapshot)`."""
        return self._rewindable(snapshot.rows, snapshot.offset)

    def _rewindable(self, rows: int, offset: int) -> int:
        return offset if rows == offset else min(self.rewind_capacity, rows - (self.window - 1))

    def rewind(self, n: int) -> None:
        """Forgets the last `n` tokens. Raises ValueError for more than `rewindable`."""
        _check_rewind(n, self.rewindable, self.offset)
        self.stop -= n
        self.offset -= n

    def snapshot(self, whole: bool = False) -> Snapshot:
        """A copy of the rows that survive a compaction, `whole` or not; it can be rewound as far as the cache."""
        return Snapshot(self.offset, self.rows.copy(self.stop - min(self.stop, self.needed_rows), self.stop))

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back, or on, to a snapshot of a cache of this window and reserve."""
        self.rows.fill(snapshot.arrays, self.max_rows)
        self.stop, self.offset = snapshot.rows, snapshot.offset

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    @property
    def state(self) -> list[mx.array]:
        """The buffers, for evaluation; empty before the first token."""
        return self.rows.arrays

    def is_trimmable(self) -> bool:
        return self.stop == self.offset or self.rewind_capacity > 0

    def trim(self, n: int) -> int:
        """mlx-lm's name for `rewind`; returns `n`."""
        self.rewind(n)
        return n


Cache = KVCache | RotatingKVCache


def _check_rewind(n: int, rewindable: int, offset: int) -> None:
    if not 0 <= n <= rewindable:
        raise ValueError(
            f"cannot rewind {n} tokens: this cache has seen {offset} and can go back {rewindable}; "
            "process the prompt again with a new cache"
        )
