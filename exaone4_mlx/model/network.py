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
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from .cache import Cache, causal_mask, make_caches
from .config import Exaone4Config, LayerAttention
from .forward import Details
from .inputs import ForwardInputs, Inputs, read_inputs, read_kept, read_labels
from .kv import KVQuantization
from .layer import TOGETHER, Changes, Layer, Merged, Noting, Rotation, watch
from .losses import causal_lm_loss
from .outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from .pretrained import Mergeable, Pretrained, new_embedding, new_linear

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Attention(Noting):
    """The weights of a layer's attention, and what it attends to. What becomes of them, `layer.py` says."""

    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = new_linear(config, config.hidden_size, self.heads * self.head_dim)
        self.k_proj = new_linear(config, config.hidden_size, self.key_heads * self.head_dim)
        self.v_proj = new_linear(config, config.hidden_size, self.key_heads * self.head_dim)
        self.o_proj = new_linear(config, self.heads * self.head_dim, config.hidden_size)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.window = layer.window
        self.dropout = config.attention_dropout
        self.scale = self.head_dim**-0.5
        # No rotation at all on the global layers of a hybrid model: not an oversight, see Exaone4Config.layers.
        self.rotation = None
        if layer.rope:
            self.rotation = Rotation(config.rope_parameters, self.head_dim)
            # yarn and longrope stretch rotated queries and keys, and so their products twice
            self.scale *= config.rope_parameters.attention_factor**2
        self.merged = Merged()


class MLP(Noting):
    """The weights of a layer's MLP."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.gate_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = new_linear(config, config.intermediate_size, config.hidden_size)
        self.merged = Merged()


class Block(Noting, Mergeable):
    """The modules of one layer, named as in the checkpoint."""

    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._layer: Layer | None = None

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Cache | None, *more: Any) -> mx.array:
        """As `Layer.__call__`."""
        layer = self._layer
        if (
            layer is None
            or layer.checked is not Changes.last
            or layer.attention_witness["weight"] is not layer.query_norm
            or layer.mlp_witness["weight"] is not layer.mlp_witnessed
        ):
            layer = self.ready()
        return layer(x, mask, cache, *more)

    def ready(self) -> Layer:
        """The mathematics of this layer, on the weights that its modules have now."""
        layer = self._layer
        if layer is None or not layer.is_current(self):
            layer = self.__dict__["_layer"] = Layer(self)  # no change of the block's
        return layer

    def merge(self) -> None:
        """Lays the weights of projections with the same input side by side, so that each group is one product."""
        for holder in (self, *(self[name] for name in TOGETHER)):
            for module in holder.children().values():
                watch(module)
        for name, projections in TOGETHER.items():
            self[name].merged.lay([self[name][projection] for projection in projections])
        self._layer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layer": None}  # it is made anew


class Exaone4Model(Pretrained):
    """Token ids [B, L] -> final hidden states [B, L, E]."""

    backbone = ""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.embed_tokens = new_embedding(config)
        self.layers = [Block(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        return self._run(self.embed_tokens(input_ids), cache)

    def prefill(self, input_ids: mx.array, cache: Sequence[Cache], whole_length: int) -> mx.array:
        """A piece of a prompt [B, L] -> the final hidden state of its last token, [B, 1, E].

        All tokens are cached, and what the last layer makes of the others is not computed. `whole_length` counts the
        tokens of the whole prompt and those before: dynamic and longrope RoPE go by that, in whatever pieces it comes.
        """
        details = Details(length=whole_length) if self.config.rope_parameters.depends_on_length else None
        return self._run(self.embed_tokens(input_ids), cache, details, last_only=True)

    def _run(
        self,
        x: mx.array,
        cache: Sequence[Cache] | None,
        details: Details | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """Embeddings [B, L, E] -> final hidden states [B, L, E], or with `last_only` the last token's, [B, 1, E]."""
        if cache is not None and len(cache) != len(self.layers):
            raise ValueError(f"cache has {len(cache)} layers, and the model {len(self.layers)}")
        length, last = x.shape[1], len(self.layers) - 1
        masks: dict[int | None, mx.array | str | None] = {}  # window -> mask: one for all layers alike
        for i, block in enumerate(self.layers):
            past = cache[i] if cache is not None else None
            window = block["self_attn"].window
            if window not in masks:
                if details is not None:
                    masks[window] = details.mask(past.past if past is not None else 0, length, window)
                else:
                    masks[window] = past.mask(length) if past is not None else causal_mask(0, length, window)
            if details is not None and details.hidden_states is not None:
                details.hidden_states.append(x)
            x = block(x, masks[window], past, details, last_only and i == last)
        return self.norm(x)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        **inputs: Unpack[ForwardInputs],
    ) -> BaseModelOutputWithPast:
        """transformers' call. `ForwardInputs` documents the arguments.

        Raises ValueError that names the argument, for a missing, misshapen, contradictory or out-of-range value.
        """
        return self.run(read_inputs(self.config, self.training, input_ids, attention_mask, inputs))

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

    def make_cache(self, kv: KVQuantization | int | None = None) -> list[Cache]:
        """A fresh cache per layer, for one conversation or batch; `kv` says how to quantize it."""
        windows = [layer.window for layer in self.config.layers]
        return make_caches(windows, self.config.max_position_embeddings, KVQuantization.coerce(kv, self.config))


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
        *,
        labels: mx.array | None = None,
        logits_to_keep: int | mx.array = 0,
        **inputs: Unpack[ForwardInputs],
    ) -> CausalLMOutputWithPast:
        """transformers' call. Arguments and errors as for `Exaone4Model.forward`, and two more.

        `labels` [B, L] are the ids themselves, or -100 for an ignored token. Each label is compared with the logits of
        the token before it. `logits_to_keep` computes the logits of the last so many positions only, or of a list of
        positions. 0 means all, which labels need.
        """
        read = read_inputs(self.config, self.training, input_ids, attention_mask, inputs)
        kept = read_kept(logits_to_keep, read.shape[1])
        if labels is not None:
            if not isinstance(kept, slice) or kept.start:
                raise ValueError("labels need the logits of all positions; leave logits_to_keep out")
            labels = read_labels("labels", labels, read.shape, self.config.vocab_size)
        outputs = self.model.run(read)
        logits = self.logits(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else causal_lm_loss(logits, labels)
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self, kv: KVQuantization | int | None = None) -> list[Cache]:
        """A fresh cache per layer, for one conversation; `kv` says how to quantize it."""
        return self.model.make_cache(kv)
