"""The events of a reply -> a message of the history, a `Reply`, and the messages of a turn in progress."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tools.call import ToolCall, ToolResult
from ..tools.schema import shortened
from .calls import VALUE_ONLY
from .events import Answer, Done, Event, Logprobs, Thinking
from .format import count_text

Message = dict[str, Any]
#: What a turn of a chat consists of.
TurnEvent = Event | Logprobs | ToolResult | Done


@dataclass(frozen=True)
class Reply:
    """A whole reply: the answer in `text`, the thought, the fields of `Done`, and `logprobs` if they were requested.

    `token_ids` are the tokens of thought and answer, without the one that ends the turn.
    """

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    thinking_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float
    thinking_seconds: float
    peak_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    token_ids: tuple[int, ...] = ()

    @classmethod
    def from_events(cls, events: Iterable[TurnEvent], token_ids: Sequence[int] = ()) -> Reply:
        """Collects the events of one reply, or of one turn; `Done` must be among them."""
        partial, logprobs = PartialReply(), []
        done: Done | None = None
        for event in events:
            if isinstance(event, Done):
                done = event
            elif isinstance(event, Logprobs):
                logprobs.append(event)
            else:
                partial.add(event)
        if done is None:
            raise ValueError("the events have no Done: the reply is not complete")
        calls = tuple(partial.calls)
        return cls(
            partial.content, partial.thinking, calls, **vars(done), logprobs=tuple(logprobs), token_ids=tuple(token_ids)
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        calls = f", {count_text(len(self.tool_calls), 'tool call')}" if self.tool_calls else ""
        tokens = self.thinking_tokens + self.answer_tokens
        return f"Reply({shortened(self.text, 60)!r}{calls}, {count_text(tokens, 'token')}, {self.finish_reason!r})"


@dataclass
class PartialReply:
    """The events of a reply until now, joined. `problems` are those of texts in tool-call tags that are no calls."""

    thinking: str = ""
    answer: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.thinking or self.answer or self.calls)

    @property
    def content(self) -> str:
        """The answer; beside calls without the line ends around them."""
        return self.answer.strip() if self.calls else self.answer

    def add(self, event: object) -> None:
        """Adds an event. Events of other kinds have no effect."""
        if isinstance(event, Thinking):
            self.thinking += event.text
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        elif isinstance(event, Answer):
            self.answer += event.text
            if event.problem not in (None, VALUE_ONLY):
                self.problems.append(str(event.problem))

    def message(self, **more: Any) -> Message:
        """The message of the assistant. `more` are further keys."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": copy.deepcopy(call.arguments)}}
                for call in self.calls
            ]
        return message | more


def tool_messages(contents: Sequence[Any], **more: Any) -> list[Message]:
    """The messages of tools with these contents."""
    return [{"role": "tool", "content": content, **more} for content in contents]


def turn_starts(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The indices of the user's messages."""
    return [i for i, message in enumerate(messages) if message["role"] == "user"]
