"""The products of a layer in its inference form, made of the modules of a block.

Notes:
- Projections with the same input are one product where their kind allows it: query, key and value, and gate and up.
  Biases, different bits and the layers of a trainer stay separate. The weights of the modules become slices of the
  joint arrays, so that the model takes no more memory.
- Adapters add two thin products to each joint one: their first matrices side by side, their second ones as blocks of a
  diagonal. The zeros of that matrix cost less than more nodes. A change of adapters keeps the joint weights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .layer import Layer, Projection, beside, head_norm

Parameters = list[tuple[str, mx.array]]


class AdaptedLinear(nn.Module):
    """A projection with its adapters: `base(x) * gain + x @ a @ b`."""

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array, gain: mx.array | None) -> None:
        """`a` [E, R], `b` [R, F]; `gain` [F], or None without DoRA."""
        super().__init__()
        self.base, self.adapter_a, self.adapter_b = base, a, b
        if gain is not None:
            self.adapter_gain = gain

    @property
    def gain(self) -> mx.array | None:
        return self.get("adapter_gain")

    def __call__(self, x: mx.array) -> mx.array:
        out = self.base(x)
        return mx.addmm(out if self.gain is None else out * self.gain, x @ self.adapter_a, self.adapter_b)


def bare(module: nn.Module) -> nn.Module:
    """A projection without its adapters."""
    return module.base if isinstance(module, AdaptedLinear) else module


def bare_parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    """The parameters of a module without its adapters, by their names without adapters."""
    return [
        (name.replace(".base.", "."), array)
        for name, array in tree_flatten(module.parameters())
        if not name.rpartition(".")[2].startswith("adapter_")
    ]


def fuse(block: Any) -> Layer:
    """The layer of a block without its adapters, on arrays that no other code can change in place."""
    attention, mlp = block.self_attn, block.mlp
    qkv, keys_values = joined(*map(bare, (attention.q_proj, attention.k_proj, attention.v_proj)))
    gate_up, _ = joined(*map(bare, (mlp.gate_proj, mlp.up_proj)))
    norm = head_norm(attention)
    mx.eval(norm)
    return Layer(
        spec=attention.spec,
        qkv=qkv,
        keys_values=keys_values,
        output=product(bare(attention.o_proj)),
        gate_up=gate_up,
        down=product(bare(mlp.down_proj)),
        head_norm=norm,
        attention_norm=block.post_attention_layernorm.weight[...],
        mlp_norm=block.post_feedforward_layernorm.weight[...],
        total=block.total,
    )


def with_adapters(layer: Layer, block: Any) -> Layer:
    """A layer with the adapters of its block."""
    if not any(isinstance(module, AdaptedLinear) for module in block.modules()):
        return layer
    attention, mlp = block.self_attn, block.mlp
    return replace(
        layer,
        qkv=adapted(layer.qkv, attention.q_proj, attention.k_proj, attention.v_proj),
        keys_values=adapted(layer.keys_values, attention.k_proj, attention.v_proj),
        output=adapted(layer.output, attention.o_proj),
        gate_up=adapted(layer.gate_up, mlp.gate_proj, mlp.up_proj),
        down=adapted(layer.down, mlp.down_proj),
    )


def adapted(project: Projection, *modules: Any) -> Projection:
    """A product, joint for all `modules`, with their adapters: two thin products, and a gain where one has a gain."""
    found = [module for module in modules if isinstance(module, AdaptedLinear)]
    if not found:
        return project
    widths = [bare(module).weight.shape[0] for module in modules]
    starts = [end - width for width, end in zip(widths, accumulate(widths), strict=True)]
    a = mx.concatenate([module.adapter_a for module in found], axis=1)
    blocks, gains = [], []
    for module, width, start in zip(modules, widths, starts, strict=True):
        if isinstance(module, AdaptedLinear):
            blocks.append(mx.pad(module.adapter_b, [(0, 0), (start, sum(widths) - start - width)]))
        gain = module.gain if isinstance(module, AdaptedLinear) else None
        gains.append(mx.ones(width, a.dtype) if gain is None else gain)
    b = mx.concatenate(blocks)
    if all(module.gain is None for module in found):
        mx.eval(a, b)
        return lambda x: mx.addmm(project(x), x @ a, b)
    joint = mx.concatenate(gains)
    mx.eval(a, b, joint)
    return lambda x: mx.addmm(project(x) * joint, x @ a, b)


def joined(*modules: Any) -> tuple[Projection, Projection]:
    """(all projections as one, all but the first as one). The modules' weights become slices of the joint arrays."""
    first = modules[0]
    if not all(is_plain(module) and alike(module, first) for module in modules):
        projections = [product(module) for module in modules]
        return beside(*projections), beside(*projections[1:])
    arrays = {key: mx.concatenate([module[key] for module in modules]) for key in first}
    mx.eval(arrays)
    ends = list(accumulate(module.weight.shape[0] for module in modules))
    parts = [{key: array[a:b] for key, array in arrays.items()} for a, b in pairwise([0, *ends])]
    rest = {key: array[ends[0] :] for key, array in arrays.items()}
    mx.eval(parts, rest)
    for module, part in zip(modules, parts, strict=True):
        module.update(part)  # evaluated arrays only: other threads may read the parameters meanwhile
    return multiplication(first, arrays), multiplication(first, rest)


def product(module: Any) -> Projection:
    """A projection on array objects of its own."""
    if is_plain(module):
        return multiplication(module, {key: array[...] for key, array in module.items()})
    return frozen(module)


def multiplication(module: Any, arrays: dict[str, mx.array]) -> Projection:
    """The product with weights of the kind that `module` has."""
    weight = arrays["weight"]
    if isinstance(module, nn.Linear):
        transposed = weight.T
        mx.eval(transposed)  # a view
        return lambda x: x @ transposed
    scales, biases = arrays["scales"], arrays.get("biases")
    group_size, bits, mode = module.group_size, module.bits, module.mode
    return lambda x: mx.quantized_matmul(x, weight, scales, biases, True, group_size, bits, mode)


def frozen(module: Any) -> Any:
    """A copy of a module on array objects of its own, in evaluation mode."""
    kind: Any = type(module)
    copy = kind.__new__(kind)
    copy.__dict__.update(module.__dict__, _training=False)

    def frozen_leaf(leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            return frozen(leaf)
        return leaf[...] if isinstance(leaf, mx.array) else leaf

    for name, value in module.items():
        dict.__setitem__(copy, name, tree_map(frozen_leaf, value, is_leaf=lambda leaf: isinstance(leaf, nn.Module)))
    return copy


def is_plain(module: Any) -> bool:
    """Whether a projection is only its weights: no bias, no adapter."""
    return type(module) in (nn.Linear, nn.QuantizedLinear) and "bias" not in module


def alike(module: Any, other: Any) -> bool:
    """Whether two plain projections can be one product."""
    settings = ("group_size", "bits", "mode")
    return (
        type(module) is type(other)
        and [getattr(module, name, None) for name in settings] == [getattr(other, name, None) for name in settings]
        and {key: module[key].dtype for key in module} == {key: other[key].dtype for key in other}
    )


def same_arrays(before: Parameters, now: Parameters) -> bool:
    """Whether two lists of parameters have the same names and the same array objects."""
    return len(before) == len(now) and all(
        a is b and name == other for (name, a), (other, b) in zip(before, now, strict=True)
    )
