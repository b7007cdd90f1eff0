"""A picture of the speeds that `bench` measured, as an SVG: prompts on the left, decoding on the right.

What is peculiar here:
- A mark is a median, the line through it goes from the lowest to the highest figure; both scales begin at zero.
- Colours are ones that colour-blind readers tell apart, and shapes tell the engines apart without them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .bench import Bench, Row


class Style(NamedTuple):
    colour: str  # of Okabe and Ito's palette
    path: str  # around its middle


STYLES = (
    Style("#0072B2", "m-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z"),  # a circle
    Style("#D55E00", "m0 -7.5l7 12.5h-14z"),  # a triangle
    Style("#009E73", "m-5.5 -5.5h11v11h-11z"),  # a square
)
WIDTH, HEIGHT = 960, 484
TOP, BOTTOM = 92, 392
PANELS = {"prefill": (78, 456), "decode": (562, 940)}  # from left to right
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def speed_plot(found: Bench) -> str:
    """Tokens per second of each engine, for each prompt and behind each depth."""
    c = found.conditions
    engines = list(dict.fromkeys(row.engine for row in found.rows))
    about = f"{c.model}, {c.dtype}, {c.bits_per_weight:.3g} bits per weight, on {c.machine} ({c.device})"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="{FONT}" font-size="13" fill="#222222" role="img">',
        "<title>Tokens per second</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        '<text x="24" y="26" font-size="17" font-weight="600">Tokens per second</text>',
        f'<text x="24" y="{HEIGHT - 14}">{html.escape(about)}</text>',
        *_legend(engines),
    ]
    axes = {"prefill": "tokens of the prompt that is read", "decode": "tokens before those that are made"}
    for test, (left, right) in PANELS.items():
        lines += _panel([row for row in found.rows if row.test == test], engines, left, right, axes[test])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend(engines: Sequence[str]) -> list[str]:
    lines, x = [], 32.0
    for engine, style in zip(engines, STYLES, strict=False):
        lines.append(_mark(style, x, 54))
        lines.append(f'<text x="{x + 12:.0f}" y="58.5">{engine}</text>')
        x += 40 + 7.2 * len(engine)
    return lines


def _panel(rows: Sequence[Row], engines: Sequence[str], left: int, right: int, axis: str) -> list[str]:
    """A column for each length, in it the engines side by side."""
    ticks = _ticks(max(row.high for row in rows))
    places = list(dict.fromkeys((row.tokens, row.depth) for row in rows))
    step = (right - left) / len(places)
    apart = min(36.0, step / (len(engines) + 1))

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / ticks[-1]

    lines = []
    for tick in ticks:
        lines.append(f'<path d="M{left} {height(tick):.1f}H{right}" stroke="#cccccc"/>')
        lines.append(f'<text x="{left - 8}" y="{height(tick) + 4.5:.1f}" text-anchor="end">{tick:,.4g}</text>')
    lines.append(f'<path d="M{left} {TOP}V{BOTTOM}H{right}" fill="none" stroke="#222222"/>')
    middle = (left + right) / 2
    lines.append(f'<text x="{left}" y="{TOP - 12}">{rows[0].test}, tokens/s</text>')
    lines.append(f'<text x="{middle:.0f}" y="{BOTTOM + 40}" text-anchor="middle">{axis}</text>')
    for number, (tokens, depth) in enumerate(places):
        x = left + step * (number + 0.5)
        told = tokens if rows[0].test == "prefill" else depth
        lines.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{told:,}</text>')
    for row in rows:
        column, engine = places.index((row.tokens, row.depth)), engines.index(row.engine)
        x = left + step * (column + 0.5) + apart * (engine - (len(engines) - 1) / 2)
        style, low, high = STYLES[engine], height(row.low), height(row.high)
        about = f"{row.engine}: {row.median:.4g} tokens/s, from {row.low:.4g} to {row.high:.4g}"
        lines.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{style.colour}" stroke-width="2"/>')
        lines.append(_mark(style, x, height(row.median)).replace("/>", f"><title>{about}</title></path>"))
    return lines


def _ticks(highest: float) -> list[float]:
    """Round values from 0 to one that is not below `highest`."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    width = next(step * power for step in (1, 2, 5, 10) if 5 * step * power >= highest)
    return [width * i for i in range(math.ceil(highest / width) + 1)]


def _mark(style: Style, x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}{style.path}" fill="{style.colour}" stroke="#ffffff" stroke-width="0.8"/>'
