"""The mathematics of one layer, on weights that were taken out of its modules.

What is peculiar here:
- This is the only implementation, for training, prompts and single tokens. What a token costs in Python is what
  limits a small model on a fast machine, so it is written flat: no module is walked, no view made that L = 1 spares.
- Query, key and value projections are one product where their weights lie in one array, and so are gate and up.
  `merge` lays them there. The modules' weights are then slices of it: no memory more, and still the only truth. A
  module or weight that is replaced counts from the next call. One that was merely looked at is no longer taken from
  there, since MLX's arrays can be changed in place without a trace.
- Whether anything was replaced is asked for every layer of every token. After `merge` modules note what is done to
  them, and one comparison answers. `mx.compile` alone puts arrays in the places of others without a note. It is given
  a model as a rule, or a layer, an attention or an MLP of it: two weights of each layer are looked at for that.
- Queries and keys are normalized and rotated together. The norm's weights are multiplied in afterwards, which rounds
  as transformers does.
- Normalization comes *after* attention and after the MLP, just before each residual addition; nothing is normalized
  on the way in.

Shapes: B batch, L new tokens, S attended tokens, H query heads, K key heads, D head size, E hidden size, I MLP size.
Source: transformers' modeling_exaone4.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .cache import Cache, visible
from .forward import Details
from .kv import QuantizedKV, Stored
from .rope import RopeParameters, inverse_frequencies

Projection = Callable[[mx.array], mx.array]

#: Projections that read the same input, by the module that holds them.
TOGETHER = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}
QUANTIZED = ("weight", "scales", "biases")
#: The modules of a block.
OWN = ("self_attn", "mlp", "post_attention_layernorm", "post_feedforward_layernorm")


#: As many new tokens attend to quantized keys and values as they are: one, and the guesses behind it. More take them
#: unpacked, so that the scores of a whole prompt are never made.
FEW = 9


class Rotation:
    """RoPE: turns each pair of a query or key by its position."""

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        self.rope, self.head_dim = rope, head_dim
        self.depends_on_length = rope.depends_on_length
        self.periods = self._periods(0)

    def __call__(self, x: mx.array, offset: int | mx.array, length: int) -> mx.array:
        """Turns x [B, H, L, D], whose rows' first positions are `offset`, an integer or [B].

        `length` is the whole sequence's.
        """
        periods = self._periods(length) if self.depends_on_length else self.periods
        return mx.fast.rope(x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods)

    def each(self, x: mx.array, positions: mx.array, length: int) -> mx.array:
        """The same for any positions [B, L]."""
        B, H, L, D = x.shape
        apart = x.transpose(0, 2, 1, 3).reshape(B * L, H, 1, D)  # the kernel takes one position for each batch row
        return self(apart, positions.reshape(-1), length).reshape(B, L, H, D).transpose(0, 2, 1, 3)

    def _periods(self, length: int) -> mx.array:
        """Tokens per radian of each pair."""
        return mx.array([1 / frequency for frequency in inverse_frequencies(self.rope, self.head_dim, length)])


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, in one kernel."""
    return gate * mx.sigmoid(gate) * up


def attend(queries: mx.array, keys: Stored, values: Stored, mask: mx.array | str | None, scale: float) -> mx.array:
    """Attention of queries [B, H, L, D] to keys and values [B, K, S, D]: [B, H, L, D]."""
    if not isinstance(keys, mx.array) or not isinstance(values, mx.array):
        if queries.shape[2] <= FEW:
            return attend_packed(queries, keys, values, mask, scale)
        keys, values = unpacked(keys), unpacked(values)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def unpacked(x: Stored) -> mx.array:
    return x.dequantized() if isinstance(x, QuantizedKV) else x


def attend_packed(
    queries: mx.array, keys: Stored, values: Stored, mask: mx.array | str | None, scale: float
) -> mx.array:
    """Attention of few queries [B, H, L, D] to keys and values [B, K, S, D] of which some are packed: [B, H, L, D]."""
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


class Changes:
    """Tells whether anything was done to a module that notes it: `last` is another object after each time."""

    last = object()


class Noting(nn.Module):
    """A module that notes when a module, parameter or attribute of its own is replaced, by any way of `nn.Module`'s."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        Changes.last = object()

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        Changes.last = object()

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        Changes.last = object()


class Watched(Noting):
    """A projection or norm that knows whether its parameters were replaced, or looked at, since `watch`.

    Computing does not look. Nobody can have changed the parameters of an untouched one in place.
    """

    touched = True

    def touch(self) -> None:
        if not self.touched:
            self.touched = True

    def __getattr__(self, name: str) -> Any:
        if name in QUANTIZED:
            self.touch()
        return super().__getattr__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.touch()

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.touch()

    def _extra_repr(self) -> str:
        touched = self.touched
        try:
            return super()._extra_repr()
        finally:
            self.__dict__["touched"] = touched


class Linear(Watched, nn.Linear):
    pass


class QuantizedLinear(Watched, nn.QuantizedLinear):
    pass


class RMSNorm(Watched, nn.RMSNorm):
    pass


WATCHED = {nn.Linear: Linear, nn.QuantizedLinear: QuantizedLinear, nn.RMSNorm: RMSNorm}


def watch(module: nn.Module) -> None:
    """Makes a projection or norm of MLX's a watched one, untouched so far."""
    module.__class__ = WATCHED.get(type(module), type(module))
    if isinstance(module, Watched):
        module["weight"] = module["weight"][...]  # the same, as an array that nobody has a hand on
        module.touched = False


def is_untouched(module: Any) -> bool:
    return isinstance(module, Watched) and not module.touched


class Layer:
    """A block, ready to run. Made anew when a module or a weight of the block is another one than it was."""

    def __init__(self, block: Any) -> None:
        checked = Changes.last
        # The block itself is not kept: it keeps this, and a cycle is freed late.
        self.own = tuple(block[name] for name in OWN)
        attention, mlp, attention_norm, mlp_norm = self.own
        self.holders: list[Any] = []  # modules,
        self.names: list[str] = []  # a name in each,
        self.parts: list[Any] = []  # and what stood there
        self.project, self.project_keys_values = self._together(attention, TOGETHER["self_attn"])
        self.output = self._alone(attention, "o_proj")
        self.gate_up, _ = self._together(mlp, TOGETHER["mlp"])
        self.down = self._alone(mlp, "down_proj")
        self.heads, self.key_heads, self.head_dim = attention.heads, attention.key_heads, attention.head_dim
        self.query_norm = self._part(self._part(attention, "q_norm"), "weight")
        self.key_norm = self._part(self._part(attention, "k_norm"), "weight")
        fixed = is_untouched(attention["q_norm"]) and is_untouched(attention["k_norm"])
        self.norm = evaluated(self._norms()) if fixed else None
        self.attention_norm, self.mlp_norm = self._part(attention_norm, "weight"), self._part(mlp_norm, "weight")
        self.eps = attention["q_norm"].eps
        self.window, self.rotation, self.scale = attention.window, attention.rotation, attention.scale
        self.dropout = attention.dropout if attention.training else 0.0
        self.training = attention.training, mlp.training
        leaves = [holder for holder, name in zip(self.holders, self.names, strict=True) if name == "weight"]
        self.untouched = [leaf for leaf in leaves if is_untouched(leaf)]
        # Up to which change this is known to be current, if all changes are noted.
        self.checked = checked if isinstance(block, Noting) and len(self.untouched) == len(leaves) else None
        self.attention_witness = attention["q_norm"]
        in_mlp = [leaf for leaf in leaves if any(leaf is module for module in mlp.values())]
        self.mlp_witness = in_mlp[0] if in_mlp else attention["q_norm"]
        self.mlp_witnessed = self.mlp_witness["weight"]

    def is_current(self, block: Any) -> bool:
        """Whether the block still has the modules and weights that this was made of."""
        last = Changes.last
        if not all(map(is_, map(block.__getitem__, OWN), self.own)):
            return False
        found = map(dict.__getitem__, self.holders, self.names)
        if not all(map(is_, found, self.parts)) or any(leaf.touched for leaf in self.untouched):
            return False
        if self.training != (self.own[0].training, self.own[1].training):
            return False
        if self.checked is not None:
            self.checked = last
        return True

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | str | None,
        cache: Cache | None,
        details: Details | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """Hidden states [B, L, E] -> those after this layer; with `last_only` the last token's alone, [B, 1, E]."""
        taken = self.attended(x, mask, cache, details, last_only)
        if last_only:
            x = x[:, -1:]
        x = x + mx.fast.rms_norm(self.output(taken), self.attention_norm, self.eps)
        return x + mx.fast.rms_norm(self.down(self.inner(x)), self.mlp_norm, self.eps)

    def attended(
        self,
        x: mx.array,
        mask: mx.array | str | None,
        cache: Cache | None,
        details: Details | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """Hidden states [B, L, E] -> what attention takes in, [B, L, H*D]; all tokens are cached, in any case."""
        B, L, _ = x.shape
        D = self.head_dim
        heads = 0 if last_only and L > 1 else self.heads  # none here: those of the last token are made below
        projected = self.project(x) if heads else self.project_keys_values(x)  # B L (H+2K)*D
        # of one token, it is the same memory with and without a transposition
        projected = projected.reshape(B, -1, 1, D) if L == 1 else projected.reshape(B, L, -1, D).transpose(0, 2, 1, 3)
        both, values = mx.split(projected, [heads + self.key_heads], axis=1)  # B (H+K) L D, B K L D
        norm = self._norms() if self.norm is None else self.norm
        both = mx.fast.rms_norm(both, None, self.eps) * (norm if heads else norm[self.heads :])
        offset = cache.offset if cache is not None else 0
        positions, length = (offset, offset + L) if details is None else details.places(offset, L)
        if self.rotation is not None:
            turn = self.rotation if isinstance(positions, int) else self.rotation.each
            both = turn(both, positions, length)
        queries, keys = mx.split(both, [heads], axis=1)
        stored_keys, stored_values = (keys, values) if cache is None else cache.update(keys, values)  # B K S D
        if not heads:
            queries = self._last_queries(x, norm, positions + L - 1, length)
            mask, L = mask[..., -1:, :] if isinstance(mask, mx.array) else None, 1
        if details is None and not self.dropout:
            out = attend(queries, stored_keys, stored_values, mask, self.scale)
        else:
            out = self._attend(queries, unpacked(stored_keys), unpacked(stored_values), mask, details)
        return (out if L == 1 else out.transpose(0, 2, 1, 3)).reshape(B, L, self.heads * D)

    def _last_queries(self, x: mx.array, norm: mx.array, position: int | mx.array, length: int) -> mx.array:
        """Hidden states [B, L, E] -> the last token's queries [B, H, 1, D]."""
        projected = self.project(x[:, -1:]).reshape(x.shape[0], -1, 1, self.head_dim)[:, : self.heads]
        queries = mx.fast.rms_norm(projected, None, self.eps) * norm[: self.heads]
        return queries if self.rotation is None else self.rotation(queries, position, length)

    def inner(self, x: mx.array) -> mx.array:
        """Hidden states [B, L, E] -> what the MLP's last projection reads, [B, L, I]."""
        gate, up = mx.split(self.gate_up(x), 2, axis=-1)
        return swiglu(gate, up)

    def _attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, details: Details | None
    ) -> mx.array:
        """Attention of which more is asked: [B, H, L, D]."""
        if self.dropout or (details is not None and details.attentions is not None):
            return self._attend_openly(queries, keys, values, mask, details)
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return out if details is None else details.nothing_for_the_blind(out, self.window)

    def _attend_openly(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, details: Details | None
    ) -> mx.array:
        """What the fused kernel computes, with the weights [B, H, L, S] in between: to keep them, or to drop some."""
        B, H, L, D = queries.shape
        S, groups = keys.shape[2], H // keys.shape[1]
        grouped = queries.reshape(B, -1, groups, L, D)
        scores = (self.scale * grouped @ keys[:, :, None].swapaxes(-1, -2)).reshape(B, H, L, S).astype(mx.float32)
        if mask is not None:
            seen = visible(S - L, L) if isinstance(mask, str) else mask
            scores = mx.where(seen, scores, mx.finfo(mx.float32).min)
        weights = mx.softmax(scores, axis=-1).astype(queries.dtype)
        if details is not None:
            weights = details.nothing_for_the_blind(weights, self.window)
        if self.dropout:
            weights = weights * mx.random.bernoulli(1 - self.dropout, weights.shape) / (1 - self.dropout)
        if details is not None and details.attentions is not None:
            details.attentions.append(weights)
        return (weights.reshape(B, -1, groups, L, S) @ values[:, :, None]).reshape(B, H, L, D)

    def _norms(self) -> mx.array:
        """The norm's weights of all query and key heads, [H+K, 1, D]."""
        norms = ((self.query_norm, self.heads), (self.key_norm, self.key_heads))
        return mx.concatenate([mx.broadcast_to(norm, (heads, 1, self.head_dim)) for norm, heads in norms])

    def _part(self, holder: Any, name: str) -> Any:
        self.holders.append(holder)
        self.names.append(name)
        self.parts.append(holder[name])
        return self.parts[-1]

    def _alone(self, holder: Any, name: str) -> Projection:
        module = self._part(holder, name)
        if not is_plain(module):
            return module
        arrays = {key: self._part(module, key) for key in QUANTIZED if key in module}
        return product(module, arrays, fixed=is_untouched(module))

    def _together(self, holder: Any, names: tuple[str, ...]) -> tuple[Projection, Projection]:
        """All these projections as one, and all but the first, which is for prompts."""
        modules, merged = [self._part(holder, name) for name in names], holder.merged
        if not merged.holds(modules):
            merged.forget()
        if holder.training or not merged.arrays:
            return side_by_side(modules), side_by_side(modules[1:])
        for module in modules:
            for key in merged.arrays:
                self._part(module, key)
        first, arrays, rows = modules[0], merged.arrays, len(merged.slices[0]["weight"])

        def rest(x: mx.array) -> mx.array:
            return product(first, {key: array[rows:] for key, array in arrays.items()})(x)

        return product(first, arrays, fixed=True), rest


class Merged:
    """Arrays of which the weights of several projections are slices, by the parameter's name."""

    def __init__(self) -> None:
        self.arrays: dict[str, mx.array] = {}
        self.slices: list[dict[str, mx.array]] = []  # of each projection

    def forget(self) -> None:
        """Lets the arrays go: the modules have others, or may have."""
        self.arrays, self.slices = {}, []

    def holds(self, modules: list[Any]) -> bool:
        """Whether the modules are nothing but these slices."""
        return bool(self.arrays) and all(
            is_plain(module) and is_untouched(module) and all(module[key] is part for key, part in slices.items())
            for module, slices in zip(modules, self.slices, strict=True)
        )

    def lay(self, modules: list[Any]) -> None:
        """Copies the parameters of `modules` into arrays of its own, if that can be, and makes them slices of those."""
        self.forget()
        if not all(is_plain(module) and alike(module, modules[0]) for module in modules):
            return
        self.arrays = {
            key: mx.concatenate([module[key] for module in modules]) for key in QUANTIZED if key in modules[0]
        }
        mx.eval(self.arrays)
        start = 0
        for module in modules:
            stop = start + module["weight"].shape[0]
            self.slices.append({key: array[start:stop] for key, array in self.arrays.items()})
            start = stop
        mx.eval(self.slices)
        for module, slices in zip(modules, self.slices, strict=True):
            module.update(slices)
            module.touched = False


def product(module: Any, arrays: dict[str, mx.array], fixed: bool = False) -> Projection:
    """The product with weights of `module`'s kind; `fixed` ones are never changed in place."""
    weight = arrays["weight"]
    if isinstance(module, nn.Linear):
        if not fixed:
            return lambda x: x @ weight.T
        transposed = evaluated(weight.T)
        return lambda x: x @ transposed
    scales, biases = arrays["scales"], arrays.get("biases")
    group_size, bits, mode = module.group_size, module.bits, module.mode
    return lambda x: mx.quantized_matmul(x, weight, scales, biases, True, group_size, bits, mode)


def side_by_side(modules: list[Any]) -> Projection:
    return lambda x: mx.concatenate([module(x) for module in modules], axis=-1)


def is_plain(module: Any) -> bool:
    """Whether a projection is just its weights: no bias, no adapter."""
    return type(module) in (nn.Linear, nn.QuantizedLinear, Linear, QuantizedLinear) and "bias" not in module


def alike(module: Any, other: Any) -> bool:
    """Whether two plain projections can be one."""
    settings = ("group_size", "bits", "mode")
    return (
        isinstance(module, nn.QuantizedLinear) == isinstance(other, nn.QuantizedLinear)
        and [getattr(module, name, None) for name in settings] == [getattr(other, name, None) for name in settings]
        and {key: module[key].dtype for key in module} == {key: other[key].dtype for key in other}
    )


def evaluated(array: mx.array) -> mx.array:
    """The array, evaluated, so that no call computes it anew and any thread can use it, but inside `mx.compile`."""
    with contextlib.suppress(ValueError):
        mx.eval(array)
    return array
