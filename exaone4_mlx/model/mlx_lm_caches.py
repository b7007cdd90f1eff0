"""mlx-lm's caches for our layers, and our caches for mlx-lm's tools.

Notes:
- mlx-lm is imported when one of its tools asks for one of its caches.
- mlx-lm's `kv_bits` quantizes the caches of global layers. Those of local layers stay in full precision, as with `kv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .config import Exaone4Config
from .kv import KVBuffer, QuantizedKV, Stored


class NeighbourCache:
    """A cache of mlx-lm, with the calls of ours that a layer needs."""

    def __init__(self, cache: Any, window: int | None) -> None:
        self._cache, self._window = cache, window

    @property
    def offset(self) -> int | mx.array:
        """Tokens seen, of all rows or of each row [B]."""
        return self._cache.offset

    def mask(self, length: int) -> mx.array | str | None:
        return self._cache.make_mask(length, return_array=False, window_size=self._window)

    def update(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """As `KVCache.update`."""
        stored: Any = self._cache.update_and_fetch(keys, values)
        if isinstance(stored[0], mx.array):
            return stored
        settings = self._cache.group_size, self._cache.bits
        return QuantizedKV(*(*stored[0], *settings)), QuantizedKV(*(*stored[1], *settings))


class NotSaved:
    """A part of a state that mlx-lm refuses to save, with this text."""

    def __repr__(self) -> str:
        return "quantized caches of exaone4_mlx (PromptCache.save saves them)"


class ForMlxLm:
    """What mlx-lm's tools call on a cache beyond its protocol, with results of mlx-lm's kinds."""

    offset: int
    rows: KVBuffer
    rewind: Callable[[int], None]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def trim(self, n: int) -> int:
        """mlx-lm's name for `rewind`; returns `n`."""
        self.rewind(n)
        return n

    def to_mlx_lm(self) -> Any:
        """mlx-lm's `KVCache` or `RotatingKVCache` with the same tokens. Raises ValueError if this one is quantized."""
        from mlx_lm.models import cache as theirs

        if self.rows.kv is not None:
            raise ValueError("mlx-lm's tools take caches in full precision: model.make_cache() without kv")
        window = getattr(self, "window", None)
        made: Any = theirs.KVCache() if window is None else theirs.RotatingKVCache(window)  # type: ignore[no-untyped-call]
        stop, size = getattr(self, "stop", self.offset), self.size()
        start = max(0, stop - size)
        if size:
            # A row that no later token attends to may be missing here. There, a full cache has all rows of the window.
            missing = [(0, 0), (0, 0), (size - (stop - start), 0), (0, 0)]
            made.keys, made.values = (mx.pad(part, missing) for part in self.rows.views(start, stop))
        made.offset = self.offset
        if window is not None:
            made._idx = size
        return made

    def size(self) -> int:
        """The rows that the next token may attend to, itself not included."""
        return min(self.offset, getattr(self, "window", self.offset))

    @property
    def state(self) -> Any:
        """What mlx-lm evaluates and saves, as its own cache of this kind has it. It cannot save quantized rows."""
        return (*self.rows.buffers, NotSaved()) if self.rows.kv is not None else self.to_mlx_lm().state

    def empty(self) -> bool:
        return self.offset == 0

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:
        """One cache for a batch of texts."""
        made = [cache.to_mlx_lm() if isinstance(cache, ForMlxLm) else cache for cache in caches]
        return made[0].merge(made)


def usable_caches(caches: Sequence[Any] | None, config: Exaone4Config) -> Sequence[Any] | None:
    """Caches for the layers of a model: ours as they are, mlx-lm's as `NeighbourCache`; others raise ValueError."""
    if caches is None or len(caches) != len(config.layers) or all(hasattr(cache, "mask") for cache in caches):
        return caches
    usable: list[Any] = []
    for number, (cache, layer) in enumerate(zip(caches, config.layers, strict=True)):
        if hasattr(cache, "mask"):
            usable.append(cache)
        elif hasattr(cache, "update_and_fetch") and hasattr(cache, "make_mask"):
            if isinstance(cache.offset, mx.array) and config.rope_parameters.depends_on_length:
                kind = config.rope_parameters.rope_type
                raise ValueError(f"RoPE of type {kind!r} depends on the length of a text, so mlx-lm cannot batch texts")
            usable.append(NeighbourCache(cache, layer.window))
        else:
            raise ValueError(
                f"cache[{number}] is a {type(cache).__name__}, which a layer of attention cannot use; "
                "take the caches of model.make_cache() or of mlx-lm's make_prompt_cache(model)"
            )
    return usable
