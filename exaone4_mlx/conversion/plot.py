"""A picture of the relative error of each tensor, drawn with matplotlib (the extra `plot`).

Notes:
- The same report gives the same bytes: ids in the SVG come from a fixed salt, and the SVG has no date.
- Names of tensors come from the checkpoint. `parse_math` is off, so that a `$` in a name is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .kinds import PLOT_NAME, TENSOR_KINDS, kind_of, layer_of, measured_tensors

INSTALL_HINT = f"{PLOT_NAME} is not drawn, because matplotlib is missing: pip install 'exaone4_mlx[plot]'"
#: Texts stay text; the same input gives the same bytes.
SVG_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "exaone4_mlx", "font.size": 10.0, "text.parse_math": False}


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def write_error_plot(file: Path, tensors: Sequence[Mapping[str, Any]]) -> None:
    """Draws a mark for each measured tensor: position in the network to the right, relative error upwards.

    The axis is logarithmic where the largest error is at least four times the smallest.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    measured = measured_tensors(tensors)
    errors = [100 * tensor["relative_error"] for tensor in measured]
    positive = [error for error in errors if error > 0] or [1.0]
    low, high = min(positive), max(positive)
    logarithmic = high >= 4 * low
    if logarithmic:
        errors = [max(error, low) for error in errors]  # zero has no place on this axis
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(10, 5.2))
        axes = figure.add_axes((0.075, 0.1, 0.91, 0.73))
        _draw_layers(axes, [layer_of(tensor["name"]) for tensor in measured])
        style: dict[str, Any] = {
            "linestyle": "none",
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
            "clip_on": False,
        }
        for kind in TENSOR_KINDS:
            points = [(x, errors[x]) for x, tensor in enumerate(measured) if kind_of(tensor["name"]) is kind]
            if points:
                size = 7 if len(measured) <= 100 else 5.5
                kind_style: dict[str, Any] = {
                    "marker": kind.marker,
                    "color": kind.colour,
                    "label": kind.label,
                    "gid": kind.label,
                }
                axes.plot(*zip(*points, strict=True), markersize=size, **kind_style, **style)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.15, high * 1.15)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
            axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g} %"))
        axes.set_ylabel("relative error" + ", logarithmic" * logarithmic)
        figure.text(0.075, 0.94, "Relative error of every tensor", fontsize=13, fontweight="bold")
        figure.legend(loc="upper left", bbox_to_anchor=(0.07, 0.92), ncols=len(TENSOR_KINDS), frameon=False, fontsize=9,
                      handletextpad=0, handlelength=1.4, columnspacing=0.9)  # fmt: skip
        figure.savefig(file, format="svg", metadata={"Date": None})


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
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, len(layers))
    axes.set_xlabel("layer")
    axes.grid(axis="y", color="#cccccc", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
