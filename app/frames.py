"""The data of the conversation on a page: a frame after each change, and the finished messages that it requests.

Notes:
- A frame holds the reply in progress and the revision of the finished messages, so that its size does not depend on the
  length of the conversation. The page fetches finished messages when the revision changes.
"""

from __future__ import annotations

from typing import Any

from .i18n import Words
from .render import items
from .work import View

PAGE = 30  # messages that are sent at once


def frame(view: View, words: Words) -> dict[str, Any]:
    """The state of a conversation at one moment, without its finished messages."""
    everything = [*view.messages, *view.coming]
    return {
        "revision": view.revision,
        "total": len(view.messages),
        "running": view.running,
        "asking": list(view.asking),
        "language": words.language,
        "live": items(everything, words, len(view.messages), live=True) if view.coming else [],
    }


def history(view: View, words: Words, start: int | None, known: list[str]) -> dict[str, Any]:
    """The finished messages from `start` on, or the last ones. Of those in `known` it has the keys only."""
    messages = view.messages
    first = max(0, len(messages) - PAGE) if start is None else max(0, min(start, len(messages)))
    while first and messages[first]["role"] != "user":  # whole turns
        first -= 1
    shown = items(messages, words, first, known=set(known))
    return {
        "revision": view.revision,
        "total": len(messages),
        "start": first,
        "keys": [item["key"] for item in shown],
        "items": [item for item in shown if "parts" in item],
    }
