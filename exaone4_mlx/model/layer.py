"""The mathematics of one layer, for every form of the model: training, prompts and single tokens.

Notes:
- Normalization comes after attention and after the MLP, just before each residual addition. The input of attention and
  of the MLP is not normalized.
- Queries and keys are normalized and rotated together. The norm weights are multiplied in afterwards, which rounds as
  transformers does.
- `before` and `after` contain everything but attention itself. A batch of conversations can run them once for all
  tokens, as [tokens, 1, E] with one position per token, and attend row by row between them.
- A layer reads its weights from the modules (`Layer.of`), or from arrays that never change (`fused.py`).

Shapes: B batch, L new tokens, S attended tokens, H query heads, K key heads, D head size, E hidden size, I MLP size.
Source: transformers' modeling_exaone4.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from .cache import Cache, causal_mask, visible
from .context import AttentionContext
from .kv import QuantizedKV, Stored
from .rope import RopeParameters, inverse_frequencies

Projection = Callable[[mx.array], mx.array]
Mask = mx.array | str | None
#: (layers that are done, their output) -> None. It may evaluate the output. Its exceptions end the call.
Pause = Callable[[int, mx.array], None]

#: Up to this many new tokens, attention multiplies with quantized keys and values. For more tokens they are dequantized
#: first, so that the full score matrix of a prompt is never stored.
MAX_QUANTIZED_QUERIES = 9


class Rotation:
    """RoPE: rotates each pair of numbers of a query or key by its position."""

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        self.rope, self.head_dim = rope, head_dim
        self.depends_on_length = rope.depends_on_length
        self.periods = self._periods(0)

    def __call__(self, x: mx.array, positions: int | mx.array, length: int = 0) -> mx.array:
        """Rotates x [B, H, L, D]. `positions` is the first position of all rows, or of each row [B].

        `length` is the length of the whole sequence; dynamic and longrope RoPE need it.
        """
        periods = self._periods(length) if self.depends_on_length else self.periods
        return mx.fast.rope(x, self.head_dim, traditional=False, base=None, scale=1.0, offset=positions, freqs=periods)

    def at_positions(self, x: mx.array, positions: mx.array, length: int = 0) -> mx.array:
        """The same with a position for each token, [B, L]."""
        B, H, L, D = x.shape
        rows = x.transpose(0, 2, 1, 3).reshape(B * L, H, 1, D)  # the kernel takes one position per batch row
        return self(rows, positions.reshape(-1), length).reshape(B, L, H, D).transpose(0, 2, 1, 3)

    def _periods(self, length: int) -> mx.array:
        """Tokens per radian of each pair."""
        return mx.array([1 / frequency for frequency in inverse_frequencies(self.rope, self.head_dim, length)])


@dataclass(frozen=True)
class AttentionSpec:
    """The constants of one layer's attention. `window` None is a global layer, `rotation` None a layer without RoPE."""

    heads: int
    key_heads: int
    head_dim: int
    window: int | None
    rotation: Rotation | None
    scale: float
    eps: float


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up in one kernel."""
    return gate * mx.sigmoid(gate) * up


def attend(queries: mx.array, keys: Stored, values: Stored, mask: Mask, scale: float) -> mx.array:
    """Attention of queries [B, H, L, D] to keys and values [B, K, S, D]: [B, H, L, D]."""
    if not isinstance(keys, mx.array) or not isinstance(values, mx.array):
        if queries.shape[2] <= MAX_QUANTIZED_QUERIES:
            return attend_quantized(queries, keys, values, mask, scale)
        keys, values = dequantized(keys), dequantized(values)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def dequantized(x: Stored) -> mx.array:
    return x.dequantized() if isinstance(x, QuantizedKV) else x


def attend_quantized(queries: mx.array, keys: Stored, values: Stored, mask: Mask, scale: float) -> mx.array:
    """The same for few queries, and keys or values that are quantized."""
    B, H, L, D = queries.shape
    K, S = (keys.weight if isinstance(keys, QuantizedKV) else keys).shape[1:3]
    grouped = (queries * scale).reshape(B, K, H // K * L, D)
    scores = keys.product(grouped, True) if isinstance(keys, QuantizedKV) else grouped @ keys.swapaxes(-1, -2)
    if mask is not None:
        seen = visible(S - L, L) if isinstance(mask, str) else mask
        scores = mx.where(seen, scores.reshape(B, H, L, S), mx.finfo(scores.dtype).min).reshape(scores.shape)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = values.product(weights, False) if isinstance(values, QuantizedKV) else weights @ values
    return out.reshape(B, H, L, D)


def merge_heads(attended: mx.array) -> mx.array:
    """[B, H, L, D] -> [B, L, H*D]"""
    B, H, L, D = attended.shape
    return (attended if L == 1 else attended.transpose(0, 2, 1, 3)).reshape(B, L, H * D)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its projections, norm weights and constants."""

    spec: AttentionSpec
    qkv: Projection  # [B, L, E] -> [B, L, (H+2K)*D]
    keys_values: Projection  # [B, L, E] -> [B, L, 2K*D]
    output: Projection  # [B, L, H*D] -> [B, L, E]
    gate_up: Projection  # [B, L, E] -> [B, L, 2*I]
    down: Projection  # [B, L, I] -> [B, L, E]
    head_norm: mx.array  # [H+K, 1, D]
    attention_norm: mx.array  # [E]
    mlp_norm: mx.array  # [E]
    dropout: float = 0.0  # of attention weights
    total: Projection | None = None  # the sum over ranks, before the norms: each has some heads and some of the MLP

    @classmethod
    def of(cls, block: Any) -> Layer:
        """The layer of a block's modules, with the weights that they have now."""
        attention, mlp = block.self_attn, block.mlp
        if block.total is not None:
            raise ValueError("the modules of a model of several ranks have a part of the weights: use model.fused()")
        return cls(
            spec=attention.spec,
            qkv=beside(attention.q_proj, attention.k_proj, attention.v_proj),
            keys_values=beside(attention.k_proj, attention.v_proj),
            output=attention.o_proj,
            gate_up=beside(mlp.gate_proj, mlp.up_proj),
            down=mlp.down_proj,
            head_norm=head_norm(attention),
            attention_norm=block.post_attention_layernorm.weight,
            mlp_norm=block.post_feedforward_layernorm.weight,
            dropout=attention.dropout if attention.training else 0.0,
        )

    @property
    def window(self) -> int | None:
        return self.spec.window

    def __call__(
        self, x: mx.array, mask: Mask, cache: Cache | None, context: AttentionContext | None = None, last: bool = False
    ) -> mx.array:
        """Hidden states [B, L, E] -> the hidden states after this layer; with `last` those of the last token only."""
        return self.after(x[:, -1:] if last else x, self.attention(x, mask, cache, context, last))

    def attention(
        self, x: mx.array, mask: Mask, cache: Cache | None, context: AttentionContext | None = None, last: bool = False
    ) -> mx.array:
        """Hidden states [B, L, E] -> the output of attention [B, H, L, D]. The cache takes all tokens in any case."""
        L, last = x.shape[1], last and x.shape[1] > 1
        offset = cache.offset if cache is not None else 0
        positions, length = (offset, offset + L) if context is None else context.positions_of(offset, L)
        queries, keys, values = (self.before_last if last else self.before)(x, positions, length)
        stored_keys, stored_values = (keys, values) if cache is None else cache.update(keys, values)  # B K S D
        if last:
            mask = mask[..., -1:, :] if isinstance(mask, mx.array) else None
        if context is None and not self.dropout:
            return attend(queries, stored_keys, stored_values, mask, self.spec.scale)
        return self._attend(queries, dequantized(stored_keys), dequantized(stored_values), mask, context)

    def before(self, x: mx.array, positions: int | mx.array, length: int = 0) -> tuple[mx.array, mx.array, mx.array]:
        """Hidden states [B, L, E] -> queries [B, H, L, D], keys and values [B, K, L, D], ready for attention.

        `positions` is the first position of all rows, or of each row [B], or the position of each token [B, L].
        `length` is as for `Rotation`.
        """
        return self._before(self.qkv(x), self.spec.heads, positions, length)

    def before_last(self, x: mx.array, first: int | mx.array, length: int = 0) -> tuple[mx.array, mx.array, mx.array]:
        """The same for positions from `first` on, but with the queries of the last token only, [B, H, 1, D]."""
        _, keys, values = self._before(self.keys_values(x), 0, first, length)
        return self.before(x[:, -1:], first + x.shape[1] - 1, length)[0], keys, values

    def _before(
        self, projected: mx.array, heads: int, positions: int | mx.array, length: int
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Projections [B, L, (heads+2K)*D], `heads` of them queries -> queries, keys and values."""
        spec, (B, L, _) = self.spec, projected.shape
        D = spec.head_dim
        # For one token a reshape gives the same memory layout as a transposition.
        split = projected.reshape(B, -1, 1, D) if L == 1 else projected.reshape(B, L, -1, D).transpose(0, 2, 1, 3)
        both, values = mx.split(split, [heads + spec.key_heads], axis=1)  # B heads+K L D, B K L D
        both = mx.fast.rms_norm(both, None, spec.eps) * self.head_norm[spec.heads - heads :]
        if spec.rotation is not None:
            per_token = isinstance(positions, mx.array) and positions.ndim == 2
            both = (spec.rotation.at_positions if per_token else spec.rotation)(both, positions, length)  # type: ignore[arg-type]
        queries, keys = mx.split(both, [heads], axis=1)
        return queries, keys, values

    def after(self, x: mx.array, attended: mx.array) -> mx.array:
        """Hidden states [B, L, E] and the output of attention [B, H, L, D] -> the hidden states after this layer."""
        return self.after_mlp(self.after_attention(x, attended))

    def after_attention(self, x: mx.array, attended: mx.array) -> mx.array:
        return self._added(x, self.output(merge_heads(attended)), self.attention_norm)

    def after_mlp(self, x: mx.array) -> mx.array:
        return self._added(x, self.down(self.mlp_hidden(x)), self.mlp_norm)

    def _added(self, x: mx.array, out: mx.array, norm: mx.array) -> mx.array:
        return x + mx.fast.rms_norm(out if self.total is None else self.total(out), norm, self.spec.eps)

    def mlp_hidden(self, x: mx.array) -> mx.array:
        """Hidden states [B, L, E] -> the input of the MLP's down projection [B, L, I]."""
        gate, up = mx.split(self.gate_up(x), 2, axis=-1)
        return swiglu(gate, up)

    def _attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask, context: AttentionContext | None
    ) -> mx.array:
        """Attention for `forward` and for training: [B, H, L, D]."""
        if self.dropout or (context is not None and context.attentions is not None):
            return self._attend_with_weights(queries, keys, values, mask, context)
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.spec.scale, mask=mask)
        return out if context is None else context.zero_fully_masked(out, self.window)

    def _attend_with_weights(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask, context: AttentionContext | None
    ) -> mx.array:
        """The computation of the fused kernel, with the attention weights [B, H, L, S] as an array."""
        B, H, L, D = queries.shape
        S, groups = keys.shape[2], H // keys.shape[1]
        grouped = queries.reshape(B, -1, groups, L, D)
        scores = (self.spec.scale * grouped @ keys[:, :, None].swapaxes(-1, -2)).reshape(B, H, L, S).astype(mx.float32)
        if mask is not None:
            seen = visible(S - L, L) if isinstance(mask, str) else mask
            scores = mx.where(seen, scores, mx.finfo(mx.float32).min)
        weights = mx.softmax(scores, axis=-1).astype(queries.dtype)
        if context is not None:
            weights = context.zero_fully_masked(weights, self.window)
        if self.dropout:
            weights = weights * mx.random.bernoulli(1 - self.dropout, weights.shape) / (1 - self.dropout)
        if context is not None and context.attentions is not None:
            context.attentions.append(weights)
        return (weights.reshape(B, -1, groups, L, S) @ values[:, :, None]).reshape(B, H, L, D)


def beside(*projections: Projection) -> Projection:
    """Projections of the same input, their outputs concatenated."""
    return lambda x: mx.concatenate([project(x) for project in projections], axis=-1)


def head_norm(attention: Any) -> mx.array:
    """The norm weights of all query and key heads, [H+K, 1, D]."""
    spec = attention.spec
    norms = (attention.q_norm.weight, spec.heads), (attention.k_norm.weight, spec.key_heads)
    return mx.concatenate([mx.broadcast_to(weight, (heads, 1, spec.head_dim)) for weight, heads in norms])


def run_layers(
    layers: Sequence[Any],
    x: mx.array,
    cache: Sequence[Cache] | None,
    context: AttentionContext | None = None,
    last: bool = False,
    pause: Pause | None = None,
) -> mx.array:
    """Embeddings [B, L, E] through `layers` (blocks or Layers): hidden states [B, L, E] before the final norm.

    With `last` those of the last token only, [B, 1, E]. `pause` is called after each layer but the last one. Raises
    ValueError for caches of another depth.
    """
    check_depth(cache, len(layers))
    length, masks = x.shape[1], dict[int | None, Mask]()  # by window: layers with the same window share a mask
    for i, layer in enumerate(layers):
        past, window = cache[i] if cache is not None else None, layer.window
        if window not in masks:
            if context is not None:
                masks[window] = context.mask(past.past if past is not None else 0, length, window)
            else:
                masks[window] = past.mask(length) if past is not None else causal_mask(0, length, window)
        if context is not None and context.hidden_states is not None:
            context.hidden_states.append(x)
        x = layer(x, masks[window], past, context, last and i == len(layers) - 1)
        if pause is not None and i < len(layers) - 1:
            pause(i + 1, x)
    return x


def check_depth(cache: Sequence[Cache] | None, layers: int) -> None:
    if cache is not None and len(cache) != layers:
        raise ValueError(f"cache has {len(cache)} layers, and the model {layers}")
