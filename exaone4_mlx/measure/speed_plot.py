"""A picture of the speeds that `bench` measured, drawn with matplotlib: prompts on the left, decoding on the right.

Notes:
- A mark is a median; the line through it goes from the lowest to the highest figure. Both scales begin at zero.
- Colours are of Okabe and Ito's palette for colour-blind readers; the markers separate the engines without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.svg import add_legend, style_axes, svg_figure

if TYPE_CHECKING:
    from .bench import Bench, BenchRow

COLOURS_AND_MARKERS = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"))
AXES = {  # test -> its place in the figure, and the label of its x axis
    "prefill": ((0.075, 0.17, 0.4, 0.62), "tokens of the prompt"),
    "decode": ((0.585, 0.17, 0.4, 0.62), "tokens before the generated ones"),
}


def write_speed_plot(file: Path, found: Bench) -> None:
    """Draws the tokens per second of each engine, for each length of a prompt and each depth."""
    c = found.conditions
    engines = list(dict.fromkeys(row.engine for row in found.rows))
    with svg_figure(file, "Tokens per second") as figure:
        for test in AXES:
            _draw_panel(figure, test, [row for row in found.rows if row.test == test], engines)
        add_legend(figure, len(engines))
        about = f"{c.model}, {c.dtype}, {c.bits_per_weight:.3g} bits per weight, on {c.machine} ({c.device})"
        figure.text(0.075, 0.03, about)


def _draw_panel(figure: Any, test: str, rows: Sequence[BenchRow], engines: Sequence[str]) -> None:
    """A column for each length, with the engines side by side."""
    place, label = AXES[test]
    axes = figure.add_axes(place)
    style_axes(axes)
    lengths = list(dict.fromkeys((row.tokens, row.depth) for row in rows))
    for number, (engine, (colour, marker)) in enumerate(zip(engines, COLOURS_AND_MARKERS, strict=False)):
        own = [row for row in rows if row.engine == engine]
        shift = 0.15 * (number - (len(engines) - 1) / 2)
        xs = [lengths.index((row.tokens, row.depth)) + shift for row in own]
        axes.vlines(xs, [row.low for row in own], [row.high for row in own], colors=colour, linewidth=2)
        axes.plot(xs, [row.median for row in own], marker, color=colour, markersize=9, markeredgecolor="white",
                  label=engine, gid=f"{test} {engine}", clip_on=False)  # fmt: skip
    axes.set_xticks(range(len(lengths)), [f"{tokens if test == 'prefill' else depth:,}" for tokens, depth in lengths])
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(0, 1.08 * max(row.high for row in rows))
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.set_title(f"{test}, tokens/s", loc="left", fontsize=10)
    axes.set_xlabel(label)
