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
        "undo": words("undo_what", what=words(f"act_{view.undo}")) if view.undo else "",
        "redo": words("redo_what", what=words(f"act_{view.redo}")) if view.redo else "",
        "live": items(everything, words, len(view.messages), live=True) if view.coming else [],
    }


def history(view: View, words: Words, start: int | None, known: list[str]) -> dict[str, Any]:
    """The finished messages from `start` on, or the last ones. Of those in `known` it has the keys only."""
    messages = view.messages
    first = max(0, len(messages) - PAGE) if start is None or start >= len(messages) else max(0, start)
    while 0 < first < len(messages) and messages[first]["role"] != "user":  # whole turns
        first -= 1
    shown = items(messages, words, first, known=set(known))
    forks = _forks(view)
    return {
        "revision": view.revision,
        "total": len(messages),
        "start": first,
        "keys": [item["key"] for item in shown],
        "forks": {item["key"]: forks[item["at"]] for item in shown if item["at"] in forks},
        "items": [item for item in shown if "parts" in item],
    }


def _forks(view: View) -> dict[int, dict[str, int]]:
    """Index of a message that has a switch of versions under it -> the position and the number of the version.

    The switch of a reply is under its last message, after the calls of tools.
    """
    messages = view.messages
    system = int(bool(messages) and messages[0]["role"] == "system")
    found = {}
    for at, (place, count) in view.forks.items():
        index = at + system
        if index >= len(messages):
            continue  # its new version has no message yet
        within = ("assistant", "tool") if index and messages[index - 1]["role"] == "user" else ("tool",)
        while messages[index]["role"] != "user" and index + 1 < len(messages) and messages[index + 1]["role"] in within:
            index += 1
        found[index] = {"at": at, "place": place, "count": count}
    return found
