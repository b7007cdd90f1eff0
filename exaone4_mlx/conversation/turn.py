"""One turn of a chat: what it is made from, what came of it, and how it is ended from elsewhere."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.generate import Generation
from ..generation.options import Options
from ..generation.worker import Job
from ..text.events import Answer, Done, Event, Logprobs, Thinking
from ..text.reply import VALUE_ONLY
from ..tools.call import ToolCall
from ..tools.describe import Tool
from ..tools.toolbox import Toolbox, ToolResult

TurnEvent = Event | Logprobs | ToolResult | Done
Message = dict[str, Any]


class Turn(Iterator[TurnEvent]):
    """A turn of a chat: iterate it once for its events."""

    def __init__(self, events: Generator[TurnEvent, None, None], running: Running) -> None:
        self._events, self._running = events, running

    def __iter__(self) -> Turn:
        return self

    def __next__(self) -> TurnEvent:
        self._running.thread = threading.current_thread()
        return next(self._events)

    @property
    def place(self) -> int:
        """How many replies of other chats come before this one."""
        return self._running.place

    @property
    def so_far(self) -> Done | None:
        """The counts and times of all rounds until now, from any thread; None before the first has begun."""
        return self._running.so_far

    @property
    def reply_so_far(self) -> Done | None:
        """The same of the reply that is being made; None between two replies, while tools run."""
        return self._running.reply_so_far

    def cancel(self) -> None:
        """Ends the turn, from any thread; what came is kept, and its `Done` says "cancelled"."""
        self._running.cancel()

    def close(self) -> None:
        """Ends the turn at once and without `Done`; what came is kept."""
        self._events.close()


@dataclass
class Plan:
    """What a turn is made from. `ids` is the prompt of its next reply, without the first `dropped` messages,
    if the context holds it (`fits`).

    `replaces` holds until something came that can stand for what the history had `before`.
    """

    messages: list[Message]
    toolbox: Toolbox
    tools: tuple[Tool, ...]
    options: Options
    ids: list[int] = field(default_factory=list)
    dropped: int = 0
    fits: bool = True
    came: Came | None = None  # of the reply under way
    before: list[Message] = field(default_factory=list)
    replaces: bool = False


class Running:
    """The turn under way, as seen from other threads."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.thread: threading.Thread | None = None  # that took the last event
        self.turn: weakref.ref[Turn] | None = None
        self.total: Done | None = None  # of the rounds that are over
        self._lock = threading.RLock()  # a signal handler may cancel in the midst of this thread's own call
        self._generation: Generation | None = None
        self._job: Job[Any] | None = None

    def begin(self, generation: Generation, job: Job[Any]) -> None:
        with self._lock:
            self._generation, self._job = generation, job
        if self.cancelled.is_set():
            self.cancel()

    def end(self) -> None:
        with self._lock:
            self._generation = self._job = None

    def cancel(self) -> None:
        self.cancelled.set()
        with self._lock:
            if self._generation is not None and self._job is not None:
                self._generation.cancel()
                self._job.withdraw()

    @property
    def place(self) -> int:
        with self._lock:
            return 0 if self._job is None else self._job.place

    @property
    def so_far(self) -> Done | None:
        with self._lock:
            reply = self.reply_so_far
            return self.total if reply is None else reply if self.total is None else self.total + reply

    @property
    def reply_so_far(self) -> Done | None:
        with self._lock:
            return None if self._generation is None else self._generation.so_far


@dataclass
class Came:
    """What came of a reply, whole or cut."""

    thinking: str = ""
    answer: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cut: bool = False
    finish_reason: str = "cancelled"
    stats: dict[str, Any] | None = None

    @property
    def anything(self) -> bool:
        return bool(self.thinking or self.answer or self.calls)

    def add(self, event: Event) -> None:
        if isinstance(event, Thinking):
            self.thinking += event.text
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        else:
            self.answer += event.text
            if isinstance(event, Answer) and event.problem not in (None, VALUE_ONLY):
                self.problems.append(str(event.problem))

    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": self.answer.strip() if self.calls else self.answer}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": copy.deepcopy(call.arguments)}}
                for call in self.calls
            ]
        message["finish_reason"] = self.finish_reason
        if self.stats is not None:
            message["stats"] = self.stats
        return message


def tool_messages(contents: Sequence[Any], **more: Any) -> list[Message]:
    return [{"role": "tool", "content": content, **more} for content in contents]
