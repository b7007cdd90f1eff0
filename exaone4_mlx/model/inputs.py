"""The arguments of `forward`, checked.

Notes:
- Values are checked where they are known. Inside `mx.compile` they are not known.

Shapes: B batch, L new tokens, E hidden size.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx

from .cache import Cache, KVCache, RotatingKVCache
from .config import Exaone4Config
from .context import AttentionContext
from .losses import IGNORED


class ForwardInputs(TypedDict, total=False):
    """The keyword arguments that the `forward` of every network takes beside `input_ids` and `attention_mask`.

    All of them are transformers'. Lists are converted to arrays. `input_ids` [B, L] or `inputs_embeds` [B, L, E] are
    the new tokens. `attention_mask` [B, past + L] is 0 for padding, at any position.

    `position_ids` [B, L] are the positions for RoPE. By default they count on from the cached tokens. With
    `use_cache=False` and without a mask, a position that does not follow the position before it starts a new sequence:
    several sequences are packed into one row.

    `past_key_values` are the caches of the earlier tokens, which change in place. `use_cache` returns them, or new
    caches. Its default is the config's, but in training no new caches are made. `cache_position` [L] can only be the
    positions after the cached tokens.

    `output_hidden_states` and `output_attentions` return those of every layer. `return_dict=False` returns a tuple.
    The defaults of all three are the config's.
    """

    position_ids: mx.array | None
    past_key_values: Sequence[Cache] | None
    inputs_embeds: mx.array | None
    use_cache: bool | None
    cache_position: mx.array | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    return_dict: bool | None


@dataclass(frozen=True)
class Inputs:
    """The checked arguments of one call: `ids` [B, L] or `embeddings` [B, L, E], and the caches of earlier tokens."""

    ids: mx.array | None
    embeddings: mx.array | None
    cache: Sequence[Cache] | None
    keep_cache: bool  # whether the output has a cache, a new one if necessary
    context: AttentionContext

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
    more: ForwardInputs,
    returns_cache: bool = True,
) -> Inputs:
    """Checks the arguments of a `forward`. `returns_cache`: whether its output has a field for the caches.

    Raises ValueError that names the argument, before anything is computed and before a cache changes.
    """
    if unknown := sorted(set(more) - set(ForwardInputs.__annotations__)):
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")
    flags = {name: more.get(name) for name in ("use_cache", "output_hidden_states", "output_attentions")}
    for name, flag in flags.items():
        if flag is not None and not isinstance(flag, bool):
            raise ValueError(f"{name} must be True or False, not {flag!r}")
    caches, position_ids, use_cache = more.get("past_key_values"), more.get("position_ids"), more.get("use_cache")
    wanted = config.use_cache if use_cache is None else use_cache
    if use_cache and caches is None and not returns_cache:
        raise ValueError("this output has no past_key_values; pass caches of model.make_cache(), and keep them")
    ids, embeddings = _read_tokens(config, input_ids, more.get("inputs_embeds"))
    keeps_cache = returns_cache and wanted and not (training and use_cache is None)
    inputs = Inputs(ids, embeddings, caches, keeps_cache, context := AttentionContext())
    batch, length = inputs.shape
    past = 0 if caches is None else _check_caches(config, caches, batch)
    if attention_mask is not None:
        context.padding = _read_padding(attention_mask, batch, past, length)
    if (cache_position := more.get("cache_position")) is not None:
        positions = read_integers("cache_position", cache_position)
        check_shape("cache_position", positions, (length,))
        expected = f"cache_position must be {past} to {past + length - 1}, the positions after the cached tokens"
        check_everywhere(positions == mx.arange(past, past + length), expected)
    if position_ids is not None:
        context.positions = _read_positions(position_ids, batch, length)
        if config.rope_parameters.depends_on_length:
            context.length = _sequence_length(context.positions, config)
        if attention_mask is None and caches is None and not wanted:
            starts = context.positions[:, 1:] != context.positions[:, :-1] + 1
            first = mx.zeros((batch, 1), mx.int32)
            context.segments = mx.cumsum(mx.concatenate([first, starts.astype(mx.int32)], axis=1), axis=1)
    for name, default in (("hidden_states", config.output_hidden_states), ("attentions", config.output_attentions)):
        flag = flags[f"output_{name}"]
        if default if flag is None else flag:
            setattr(context, name, [])
    return inputs


def _sequence_length(positions: mx.array, config: Exaone4Config) -> int:
    try:
        return int(positions.max()) + 1
    except ValueError as error:
        kind = config.rope_parameters.rope_type
        raise ValueError(f"position_ids with RoPE type {kind!r} must be known: do not compile them") from error


def _read_tokens(config: Exaone4Config, input_ids: Any, inputs_embeds: Any) -> tuple[mx.array | None, mx.array | None]:
    """(ids [B, L], None) or (None, embeddings [B, L, E])."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"give input_ids or inputs_embeds, not {'neither' if input_ids is None else 'both'}")
    if input_ids is not None:
        ids = read_integers("input_ids", input_ids)
        check_shape("input_ids", ids, ("batch", "tokens"))
        check_range("input_ids", ids, 0, config.vocab_size - 1)
        return ids, None
    embeddings = as_array("inputs_embeds", inputs_embeds)
    check_shape("inputs_embeds", embeddings, ("batch", "tokens", config.hidden_size))
    if not mx.issubdtype(embeddings.dtype, mx.floating):
        raise ValueError(f"inputs_embeds must be floating-point numbers, not {dtype_name(embeddings)}")
    return None, embeddings


def _check_caches(config: Exaone4Config, caches: Sequence[Cache], batch: int) -> int:
    """The number of cached tokens. Raises ValueError for caches of another model or batch, or of unequal lengths."""
    make = "take them from model.make_cache() or from an output's past_key_values"
    if not isinstance(caches, Sequence) or len(caches) != config.num_hidden_layers:
        raise ValueError(f"past_key_values must be one cache for each of {config.num_hidden_layers} layers; {make}")
    for number, (cache, layer) in enumerate(zip(caches, config.layers, strict=True)):
        window = cache.window if isinstance(cache, RotatingKVCache) else None
        if not isinstance(cache, (KVCache, RotatingKVCache)) or window != layer.window:
            raise ValueError(f"past_key_values[{number}] is not a cache for layer {number} of this model; {make}")
        if cache.offset != caches[0].offset:
            raise ValueError(f"past_key_values hold {caches[0].offset} and {cache.offset} tokens; {make}")
        if cache.buffers:
            held, heads, _, width = cache.buffers[0].shape
            wanted, _ = cache.rows.layout(config.head_dim)["keys"]
            if (heads, width) != (config.num_key_value_heads, wanted):
                raise ValueError(f"past_key_values[{number}] has {heads} key heads of {width}; {make}")
            if held != batch:
                raise ValueError(f"past_key_values hold a batch of {held}, and the new tokens are {batch}")
    if len({id(cache) for cache in caches}) < len(caches):
        raise ValueError(f"past_key_values hold one cache for several layers; {make}")
    return caches[0].offset


def _read_padding(attention_mask: Any, batch: int, past: int, length: int) -> mx.array:
    """[B, past + L], false for padding."""
    mask = as_array("attention_mask", attention_mask)
    check_shape(f"attention_mask ({past} cached tokens, {length} new)", mask, (batch, past + length))
    if mask.dtype == mx.bool_:
        return mask
    check_everywhere((mask == 0) | (mask == 1), "attention_mask must be 1, or 0 for padding")
    return mask != 0


def _read_positions(position_ids: Any, batch: int, length: int) -> mx.array:
    """[B, L]"""
    positions = read_integers("position_ids", position_ids)
    check_shape("position_ids", positions, (batch, length), (1, length))
    check_range("position_ids", positions, 0, None)
    return mx.broadcast_to(positions, (batch, length))


def read_kept(logits_to_keep: Any, length: int) -> slice | mx.array:
    """The positions of the logits to compute. Raises ValueError unless it is a count or a list of positions."""
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
    """Labels of this shape, each from 0 to `count` - 1, or -100 to ignore it. Raises ValueError for other labels."""
    array = read_integers(name, labels)
    check_shape(name, array, shape)
    check_range(name, mx.where(array == IGNORED, 0, array), 0, count - 1)
    return array


def as_array(name: str, value: Any) -> mx.array:
    """The value as an array. Raises ValueError if it cannot be one."""
    if isinstance(value, mx.array):
        return value
    try:
        return mx.array(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array, not {type(value).__name__}: {error}") from error


def read_integers(name: str, value: Any) -> mx.array:
    """Signed integers. Raises ValueError for other dtypes."""
    array = as_array(name, value)
    if not mx.issubdtype(array.dtype, mx.integer):
        raise ValueError(f"{name} must be whole numbers, not {dtype_name(array)}")
    return array if mx.issubdtype(array.dtype, mx.signedinteger) else array.astype(mx.int64)


def check_everywhere(condition: mx.array, message: str) -> None:
    """Raises ValueError if an element is false. Inside `mx.compile` values are unknown, and nothing is checked."""
    try:
        holds = condition.all().item()
    except ValueError:
        return
    if not holds:
        raise ValueError(message)


def check_range(name: str, array: mx.array, low: int, high: int | None) -> None:
    """Raises ValueError for a value out of range. Inside `mx.compile` values are unknown, and nothing is checked."""
    try:
        smallest, largest = float(array.min().item()), float(array.max().item())  # type: ignore[arg-type]
    except ValueError:
        return
    if smallest < low or (high is not None and largest > high):
        wrong = smallest if smallest < low else largest
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, not {wrong:g}")


def check_shape(name: str, array: mx.array, *shapes: Sequence[int | str]) -> None:
    """Raises ValueError unless the array has one of the shapes. A word in a shape means any size but 0."""
    for shape in shapes:
        pairs = zip(array.shape, shape, strict=False)
        if array.ndim == len(shape) and all(size if isinstance(want, str) else size == want for size, want in pairs):
            return
    expected = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
    raise ValueError(f"{name} must have the shape {expected}, not {list(array.shape)}")


def dtype_name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")
