"""A matplotlib figure as a picture for notebooks, with the colours of the page and a text for those who cannot see it.

Notes:
- Black becomes the text colour of the page, and backgrounds are transparent. So a figure fits light and dark themes.
- Labels are text in the page's font, which has Korean letters.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..files.svg import STYLE
from .html import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK = re.compile(r"#000000|\bblack\b")
#: What would style the whole page, or is of no use in one.
OUTSIDE = re.compile(r"\s*(<(style|metadata)\b.*?</\2>|<!--.*?-->)", re.DOTALL)
ROOT = 'fill="currentColor" stroke-linejoin="round" stroke-linecap="butt" style="max-width:100%;height:auto"'


@dataclass(frozen=True)
class FigureView:
    """The result of `draw_figure`: `alt` is the text, `svg` the picture. A notebook shows it."""

    alt: str
    svg: str = field(repr=False)

    def _repr_html_(self) -> str:
        return f'<div role="img" aria-label="{escaped(self.alt)}" title="{escaped(self.alt)}">{self.svg}</div>'


def draw_figure(figure: Figure, alt: str) -> FigureView:
    """A figure for light and dark pages. `alt` says in a sentence what it shows. The figure is closed.

    Raises ValueError for a blank `alt`.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    if not alt.strip():
        raise ValueError("alt must say what the figure shows")
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is not None:
            legend.get_frame().set_facecolor("none")
    file = io.StringIO()
    style = {name: STYLE[name] for name in ("svg.fonttype", "svg.hashsalt")}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib measures with a font without Korean letters
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = file.getvalue()
    svg = BLACK.sub("currentColor", svg[svg.index("<svg") :])
    svg = OUTSIDE.sub("", svg)
    svg = re.sub("'?DejaVu Sans'?", "sans-serif", svg)
    return FigureView(alt, svg.replace("<svg ", f"<svg {ROOT} ", 1))
