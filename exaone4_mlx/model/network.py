"""The EXAONE 4 network: token ids -> logits.

Notes:
- Normalization comes after attention and after the MLP, just before each residual addition. Nothing is normalized on
  the way in.
- Queries and keys are RMS-normalized per head, before the rotation.
- In the hybrid model three local layers (a sliding window, rotated) are followed by a global layer without position
  encoding.
- Modules and parameters have the names of the checkpoint. They are plain `mlx.nn` modules, which training, LoRA,
  `nn.quantize` and mlx-lm's tools use. `layer.py` has the mathematics.
- `model(input_ids, cache)` is mlx-lm's call, `forward` is transformers'. Generation uses `model.fused()`.

Shapes: B batch, L new tokens, S attended tokens, H query heads, K key heads, D head size, E hidden size, V vocabulary.
Source: transformers' modeling_exaone4.py, and the EXAONE 4.0 report (arXiv 2507.11407).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.share import Share, Stage
from ..cluster.ranks import Ranks
from .adapted import ActiveAdapters, put_on
from .adapter import WeightedAdapter
from .adapter_file import AdapterPaths, Scales, read_adapters
from .cache import Cache, new_caches
from .config import Exaone4Config, LayerAttention
from .context import AttentionContext
from .fused import FusedModel
from .inputs import ForwardInputs, Inputs, read_inputs, read_kept, read_labels
from .kv import KVQuantization
from .layer import AttentionSpec, Layer, Mask, Pause, Projection, Rotation, run_layers
from .led import LedModel
from .losses import causal_lm_loss
from .mlx_lm_caches import usable_caches
from .outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput
from .pipeline import Pipeline
from .pretrained import Pretrained, new_embedding, new_linear

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
Output = TypeVar("Output", bound=ModelOutput)
#: Held while adapters change and while a fused form is made, so that no form has some adapters in part of its layers.
_CHANGE = threading.RLock()


class Attention(nn.Module):
    """The weights and the constants of a layer's attention."""

    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        heads, key_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = new_linear(config, config.hidden_size, heads * head_dim)
        self.k_proj = new_linear(config, config.hidden_size, key_heads * head_dim)
        self.v_proj = new_linear(config, config.hidden_size, key_heads * head_dim)
        self.o_proj = new_linear(config, heads * head_dim, config.hidden_size)
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.dropout = config.attention_dropout
        scale, rotation = head_dim**-0.5, None
        # The global layers of a hybrid model have no rotation. That is not an oversight: see Exaone4Config.layers.
        if layer.rope:
            rotation = Rotation(config.rope_parameters, head_dim)
            # yarn and longrope stretch rotated queries and keys, and so their products twice
            scale *= config.rope_parameters.attention_factor**2
        self.spec = AttentionSpec(heads, key_heads, head_dim, layer.window, rotation, scale, config.rms_norm_eps)


class MLP(nn.Module):
    """The weights of a layer's MLP."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.gate_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = new_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = new_linear(config, config.intermediate_size, config.hidden_size)


class Block(nn.Module):
    """The modules of one layer, with the names of the checkpoint."""

    def __init__(self, config: Exaone4Config, layer: LayerAttention) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.total: Projection | None = None  # the sum over several ranks

    @property
    def window(self) -> int | None:
        """Tokens that the layer attends to; None for a global layer."""
        return self.self_attn.spec.window

    def __call__(self, x: mx.array, mask: Mask, cache: Cache | None, *more: Any) -> mx.array:
        """As `Layer.__call__`."""
        return Layer.of(self)(x, mask, cache, *more)


def with_return_dict(forward: Callable[P, Output]) -> Callable[P, Output]:
    """A `forward` that takes `return_dict`: False returns a tuple in place of the output. None takes the config's."""

    @functools.wraps(forward)
    def call(*args: P.args, **inputs: P.kwargs) -> Any:
        return_dict, network = inputs.pop("return_dict", None), args[0]
        if return_dict not in (None, True, False):
            raise ValueError(f"return_dict must be True or False, not {return_dict!r}")
        output = forward(*args, **inputs)
        wanted = network.config.return_dict if return_dict is None else return_dict  # type: ignore[attr-defined]
        return output if wanted else output.to_tuple()

    return call


class Exaone4Model(Pretrained):
    """Token ids [B, L] -> final hidden states [B, L, E]."""

    backbone = ""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.embed_tokens = new_embedding(config)
        self.layers = [Block(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        return self.norm(run_layers(self.layers, self.embed_tokens(input_ids), usable_caches(cache, self.config)))

    def prefill(
        self, input_ids: mx.array, cache: Sequence[Cache], whole_length: int, pause: Pause | None = None
    ) -> mx.array:
        """A chunk of a prompt [B, L] -> the final hidden state of its last token, [B, 1, E].

        The caches take all tokens. The last layer computes only the last one. `whole_length` is the number of tokens of
        the whole prompt and of the caches before it: dynamic and longrope RoPE depend on it, whatever the chunks are.
        `pause` is called after each layer.
        """
        context = AttentionContext(length=whole_length) if self.config.rope_parameters.depends_on_length else None
        return self.norm(run_layers(self.layers, self.embed_tokens(input_ids), cache, context, last=True, pause=pause))

    @with_return_dict
    def forward(
        self, input_ids: mx.array | None = None, attention_mask: mx.array | None = None, **inputs: Unpack[ForwardInputs]
    ) -> BaseModelOutputWithPast:
        """transformers' call. `ForwardInputs` documents the arguments.

        Raises ValueError that names the argument, for a missing, misshapen, contradictory or out-of-range value.
        """
        return self.run(read_inputs(self.config, self.training, input_ids, attention_mask, inputs))

    def run(self, inputs: Inputs) -> BaseModelOutputWithPast:
        """The output of `forward` for checked arguments."""
        x = inputs.embeddings
        if x is None:
            assert inputs.ids is not None
            x = self._embed(inputs.ids)
        cache = self.make_cache() if inputs.keep_cache and inputs.cache is None else inputs.cache
        context = inputs.context
        hidden = self.norm(run_layers(self.layers, x, cache, context))
        states = None if context.hidden_states is None else (*context.hidden_states, hidden)
        attentions = None if context.attentions is None else tuple(context.attentions)
        return BaseModelOutputWithPast(hidden, cache if inputs.keep_cache else None, states, attentions)

    def _embed(self, ids: mx.array) -> mx.array:
        """The embeddings of ids. As in torch, the embedding of the padding token is not trained."""
        x = self.embed_tokens(ids)
        if self.config.pad_token_id is None:
            return x
        padding = mx.equal(ids, self.config.pad_token_id)[..., None]
        return mx.where(padding, mx.stop_gradient(x), x)

    def make_cache(self, kv: KVQuantization | int | None = None) -> list[Cache]:
        """A new cache for each layer, for one conversation or batch; `kv` says how to quantize it, as in `coerce`."""
        return new_caches(self.config, kv)


class Exaone4ForCausalLM(Pretrained):
    """EXAONE 4 with its language-model head.

    `model(input_ids, cache=None)` takes ids [B, L] and returns logits [B, L, V]. With caches from
    `make_cache()`, or mlx-lm's, the ids continue what the caches hold. This is the protocol of mlx-lm's models.
    """

    #: transformers' `generate`. generation/causal_lm.py defines it and puts it here.
    generate: ClassVar[Callable[..., mx.array]]

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model_type = config.model_type
        self.model = Exaone4Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = new_linear(config, config.hidden_size, config.vocab_size)
        self._fused: FusedModel | None = None
        self._adapters = ActiveAdapters()
        self.ranks: Ranks | None = None  # that compute this model together: see `led.spread`
        self.part: Share | Stage | None = None  # of the weights, of one of several ranks
        self.pipeline: Pipeline | None = None  # of ranks that have some layers each

    def __call__(self, input_ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        return self.logits(self.model(input_ids, cache))

    def fused(self, refresh: bool = False) -> FusedModel:
        """The inference form of this model: the same mathematics in fewer steps, with weights that do not change.

        It is made anew when an array of the model is another object than before (an update, a cast, a quantization, an
        adapter). That takes a walk over all parameters, so ask once per reply and not per token. An in-place write into
        a weight (`w *= 2`) is not noticed: call `model.fused(refresh=True)` after it. The arrays of the modules become
        slices of those of the fused form.
        """
        with _CHANGE:
            if refresh:
                self._fused = None
            if self._fused is None or not self._fused.is_current(self):
                is_led = self.ranks is not None and self.ranks.rank == 0
                self._fused = (LedModel if is_led else FusedModel)(self, self._fused)
            return self._fused

    @property
    def adapters(self) -> tuple[WeightedAdapter, ...]:
        """The adapters on this model, each with its scale."""
        return self._adapters.given

    def set_adapters(self, adapters: AdapterPaths = (), scales: Scales = 1.0) -> None:
        """Puts adapters onto this model, in place of those that are on it; without arguments takes them off.

        `adapters` is a folder or hub id of mlx-lm's or PEFT's format, an `Adapter`, or a list of these. `scales`, one
        for all or one for each, multiply what an adapter changes: 0 is the model without it. The weights of the model
        stay as they are, quantized or not, and are not read again. The adapters count from the next reply on, and
        prompt caches that were made with others are not reused.

        Raises FileNotFoundError and ValueError that name the adapter and the array, for one that is damaged or made for
        another model. Then the model does not change.
        """
        if self.ranks is not None:
            raise ValueError("a model of several ranks takes no adapters: fuse them into the weights first")
        given = read_adapters(adapters, scales)
        with _CHANGE:
            self._adapters = put_on(self, given, self._adapters)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}  # copies make their own

    def prefill(
        self, input_ids: mx.array, cache: Sequence[Cache], whole_length: int, pause: Pause | None = None
    ) -> mx.array:
        """As `Exaone4Model.prefill`."""
        return self.model.prefill(input_ids, cache, whole_length, pause)

    def logits(self, hidden: mx.array) -> mx.array:
        """Final hidden states [B, L, E] -> logits [B, L, V]. Prefill calls it for the last position only."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    @with_return_dict
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
        """As `Exaone4Model.make_cache`."""
        return self.model.make_cache(kv) if self.ranks is None else self.fused().make_cache(kv)
