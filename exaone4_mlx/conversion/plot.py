"""A picture of the relative error of each tensor, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.svg import add_legend, style_axes, svg_figure
from .kinds import TENSOR_KINDS, kind_of, layer_of, measured_tensors


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
