"""Parts of the HTML that notebooks show: escaped text, tables and colours.

Notes:
- Text from a model, a user or a tool is untrusted. It is always escaped.
- Colours (Okabe and Ito's palette) are never the only sign: letters and words say the same. Lines and backgrounds are
  half transparent and styles are inline, so that light and dark themes and untrusted notebooks show them alike.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ..files.text import HALF
from ..text.format import indented

BLUE, ORANGE, GREEN, RED = "#56b4e9", "#e69f00", "#009e73", "#d55e00"  # Okabe and Ito's; black is readable on each
GREY = "rgba(127,127,127,.4)"  # of lines and frames
FAINT = "rgba(127,127,127,.12)"  # of backgrounds
MAX_PRETTY = 20_000  # characters of a value in full
BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def escaped(text: str) -> str:
    """A text as HTML, for elements and attributes."""
    return html.escape(HALF.sub("\ufffd", text))


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts with a head."""
    first = "".join(f'<th style="text-align:left">{escaped(cell)}</th>' for cell in head)
    lines = ("".join(f'<td style="text-align:left">{escaped(cell)}</td>' for cell in row) for row in rows)
    others = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="color:inherit"><thead><tr>{first}</tr></thead><tbody>{others}</tbody></table>'


def rows_html(rows: Mapping[str, str]) -> str:
    """A table of names and values."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escaped(name)}</th><td style="text-align:left">{escaped(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table style="color:inherit"><tbody>{cells}</tbody></table>'


def small_html(text: str) -> str:
    return f'<div style="font-size:85%;opacity:.75;margin:.4em 0">{escaped(text)}</div>'


def seconds_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def percent_text(probability: float) -> str:
    if probability < 1e-5:
        return "<0.001 %"
    return f"{100 * probability:.3g} %" if probability < 0.995 else f"{100 * probability:.1f} %"


def pretty(value: Any) -> str:
    """A string as it is, another value as indented JSON; cut after MAX_PRETTY characters."""
    value = value if isinstance(value, str) else indented(value)
    return value if len(value) <= MAX_PRETTY else f"{value[:MAX_PRETTY]}… ({len(value) - MAX_PRETTY:,} characters more)"


def visible(text: str) -> str:
    """The text of a token with visible blanks, line ends and control characters."""
    return "".join(BLANKS.get(letter, letter if letter.isprintable() else f"\\u{ord(letter):04x}") for letter in text)
