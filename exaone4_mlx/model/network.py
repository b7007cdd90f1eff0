"""The EXAONE 4 network: token ids -> logits.

What is peculiar here:
- Normalization comes *after* attention and after the MLP, just before each residual addition; nothing is
  normalized on the way in.
- Queries and keys are RMS-normalized per head, before the rotation.
- In the hybrid model three local layers (a sliding window, rotated) are followed by a global one that has
  no position encoding at all.
- Modules and parameters are named as in the checkpoint, and are the only truth.

Shapes: B batch, L new tokens, S attended tokens, H query heads, K key heads, D head size, E hidden size, V vocabulary.
Source: transformers' modeling_exaone4.py, and the EXAONE 4.0 report (arXiv 2507.11407).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .cache import Cache, KVCache, RotatingKVCache, causal_mask
from .config import Exaone4Config, LayerAttention
from .rope import inverse_frequencies


class Attention(nn.Module):
    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.window = layer.window
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.key_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.key_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        # No rotation at all on the global layers of a hybrid model: not an oversight, see Exaone4Config.layers.
        self._periods = None
        if layer.rope:
            self._periods = mx.array([1 / f for f in inverse_frequencies(config.rope_parameters, self.head_dim)])

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Cache | None) -> mx.array:
        B, L, _ = x.shape
        queries = self.q_norm(self.q_proj(x).reshape(B, L, self.heads, self.head_dim)).transpose(0, 2, 1, 3)  # B H L D
        keys = self.k_norm(self.k_proj(x).reshape(B, L, self.key_heads, self.head_dim)).transpose(0, 2, 1, 3)
        values = self.v_proj(x).reshape(B, L, self.key_heads, self.head_dim).transpose(0, 2, 1, 3)  # B K L D

        if self._periods is not None:
            offset = cache.offset if cache is not None else 0
            queries, keys = self._rotate(queries, offset), self._rotate(keys, offset)
        if cache is not None:
            keys, values = cache.update(keys, values)  # B K S D
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.head_dim**-0.5, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))  # B L E

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods
        )


class MLP(nn.Module):
    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Cache | None) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(x, mask, cache))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Exaone4Model(nn.Module):
    """Token ids [B, L] -> final hidden states [B, L, E]."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        x = self.embed_tokens(input_ids)  # B L E
        length = x.shape[1]
        masks: dict[int | None, mx.array | str | None] = {}  # window -> mask: one for all layers alike
        for i, layer in enumerate(self.layers):
            window = layer.self_attn.window
            if window not in masks:
                masks[window] = cache[i].mask(length) if cache is not None else causal_mask(0, length, window)
            x = layer(x, masks[window], cache[i] if cache is not None else None)
        return self.norm(x)


class Exaone4ForCausalLM(nn.Module):
    """EXAONE 4 with its language-model head.

    `model(input_ids, cache=None)` takes ids [B, L] and returns logits [B, L, V]. With caches from
    `make_cache()` the ids continue what the caches hold. This is the protocol of mlx-lm's models.
    """

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.config = config
        self.model_type = "exaone4"
        self.model = Exaone4Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        return self.logits(self.model(input_ids, cache))

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states [B, L, E] -> logits [B, L, V]. Prefill calls it for the last position only."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[Cache]:
        """A fresh cache per layer, for one conversation."""
        return [
            KVCache(self.config.max_position_embeddings) if layer.window is None else RotatingKVCache(layer.window)
            for layer in self.config.layers
        ]
