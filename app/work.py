"""A running turn, and the view that the tabs of a conversation show."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exaone4_mlx import Chat, Done, Turn
from exaone4_mlx.storage.branches import Tree
from exaone4_mlx.storage.turns import missing_results
from exaone4_mlx.text.live_messages import LiveMessages
from exaone4_mlx.text.message import Message


@dataclass(frozen=True)
class View:
    """The visible state of a conversation at one moment. Times are in seconds."""

    messages: list[Message]
    revision: int = 0  # of the messages
    coming: list[Message] = field(default_factory=list)
    running: bool = False
    #: Calls that wait for the user's answer: the number in the turn -> where the tool comes from (`tools.origin`).
    asking: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    place: int = 0  # how many replies come before this one
    reading: tuple[int, int] | None = None  # prompt tokens read, of how many
    reading_left: float | None = None  # seconds
    tool_runs: bool = False
    counts: Done | None = None
    first_token_seconds: float | None = None
    context_tokens: int = 0
    context_limit: int = 0
    dropped: int = 0
    error: str | None = None
    unsaved: str | None = None  # why the conversation is not on disk
    forks: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # of the `Tree`
    undo: str = ""  # the action that Undo takes back, one of `branches.ACTIONS`
    redo: str = ""


class Work:
    """A running turn. `tree` is what was there before, `said` what the user says now, `made` how replies are made."""

    def __init__(self, turn: Turn, chat: Chat, tree: Tree, said: Sequence[Message], made: Mapping[str, Any]) -> None:
        self.turn, self.chat, self.tree, self.said, self.made = turn, chat, tree, list(said), made
        self.before = chat.messages
        self.system = self.before[: int(chat.system_prompt is not None)]
        self.history = [*self.system, *tree.messages, *said]
        self.live = LiveMessages(turn.begun)
        self.started = time.monotonic()
        self.first_token_seconds: float | None = None
        self.reading: tuple[int, int] | None = None
        self.reading_began: tuple[float, int] | None = None
        self.stopped = False
        self.asked = 0  # calls up to this number are asked about
        self.answers: dict[int, bool] = {}  # the number of a call -> whether it may run
        self.asks: Callable[[str], tuple[str, str] | None] = lambda name: None
        self.lets_go = False  # whether it releases the caches at its end
        self.saved = self.started

    def read(self, done: int, total: int) -> None:
        """Progress of the prefill."""
        if self.reading_began is None:
            self.reading_began = (time.monotonic(), done)
        self.reading = (done, total) if done < total else None
        if done >= total:
            self.reading_began = None  # the next round reads its own

    def take(self, event: object) -> None:
        """Takes an event of the turn."""
        if self.first_token_seconds is None and not isinstance(event, Done):
            self.first_token_seconds = time.monotonic() - self.started
        self.live.count(self.turn.so_far)  # of the round that ends, before the next begins
        self.live.add(event)

    def grown(self, reply: Sequence[Message]) -> Tree:
        """The conversation with what is said, and with what there is of the reply."""
        made = [one | {"made": self.made} if one["role"] == "assistant" else one for one in reply]
        dropped = self.chat.dropped if reply else self.tree.dropped
        return dataclasses.replace(self.tree, messages=[*self.tree.messages, *self.said, *made], dropped=dropped)

    @property
    def calls(self) -> list[str]:
        """The names of the tools of all calls of the turn. Their numbers count from 1."""
        messages = self.live.messages
        return [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]

    @property
    def next_call(self) -> int:
        """The number of the first call without a result."""
        return 1 + sum(message["role"] == "tool" for message in self.live.messages)

    @property
    def asking(self) -> dict[int, tuple[str, str]]:
        """The calls of this round that wait for the user's answer, in any order."""
        if self.stopped:
            return {}
        open_calls = [n for n in range(self.next_call, self.asked + 1) if n not in self.answers]
        return {n: origin for n in open_calls if (origin := self.asks(self.calls[n - 1])) is not None}

    @property
    def reading_left(self) -> float | None:
        if self.reading is None or self.reading_began is None:
            return None
        (done, total), (began, first) = self.reading, self.reading_began
        return (total - done) * (time.monotonic() - began) / (done - first) if done > first else None

    def view(self) -> View:
        """What is seen of the turn itself."""
        counts = self.turn.so_far
        self.live.count(counts)
        coming, reply, asking = self.live.messages, self.turn.reply_so_far, self.asking
        numbers = itertools.count(1)
        for message in coming:
            own = [(next(numbers), call) for call in message.get("tool_calls", ())]
            message["asking"] = {place: (n, *asking[n]) for place, (n, _) in enumerate(own) if n in asking}
        return View(
            list(self.history),
            coming=coming,
            running=True,
            asking=asking,
            place=self.turn.place,
            reading=self.reading,
            reading_left=self.reading_left,
            tool_runs=reply is None and missing_results(coming) > 0 and self.next_call not in asking,
            counts=counts,
            first_token_seconds=self.first_token_seconds,
            context_tokens=0 if reply is None else reply.prompt_tokens + reply.thinking_tokens + reply.answer_tokens,
        )
