"""Calls, counts and limits as one line of text each.

What is peculiar here:
- What a model or a tool wrote passes `clean` before a terminal sees it: escape codes and marks that turn the
  writing direction could make a line look like another.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from ..files.format import size_text as size_text

if TYPE_CHECKING:
    from ..text.events import Done
    from ..tools.call import ToolCall

#: Control characters but for the line end and the tab, and marks of the writing direction.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

ENDS = {
    "cancelled": "[stopped]",
    "length": "[cut off: the limit of tokens is reached (/set max_tokens N changes it), or the context is full]",
    "repetition": "[stopped: it went round in a loop; LG advises /set presence_penalty 1.5, then /retry]",
}


def clean(text: str) -> str:
    """A text without what could command the terminal."""
    return UNSAFE.sub("", text)


def call_text(call: ToolCall) -> str:
    """A call as one line of Python: `roll_dice(max_num=6)`."""
    arguments = call.arguments
    if isinstance(arguments, dict):
        inside = ", ".join(f"{name}={value_text(value)}" for name, value in arguments.items())
    else:
        inside = "" if arguments is None else value_text(arguments)
    return clean(f"{call.name}({inside})")


def value_text(value: Any) -> str:
    """A JSON value on one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return " ".join(clean(text).split())


def result_text(content: Any, failed: bool) -> str:
    """What a tool returned, on one line; of a failure what it says."""
    if failed and isinstance(content, dict) and isinstance(content.get("error"), str):
        return " ".join(clean(content["error"]).split())
    return value_text(content)


def cell_width(text: str) -> int:
    """Columns that a text takes up: two for most Korean letters."""
    return sum(_columns(letter) for letter in text)


def shortened(text: str, width: int) -> str:
    """A text in at most `width` columns."""
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


def summary(done: Done, first_token_seconds: float | None, context: str) -> str:
    """The counts of a turn."""
    generated = done.thinking_tokens + done.answer_tokens
    reply = f"{generated:,} tokens"
    if generated > 1 and done.decode_seconds:
        reply += f", {generated / done.decode_seconds:.1f} tokens/s"
    if first_token_seconds is not None:
        reply += f", first after {first_token_seconds:.2f} s"
    if done.drafted_tokens:
        reply += f", {done.accepted_tokens:,} of {done.drafted_tokens:,} drafted ones accepted"
    cached = f" ({done.cached_tokens:,} cached)" if done.cached_tokens else ""
    return f"[{reply} | prompt {done.prompt_tokens:,}{cached} | {context}]"


def context_text(used: int, limit: int) -> str:
    """What is used of the context; what closes the last reply may lie beyond it."""
    return f"context {min(used, limit):,} of {limit:,}"


def extras_text(kv: object, draft_model: str | None, prompt_lookup: bool) -> str:
    """What is out of the ordinary about a chat's caches, and what guesses for it; "" for nothing."""
    drafter = f"drafts by {draft_model}" if draft_model else "drafts by prompt lookup" if prompt_lookup else ""
    return "".join(f"; {one}" for one in (kv or "", drafter) if one)


def progress_text(what: str, done: int, total: int, unit: str, seconds_left: float | None) -> str:
    """How far some work is, with the time left."""
    if unit == "bytes":
        counts = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
    else:
        counts = f"{done:,} of {total:,} {unit}"
    left = "" if seconds_left is None else f", {time_text(seconds_left)} left"
    return f"{what}: {counts}{left}"


def time_text(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


class Pace:
    """The time that some work still takes, from how far it came since it was first heard of."""

    def __init__(self, now: float, done: int) -> None:
        self.began, self._done = now, done

    def seconds_left(self, now: float, done: int, total: int) -> float | None:
        if done <= self._done or now <= self.began:
            return None
        return (total - done) * (now - self.began) / (done - self._done)
