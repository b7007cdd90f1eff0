"""Sizes, times, tool calls and JSON values as short texts for people.

Notes:
- Text from a model, a file or a tool passes `clean` before it reaches a terminal: escape codes and marks that change
  the writing direction can make one line look like another.
"""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

from ..files.text import clean as clean

if TYPE_CHECKING:
    from ..tools.call import ToolCall

#: Why a reply ended early, by its finish reason.
ENDS = {
    "cancelled": "stopped",
    "length": "cut off: the token limit or the context is reached",
    "repetition": "stopped: the reply repeats itself",
    "error": "stopped by an error",
}


def call_text(call: ToolCall) -> str:
    """A call as one line of Python: `roll_dice(max_num=6)`."""
    return clean(f"{call.name}({arguments_text(call.arguments)})")


def arguments_text(arguments: Any) -> str:
    """What is between the parentheses of a call."""
    if isinstance(arguments, dict):
        return ", ".join(f"{name}={value_text(value)}" for name, value in arguments.items())
    return "" if arguments is None else value_text(arguments)


def value_text(value: Any) -> str:
    """A JSON value on one line."""
    return " ".join(clean(indented(value, None)).split())


def indented(value: Any, indent: int | None = 2) -> str:
    """A JSON value on several lines."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def result_text(content: Any, failed: bool) -> str:
    """The result of a tool on one line. An error without other fields is its message."""
    if failed and isinstance(content, dict) and content.keys() == {"error"} and isinstance(content["error"], str):
        return " ".join(clean(content["error"]).split())
    return value_text(content)


def count_text(count: int, thing: str) -> str:
    """`1 turn`, `1,200 tokens`."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def time_text(seconds: float) -> str:
    """`12 s`, `2 min 5 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def size_text(count: int) -> str:
    """A number of bytes in kB, MB or GB, each a power of 1,000."""
    if 0 < count < 999.5e3:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 999.5e6 else f"{count / 1e6:.0f} MB"


def cell_width(text: str) -> int:
    """Terminal columns of a text: two for most Korean letters."""
    return sum(_columns(letter) for letter in text)


def cut_to_width(text: str, width: int) -> str:
    """The text in at most `width` columns."""
    if cell_width(text) <= width:
        return text
    used, kept = 1, ""
    for letter in text:
        used += _columns(letter)
        if used > width:
            break
        kept += letter
    return kept + "…"


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
