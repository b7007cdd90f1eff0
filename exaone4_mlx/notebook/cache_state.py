"""What the cache of a layer holds after a number of tokens, computed from the rules of `RotatingKVCache`.

Notes:
- The tokens arrive one by one, as during decoding. No cache is filled.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.cache import RotatingKVCache
from ..model.config import Exaone4Config
from ..model.kv import grown_capacity
from ..model.network import Exaone4ForCausalLM
from .tokens import check_count


@dataclass(frozen=True)
class LayerCache:
    """What the cache of one layer holds after `tokens` tokens. Tokens count from 0.

    Tokens from `held_from` on are in the buffer of `capacity` rows, which can grow to `max_rows`. The next token
    attends to the tokens from `attended_from` on and to itself. The cache keeps `reserve` rows for going back. It
    appends `slack` rows in place, and then moves the needed rows to the front: this happened before each token in
    `compactions`, and happens next before `next_compaction`. A global layer has no window, holds all tokens and never
    moves rows.
    """

    layer: int
    window: int | None
    tokens: int
    held_from: int
    attended_from: int
    capacity: int
    max_rows: int
    reserve: int
    slack: int
    compactions: range
    next_compaction: int | None

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.tokens - self.held_from


@dataclass(frozen=True)
class CacheDrawing:
    """The result of `draw_cache`: one state for each layer."""

    layers: tuple[LayerCache, ...]

    def __repr__(self) -> str:
        held = ", ".join(f"layer {one.layer}: {one.rows} of {one.tokens} tokens" for one in self.layers)
        return f"CacheDrawing({held})"


def draw_cache(
    model_or_config: Exaone4ForCausalLM | Exaone4Config, tokens: int, layer: int | None = None
) -> CacheDrawing:
    """What the cache of `layer` holds after `tokens` tokens; without `layer`, of the first local and global layer.

    Raises ValueError for an object that is neither a model nor a config, for an unknown layer, and for more tokens than
    max_position_embeddings.
    """
    config = getattr(model_or_config, "config", model_or_config)
    if not isinstance(config, Exaone4Config):
        raise ValueError(
            "draw_cache takes a model, as load() returns it, or an Exaone4Config, not "
            f"{model_or_config if isinstance(model_or_config, str) else type(model_or_config).__name__!r}"
        )
    check_count("tokens", tokens, 0, config.max_position_embeddings)
    if layer is not None:
        check_count("layer", layer, 0, config.num_hidden_layers - 1)
        return CacheDrawing((layer_cache(config, tokens, layer),))
    first = {attention: number for number, attention in reversed(list(enumerate(config.layers)))}
    return CacheDrawing(tuple(layer_cache(config, tokens, number) for number in sorted(first.values())))


def layer_cache(config: Exaone4Config, tokens: int, layer: int) -> LayerCache:
    """What the cache of one layer holds after `tokens` tokens."""
    window, limit = config.layers[layer].window, config.max_position_embeddings
    if window is None:
        capacity = _capacity(tokens, limit)
        return LayerCache(layer, None, tokens, 0, 0, capacity, limit, 0, 0, range(0), None)
    cache = RotatingKVCache(window)
    full, kept = cache.max_rows, cache.needed_rows
    slack = full - kept
    compactions = range(full, tokens, slack)  # the buffer was full when these tokens arrived
    rows = tokens if not compactions else kept + tokens - compactions[-1]
    following = full + len(compactions) * slack
    return LayerCache(
        layer,
        window,
        tokens,
        tokens - rows,
        max(0, tokens - (window - 1)),
        _capacity(min(tokens, full), full),
        full,
        cache.rewind_capacity,
        slack,
        compactions,
        following if following < limit else None,
    )


def _capacity(rows: int, limit: int) -> int:
    """The capacity of a buffer that has grown row by row to hold `rows`."""
    capacity = 0
    while capacity < rows:
        capacity = grown_capacity(capacity + 1, capacity, limit)
    return capacity
