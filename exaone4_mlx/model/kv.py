"""How caches store keys and values: in full precision, or quantized to 8 or 4 bits.

Notes:
- Attention reads what is stored, the newest rows included. So the result does not depend on how a prompt is split into
  chunks.
- The arrays that `KVBuffer.append` returns are views. They must not outlive the step: while a view is alive, the next
  write copies the whole buffer.

Shapes: B batch, L new tokens, S attended tokens, K key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from .config import Exaone4Config

KV_BITS = (8, 4)
KV_GROUP_SIZES = (64, 32, 128)  # the default is the first that divides head_dim
KV_LAYERS = ("all", "global")
BUCKET = 256  # the capacity of a buffer is a multiple of this many rows
GROWTH = 1.5  # a full buffer grows by this factor, so that the total cost of copies stays linear
ALL = slice(None)


@dataclass(frozen=True)
class KVQuantization:
    """How caches are quantized.

    `key_bits` and `value_bits` are 8, 4, or None for full precision; one of them must be given. `group_size` numbers of
    a head share a scale and a bias, which have the dtype of the activations; None selects the larger of 64 and 32 that
    divides head_dim. `layers` is "all" or "global"; None selects "global". Global layers hold most of the bytes of a
    long context, and quantizing the local layers, which are three times as many, would cost most of the accuracy.
    Raises ValueError for other values.
    """

    key_bits: int | None = None
    value_bits: int | None = None
    group_size: int | None = None
    layers: str | None = None

    def __post_init__(self) -> None:
        for name, bits in (("key_bits", self.key_bits), ("value_bits", self.value_bits)):
            _check_bits(name, bits)
        if self.key_bits is None and self.value_bits is None:
            raise ValueError("KVQuantization needs key_bits or value_bits")
        if self.layers not in (None, *KV_LAYERS):
            raise ValueError(f"kv_layers must be 'all' or 'global', not {self.layers!r}")

    @classmethod
    def coerce(cls, kv: KVQuantization | int | None, config: Exaone4Config) -> KVQuantization | None:
        """The quantization that the option `kv` asks for, with all fields set; None for full precision.

        `kv` is None, 8 or 4 (bits of keys and values), or a KVQuantization. The function is idempotent. Raises
        ValueError for any other value, and for a quantization that this config does not allow.
        """
        if kv is None:
            return None
        if not isinstance(kv, cls):
            if type(kv) is not int or kv not in KV_BITS:
                raise ValueError(f"kv must be 8, 4 or a KVQuantization, not {kv!r}")
            kv = cls(kv, kv)
        sizes = [size for size in KV_GROUP_SIZES if config.head_dim % size == 0]
        if not sizes:
            raise ValueError(f"head_dim {config.head_dim} is not a multiple of 32: its cache cannot be quantized")
        if kv.group_size is not None and (type(kv.group_size) is not int or kv.group_size not in sizes):
            raise ValueError(
                f"kv_group_size must be {' or '.join(map(str, sorted(sizes)))} with head_dim {config.head_dim}, "
                f"not {kv.group_size!r}"
            )
        windows = {layer.window for layer in config.layers}
        if None not in windows and kv.layers != "all":
            raise ValueError("this model has no global layers: set kv_layers to 'all'")
        # Where all layers are global, both choices mean the same, and both are stored as "all".
        layers = "all" if windows == {None} else kv.layers or "global"
        return replace(kv, group_size=kv.group_size or sizes[0], layers=layers)

    @classmethod
    def read(cls, config: Exaone4Config, *values: Any, **flags: Any) -> KVQuantization | None:
        """`coerce` of `from_flags`, which has the arguments after `config`."""
        return cls.coerce(cls.from_flags(*values, **flags), config)

    @classmethod
    def from_flags(
        cls,
        kv_bits: int | None = None,
        kv_bits_keys: int | None = None,
        kv_bits_values: int | None = None,
        kv_group_size: int | None = None,
        kv_layers: str | None = None,
    ) -> KVQuantization | None:
        """The quantization that the flags of the command line ask for; None for full precision.

        `kv_bits` is for keys and values, the next two are for one of them. Raises ValueError for other values.
        """
        for name, bits in (("kv_bits", kv_bits), ("kv_bits_keys", kv_bits_keys), ("kv_bits_values", kv_bits_values)):
            _check_bits(name, bits)
        keys = kv_bits if kv_bits_keys is None else kv_bits_keys
        values = kv_bits if kv_bits_values is None else kv_bits_values
        if keys is None and values is None:
            for name, given in (("kv_group_size", kv_group_size), ("kv_layers", kv_layers)):
                if given is not None:
                    raise ValueError(f"{name} {given!r} has no effect without kv_bits")
            return None
        return cls(keys, values, kv_group_size, kv_layers)

    def __str__(self) -> str:
        keys, values = (f"{bits} bits" if bits else "unquantized" for bits in (self.key_bits, self.value_bits))
        which = "cache" if self.layers == "all" else "cache of global layers"
        return f"{which}: keys {keys}, values {values}, groups of {self.group_size}"

    def of_layer(self, window: int | None) -> KVQuantization | None:
        """The quantization of a layer with this window; None if its cache stays in full precision."""
        return self if self.layers == "all" or window is None else None

    def row_bytes(self, head_dim: int, dtype_size: int) -> int:
        """Bytes of the key and the value of one token in one head; activations have `dtype_size` bytes."""

        def stored(bits: int | None) -> int:
            if bits is None:
                return head_dim * dtype_size
            assert self.group_size is not None
            return head_dim * bits // 8 + 2 * dtype_size * (head_dim // self.group_size)

        return stored(self.key_bits) + stored(self.value_bits)


def _check_bits(name: str, bits: int | None) -> None:
    if bits is not None and (type(bits) is not int or bits not in KV_BITS):
        raise ValueError(f"{name} must be 8 or 4, not {bits!r}")


@dataclass(frozen=True)
class QuantizedKV:
    """Quantized keys or values [B, K, S, D] as they are stored."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    @classmethod
    def of(cls, x: mx.array, group_size: int, bits: int) -> QuantizedKV:
        return cls(*mx.quantize(x, group_size, bits), group_size, bits)

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.weight, self.scales, self.biases

    def dequantized(self) -> mx.array:
        """[B, K, S, D] in the dtype of the activations."""
        return mx.dequantize(*self.parts, self.group_size, self.bits)

    def product(self, x: mx.array, transposed: bool) -> mx.array:
        """For each head: x [..., D] @ self.T, or x [..., S] @ self if not `transposed`."""
        return mx.quantized_matmul(x, *self.parts, transpose=transposed, group_size=self.group_size, bits=self.bits)


Stored = mx.array | QuantizedKV


class KVBuffer:
    """Keys and values [B, K, rows, D] of consecutive tokens, in buffers that may be longer than the rows in use.

    In full precision keys and values have one buffer each. Quantized, they have three: weights, scales and biases, each
    [B, K, rows, …]. `parts` are the arrays that are written into these buffers.
    """

    def __init__(self, kv: KVQuantization | None = None) -> None:
        self.buffers: list[mx.array] = []  # empty before the first rows
        self.capacity = 0
        self.kv = kv
        self.bits = (None, None) if kv is None else (kv.key_bits, kv.value_bits)
        self.group_size = KV_GROUP_SIZES[0] if kv is None or kv.group_size is None else kv.group_size

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def parts(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        """Keys and values [B, K, L, D] as they are stored."""
        if self.kv is None:
            return keys, values
        pairs = zip((keys, values), self.bits, strict=True)
        stored = [(x,) if bits is None else QuantizedKV.of(x, self.group_size, bits).parts for x, bits in pairs]
        return tuple(part for parts in stored for part in parts)

    def layout(self, head_dim: int) -> dict[str, tuple[int, mx.DtypeCategory]]:
        """The name of each buffer, in order: (its last dimension, the kind of its numbers)."""
        found: dict[str, tuple[int, mx.DtypeCategory]] = {}
        for name, bits in zip(("keys", "values"), self.bits, strict=True):
            if bits is None:
                found[name] = head_dim, mx.floating
            else:
                groups = head_dim // self.group_size
                found[name] = head_dim * bits // 32, mx.integer
                found |= {f"{name} {kind}": (groups, mx.floating) for kind in ("scales", "biases")}
        return found

    def resize(self, capacity: int, start: int, stop: int, parts: tuple[mx.array, ...]) -> None:
        """Moves the rows start:stop to the front of new buffers of `capacity` rows, which are like `parts`."""
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
        if self.kv is None:  # no loop: this runs for every layer of every token
            all_keys, all_values = self.buffers
            rows = ALL, ALL, slice(start, stop)
            all_keys[rows] = keys
            all_values[rows] = values
            rows = ALL, ALL, slice(since, stop)
            return all_keys[rows], all_values[rows]
        self.write(start, self.parts(keys, values))
        views = iter(self.views(since, stop))
        stored_keys, stored_values = (
            next(views) if bits is None else QuantizedKV(next(views), next(views), next(views), self.group_size, bits)
            for bits in self.bits
        )
        return stored_keys, stored_values

    def views(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """The rows start:stop of each buffer."""
        return tuple(buffer[:, :, start:stop] for buffer in self.buffers)

    def copy(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """A copy of the rows start:stop of each buffer; empty if there are no rows."""
        if start == stop:
            return ()
        rows = mx.arange(start, stop)  # a gather copies; a slice would share the buffer
        return tuple(mx.take(buffer, rows, axis=2) for buffer in self.buffers)

    def fill(self, parts: tuple[mx.array, ...], limit: int | None) -> None:
        """Copies `parts` into the first rows. The buffers grow as `grown_capacity` says."""
        if parts:
            if parts[0].shape[2] > self.capacity:
                self.resize(grown_capacity(parts[0].shape[2], 0, limit), 0, 0, parts)
            self.write(0, parts)


def grown_capacity(needed: int, current: int, limit: int | None) -> int:
    """The new capacity in rows when `needed` rows exceed `current`: a multiple of BUCKET.

    It exceeds `limit` only if `needed` does.
    """
    wanted = max(needed, int(current * GROWTH))
    wanted = -(-wanted // BUCKET) * BUCKET
    return wanted if limit is None else max(needed, min(wanted, limit))
