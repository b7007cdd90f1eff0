"""The EXAONE 4 network: token ids -> logits.

What is peculiar here:
- Normalization comes *after* attention and after the MLP, just before each residual addition; nothing is
  normalized on the way in.
- Queries and keys are RMS-normalized per head, before the rotation.
- In the hybrid model three local layers (a sliding window, rotated) are followed by a global one that has
  no position encoding at all.
- Modules and parameters are named as in the checkpoint, and are the only truth.
- `model(input_ids, cache)` is the plain call, as mlx-lm has it. `forward` is transformers', through the same layers;
  what it asks for beyond is in `Details`.

Shapes: B batch, L new tokens, S attended tokens, H query heads, K key heads, D head size, E hidden size, V vocabulary.
Source: transformers' modeling_exaone4.py, and the EXAONE 4.0 report (arXiv 2507.11407).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .cache import Cache, KVCache, RotatingKVCache, causal_mask, visible
from .config import Exaone4Config, LayerAttention
from .forward import Details, Inputs, read_inputs, read_kept, read_labels
from .losses import causal_lm_loss
from .outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from .pretrained import Pretrained, new_embedding, new_linear
from .rope import RopeParameters, inverse_frequencies


class Rotation:
    """RoPE: turns each pair of a query or key by its position."""

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        self.rope, self.head_dim = rope, head_dim
        self.periods = self._periods(0)

    def __call__(self, x: mx.array, positions: int | mx.array, length: int) -> mx.array:
        """Turns x [B, H, L, D]. `positions` are the first one, or all [B, L]; `length` is the whole sequence's."""
        periods = self._periods(length) if self.rope.depends_on_length else self.periods
        if isinstance(positions, int):
            return self._turned(x, positions, periods)
        B, H, L, D = x.shape
        apart = x.transpose(0, 2, 1, 3).reshape(B * L, H, 1, D)  # the kernel takes one position for each batch row
        return self._turned(apart, positions.reshape(-1), periods).reshape(B, L, H, D).transpose(0, 2, 1, 3)

    def _periods(self, length: int) -> mx.array:
        """Tokens per radian of each pair."""
        return mx.array([1 / frequency for frequency in inverse_frequencies(self.rope, self.head_dim, length)])

    def _turned(self, x: mx.array, offset: int | mx.array, periods: mx.array) -> mx.array:
        return mx.fast.rope(x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods)


class Attention(nn.Module):
    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.window = layer.window
        self.q_proj = new_linear(config, config.hidden_size, self.heads * self.head_dim)
        self.k_proj = new_linear(config, config.hidden_size, self.key_heads * self.head_dim)
        self.v_proj = new_linear(config, config.hidden_size, self.key_heads * self.head_dim)
        self.o_proj = new_linear(config, self.heads * self.head_dim, config.hidden_size)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        # No rotation at all on the global layers of a hybrid model: not an oversight, see Exaone4Config.layers.
        self._rotation = Rotation(config.rope_parameters, self.head_dim) if layer.rope else None
        self._dropout = config.attention_dropout
        self._scale = self.head_dim**-0.5
        if layer.rope:  # yarn and longrope stretch rotated queries and keys, and so their products twice
            self._scale *= config.rope_parameters.attention_factor**2

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, cache: Cache | None, details: Details | None = None
    ) -> mx.array:
        B, L, _ = x.shape
        queries = self.q_norm(self.q_proj(x).reshape(B, L, self.heads, self.head_dim)).transpose(0, 2, 1, 3)  # B H L D
        keys = self.k_norm(self.k_proj(x).reshape(B, L, self.key_heads, self.head_dim)).transpose(0, 2, 1, 3)
        values = self.v_proj(x).reshape(B, L, self.key_heads, self.head_dim).transpose(0, 2, 1, 3)  # B K L D

        if self._rotation is not None:
            offset = cache.offset if cache is not None else 0
            positions, length = (offset, offset + L) if details is None else details.places(offset, L)
            queries, keys = self._rotation(queries, positions, length), self._rotation(keys, positions, length)
        if cache is not None:
            keys, values = cache.update(keys, values)  # B K S D
        if (details is not None and details.attentions is not None) or (self._dropout and self.training):
            out = self._attend_openly(queries, keys, values, mask, details)
        else:
            out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self._scale, mask=mask)
            out = out if details is None else details.nothing_for_the_blind(out, self.window)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))  # B L E

    def _attend_openly(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, details: Details | None
    ) -> mx.array:
        """What the fused kernel computes, with the weights [B, H, L, S] in between: to keep them, or to drop some."""
        B, H, L, D = queries.shape
        S, groups = keys.shape[2], H // keys.shape[1]
        grouped = queries.reshape(B, -1, groups, L, D)
        scores = (self._scale * grouped @ keys[:, :, None].swapaxes(-1, -2)).reshape(B, H, L, S).astype(mx.float32)
        if mask is not None:
            seen = visible(S - L, L) if isinstance(mask, str) else mask
            scores = mx.where(seen, scores, mx.finfo(mx.float32).min)
        weights = mx.softmax(scores, axis=-1).astype(queries.dtype)
        if details is not None:
            weights = details.nothing_for_the_blind(weights, self.window)
        if self._dropout and self.training:
            weights = weights * mx.random.bernoulli(1 - self._dropout, weights.shape) / (1 - self._dropout)
        if details is not None and details.attentions is not None:
            details.attentions.append(weights)
        return (weights.reshape(B, -1, groups, L, S) @ values[:, :, None]).reshape(B, H, L, D)


class MLP(nn.Module):
    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.gate_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = new_linear(config, config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, cache: Cache | None, details: Details | None = None
    ) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(x, mask, cache, details))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Exaone4Model(Pretrained):
    """Token ids [B, L] -> final hidden states [B, L, E]."""

    backbone = ""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.embed_tokens = new_embedding(config)
        self.layers = [Block(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, input_ids: mx.array, cache: Sequence[Cache] | None = None, whole_length: int | None = None
    ) -> mx.array:
        """Of a text that is read in pieces, `whole_length` counts all tokens: dynamic and longrope go by that."""
        details = None
        if whole_length is not None and self.config.rope_parameters.depends_on_length:
            details = Details(length=whole_length)
        return self._run(self.embed_tokens(input_ids), cache, details)

    def _run(self, x: mx.array, cache: Sequence[Cache] | None, details: Details | None = None) -> mx.array:
        """Embeddings [B, L, E] -> final hidden states [B, L, E]."""
        length = x.shape[1]
        masks: dict[int | None, mx.array | str | None] = {}  # window -> mask: one for all layers alike
        for i, layer in enumerate(self.layers):
            window = layer.self_attn.window
            if window not in masks:
                if details is not None:
                    masks[window] = details.mask(cache[i].past if cache is not None else 0, length, window)
                else:
                    masks[window] = cache[i].mask(length) if cache is not None else causal_mask(0, length, window)
            if details is not None and details.hidden_states is not None:
                details.hidden_states.append(x)
            x = layer(x, masks[window], cache[i] if cache is not None else None, details)
        return self.norm(x)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Cache] | None = None,
        inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """transformers' call: ids [B, L], or embeddings [B, L, E], and what is known about them.

        `attention_mask` [B, past + L] is 0 for padding, wherever it stands. `position_ids` [B, L] are what the rotation
        goes by, instead of 0, 1, … from the cache on; with `use_cache=False` and without a mask, one that does not
        follow the one before begins a new sequence: several are packed into one row. `past_key_values` are changed in
        place; `use_cache` (the config's, unless given) returns them, or new ones, which are not made in training unless
        it is given. `cache_position` [L] can only say where the cache goes on anyway.

        Raises ValueError, naming the argument, for what is missing, misshapen, out of range or contradictory.
        """
        return self.run(
            read_inputs(
                self.config,
                self.training,
                input_ids,
                attention_mask,
                position_ids,
                past_key_values,
                inputs_embeds,
                use_cache,
                cache_position,
                output_hidden_states,
                output_attentions,
            )
        )

    def run(self, inputs: Inputs) -> BaseModelOutputWithPast:
        """What `forward` returns, of arguments that were checked."""
        x = inputs.embeddings
        if x is None:
            assert inputs.ids is not None
            x = self._embed(inputs.ids)
        cache = self.make_cache() if inputs.keep_cache and inputs.cache is None else inputs.cache
        hidden = self._run(x, cache, details := inputs.details)
        states = None if details.hidden_states is None else (*details.hidden_states, hidden)
        attentions = None if details.attentions is None else tuple(details.attentions)
        return BaseModelOutputWithPast(hidden, cache if inputs.keep_cache else None, states, attentions)

    def _embed(self, ids: mx.array) -> mx.array:
        """The embeddings of ids. As in torch, that of the padding token is not trained."""
        x = self.embed_tokens(ids)
        if self.config.pad_token_id is None:
            return x
        padding = mx.equal(ids, self.config.pad_token_id)[..., None]
        return mx.where(padding, mx.stop_gradient(x), x)

    def make_cache(self) -> list[Cache]:
        """A fresh cache per layer, for one conversation or batch."""
        return [
            KVCache(self.config.max_position_embeddings) if layer.window is None else RotatingKVCache(layer.window)
            for layer in self.config.layers
        ]


class Exaone4ForCausalLM(Pretrained):
    """EXAONE 4 with its language-model head.

    `model(input_ids, cache=None)` takes ids [B, L] and returns logits [B, L, V]. With caches from
    `make_cache()` the ids continue what the caches hold. This is the protocol of mlx-lm's models.
    """

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model_type = config.model_type
        self.model = Exaone4Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = new_linear(config, config.hidden_size, config.vocab_size)

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        return self.logits(self.model(input_ids, cache))

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states [B, L, E] -> logits [B, L, V]. Prefill calls it for the last position only."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Cache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        logits_to_keep: int | mx.array = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """transformers' call; arguments and errors as for `Exaone4Model.forward`, and two more.

        `labels` [B, L] are the ids themselves, or -100 where one does not count: each is compared with the logits
        before it. `logits_to_keep` computes logits for the last so many positions only, or for those of a list; 0 is
        all, which labels need.
        """
        inputs = read_inputs(
            self.config,
            self.training,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            cache_position,
            output_hidden_states,
            output_attentions,
        )
        kept = read_kept(logits_to_keep, inputs.shape[1])
        if labels is not None:
            if not isinstance(kept, slice) or kept.start:
                raise ValueError("labels need the logits of all positions; leave logits_to_keep out")
            labels = read_labels("labels", labels, inputs.shape, self.config.vocab_size)
        outputs = self.model.run(inputs)
        logits = self.logits(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else causal_lm_loss(logits, labels)
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[Cache]:
        """A fresh cache per layer, for one conversation."""
        return self.model.make_cache()
