"""The parameters of a module, by name."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """The parameters of a module under their dotted names, as in a checkpoint."""
    return dict(tree_flatten(module.parameters()))


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
