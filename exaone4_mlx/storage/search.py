"""The place of the words of a search in a conversation: a message, and the text around them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from ..text.message import Message
from .conversation import Conversation
from .forms import folded

BEFORE, LENGTH = 30, 120  # characters of a snippet before its first found word, and in all


def place(conversation: Conversation, query: str) -> dict[str, Any]:
    """`message`, the index of the first message with the most words of `query`, and its `snippet`; {} without one.

    The parts of a snippet are unmarked and found text in turn. Where another branch has more words, `hidden` is true,
    and `message` is the shown one whose place the branch takes.
    """
    words = folded(query).split()
    best: dict[str, Any] = {}
    most = 0
    for index, message, hidden in _said(conversation):
        text = folded(message.get("content") or "") if message["role"] in ("user", "assistant") else ""
        if (count := sum(word in text for word in words)) > most:
            best, most = {"message": index, "hidden": hidden, "snippet": message["content"]}, count
        if most == len(words):
            break
    return best and best | {"snippet": marked(best["snippet"], query, LENGTH)}


def _said(conversation: Conversation) -> Iterator[tuple[int, Message, bool]]:
    """The shown messages, and then those of the branches, as (index of a shown one, message, whether it is hidden)."""
    yield from ((index, message, False) for index, message in enumerate(conversation.messages))
    system = len(conversation.messages) - len(conversation.tree.messages)
    for branch in conversation.branches:
        root = branch
        while root["parent"] is not None:
            root = conversation.branches[root["parent"]]
        yield from ((system + root["at"], message, True) for message in branch["messages"])


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
