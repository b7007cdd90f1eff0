"""The events of a reply -> messages as a conversation holds them, and the lines that name thoughts and calls.

Notes:
- A reply that is being generated has the form of finished messages, so that nothing moves when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from exaone4_mlx import Answer, Thinking, ToolCall, ToolResult
from exaone4_mlx.storage.forms import number, objects
from exaone4_mlx.text.format import arguments_text, indented

from .i18n import Words

Message = dict[str, Any]
ENDS = {"cancelled": "was_stopped", "length": "was_cut", "repetition": "was_loop", "error": "was_error"}
SHORT = 60  # characters of a value in a title


class ThoughtCounts(Protocol):
    """The counts that a thought is shown with: `exaone4_mlx.Done` has them."""

    @property
    def thinking_tokens(self) -> int: ...
    @property
    def thinking_seconds(self) -> float: ...


class LiveReply:
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
            message = {"role": "tool", "content": event.content, "failed": event.failed, "seconds": event.seconds}
            self._messages.append(message)
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
        return [{**message, **_copied_calls(message)} for message in self._messages]

    @property
    def _reply(self) -> Message:
        """The message that the events of this round go into."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            stats = [message["stats"] for message in self._messages if "stats" in message]
            before = [self._begun, *((s["thinking_tokens"], s["thinking_seconds"]) for s in stats)]
            self._before = sum(tokens for tokens, _ in before), sum(seconds for _, seconds in before)
            self._messages.append({"role": "assistant", "content": ""})
        return self._messages[-1]


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


def _copied_calls(message: Message) -> Message:
    return {"tool_calls": list(message["tool_calls"])} if "tool_calls" in message else {}


def pretty(value: Any) -> str:
    return value if isinstance(value, str) else indented(value)


def short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
