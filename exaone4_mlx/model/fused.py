"""The inference form of a model: immutable, with few products, and compiled for single tokens.

Notes:
- Projections with the same input are one product: see `products.py`.
- For a few tokens, everything between two attentions is one compiled function, whose weights are constants. That saves
  most of Python's time per token, which limits a small model on a fast machine. Prompts take the plain call.
- Several conversations can take a step together. Only attention runs row by row, in the caches of each row. So nothing
  is padded or copied, and a row gets the logits that it would get alone. Only the products round as those of several
  tokens do.
- Each thread compiles its own functions. MLX (0.32) keeps compiled graphs per thread and frees only those of the thread
  that called a function last. In other threads they would outlive the model, and a new function at the same address
  would get the old graph, with the old weights.
- It keeps array objects of its own. An in-place write into a module's weight (`w *= 2`) does not reach it.

Shapes: B batch, L new tokens, T the tokens of all rows, H query heads, K key heads, D head size, E hidden size,
V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .cache import Cache, new_caches
from .context import AttentionContext
from .kv import KVQuantization
from .layer import Layer, Mask, Pause, Projection, attend, check_depth, run_layers
from .pipeline import Pipeline
from .products import (
    Parameters,
    adapted,
    bare,
    bare_parameters,
    frozen,
    fuse,
    product,
    same_arrays,
    with_adapters,
)  # fmt: skip

#: Up to this many tokens per row, a step runs compiled functions: one token and the guesses behind it.
MAX_COMPILED_LENGTH = 17

Row = tuple[mx.array, Sequence[Cache]]  # the new ids of a conversation [B, L], and its caches
Shapes = Sequence[tuple[int, ...]]  # (B, L) of each row
Functions = tuple[Callable[..., Any], list[Callable[..., Any]], Callable[..., mx.array]]


class FusedModel:
    """A causal language model, ready for inference. `model.fused()` makes it; dropout is off.

    `fused(ids, cache)` gives logits [B, L, V], like the model.
    """

    def __init__(self, model: Any, previous: FusedModel | None = None) -> None:
        """Makes the weights of `model` slices of joint arrays. Layers that `previous` holds unchanged are kept."""
        self.config, self.adapters = model.config, model.adapters
        kept = [] if previous is None else previous._bare
        self._bare: list[tuple[Parameters, Layer]] = []  # the layers without adapters, and what they are made of
        for number, block in enumerate(model.layers):
            is_kept = number < len(kept) and same_arrays(kept[number][0], bare_parameters(block))
            layer = kept[number][1] if is_kept else fuse(block)
            self._bare.append((bare_parameters(block), layer))
        pairs = zip(self._bare, model.layers, strict=True)
        self.layers: tuple[Layer, ...] = tuple(with_adapters(layer, block) for (_, layer), block in pairs)
        embedding, norm = frozen(model.model.embed_tokens), frozen(model.model.norm)
        self.embed: Projection = embedding  # ids [B, L] -> [B, L, E]
        self.norm: Projection = norm
        self.pipeline: Pipeline | None = model.pipeline
        if self.pipeline is not None:
            self.embed, self.norm = self.pipeline.ends(embedding, norm)
        self.head: Projection = lambda x: x  # of a rank that computes no logits
        if model.ranks is None or model.ranks.rank == 0:
            is_tied = self.config.tie_word_embeddings
            self.head = embedding.as_linear if is_tied else adapted(product(bare(model.lm_head)), model.lm_head)
        self._rope_is_static = not self.config.rope_parameters.depends_on_length
        self._layer_of_window = {layer.window: i for i, layer in enumerate(self.layers)}
        self._threads = threading.local()
        self.parameters: Parameters = tree_flatten(model.parameters())  # that this form was made of

    def is_current(self, model: Any) -> bool:
        """Whether all arrays of `model` are the objects that they were when this was made."""
        return same_arrays(self.parameters, tree_flatten(model.parameters()))

    def __call__(self, ids: mx.array, cache: Sequence[Cache]) -> mx.array:
        """Logits [B, L, V] for ids [B, L], which continue what `cache` holds."""
        return self.together([(ids, cache)])[0]

    def together(self, rows: Sequence[Row]) -> list[mx.array]:
        """The same for several conversations at once: the logits [B, L, V] of each row.

        All tokens go through each projection together. Attention runs row by row, in the caches of each row. Rows with
        dynamic or longrope RoPE run one after the other.
        """
        if not self._rope_is_static or (len(rows) == 1 and rows[0][0].shape[1] > MAX_COMPILED_LENGTH):
            return [self.head(self.norm(run_layers(self.layers, self.embed(ids), cache))) for ids, cache in rows]
        for _, cache in rows:
            check_depth(cache, len(self.layers))
        shapes = [ids.shape for ids, _ in rows]
        starts = [(cache[0].offset, *shape) for (_, cache), shape in zip(rows, shapes, strict=True)]
        positions = mx.array([past + i for past, batch, length in starts for _ in range(batch) for i in range(length)])
        masks = [self._masks(cache, length) for (_, cache), (_, length) in zip(rows, shapes, strict=True)]
        tokens = [ids if len(ids) == 1 else ids.reshape(1, -1) for ids, _ in rows]
        x = self.embed(tokens[0] if len(rows) == 1 else mx.concatenate(tokens, axis=1))  # 1 T E
        before, between, after = self._functions(all(length <= MAX_COMPILED_LENGTH for _, length in shapes))
        x, *qkv = before(x, positions, shapes)  # the queries of each row, then the keys of each row, then the values
        if len(rows) == 1:  # no lists: this runs for every layer of every token
            (queries, keys, values), mask = qkv, masks[0]
            for layer, past, step in zip(self.layers, rows[0][1], between, strict=False):  # all layers but the last
                spec = layer.spec
                out = attend(queries, *past.update(keys, values), mask.get(spec.window), spec.scale)
                x, queries, keys, values = step(x, positions, out)
            qkv = [queries, keys, values]
        else:
            for number, step in enumerate(between):
                x, *qkv = step(x, positions, *self._attended(number, qkv, rows, masks))
        logits = self.head(self.norm(after(x, *self._attended(len(between), qkv, rows, masks))))  # 1 T V
        if len(rows) == 1:
            return [logits if len(rows[0][0]) == 1 else logits.reshape(*shapes[0], -1)]
        ends = list(accumulate(batch * length for batch, length in shapes))
        parts = mx.split(logits, ends[:-1], axis=1)
        return [part.reshape(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def _attended(
        self, number: int, qkv: list[mx.array], rows: Sequence[Row], masks: list[dict[int | None, Mask]]
    ) -> list[mx.array]:
        """The output of attention of layer `number` for each row."""
        spec, count = self.layers[number].spec, len(rows)
        return [
            attend(q, *cache[number].update(k, v), mask.get(spec.window), spec.scale)
            for q, k, v, (_, cache), mask in zip(qkv, qkv[count:], qkv[2 * count :], rows, masks, strict=False)
        ]

    def _masks(self, cache: Sequence[Cache], length: int) -> dict[int | None, Mask]:
        """The masks of `length` new tokens, by window. A single token attends to all rows that its cache returns."""
        return {} if length == 1 else {window: cache[i].mask(length) for window, i in self._layer_of_window.items()}

    def prefill(self, ids: mx.array, cache: Sequence[Cache], whole_length: int, pause: Pause | None = None) -> mx.array:
        """A chunk of a prompt [B, L] -> the last token's final hidden state [B, 1, E]; see `Exaone4Model.prefill`."""
        context = None if self._rope_is_static else AttentionContext(length=whole_length)
        last = self.pipeline is None or self.pipeline.stage.rank == 0
        return self.norm(run_layers(self.layers, self.embed(ids), cache, context, last, pause))

    def logits(self, hidden: mx.array) -> mx.array:
        """Final hidden states [B, L, E] -> logits [B, L, V]."""
        return self.head(hidden)

    def make_cache(self, kv: KVQuantization | int | None = None) -> list[Cache]:
        return new_caches(self.config, kv)

    def _functions(self, are_compiled: bool) -> Functions:
        """The functions of `between_attentions`. The compiled ones are those of this thread."""
        if not are_compiled:
            return between_attentions(self.layers, lambda function: function)
        try:
            return self._threads.functions
        except AttributeError:
            self._threads.functions = between_attentions(self.layers, mx.compile)
            return self._threads.functions


def between_attentions(layers: Sequence[Layer], compiled: Callable[..., Any]) -> Functions:
    """The functions before the first attention, between two attentions, and after the last one.

    Between the functions the tokens of all rows are one row, [1, T, E]. Inside, each token is a batch row of length 1,
    [T, 1, E], because RoPE takes one position for each batch row.
    """

    def first(x: mx.array, positions: mx.array, shapes: Shapes) -> tuple[mx.array, ...]:
        return x, *by_row(layers[0].before(swapped(x), positions), shapes)

    def between(layer: Layer, following: Layer) -> Callable[..., Any]:
        def step(x: mx.array, positions: mx.array, *attended: mx.array) -> tuple[mx.array, ...]:
            x = layer.after(swapped(x), by_token(attended))
            shapes = [(out.shape[0], out.shape[2]) for out in attended]
            return swapped(x), *by_row(following.before(x, positions), shapes)

        return compiled(step)

    def last(x: mx.array, *attended: mx.array) -> mx.array:
        return swapped(layers[-1].after(swapped(x), by_token(attended)))

    return compiled(first), [between(*pair) for pair in pairwise(layers)], compiled(last)


def swapped(x: mx.array) -> mx.array:
    """[1, T, E] -> [T, 1, E], or back. For one token it is `x` itself."""
    return x.reshape(x.shape[1], x.shape[0], x.shape[2])


def by_row(projections: Sequence[mx.array], shapes: Shapes) -> tuple[mx.array, ...]:
    """Queries, keys and values of all tokens, each [T, H, 1, D] -> those of each row, [B, H, L, D]."""
    ends = list(accumulate(batch * length for batch, length in shapes))

    def split(x: mx.array) -> list[mx.array]:
        parts = mx.split(x, ends[:-1]) if len(ends) > 1 else [x]
        return [
            part if length == 1 else part.reshape(batch, length, *x.shape[1::2]).transpose(0, 2, 1, 3)
            for part, (batch, length) in zip(parts, shapes, strict=True)
        ]

    return tuple(part for x in projections for part in split(x))


def by_token(attended: Sequence[mx.array]) -> mx.array:
    """The outputs of attention of each row, [B, H, L, D] -> those of all tokens, [T, H, 1, D]."""
    parts = [
        out if out.shape[2] == 1 else out.transpose(0, 2, 1, 3).reshape(-1, out.shape[1], 1, out.shape[3])
        for out in attended
    ]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)
