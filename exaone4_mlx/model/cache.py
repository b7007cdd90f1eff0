"""What one layer remembers of the tokens before, and the mask that goes with it.

A cache answers four questions: `offset`, `update(keys, values)`, `mask(length)` and `rewind(n)`; and it can
be taken back further by `snapshot()` and `restore(snapshot)`.

What is peculiar here:
- `RotatingKVCache` is no ring. It is a straight buffer with some slack: rows are appended in place, the
  last `window` of them are attended as one slice, and when the buffer is full the rows still needed move
  to its front. Rewinding is then arithmetic, also past the window.
- `Rows` alone knows how keys and values are stored, quantized or not. What was stored is what is attended, the
  newest rows included, so that a prompt is the same in whatever pieces it comes.
- What `update` returns are views. They must not outlive the step: a live view makes the next write copy
  the whole buffer.
- A snapshot of a global layer is a number: its rows stay where they are. Only a local layer's are copied.

Shapes: B batch, L new tokens, S attended tokens, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .config import Exaone4Config

BUCKET = 256  # buffers grow in multiples of this many rows
DRAFT_WINDOW = 4096  # tokens that a draft model sees, in every layer
DRAFT_STEP_SIZE = 512  # and reads at a time
KV_BITS = (8, 4)
KV_GROUP_SIZES = (64, 32, 128)  # the first that divides head_dim is taken
GROWTH = 1.5  # and by this factor, so that the copies made while growing stay in proportion
ALL = slice(None)


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
class KVQuantization:
    """In how many bits caches hold keys and values: 8 or 4, or None for those that stay as they come.

    Each `group_size` numbers of a head share a scale and a bias, in the dtype of the activations. `layers` is "all" or
    "global". Make it with `read`, which checks.
    """

    key_bits: int | None
    value_bits: int | None
    group_size: int
    layers: str = "all"

    @classmethod
    def read(
        cls,
        config: Exaone4Config,
        kv_bits: int | None = None,
        kv_bits_keys: int | None = None,
        kv_bits_values: int | None = None,
        kv_group_size: int | None = None,
        kv_layers: str | None = None,
    ) -> KVQuantization | None:
        """What options say for a model; None where nothing is to be quantized.

        `kv_bits` is for keys and values, the two after it for one of them. The group size is the larger of 64 and 32
        that divides head_dim, unless given. `kv_layers` is "global" unless given: those hold what a long context
        takes, and the local ones, which are most, would cost most of the accuracy. Raises ValueError for what cannot
        be.
        """
        for name, bits in (("kv_bits", kv_bits), ("kv_bits_keys", kv_bits_keys), ("kv_bits_values", kv_bits_values)):
            if bits is not None and (type(bits) is not int or bits not in KV_BITS):
                raise ValueError(f"{name} must be 8 or 4, not {bits!r}")
        keys = kv_bits if kv_bits_keys is None else kv_bits_keys
        values = kv_bits if kv_bits_values is None else kv_bits_values
        if keys is None and values is None:
            for name, given in (("kv_group_size", kv_group_size), ("kv_layers", kv_layers)):
                if given is not None:
                    raise ValueError(f"{name} {given!r} says how to quantize the cache, but no kv_bits say to")
            return None
        if kv_layers not in (None, "all", "global"):
            raise ValueError(f"kv_layers must be 'all' or 'global', not {kv_layers!r}")
        head_dim = config.head_dim
        fitting = [size for size in KV_GROUP_SIZES if head_dim % size == 0]
        if not fitting:
            raise ValueError(f"head_dim {head_dim} is no multiple of 32: such a cache cannot be quantized")
        if kv_group_size is not None and (type(kv_group_size) is not int or kv_group_size not in fitting):
            raise ValueError(
                f"kv_group_size must be {' or '.join(map(str, sorted(fitting)))} with head_dim {head_dim}, "
                f"not {kv_group_size!r}"
            )
        windows = {layer.window for layer in config.layers}
        if None not in windows and kv_layers != "all":
            raise ValueError("this model has no global layers: say kv_layers 'all'")
        layers = "all" if windows == {None} else kv_layers or "global"  # which is the same, where all are global
        return cls(keys, values, kv_group_size or fitting[0], layers)

    def __str__(self) -> str:
        keys, values = (f"{bits} bits" if bits else "unquantized" for bits in (self.key_bits, self.value_bits))
        which = "cache" if self.layers == "all" else "cache of global layers"
        return f"{which}: keys {keys}, values {values}, groups of {self.group_size}"

    def of_layer(self, window: int | None) -> KVQuantization | None:
        """The same, or None where a layer of this window is left as it is."""
        return None if self.layers == "global" and window is not None else self

    def row_bytes(self, head_dim: int, dtype_size: int) -> int:
        """Bytes of one head's key and value of one token; `dtype_size` is the activations', in bytes."""

        def stored(bits: int | None) -> int:
            if bits is None:
                return head_dim * dtype_size
            return head_dim * bits // 8 + 2 * dtype_size * (head_dim // self.group_size)

        return stored(self.key_bits) + stored(self.value_bits)


@dataclass(frozen=True)
class Snapshot:
    """What a cache held after `offset` tokens: its last rows as they are stored, or none where they are shared.

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


@dataclass(frozen=True)
class Packed:
    """Quantized keys or values [B, K, S, D], as they are stored."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    @classmethod
    def of(cls, x: mx.array, group_size: int, bits: int) -> Packed:
        return cls(*mx.quantize(x, group_size, bits), group_size, bits)

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.weight, self.scales, self.biases

    def unpacked(self) -> mx.array:
        """The numbers that it stands for, [B, K, S, D], in the dtype that they had."""
        return mx.dequantize(*self.parts, self.group_size, self.bits)

    def product(self, x: mx.array, transposed: bool) -> mx.array:
        """x [..., D] @ these.T, or with `transposed` False x [..., S] @ these, each for its own head."""
        return mx.quantized_matmul(x, *self.parts, transpose=transposed, group_size=self.group_size, bits=self.bits)


Stored = mx.array | Packed


class Rows:
    """Keys and values [B, K, rows, D] of consecutive tokens, in buffers that may be longer than what is used.

    Unquantized they have one buffer each, quantized three: numbers, scales and biases, [B, K, rows, …] all of them.
    What is written is in the `parts` that these buffers take.
    """

    def __init__(self, kv: KVQuantization | None = None) -> None:
        self.buffers: list[mx.array] = []  # none before the first rows
        self.capacity = 0
        self.kv = kv
        self.bits = (None, None) if kv is None else (kv.key_bits, kv.value_bits)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def parts(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        """Keys and values [B, K, L, D] as they are stored."""
        if self.kv is None:
            return keys, values
        pairs = zip((keys, values), self.bits, strict=True)
        packed = [(x,) if bits is None else Packed.of(x, self.kv.group_size, bits).parts for x, bits in pairs]
        return tuple(part for parts in packed for part in parts)

    def layout(self, head_dim: int) -> dict[str, tuple[int, mx.DtypeCategory]]:
        """The buffers by name: their last dimension, and what their numbers are."""
        found: dict[str, tuple[int, mx.DtypeCategory]] = {}
        for name, bits in zip(("keys", "values"), self.bits, strict=True):
            if self.kv is None or bits is None:
                found[name] = head_dim, mx.floating
            else:
                groups = head_dim // self.kv.group_size
                found[name] = head_dim * bits // 32, mx.integer
                found |= {f"{name} {kind}": (groups, mx.floating) for kind in ("scales", "biases")}
        return found

    @property
    def names(self) -> list[str]:
        """Of the buffers, in their order."""
        return list(self.layout(0))

    def resize(self, capacity: int, start: int, stop: int, parts: tuple[mx.array, ...]) -> None:
        """Moves the rows start:stop to the front of fresh buffers of `capacity` rows, like `parts`."""
        fresh = [mx.zeros((*part.shape[:2], capacity, part.shape[3]), part.dtype) for part in parts]
        if stop > start:
            for new, old in zip(fresh, self.buffers, strict=True):
                new[:, :, : stop - start] = old[:, :, start:stop]
        self.buffers, self.capacity = fresh, capacity

    def write(self, start: int, parts: tuple[mx.array, ...]) -> None:
        stop = start + parts[0].shape[2]
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer[:, :, start:stop] = part

    def append(self, start: int, stop: int, keys: mx.array, values: mx.array, since: int) -> tuple[Stored, Stored]:
        """Writes the rows start:stop and returns the rows since:stop, keys and values [B, K, stop - since, D]."""
        if self.kv is None:  # without a loop: this is done for every layer of every token
            all_keys, all_values = self.buffers
            rows = ALL, ALL, slice(start, stop)
            all_keys[rows] = keys
            all_values[rows] = values
            rows = ALL, ALL, slice(since, stop)
            return all_keys[rows], all_values[rows]
        self.write(start, self.parts(keys, values))
        views, group_size = iter(self.views(since, stop)), self.kv.group_size
        stored_keys, stored_values = (
            next(views) if bits is None else Packed(next(views), next(views), next(views), group_size, bits)
            for bits in self.bits
        )
        return stored_keys, stored_values

    def views(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """The parts of the rows start:stop."""
        return tuple(buffer[:, :, start:stop] for buffer in self.buffers)

    def copy(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """The same in buffers of their own; none where there are no rows."""
        if start == stop:
            return ()
        rows = mx.arange(start, stop)  # a gather copies; a slice, or assigning all of one, would share the buffer
        return tuple(mx.take(buffer, rows, axis=2) for buffer in self.buffers)

    def fill(self, parts: tuple[mx.array, ...], limit: int | None) -> None:
        """Takes copies of `parts` as the first rows. Buffers grow as in `grown_capacity`."""
        if parts:
            if parts[0].shape[2] > self.capacity:
                self.resize(grown_capacity(parts[0].shape[2], 0, limit), 0, 0, parts)
            self.write(0, parts)


def grown_capacity(needed: int, current: int, limit: int | None) -> int:
    """Rows to allocate when `needed` no longer fit into `current`: a whole bucket, and never `limit` in vain."""
    wanted = max(needed, int(current * GROWTH))
    wanted = -(-wanted // BUCKET) * BUCKET
    return wanted if limit is None else max(needed, min(wanted, limit))


class KVCache:
    """Everything a global layer has seen.

    `max_length` (tokens) is the length beyond which the buffer need not grow in advance.
    """

    def __init__(self, max_length: int | None = None, kv: KVQuantization | None = None) -> None:
        self.max_length = max_length
        self.offset = 0  # tokens seen
        self.rows = Rows(kv)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Appends [B, K, L, D] and returns what the new tokens attend to, [B, K, S, D]."""
        stop = self.offset + keys.shape[2]
        if stop > self.rows.capacity:
            capacity = grown_capacity(stop, self.rows.capacity, self.max_length)
            self.rows.resize(capacity, 0, self.offset, self.rows.parts(keys, values))
        attended = self.rows.append(self.offset, stop, keys, values, 0)
        self.offset = stop
        return attended

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
        return Snapshot(self.offset, self.rows.views(0, self.offset) if whole else ())

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
        return self.rows.buffers

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
        self.rows = Rows(kv)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Appends [B, K, L, D] and returns what the new tokens attend to, [B, K, S, D] with S < window + L."""
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
        """Moves the newest `kept` rows to the front of buffers of `capacity` rows, which more of these will fill."""
        self.rows.resize(capacity, self.stop - kept, self.stop, self.rows.parts(keys, values))
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
        return self.rows.buffers

    def is_trimmable(self) -> bool:
        return self.stop == self.offset or self.rewind_capacity > 0

    def trim(self, n: int) -> int:
        """mlx-lm's name for `rewind`; returns `n`."""
        self.rewind(n)
        return n


Cache = KVCache | RotatingKVCache


def make_caches(
    windows: Sequence[int | None], max_length: int | None = None, kv: KVQuantization | None = None
) -> list[Cache]:
    """A fresh cache for each layer, given its window, or None for a global one."""
    if not isinstance(kv, (KVQuantization, type(None))):
        raise ValueError(f"kv must be a KVQuantization (KVQuantization.read makes it), not {kv!r}")
    return [
        KVCache(max_length, kv and kv.of_layer(window))
        if window is None
        else RotatingKVCache(window, kv=kv and kv.of_layer(window))
        for window in windows
    ]


def _check_rewind(n: int, rewindable: int, offset: int) -> None:
    if not 0 <= n <= rewindable:
        raise ValueError(
            f"cannot rewind {n} tokens: this cache has seen {offset} and can go back {rewindable}; "
            "process the prompt again with a new cache"
        )
