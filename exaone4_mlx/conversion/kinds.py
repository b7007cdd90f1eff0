"""The kinds of tensor that the model card counts and the picture of errors draws."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

#: The picture of the errors, in a converted folder.
PLOT_NAME = "errors.svg"


class TensorKind(NamedTuple):
    """A kind of tensor: its label, the end of its module's name, and how the picture draws it (colour, marker)."""

    label: str
    part: str
    colour: str  # of Okabe and Ito's palette for colour-blind readers; the markers separate the groups without it
    marker: str  # matplotlib's


TENSOR_KINDS = (
    TensorKind("embedding", "embed_tokens", "#000000", "D"),
    TensorKind("query", "q_proj", "#0072B2", "o"),
    TensorKind("key", "k_proj", "#56B4E9", "o"),
    TensorKind("value", "v_proj", "#009E73", "o"),
    TensorKind("attention output", "o_proj", "#CC79A7", "o"),
    TensorKind("MLP gate", "gate_proj", "#D55E00", "^"),
    TensorKind("MLP up", "up_proj", "#E69F00", "^"),
    TensorKind("MLP down", "down_proj", "#6B4A00", "^"),
    TensorKind("output head", "lm_head", "#000000", "s"),
    TensorKind("norm", "norm", "#777777", "s"),
    TensorKind("other", "", "#777777", "D"),
)


def kind_of(name: str) -> TensorKind:
    """The kind of a tensor, from its name."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return next(kind for kind in TENSOR_KINDS if module.endswith(kind.part))


def layer_of(name: str) -> int | None:
    found = re.search(r"\.layers\.(\d{1,6})\.", f".{name}")
    return int(found[1]) if found else None


def measured_tensors(tensors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tensors of a report whose error was measured: embedding, attention and MLP of each layer, output head."""

    def position(tensor: Mapping[str, Any]) -> tuple[float, int]:
        kind, layer = kind_of(tensor["name"]), layer_of(tensor["name"])
        return (-1 if kind is TENSOR_KINDS[0] else math.inf) if layer is None else layer, TENSOR_KINDS.index(kind)

    return sorted((tensor for tensor in tensors if is_finite(tensor.get("relative_error"))), key=position)


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
