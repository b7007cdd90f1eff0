"""The place of the words of a search in a conversation: a message, and the text around them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from ..text.message import Message
from .forms import folded

BEFORE, LENGTH = 30, 120  # characters of a snippet before its first found word, and in all


def place(messages: Sequence[Message], query: str) -> dict[str, Any]:
    """`message`, the index of the first message with the most words of `query`, and its `snippet`; {} without one.

    The parts of a snippet are unmarked and found text in turn.
    """
    words = folded(query).split()
    best, most = -1, 0
    for index, message in enumerate(messages):
        if message["role"] in ("user", "assistant") and most < len(words):
            text = folded(message.get("content") or "")
            if (count := sum(word in text for word in words)) > most:
                best, most = index, count
    return {} if best < 0 else {"message": best, "snippet": marked(messages[best]["content"], query, LENGTH)}


def marked(text: str, query: str, length: int | None = None) -> list[str]:
    """`text` on one line as unmarked and found parts in turn; with `length`, that much around the first found word."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    pieces = [char.casefold() for char in text]  # one character can become two
    origin = [index for index, piece in enumerate(pieces) for _ in piece] + [len(text)]
    whole = "".join(pieces)
    spans: list[tuple[int, int]] = []
    for word in folded(query).split():
        at = whole.find(word)
        while at >= 0:
            spans.append((origin[at], origin[at + len(word) - 1] + 1))
            at = whole.find(word, at + len(word))
    start, end = 0, len(text)
    if length is not None:
        first = min(spans, default=(0, 0))[0]
        start = 0 if first <= BEFORE else text.find(" ", first - BEFORE, first) + 1 or first - BEFORE
        end = min(end, start + length)
    parts, done = ["…" if start else ""], start
    for begin, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        begin, stop = max(begin, done), min(stop, end)
        if begin < stop:
            parts[-1] += text[done:begin]
            parts += [text[begin:stop], ""]
            done = stop
    parts[-1] += text[done:end] + ("…" if end < len(text) else "")
    return parts
