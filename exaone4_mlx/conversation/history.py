"""The history of a conversation: its messages, its tools, what of it fits into the context, and its caches.

Notes:
- After each reply, and while tools run, the caches are brought into the form that the next prompt has (EXAONE's
  template erases thoughts from the history), in idle time. A reply that was cut stays in them as the model wrote it:
  to continue it, the model reads one token.
- `messages` keeps everything. `dropped` messages after the system prompt are left out of the prompt.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..generation.constrain import ToolConstraint
from ..generation.draft import DraftModel
from ..generation.generate import tool_constraint
from ..generation.options import Options, check
from ..generation.prompt_cache import PromptCache
from ..generation.request import Request, render
from ..generation.worker import Job, Worker
from ..model.network import Exaone4ForCausalLM
from ..text.input_messages import check_messages
from ..text.message import Message, turn_starts
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from ..tools.describe import Tool, schemas
from ..tools.toolbox import Toolbox
from .begun import BegunReply, WrittenReply, is_cut, last_reply


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How a chat handles tools, a full context and idle time. Raises ValueError for an invalid value.

    A tool call may take `tool_timeout` seconds; None sets no limit. A turn may have `max_tool_rounds` rounds of calls;
    later calls are refused and end it. When the context is full, `overflow="error"` raises before any work;
    "drop_oldest" lets the model see the system prompt and the newest whole turns (`messages` keeps all). `settle`
    prepares the next turn in idle time.
    """

    max_tool_rounds: int = 8
    tool_timeout: float | None = 60.0
    overflow: Literal["error", "drop_oldest"] = "error"
    settle: bool = True

    def __post_init__(self) -> None:
        rounds, timeout = self.max_tool_rounds, self.tool_timeout
        check("max_tool_rounds", rounds, type(rounds) is int and rounds >= 0, "a count")
        seconds = isinstance(timeout, (int, float)) and timeout > 0
        check("tool_timeout", timeout, timeout is None or seconds, "seconds, more than 0")
        check("overflow", self.overflow, self.overflow in ("error", "drop_oldest"), "'error' or 'drop_oldest'")
        check("settle", self.settle, isinstance(self.settle, bool), "true or false")


class History:
    """The messages of a conversation, and what the model has read of them."""

    model: Exaone4ForCausalLM
    tokenizer: Tokenizer
    options: Options
    settings: ChatSettings
    max_kv_size: int
    approve: Callable[[ToolCall], bool] | None
    _worker: Worker
    _cache: PromptCache
    _draft: DraftModel | None

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self._tools: tuple[Tool, ...] = ()
        self._toolbox = Toolbox()
        self._constraint: ToolConstraint | None = None
        self._lock = threading.RLock()
        self._settling: Job[Any] | None = None
        self.turn_state: Any = None  # the turn in progress
        self.written: WrittenReply | None = None  # the last reply of the model
        self.dropped = 0  # messages after the system prompt that the model does not see any more
        self.context_tokens = 0  # of the history, as the next prompt will hold it

    def __del__(self) -> None:
        if hasattr(self, "_settling"):  # __init__ may have refused
            self.stop_settling()  # nobody will send the next turn

    @property
    def messages(self) -> list[Message]:
        """The history, as a list of its own."""
        return list(self._messages)

    @property
    def system_prompt(self) -> str | None:
        """The system prompt. After a change the model reads the whole conversation again."""
        return self._messages[0]["content"] if self._system_length else None

    @system_prompt.setter
    def system_prompt(self, text: str | None) -> None:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the system prompt must be a text, not {type(text).__name__}")
        message = [] if text is None else [{"role": "system", "content": text}]
        self._messages = [*message, *self._messages[self._system_length :]]

    @property
    def _system_length(self) -> int:
        return int(bool(self._messages) and self._messages[0]["role"] == "system")

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools. After a change the model reads the whole conversation again."""
        return self._tools

    @tools.setter
    def tools(self, tools: Sequence[Tool] | None) -> None:
        self.use_tools(Toolbox(tools), tuple(tools or ()))

    def use_tools(self, toolbox: Toolbox, tools: tuple[Tool, ...]) -> None:
        if tools is not self._tools:
            self._toolbox, self._tools, self._constraint = toolbox, tools, None

    @property
    def turns(self) -> list[str]:
        """The texts of the user, turn by turn."""
        return [self._messages[i]["content"] for i in turn_starts(self._messages)]

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Calls of the last reply that wait for `resume`, because their tools are known by a schema only."""
        last: Message = self._messages[-1] if self._messages else {}
        return tuple(ToolCall(**call["function"]) for call in last.get("tool_calls") or ())

    @property
    def prompt_limit(self) -> int:
        """Tokens up to which a prompt is used whole: above it `send` raises, or the oldest turns are dropped."""
        return self._prompt_limit(self.options)

    def _prompt_limit(self, options: Options) -> int:
        if self.settings.overflow == "error":
            return self.max_kv_size - 1
        return self.max_kv_size - min(options.reply_limit, self.max_kv_size // 4)  # the rest is the reply's

    # --- prompts --------------------------------------------------------------

    def request(
        self, messages: Sequence[Message], tools: tuple[Tool, ...], options: Options, begun: BegunReply | None = None
    ) -> tuple[Request, int]:
        """The request for a reply to `messages`, and how many of the oldest messages it leaves out.

        `begun` is the part of the reply that exists already. Raises ValueError if the prompt is too long.
        """
        system = self._system_length
        starts = turn_starts(messages)
        dropped = self.dropped if system + self.dropped in starts else 0

        written = begun.ids if begun else ()
        if begun and not written:
            messages, options = [*messages, begun.message], dataclasses.replace(options, continue_final_message=True)

        def without(count: int) -> tuple[list[int], int]:
            seen = [*messages[:system], *messages[system + count :]]
            return render(self.tokenizer, seen, options, tools, written)

        (ids, count), limit = without(dropped), self._prompt_limit(options)
        if len(ids) > limit and self.settings.overflow == "drop_oldest":
            # Down to three quarters of the limit: after dropping, the model reads the rest again.
            later = [start - system for start in starts if start > system + dropped] or [dropped]
            fitting = bisect.bisect_left(later, True, key=lambda count: len(without(count)[0]) <= limit * 3 // 4)
            dropped = later[min(fitting, len(later) - 1)]
            ids, count = without(dropped)
        if len(ids) >= self.max_kv_size:
            what, advice = "conversation has", "undo() or edit() a turn, reset(), or set overflow='drop_oldest'"
            if self.settings.overflow == "drop_oldest":
                what, advice = "newest turn alone has", "make it shorter"
            raise ValueError(
                f"the {what} {len(ids)} tokens, and the context of {self.max_kv_size} must hold it and a "
                f"reply: {advice}"
            )
        draft = self._draft.model.config if self._draft else None
        config, kv, offered = self.model.config, self._cache.kv, tuple(schemas(tools) or ())
        request = Request(config, self.tokenizer, tuple(ids), options, self.max_kv_size, kv, draft, count, offered)
        return request, dropped

    def constraint(self, tools: tuple[Tool, ...], options: Options) -> ToolConstraint | None:
        """The constraint for calls of `tools`, if the options ask for it; made once for the chat's own tools."""
        if not options.constrain_tools or not tools:
            return None
        if tools is not self._tools:
            return tool_constraint(self.model.config, self.tokenizer, tools)
        if self._constraint is None:
            self._constraint = tool_constraint(self.model.config, self.tokenizer, tools)
        return self._constraint

    # --- the caches -----------------------------------------------------------

    def prepare(self, idle: bool = True) -> list[int]:
        """Submits idle work that reads the history in the form that the next prompt will begin with.

        Returns its ids, if the context holds them and the last reply was not cut. With `idle=False` it submits nothing.
        """
        system = self._system_length
        dropped = self.dropped if system + self.dropped < len(self._messages) else 0
        messages = [*self._messages[:system], *self._messages[system + dropped :]]
        ids: list[int] = []
        if turn_starts(messages):
            ids = self.tokenizer.apply_chat_template(
                messages,
                tools=self._tools or None,
                add_generation_prompt=False,
                **(self.options.chat_template_args or {}),
            )
        self.context_tokens = len(ids)
        last = last_reply(self._messages)
        if len(ids) >= self.max_kv_size or (last is not None and is_cut(self._messages[last])):
            ids = []
        with self._lock:
            self.stop_settling()
            if ids and idle and self.settings.settle:
                self._settling = self._worker.submit(self._cache.settle(ids), idle=True)
        return ids

    def stop_settling(self) -> None:
        with self._lock:
            if self._settling is not None:
                self._settling.close(wait=False)
                self._settling = None

    # --- changes --------------------------------------------------------------

    def set_messages(self, messages: Sequence[Mapping[str, Any]], dropped: int = 0) -> None:
        """Replaces the history, for instance by another branch. The caches keep what is the same at the beginning.

        The model does not see the first `dropped` messages after the system prompt. Raises ValueError for messages
        that are no history, and RuntimeError while a turn is in progress.
        """
        if self.turn_state is not None:
            raise RuntimeError("a turn of this chat is in progress: cancel() it or wait for its end")
        self._messages, self.dropped = check_messages(messages) if messages else [], dropped
        self.prepare()

    def append(self, *messages: Message) -> None:
        self._messages = [*self._messages, *messages]

    def append_results(self, results: Sequence[Message], tools: tuple[Tool, ...], options: Options) -> Request | None:
        """Appends the results of tools, and makes the request that follows; None if the context cannot hold it.

        Results that are too long are replaced by an error.
        """
        too_long = {"error": "the result is too long for what is left of the context"}
        before = self._messages
        for messages in (results, [{**result, "content": too_long, "failed": True} for result in results]):
            self._messages = [*before, *messages]
            with contextlib.suppress(ValueError):
                request, self.dropped = self.request(self._messages, tools, options)
                return request
        return None
