"""One turn of a chat: replies of the model, and calls of tools between them.

Notes:
- A turn is a generator in the caller's thread. It gives the model's work to the worker thread, so that
  nothing here blocks another chat. Approvals run in the caller's thread. Each tool runs in a thread of its own, and the
  caller's thread waits for it.
- `Turn` is what a caller holds: dropping it ends the turn. `TurnState` is what the chat holds.
- The history can always be continued: a reply that is cut off is kept and marked, and each call has a result.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import warnings
import weakref
from collections.abc import Generator, Sequence

from ..generation.generate import EventStream, Generation
from ..generation.options import Options
from ..generation.request import Request
from ..text.events import Done
from ..text.format import count_text
from ..text.message import Message, PartialReply, TurnEvent, tool_messages
from ..tools.call import ToolCall, ToolResult
from ..tools.describe import Tool
from ..tools.toolbox import Toolbox, ToolError
from .begun import BegunReply, WrittenReply
from .history import History


class Turn(EventStream[TurnEvent]):
    """A turn of a chat: iterate it once for its events. It begins when it is iterated."""

    def __init__(self, state: TurnState) -> None:
        self._state = state
        self._events = state.run()
        state.turn = weakref.ref(self)

    def __next__(self) -> TurnEvent:
        self._state.thread = threading.current_thread()
        return next(self._events)

    def __repr__(self) -> str:
        counts = self.so_far
        tokens = "" if counts is None else f", {count_text(counts.thinking_tokens + counts.answer_tokens, 'token')}"
        return f"Turn({self._state.phase}{tokens})"

    def __del__(self) -> None:
        if getattr(self, "_state", None) is None or sys.is_finalizing():
            return
        if self._state.phase == "not begun" and not self._state.cancelled.is_set():
            self._state.phase = "closed"
            warnings.warn("a turn was dropped before it began: iterate it, or use chat.ask(…)", stacklevel=2)

    @property
    def place(self) -> int:
        """The number of replies of this model that come before this one."""
        generation = self._state.generation
        return 0 if generation is None else generation.place

    @property
    def so_far(self) -> Done | None:
        """Counts and times of all rounds until now, from any thread; None before the first begins."""
        return self._state.so_far

    @property
    def reply_so_far(self) -> Done | None:
        """The same of the reply in progress; None between two replies, while tools run."""
        return self._state.reply_so_far

    @property
    def prompt_progress(self) -> tuple[int, int] | None:
        """Processed tokens of the prompt and all of them, from any thread; None before and after a prefill."""
        generation = self._state.generation
        return None if generation is None else generation.prompt_progress

    @property
    def begun(self) -> Message | None:
        """The text of the reply before the first event, if the turn continues one: a message of the assistant."""
        return self._state.begun_message

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of all replies of the turn until now."""
        return tuple(self._state.token_ids)

    def cancel(self) -> None:
        """Ends the turn, from any thread. The partial reply is kept, and `Done` says "cancelled"."""
        self._state.cancel()

    def close(self) -> None:
        """Ends the turn at once and without `Done`. The partial reply is kept."""
        if self._state.phase == "not begun":
            self._state.phase = "closed"
        self._events.close()


class TurnState:
    """A turn in progress: what it replies to, the partial reply, and the counts. Any thread may read and cancel it.

    A turn that `replaces` another keeps the old reply until something of the new one exists. With `begun`, its first
    reply continues that one, and both are one message.
    """

    def __init__(
        self,
        history: History,
        messages: list[Message],
        toolbox: Toolbox,
        tools: tuple[Tool, ...],
        options: Options,
        replaces: bool = False,
        begun: BegunReply | None = None,
    ) -> None:
        self._begun = begun
        self.begun_message = None if begun is None else begun.joined(begun.partial().message())
        self._history, self._messages, self._toolbox, self._tools = history, messages, toolbox, tools
        self._options, self._replaces = options, replaces
        self._before = history._messages
        self._request: Request | None
        self._request, self._dropped = history.request(messages, tools, options, begun)
        self._next = self._generation(self._request)
        self._partial: PartialReply | None = None  # of the reply in progress
        self.phase = "not begun"  # "in progress", "closed", or a finish reason
        self.cancelled = threading.Event()
        self.thread: threading.Thread | None = None  # that took the last event
        self.turn: weakref.ref[Turn] | None = None
        self.total: Done | None = None  # of the rounds that are over
        self.token_ids: list[int] = []
        self._lock = threading.RLock()  # a signal handler may cancel inside a call of the same thread
        self.generation: Generation | None = None

    def cancel(self) -> None:
        self.cancelled.set()
        with self._lock:
            if self.generation is not None:
                self.generation.cancel()

    @property
    def so_far(self) -> Done | None:
        with self._lock:
            reply = self.reply_so_far
            return self.total if reply is None else reply if self.total is None else self.total + reply

    @property
    def reply_so_far(self) -> Done | None:
        with self._lock:
            return None if self.generation is None else self.generation.so_far

    def run(self) -> Generator[TurnEvent, None, None]:
        """The events of the turn. Keeps the history consistent, however it ends."""
        history, self.phase = self._history, "in progress"
        try:
            with history._lock:
                if history.turn_state is not None:
                    raise RuntimeError("another turn of this chat is in progress")
                if history._messages is not self._before:
                    raise RuntimeError("the conversation has changed since this turn was made")
                history.turn_state = self
            history._messages, history.dropped = self._messages, self._dropped
            history.use_tools(self._toolbox, self._tools)
            for rounds_left in range(history.settings.max_tool_rounds, -1, -1):
                done, problems = yield from self._reply()
                total = self.total = done if self.total is None else self.total + done
                if not (yield from self._run_calls(done, problems, rounds_left)):
                    break
                if self.cancelled.is_set() or self._request is None:
                    reason = "length" if self._request is None else "cancelled"
                    total = dataclasses.replace(total, finish_reason=reason)
                    break
        finally:
            self.phase = "closed"
            if history.turn_state is self:
                history.turn_state = None
                if self._partial is not None:  # interrupted before it was in the history
                    self._keep(self._partial, None, "cancelled")
                self._answer_calls()
                history.prepare()
        self.phase = total.finish_reason
        yield total

    def _reply(self) -> Generator[TurnEvent, None, tuple[Done, list[str]]]:
        """One reply of the model, appended to the history. Returns its `Done`, and the problems of its calls."""
        self._history.stop_settling()
        prefill = self._options.prefill_response or ""
        partial = self._partial = self._begun.partial() if self._begun else PartialReply(answer=prefill)
        self._options = dataclasses.replace(self._options, prefill_response=None)  # of the first reply only
        with self._lock:
            generation = self.generation = self._next
        if self.cancelled.is_set():
            generation.cancel()
        done, reason = None, "cancelled"
        try:
            for event in generation:
                if isinstance(event, Done):
                    done = event
                    break
                partial.add(event)
                yield event
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException:
            reason = "error"
            raise
        finally:
            try:
                generation.close()
            finally:  # of a second Ctrl-C, too
                with self._lock:
                    self.generation = None
                self.token_ids += generation.token_ids
                self._keep(partial, done, reason, generation.token_ids)
        assert done is not None
        return done, partial.problems

    def _generation(self, request: Request) -> Generation:
        return Generation(
            self._history.model,
            request,
            prompt_cache=self._history._cache,
            constraint=self._history.constraint(self._tools, self._options),
            draft=self._history._draft,
        )

    def _keep(self, partial: PartialReply, done: Done | None, reason: str, ids: tuple[int, ...] = ()) -> None:
        """Appends a reply to the history. An empty one does not replace an old reply."""
        stats = {} if done is None else {"stats": dataclasses.asdict(done)}
        reason = reason if done is None else done.finish_reason
        begun, self._begun = self._begun, None
        is_new = partial != begun.partial() or begun.is_edited if begun else not partial.is_empty
        if self._replaces and not is_new and reason in ("cancelled", "error"):
            self._history._messages, self._partial = self._before, None
            return
        self._replaces = False
        message = partial.message(finish_reason=reason, **stats)
        message = begun.joined(message) if begun else message
        self._history.append(message)
        if (request := self._request) is not None:
            self._history.written = WrittenReply(message, (*request.begun_ids, *ids), request.inside_thought)
        self._partial = None
        if partial.calls and reason != "tool_calls":
            refused = {"error": "not run: the reply was cut off"}
            self._history.append(*tool_messages([refused] * len(partial.calls), failed=True))

    def _run_calls(self, done: Done, problems: list[str], rounds_left: int) -> Generator[TurnEvent, None, bool]:
        """Runs the calls of the last reply. Returns whether the model gets their results."""
        calls = self._history.open_calls
        if done.finish_reason not in ("stop", "tool_calls") or not (calls or (problems and self._toolbox)):
            return False
        if self._wait_for_caller(calls):
            return False
        results: list[Message] = []
        try:
            self._history.prepare()
            for call in calls:
                result = self._run_call(call, rounds_left)
                results += tool_messages([result.content], failed=result.failed, seconds=result.seconds)
                yield result
        finally:
            not_run = [{"error": "not run: the turn was ended"}] * (len(calls) - len(results))
            wrong = [{"error": f"this is no valid call: {problem}"} for problem in problems]
            results += tool_messages([*not_run, *wrong], failed=True)
            self._request = self._history.append_results(results, self._tools, self._options)
        if self._request is not None:
            self._next = self._generation(self._request)
        return rounds_left > 0

    def _wait_for_caller(self, calls: Sequence[ToolCall]) -> bool:
        """Whether the caller gives the results: a tool is known by its schema only."""
        return any(call.name in self._toolbox.names and not self._toolbox.runnable(call.name) for call in calls)

    def _answer_calls(self) -> None:
        """Gives each call a result that nobody else would give."""
        if (calls := self._history.open_calls) and not self._wait_for_caller(calls):
            ended = tool_messages([{"error": "not run: the turn was ended"}] * len(calls), failed=True)
            self._history.append_results(ended, self._tools, self._options)

    def _run_call(self, call: ToolCall, rounds_left: int) -> ToolResult:
        def refused(reason: str) -> ToolResult:
            return ToolResult(call, {"error": reason}, failed=True, seconds=0.0)

        settings, approve = self._history.settings, self._history.approve
        if self.cancelled.is_set():
            return refused("not run: the turn was ended")
        if rounds_left == 0:
            return refused(f"not run: a turn has {settings.max_tool_rounds} rounds of calls, and they are used up")
        try:
            self._toolbox.arguments(call)
        except ToolError as error:
            return refused(str(error))
        if approve is not None and approve(call) is not True:
            return refused("not run: the user did not allow this call")
        return self._toolbox.run(call, timeout=settings.tool_timeout, cancelled=self.cancelled)
