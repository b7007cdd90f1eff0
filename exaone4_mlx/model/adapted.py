"""Adapters on a model, for inference: they are put onto its modules and taken off.

Notes:
- Each adapter changes the model without adapters, and their changes add up. The scale of an adapter multiplies its
  change. (In PEFT the lengths of a DoRA also apply to the adapters before it.)
- A projection has one pair of thin matrices, which holds the scales of all its adapters. DoRA's lengths do not change
  at inference, so they are one gain of each output, computed once.
- The thin matrices have the dtype that the layers compute in.

Shapes: E inputs of a projection, F its outputs, R the ranks of its adapters together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from .adapter import KEYS, WeightedAdapter, adapted_rows, cast_adapted, check_adapters, projection_shapes
from .config import Exaone4Config
from .products import AdaptedLinear, bare, bare_parameters

BLOCK_ROWS = 1024  # of a weight that are dequantized at a time
#: The projections of each product of a fused layer: see `products.py`.
PRODUCTS = (KEYS[:3], KEYS[1:3], KEYS[3:4], KEYS[4:6], KEYS[6:])


@dataclass(frozen=True, eq=False)
class ActiveAdapters:
    """The adapters on a model, and the parameters of the model that a full one replaced."""

    given: tuple[WeightedAdapter, ...] = ()
    replaced: Mapping[str, mx.array] = field(default_factory=dict)


def adapted_bytes(given: Sequence[WeightedAdapter], config: Exaone4Config, size: int) -> int:
    """The most bytes that adapters add to a model which computes in a dtype of `size` bytes, with its fused form.

    These are the adapters as they were read, their arrays on the modules, and those of the products.
    """
    ranks: Counter[str] = Counter()
    gains, total, shapes = set(), 0, projection_shapes(config)
    for adapter, _ in given:
        kind, modules = adapter.config.fine_tune_type, adapter.modules
        total += adapter.nbytes + size * sum(array.size for array in adapter.arrays.values()) * (kind == "full")
        ranks.update(dict.fromkeys(modules, adapter.config.rank))
        gains |= set(modules) if kind == "dora" else set()

    def product(names: Sequence[str]) -> int:
        rank, outputs = sum(ranks[name] for name in names), sum(shapes[name][0] for name in names)
        return size * (rank * (shapes[names[0]][1] + outputs) + outputs * any(name in gains for name in names))

    groups = [[f"model.layers.{i}.{key}" for key in keys] for i in range(config.num_hidden_layers) for keys in PRODUCTS]
    groups += [[name] for name in shapes] + [["lm_head"]] * ("lm_head" in shapes)
    return total + sum(product(names) for names in groups if any(ranks[name] for name in names))


def put_on(model: Any, given: Sequence[WeightedAdapter], before: ActiveAdapters) -> ActiveAdapters:
    """Replaces the adapters `before` on a causal language model by those given.

    Everything is checked and computed before the model changes. Raises ValueError that names the adapter and the array.
    """
    check_adapters(given, model.config)
    names = projection_shapes(model.config)
    modules = {name: bare(module) for name, module in model.named_modules() if name in names}
    plain = {**dict(bare_parameters(model)), **before.replaced}
    whole = dict(_whole_weights(given, plain))
    dtype = model.model.norm.weight.dtype
    adapted = {name: _adapted(name, module, given, dtype) for name, module in modules.items()}
    mx.eval(whole, [module.parameters() for module in adapted.values()])
    model.update_modules(tree_unflatten(list(modules.items())))
    model.update(tree_unflatten([*{**before.replaced, **whole}.items()]))
    model.update_modules(tree_unflatten(list(adapted.items())))
    return ActiveAdapters(tuple(given), {name: plain[name] for name in whole})


def _whole_weights(given: Sequence[WeightedAdapter], plain: Mapping[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
    """The parameters that a full adapter replaces."""
    for adapter, _ in given:
        for name, array in adapter.arrays.items() if adapter.config.fine_tune_type == "full" else ():
            own = plain.get(name)
            if own is None:
                raise ValueError(f"{adapter.name} has {name}, which this model does not have")
            if own.shape != array.shape or not mx.issubdtype(own.dtype, mx.floating):
                raise ValueError(
                    f"{adapter.name}: {name} has shape {array.shape}, and in this model {own.shape} of {own.dtype}: "
                    "whole weights need the model that they were trained from, in full precision"
                )
            yield name, cast_adapted(adapted_rows(given, name, own.astype(mx.float32)), own.dtype, name, given)


def _adapted(name: str, module: nn.Module, given: Sequence[WeightedAdapter], dtype: mx.Dtype) -> nn.Module:
    """A projection with those of the adapters that are for it."""
    a, b, gain = [], [], None
    for adapter, scale in given:
        if f"{name}.lora_a" not in adapter.arrays:
            continue
        if not isinstance(module, nn.Linear | nn.QuantizedLinear):
            raise ValueError(f"{name} is a {type(module).__name__}; take its adapter off first")
        thin = scale * adapter.config.scale * adapter.arrays[f"{name}.lora_b"].astype(mx.float32)
        if adapter.config.fine_tune_type == "dora":
            blocks = [adapter.rows(name, weight, start)[1] for start, weight in _weight_blocks(module)]
            own = mx.concatenate(blocks)  # type: ignore[arg-type]
            thin, gain = thin * own, (1 if gain is None else gain) + scale * (own - 1)
        a.append(adapter.arrays[f"{name}.lora_a"])
        b.append(thin)
    if not a:
        return module
    joint = mx.concatenate(a, axis=1), mx.concatenate(b), gain
    arrays = (None if array is None else cast_adapted(array, dtype, name, given) for array in joint)
    return AdaptedLinear(module, *arrays)  # type: ignore[arg-type]


def _weight_blocks(module: nn.Linear | nn.QuantizedLinear) -> Iterator[tuple[int, mx.array]]:
    """(first row, rows [rows, E] in float32) of a projection's weight."""
    for start in range(0, len(module.weight), BLOCK_ROWS):
        parts = {key: array[start : start + BLOCK_ROWS] for key, array in module.items()}
        weight = parts["weight"]
        if isinstance(module, nn.QuantizedLinear):
            settings = module.group_size, module.bits, module.mode
            weight = mx.dequantize(weight, parts["scales"], parts.get("biases"), *settings)
        weight = weight.astype(mx.float32)
        mx.eval(weight)
        yield start, weight
