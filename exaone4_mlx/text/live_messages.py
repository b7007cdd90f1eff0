"""The events of a turn in progress -> its messages so far.

Notes:
- A reply that is being generated has the form of finished messages, so that nothing moves when it ends.
"""

from __future__ import annotations

from typing import Protocol

from ..files.text import number, objects
from ..tools.call import ToolCall, ToolResult
from .events import Answer, Thinking
from .message import Message, PartialReply, tool_messages


class ThoughtCounts(Protocol):
    """The counts that a thought is shown with: `Done` has them."""

    @property
    def thinking_tokens(self) -> int: ...
    @property
    def thinking_seconds(self) -> float: ...


class LiveMessages:
    """The messages of a turn in progress, made from its events, and from the reply that it continues."""

    def __init__(self, begun: Message | None = None) -> None:
        #: The replies, each with its further keys, and between them the messages of tools.
        self._parts: list[tuple[PartialReply | None, Message]] = []
        self._begun = 0, 0.0  # minus the counts of the begun thought: what is counted from now on comes to them
        if begun is not None:
            counts = next(iter(objects([begun.get("stats")])), {})
            tokens, seconds = number(counts.get("thinking_tokens")), number(counts.get("thinking_seconds"))
            more = {key: value for key, value in begun.items() if key not in ("content", "reasoning_content")}
            more["stats"] = {"thinking_tokens": tokens, "thinking_seconds": seconds}
            self._parts.append((PartialReply(begun.get("reasoning_content") or "", begun["content"]), more))
            self._begun = -tokens, -seconds
        self._before = self._begun  # tokens and seconds of thoughts in earlier rounds

    def add(self, event: object) -> None:
        """Adds an event of `Chat.send`. `Done` and unknown events change nothing."""
        if isinstance(event, ToolResult):
            results = tool_messages([event.content], failed=event.failed, seconds=event.seconds)
            self._parts += [(None, result) for result in results]
        elif isinstance(event, (Thinking, Answer, ToolCall)):
            reply = self._parts[-1][0] if self._parts else None
            if reply is None:  # the first event of a round
                stats = [more["stats"] for _, more in self._parts if "stats" in more]
                before = [self._begun, *((s["thinking_tokens"], s["thinking_seconds"]) for s in stats)]
                self._before = sum(tokens for tokens, _ in before), sum(seconds for _, seconds in before)
                reply = PartialReply()
                self._parts.append((reply, {}))
            reply.add(event)

    def count(self, counts: ThoughtCounts | None) -> None:
        """Stores the tokens and seconds of the thought so far."""
        if counts is None or (more := self._keys_in_progress) is None:
            return
        tokens, seconds = self._before
        new = {
            "thinking_tokens": counts.thinking_tokens - tokens,
            "thinking_seconds": counts.thinking_seconds - seconds,
        }
        if new["thinking_tokens"] >= more.get("stats", new)["thinking_tokens"]:
            more["stats"] = new  # between two rounds those of the last one are not added yet

    @property
    def messages(self) -> list[Message]:
        """The messages so far, in the form of a chat's history: a copy, which another thread can read."""
        return [dict(more) if reply is None else reply.message(**more) for reply, more in list(self._parts)]

    def end(self, reason: str) -> None:
        """Ends the turn with a finish reason."""
        if (more := self._keys_in_progress) is not None:
            more["finish_reason"] = reason

    @property
    def _keys_in_progress(self) -> Message | None:
        """The further keys of the reply in progress."""
        reply, more = self._parts[-1] if self._parts else (None, {})
        return None if reply is None else more
