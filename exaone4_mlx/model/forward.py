"""The arguments of `forward`, checked -> what the layers need to know beyond the plain call.

What is peculiar here:
- Positions count for the rotation only. Masks and windows go by the place of a token, as in transformers.
- A padding token that sees nothing at all would divide zero by zero. It takes nothing in, as in torch's attention
  (and not everything alike, as in transformers' eager one, which is the oracle of the weights only).
- Values are checked where they are known: inside `mx.compile` they are not.

Shapes: B batch, L new tokens, S attended tokens, H query heads, D head size, E hidden size.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .cache import Cache, KVCache, RotatingKVCache, causal_mask, visible
from .config import Exaone4Config
from .losses import IGNORED


@dataclass
class Details:
    """What one call of `forward` adds to the plain call, for all layers; and what it gathers from them.

    `positions` [B, L] are those of the new tokens, where they do not simply go on; `length` is that of the whole
    sequence, where there is more of it to come. `padding` [B, past + L] is true for what is no padding. Tokens see
    those of their own number in `segments` [B, L] only.
    """

    positions: mx.array | None = None
    length: int = 0
    padding: mx.array | None = None
    segments: mx.array | None = None
    hidden_states: list[mx.array] | None = None
    attentions: list[mx.array] | None = None
    _blind: dict[int | None, mx.array] = field(default_factory=dict)  # window -> [B, 1, L, 1]: sees nothing

    def mask(self, past: int, length: int, window: int | None) -> mx.array | str | None:
        """The mask of new tokens that attend to `past` rows and to themselves: as `causal_mask`, or [B, 1, L, S]."""
        if self.padding is None and self.segments is None:
            return causal_mask(past, length, window)
        seen = visible(past, length, window)
        if self.segments is not None:
            seen = seen & (self.segments[:, None, :, None] == self.segments[:, None, None, :])
        if self.padding is not None:
            seen = seen & self.padding[:, None, None, -(past + length) :]
            self._blind[window] = ~seen.any(axis=-1, keepdims=True)
            seen = seen | self._blind[window]
        return seen

    def places(self, offset: int, length: int) -> tuple[int | mx.array, int]:
        """The positions of `length` new tokens after `offset`, the first or all, and the length of the sequence."""
        return (offset, max(self.length, offset + length)) if self.positions is None else (self.positions, self.length)

    def nothing_for_the_blind(self, taken: mx.array, window: int | None) -> mx.array:
        """What each query takes in, [B, H, L, D], or the weights of it, [B, H, L, S]: zero where it sees nothing."""
        blind = self._blind.get(window)
        return taken if blind is None else mx.where(blind, mx.zeros((), taken.dtype), taken)


@dataclass
class Inputs:
    """The checked arguments of one call: `ids` [B, L] or `embeddings` [B, L, E], and the caches to go on from."""

    ids: mx.array | None
    embeddings: mx.array | None
    cache: Sequence[Cache] | None
    keep_cache: bool  # whether the output holds one, a new one if need be
    details: Details

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, new tokens)"""
        tokens = self.embeddings if self.ids is None else self.ids
        assert tokens is not None
        return tokens.shape[0], tokens.shape[1]


def read_inputs(
    config: Exaone4Config,
    training: bool,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    past_key_values: Sequence[Cache] | None,
    inputs_embeds: Any,
    use_cache: bool | None,
    cache_position: Any,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    returns_cache: bool = True,
) -> Inputs:
    """Checks the arguments of `Exaone4Model.forward`, which says what they are.

    Raises ValueError, naming the argument, before anything is computed and before a cache is touched.
    """
    for name, flag in (
        ("use_cache", use_cache),
        ("output_hidden_states", output_hidden_states),
        ("output_attentions", output_attentions),
    ):
        if flag is not None and not isinstance(flag, bool):
            raise ValueError(f"{name} must be True or False, not {flag!r}")
    wanted = config.use_cache if use_cache is None else use_cache
    keep = wanted and not (training and use_cache is None)
    if use_cache and past_key_values is None and not returns_cache:
        raise ValueError("this output holds no past_key_values; pass those of model.make_cache(), and keep them")
    tokens = _read_tokens(config, input_ids, inputs_embeds)
    inputs = Inputs(*tokens, past_key_values, keep and returns_cache, details := Details())
    batch, length = inputs.shape
    past = 0 if past_key_values is None else _check_caches(config, past_key_values, batch)
    if attention_mask is not None:
        details.padding = _read_padding(attention_mask, batch, past, length)
    if cache_position is not None:
        places = read_integers("cache_position", cache_position)
        if places.shape != (length,):
            raise ValueError(f"cache_position must have the shape [{length}], not {list(places.shape)}")
        expected = f"cache_position must be {past} to {past + length - 1}, where the cache goes on"
        check_everywhere(places == mx.arange(past, past + length), expected)
    if position_ids is not None:
        details.positions = _read_positions(position_ids, batch, length)
        if config.rope_parameters.depends_on_length:
            details.length = _longest(details.positions, config)
        if attention_mask is None and past_key_values is None and not wanted:
            begins = details.positions[:, 1:] != details.positions[:, :-1] + 1
            first = mx.zeros((batch, 1), mx.int32)
            details.segments = mx.cumsum(mx.concatenate([first, begins.astype(mx.int32)], axis=1), axis=1)
    if config.output_hidden_states if output_hidden_states is None else output_hidden_states:
        details.hidden_states = []
    if config.output_attentions if output_attentions is None else output_attentions:
        details.attentions = []
    return inputs


def _longest(positions: mx.array, config: Exaone4Config) -> int:
    """The length of a sequence with these positions."""
    try:
        return int(positions.max()) + 1
    except ValueError as error:
        kind = config.rope_parameters.rope_type
        raise ValueError(f"position_ids of RoPE type {kind!r} must be known: do not compile them") from error


def _read_tokens(config: Exaone4Config, input_ids: Any, inputs_embeds: Any) -> tuple[mx.array | None, mx.array | None]:
    """(ids [B, L], None) or (None, embeddings [B, L, E])."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"give input_ids or inputs_embeds, not {'neither' if input_ids is None else 'both'}")
    if input_ids is not None:
        ids = read_integers("input_ids", input_ids)
        if ids.ndim != 2 or ids.size == 0:
            raise ValueError(f"input_ids must have the shape [batch, tokens], not {list(ids.shape)}")
        check_range("input_ids", ids, 0, config.vocab_size - 1)
        return ids, None
    embeddings = as_array("inputs_embeds", inputs_embeds)
    if embeddings.ndim != 3 or embeddings.shape[-1] != config.hidden_size or embeddings.size == 0:
        wanted = f"[batch, tokens, {config.hidden_size}]"
        raise ValueError(f"inputs_embeds must have the shape {wanted}, not {list(embeddings.shape)}")
    if not mx.issubdtype(embeddings.dtype, mx.floating):
        raise ValueError(f"inputs_embeds must be floating-point numbers, not {_name(embeddings.dtype)}")
    return None, embeddings


def _check_caches(config: Exaone4Config, caches: Sequence[Cache], batch: int) -> int:
    """How many tokens the caches hold. Raises ValueError for those of another model, batch, or of different lengths."""
    make = "take them from model.make_cache() or from an output's past_key_values"
    if not isinstance(caches, Sequence) or len(caches) != config.num_hidden_layers:
        raise ValueError(f"past_key_values must be one cache for each of {config.num_hidden_layers} layers; {make}")
    for number, (cache, layer) in enumerate(zip(caches, config.layers, strict=True)):
        window = cache.window if isinstance(cache, RotatingKVCache) else None
        if not isinstance(cache, (KVCache, RotatingKVCache)) or window != layer.window:
            raise ValueError(f"past_key_values[{number}] is no cache for layer {number} of this model; {make}")
        if cache.offset != caches[0].offset:
            raise ValueError(f"past_key_values hold {caches[0].offset} and {cache.offset} tokens; {make}")
        if cache.state:
            held, heads, _, width = cache.state[0].shape
            wanted, _ = cache.rows.layout(config.head_dim)["keys"]
            if (heads, width) != (config.num_key_value_heads, wanted):
                raise ValueError(f"past_key_values[{number}] has {heads} key heads of {width}; {make}")
            if held != batch:
                raise ValueError(f"past_key_values hold a batch of {held}, and the new tokens are {batch}")
    if len({id(cache) for cache in caches}) < len(caches):
        raise ValueError(f"past_key_values hold one cache for several layers; {make}")
    return caches[0].offset


def _read_padding(attention_mask: Any, batch: int, past: int, length: int) -> mx.array:
    """[B, past + L], true for what is no padding."""
    mask = as_array("attention_mask", attention_mask)
    if mask.shape != (batch, past + length):
        tokens = f"{past} cached + {length} new" if past else f"{length}"
        raise ValueError(
            f"attention_mask must have the shape [batch, tokens] of ({batch}, {tokens}), not {list(mask.shape)}"
        )
    if mask.dtype == mx.bool_:
        return mask
    check_everywhere((mask == 0) | (mask == 1), "attention_mask must be 1, or 0 for padding")
    return mask != 0


def _read_positions(position_ids: Any, batch: int, length: int) -> mx.array:
    """[B, L]"""
    positions = read_integers("position_ids", position_ids)
    if positions.ndim != 2 or positions.shape[1] != length or positions.shape[0] not in (1, batch):
        raise ValueError(
            f"position_ids must have the shape [batch, tokens] of ({batch}, {length}), not {list(positions.shape)}"
        )
    check_range("position_ids", positions, 0, None)
    return mx.broadcast_to(positions, (batch, length))


def read_kept(logits_to_keep: Any, length: int) -> slice | mx.array:
    """The positions whose logits are wanted. Raises ValueError for what is neither a count nor a list of positions."""
    if hasattr(logits_to_keep, "__index__") and not getattr(logits_to_keep, "shape", ()):
        count = operator.index(logits_to_keep)
        if count < 0:
            raise ValueError(f"logits_to_keep must not be negative, and is {count}")
        return slice(max(0, length - count) if count else 0, None)
    positions = read_integers("logits_to_keep", logits_to_keep)
    if positions.ndim != 1:
        raise ValueError(f"logits_to_keep must be a number or one list of positions, not of shape {positions.shape}")
    check_range("logits_to_keep", positions, -length, length - 1)
    return positions


def read_labels(name: str, labels: Any, shape: tuple[int, ...], count: int) -> mx.array:
    """Labels of this shape, each from 0 to `count` - 1, or -100, which does not count. Raises ValueError for others."""
    array = read_integers(name, labels)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, not {list(array.shape)}")
    check_range(name, mx.where(array == IGNORED, 0, array), 0, count - 1)
    return array


def as_array(name: str, value: Any) -> mx.array:
    """An array, or what makes one. Raises ValueError for what does not."""
    if isinstance(value, mx.array):
        return value
    try:
        return mx.array(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array, not {type(value).__name__}: {error}") from error


def read_integers(name: str, value: Any) -> mx.array:
    """Whole numbers, signed. Raises ValueError for others."""
    array = as_array(name, value)
    if not mx.issubdtype(array.dtype, mx.integer):
        raise ValueError(f"{name} must be whole numbers, not {_name(array.dtype)}")
    return array if mx.issubdtype(array.dtype, mx.signedinteger) else array.astype(mx.int64)


def check_everywhere(right: mx.array, message: str) -> None:
    """Raises ValueError where a boolean is false. Inside `mx.compile` none is known yet, and nothing is checked."""
    try:
        holds = right.all().item()
    except ValueError:
        return
    if not holds:
        raise ValueError(message)


def check_range(name: str, array: mx.array, low: int, high: int | None) -> None:
    """Raises ValueError for values outside. Inside `mx.compile` no value is known yet, and nothing is checked."""
    try:
        smallest, largest = float(array.min().item()), float(array.max().item())  # type: ignore[arg-type]
    except ValueError:
        return
    if smallest < low or (high is not None and largest > high):
        wrong = smallest if smallest < low else largest
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, and {wrong:g} is among them")


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
