"""The kinds of tensor, and a picture of the relative error of each tensor, drawn with matplotlib.

The model card counts the same kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files.svg import add_legend, style_axes, svg_figure

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


def write_error_plot(file: Path, tensors: Sequence[Mapping[str, Any]]) -> None:
    """Draws a mark for each measured tensor: position in the network to the right, relative error upwards.

    The axis is logarithmic where the largest error is at least four times the smallest.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    measured = measured_tensors(tensors)
    errors = [100 * tensor["relative_error"] for tensor in measured]
    positive = [error for error in errors if error > 0] or [1.0]
    low, high = min(positive), max(positive)
    logarithmic = high >= 4 * low
    if logarithmic:
        errors = [max(error, low) for error in errors]  # zero has no place on this axis
    with svg_figure(file, "Relative error of every tensor") as figure:
        axes = figure.add_axes((0.075, 0.1, 0.91, 0.73))
        style_axes(axes)
        _draw_layers(axes, [layer_of(tensor["name"]) for tensor in measured])
        style = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.6, "clip_on": False}
        style["markersize"] = 7 if len(measured) <= 100 else 5.5
        for kind in TENSOR_KINDS:
            points = [(x, errors[x]) for x, tensor in enumerate(measured) if kind_of(tensor["name"]) is kind]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, marker=kind.marker, color=kind.colour, label=kind.label, gid=kind.label, **style)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.15, high * 1.15)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
            axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g} %"))
        axes.set_ylabel("relative error" + ", logarithmic" * logarithmic)
        add_legend(figure, len(TENSOR_KINDS))


def _draw_layers(axes: Any, layers: Sequence[int | None]) -> None:
    """Every second layer on grey, and about sixteen layer numbers below."""
    numbers = list(dict.fromkeys(layer for layer in layers if layer is not None))
    every = next((step for step in (1, 2, 5, 10, 20, 50) if len(numbers) <= 16 * step), 100)
    ticks = {}
    for number in numbers:
        start, count = layers.index(number) - 0.5, layers.count(number)
        if number % 2 == 0:
            axes.axvspan(start, start + count, color="#f4f4f4", zorder=0, linewidth=0)
        if number % every == 0:
            ticks[start + count / 2] = number
    axes.set_xticks(list(ticks), list(map(str, ticks.values())))
    axes.set_xlim(-1, len(layers))
    axes.set_xlabel("layer")
