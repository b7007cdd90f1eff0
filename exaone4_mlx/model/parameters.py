"""The parameters of a module: by name, quantized, filled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoint.quantize import Quantization


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """The parameters of a module under their dotted names, as in a checkpoint."""
    return dict(tree_flatten(module.parameters()))


def quantize_layers(module: nn.Module, settings: Mapping[str, Quantization]) -> None:
    """Replaces the layers in `settings` by quantized ones, whose weights are unevaluated, to be filled."""

    def chosen(name: str, layer: nn.Module) -> bool | dict[str, Any]:
        return settings[name].as_dict() if name in settings and hasattr(layer, "to_quantized") else False

    nn.quantize(module, class_predicate=chosen)


def fill(module: nn.Module, weights: Iterable[tuple[str, mx.array]]) -> None:
    """Gives a module its parameters and puts it into evaluation mode.

    Each array is evaluated before the next is read. So no tensor is read twice, and any thread can use the arrays: an
    unevaluated array belongs to the thread that made it.
    """
    filled = []
    for name, array in weights:
        mx.eval(array)
        filled.append((name, array))
    module.update(tree_unflatten(filled))
    module.eval()
