"""The lines that name thoughts and calls, and values as text, in the language of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exaone4_mlx.files.text import number
from exaone4_mlx.text.format import arguments_text, indented

from .i18n import Words

Message = dict[str, Any]
ENDS = {"cancelled": "was_stopped", "length": "was_cut", "repetition": "was_loop", "error": "was_error"}
SHORT = 60  # characters of a value in a title


def call_text(name: str, arguments: Any) -> str:
    """A call as one line of Python: `roll_dice(max_num=6)`."""
    return f"{short(name)}({short(arguments_text(arguments))})"


def thought_title(stats: Any, growing: bool, words: Words) -> str:
    stats = stats if isinstance(stats, Mapping) else {}
    if not (tokens := number(stats.get("thinking_tokens"))):
        return words("thinking_now" if growing else "thought")
    seconds = words.seconds(number(stats.get("thinking_seconds")))
    begin = f"{words('thinking_now')} · {seconds}" if growing else words("thought_for", seconds=seconds)
    return f"{begin} · {words('tokens', count=f'{tokens:,}')}"


def pretty(value: Any) -> str:
    return value if isinstance(value, str) else indented(value)


def short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
