"""The events of a turn in progress -> its messages so far.

Notes:
- A reply that is being generated has the form of finished messages, so that nothing moves when it ends.
"""

from __future__ import annotations

from typing import Protocol

from ..files.text import number, objects
from ..tools.call import ToolCall, ToolResult
from .events import Answer, Thinking
from .message import Message, tool_messages


class ThoughtCounts(Protocol):
    """The counts that a thought is shown with: `Done` has them."""

    @property
    def thinking_tokens(self) -> int: ...
    @property
    def thinking_seconds(self) -> float: ...


class LiveMessages:
    """The messages of a turn in progress, made from its events, and from the reply that it continues."""

    def __init__(self, begun: Message | None = None) -> None:
        self._messages: list[Message] = []
        self._begun = 0, 0.0  # minus the counts of the begun thought: what is counted from now on comes to them
        if begun is not None:
            counts = next(iter(objects([begun.get("stats")])), {})
            tokens, seconds = number(counts.get("thinking_tokens")), number(counts.get("thinking_seconds"))
            self._messages.append({**begun, "stats": {"thinking_tokens": tokens, "thinking_seconds": seconds}})
            self._begun = -tokens, -seconds
        self._before = self._begun  # tokens and seconds of thoughts in earlier rounds

    def add(self, event: object) -> None:
        """Adds an event of `Chat.send`. `Done` and unknown events change nothing."""
        if isinstance(event, ToolResult):
            self._messages += tool_messages([event.content], failed=event.failed, seconds=event.seconds)
        elif isinstance(event, Thinking):
            self._reply["reasoning_content"] = self._reply.get("reasoning_content", "") + event.text
        elif isinstance(event, Answer):
            self._reply["content"] += event.text
        elif isinstance(event, ToolCall):
            call = {"type": "function", "function": {"name": event.name, "arguments": event.arguments}}
            self._reply.setdefault("tool_calls", []).append(call)

    def count(self, counts: ThoughtCounts | None) -> None:
        """Stores the tokens and seconds of the thought so far."""
        if counts is None or not self._messages or self._messages[-1]["role"] != "assistant":
            return
        tokens, seconds = self._before
        new = {
            "thinking_tokens": counts.thinking_tokens - tokens,
            "thinking_seconds": counts.thinking_seconds - seconds,
        }
        if new["thinking_tokens"] >= self._messages[-1].get("stats", new)["thinking_tokens"]:
            self._messages[-1]["stats"] = new  # between two rounds those of the last one are not added yet

    @property
    def messages(self) -> list[Message]:
        """The messages so far, in the form of a chat's history: a copy, which another thread can read."""
        return [_copy(message) for message in self._messages]

    def end(self, reason: str) -> None:
        """Ends the turn with a finish reason."""
        if self._messages and self._messages[-1]["role"] == "assistant":
            self._messages[-1]["finish_reason"] = reason

    @property
    def _reply(self) -> Message:
        """The message that the events of this round go into."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            stats = [message["stats"] for message in self._messages if "stats" in message]
            before = [self._begun, *((s["thinking_tokens"], s["thinking_seconds"]) for s in stats)]
            self._before = sum(tokens for tokens, _ in before), sum(seconds for _, seconds in before)
            self._messages.append({"role": "assistant", "content": ""})
        return self._messages[-1]


def _copy(message: Message) -> Message:
    """A copy; beside calls the answer is without the line ends around them."""
    if "tool_calls" not in message:
        return dict(message)
    return {**message, "content": message["content"].strip(), "tool_calls": list(message["tool_calls"])}
