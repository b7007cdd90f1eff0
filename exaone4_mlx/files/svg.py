"""SVG pictures, drawn with matplotlib (the extra `plot`).

Notes:
- The same calls give the same bytes: ids come from a fixed salt, and there is no date.
- Labels may come from a checkpoint or a machine. `parse_math` is off, so that a `$` in them is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTALL_MATPLOTLIB = "pip install 'exaone4_mlx[plot]'"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "exaone4_mlx", "font.size": 10.0, "text.parse_math": False}


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


@contextmanager
def svg_figure(file: Path, title: str) -> Iterator[Any]:
    """A matplotlib figure of 10 by 5.2 inches with a title, which is written to the file at the end of the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.2))
        figure.text(0.075, 0.94, title, fontsize=13, fontweight="bold")
        yield figure
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": title})


def add_legend(figure: Any, columns: int) -> None:
    """A legend in one row below the title."""
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.07, 0.92), ncols=columns,
        frameon=False, fontsize=9, handletextpad=0, handlelength=1.4, columnspacing=0.9,
    )  # fmt: skip


def style_axes(axes: Any) -> None:
    """Horizontal grid lines behind the data, no frame at the top and the right."""
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#cccccc", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
