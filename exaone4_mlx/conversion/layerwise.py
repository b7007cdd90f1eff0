"""A checkpoint's network that runs over many texts with one block in memory at a time.

Notes:
- All texts pass a block before the next block is read, so that a model needs only the memory of its largest block and
  of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.formats import Source
from ..checkpoint.layouts import StoredTensor
from ..files.safetensors import check_finite
from ..model.cache import causal_mask, make_caches
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Block
from ..model.pretrained import Progress, fill, named_parameters, quantize_layers


class LayerwiseModel:
    """The parts of a checkpoint's network. Each is read when it is requested, with floats cast to `dtype`.

    Quantized weights are computed as stored, or, with `unpacked`, in full precision.
    """

    def __init__(
        self, source: Source, config: Exaone4Config, dtype: mx.Dtype = mx.float32, unpacked: bool = False
    ) -> None:
        self.source, self.config, self.dtype, self.unpacked = source, config, dtype, unpacked

    def embed(self, sequences: Sequence[Sequence[int]]) -> list[mx.array]:
        """Token ids -> hidden states [1, L, E] of each sequence."""
        embedding = self._filled(self._table(), "model.embed_tokens")
        states = [embedding(mx.array([list(ids)])).astype(self.dtype) for ids in sequences]
        mx.eval(states)
        return states

    def block(self, number: int) -> Block:
        """The block of one layer."""
        return self._filled(Block(self.config, self.config.layers[number]), f"model.layers.{number}")

    def norm(self) -> nn.Module:
        """The norm after the last block."""
        return self._filled(nn.RMSNorm(self.config.hidden_size, self.config.rms_norm_eps), "model.norm")

    def head(self) -> Callable[[mx.array], mx.array]:
        """The function from final hidden states [..., E] to logits [..., V] in float32."""
        if self.config.tie_word_embeddings:
            table = self._filled(self._table(), "model.embed_tokens")
            return lambda hidden: table.as_linear(hidden).astype(mx.float32)
        head = self._filled(nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False), "lm_head")
        return lambda hidden: head(hidden).astype(mx.float32)

    def hidden_states(
        self, sequences: Sequence[Sequence[int]], progress: Progress | None = None, kv: KVQuantization | None = None
    ) -> list[mx.array]:
        """Token ids -> final hidden states [L, E] of each sequence, ready for the head; `kv` as in `run_block`."""
        states = self.embed(sequences)
        for number in range(self.config.num_hidden_layers):
            states = run_block(self.block(number), states, kv)
            mx.clear_cache()
            if progress:
                progress(number + 1, self.config.num_hidden_layers)
        norm = self.norm()
        states = [norm(state)[0] for state in states]
        mx.eval(states)
        return states

    def _table(self) -> nn.Module:
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size)

    def _filled(self, module: nn.Module, prefix: str) -> Any:
        """The module with its weights, quantized as they are stored."""
        holder = nn.Module()
        holder.part = module
        stored = {name: self.source.tensors[f"{prefix}{name}"] for name in _weights(module)}
        packed = {f"part{name}".removesuffix(".weight"): t.exact for name, t in stored.items() if t.exact}
        quantize_layers(holder, {} if self.unpacked else packed)
        fill(holder.part, ((name.removeprefix("."), array) for name, array in self._tensors(prefix, stored)))
        return holder.part

    def _tensors(self, prefix: str, stored: dict[str, StoredTensor]) -> Iterator[tuple[str, mx.array]]:
        for tensor in stored.values():
            if tensor.exact and not self.unpacked:
                parts = self.source.parts(tensor.name)
            else:
                parts = [(tensor.name, self.source.weight(tensor.name, dtype=self.dtype))]
            for name, array in parts:
                check_finite(array, name)
                is_float = mx.issubdtype(array.dtype, mx.floating)
                yield name.removeprefix(prefix), array.astype(self.dtype) if is_float else array


def run_block(block: Block, states: Sequence[mx.array], kv: KVQuantization | None = None) -> list[mx.array]:
    """The hidden states [B, L, E] of each text after one block, with a cache that `kv` quantizes."""
    after, window = [], block.window
    for state in states:
        cache = None if kv is None else make_caches([window], kv=kv)[0]
        after.append(block(state, causal_mask(0, state.shape[1], window), cache))
        mx.eval(after[-1])
    return after


def _weights(module: nn.Module) -> list[str]:
    return ["." + name for name in named_parameters(module)]
