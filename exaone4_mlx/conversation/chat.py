"""`Chat`: a conversation that remembers, thinks, uses tools and never reads the same tokens twice.

What is peculiar here:
- A turn is a generator in the caller's thread. It hands the model's work to the owner thread and runs tools and
  approvals itself, so that neither blocks another chat.
- After each reply, and while tools run, the caches are brought into the form that the next prompt will have
  (EXAONE's template erases thoughts from history), in idle time.
- The history is always one that can go on: a reply that was cut is kept and marked, and no call is left without
  a result.
- Only functions that were given as tools can run; calls of tools known by their schema alone are left to the
  caller (`resume`).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import inspect
import json
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx

from ..files.folders import atomic_file
from ..generation.constrain import ToolConstraint
from ..generation.generate import Generation, make_draft, tool_constraint
from ..generation.options import SAMPLING_FIELDS, Options, ReplyOptions, Sampling, check
from ..generation.prompt_cache import PromptCache
from ..generation.request import Request, check_answerable, check_drafting, check_kv_size
from ..generation.worker import IdleWork, Owner
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.events import Done, Logprobs
from ..text.input_messages import check_messages
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from ..tools.describe import Tool
from ..tools.toolbox import Toolbox, ToolError, ToolResult
from .turn import Came, Message, Plan, Running, Turn, TurnEvent, tool_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

FILE_FORMAT, FILE_VERSION = "exaone4_mlx chat", 1
#: Options that a saved chat keeps.
SAVED_OPTIONS = tuple(field.name for field in dataclasses.fields(Options) if field.metadata["kept"])
SAVED_SETTINGS = {"sampling", "overflow", *SAVED_OPTIONS} - set(SAMPLING_FIELDS)
CACHE_SUFFIX = ".cache"  # of the file beside a saved chat that holds its caches


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


class ChatOptions(ReplyOptions, total=False):
    """The fields of `Options` and `ChatSettings`, as keyword arguments of `Chat`."""

    max_tool_rounds: int
    tool_timeout: float | None
    overflow: Literal["error", "drop_oldest"]
    settle: bool


class TurnOptions(ReplyOptions, total=False):
    """The keyword arguments of a turn: options of its replies, and `tools` from this turn on."""

    tools: Sequence[Tool] | None


CHAT_SETTINGS = tuple(field.name for field in dataclasses.fields(ChatSettings))
CHAT_PARAMETERS = ("system_prompt", "tools", "messages", "approve", "max_kv_size", "prompt_cache", "kv", "draft_model")


class Chat:
    """A conversation with a model. It may be used from any thread, one turn at a time.

    `messages` is the history, OpenAI-style, the system prompt first; each reply carries its thought as
    `reasoning_content`, why it ended as `finish_reason`, and its counts as `stats`; each result of a tool whether it
    `failed`, and the `seconds` that the tool ran, if it did.
    """

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        system_prompt: str | None = None,
        tools: Sequence[Tool] = (),
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        approve: Callable[[ToolCall], bool] | None = None,
        max_kv_size: int | None = None,
        prompt_cache: PromptCache | None = None,
        kv: KVQuantization | int | None = None,
        draft_model: Exaone4ForCausalLM | None = None,
        **options: Unpack[ChatOptions],
    ) -> None:
        """A new conversation, or one that continues `messages`.

        `system_prompt` is the system prompt, unless the messages begin with one. `tools` are functions, which the
        model may call, or JSON schemas. `options` are the fields of `Options` (`thinking`, `temperature`, `max_tokens`
        and so on), which hold for each reply unless `send` overrides them, and the fields of `ChatSettings`.

        `approve(call)` is called, in the caller's thread, before each tool call runs. `max_kv_size` limits the tokens
        that the model sees at once, and so the memory of the caches. `prompt_cache` is one that holds a part of the
        conversation already. `kv` and `draft_model` are those of `stream_generate`.

        Raises ValueError for an invalid setting, and TypeError for an unknown one.
        """
        self.model, self.tokenizer = model, tokenizer
        self._settling: IdleWork | None = None
        self._constraint: ToolConstraint | None = None
        self._lock = threading.RLock()
        self._running: Running | None = None
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in CHAT_SETTINGS if name in given}
        self.options = Options.read(given, also=(*CHAT_SETTINGS, *CHAT_PARAMETERS))
        self.settings = ChatSettings(**own)
        self._messages: list[Message] = check_messages(messages) if messages else []
        if system_prompt is not None and self._system_length:
            raise ValueError("there are two system prompts: one given as such, and one among the messages")
        if system_prompt is not None:
            self.system_prompt = system_prompt
        self._tools: tuple[Tool, ...] = ()
        self._toolbox = Toolbox()
        self.tools = tools
        plain = callable(approve) and not inspect.iscoroutinefunction(approve)
        check("approve", approve, approve is None or plain, "a function that returns True or False, and no coroutine")
        self.approve = approve
        if max_kv_size is not None:
            check_kv_size(max_kv_size, model.config)
        self.max_kv_size = max_kv_size or model.config.max_position_embeddings  # prompt and reply together
        self._draft = make_draft(draft_model)
        check_drafting(model.config, self.options, self._draft.model.config if self._draft else None)
        self.dropped = 0  # messages after the system prompt that the model does not see any more
        self.context_tokens = 0  # of the history, as the next prompt will hold it
        self._owner = Owner.of(model)
        self._compute_weights()
        check("prompt_cache", prompt_cache, isinstance(prompt_cache, (PromptCache, type(None))), "a PromptCache")
        stored = KVQuantization.coerce(kv, model.config)
        self._cache = prompt_cache or PromptCache(model, tokenizer, self._owner.checkpoints, stored)
        self._cache.check_model(model, stored)
        if messages:
            self._prepare()

    def __del__(self) -> None:
        if hasattr(self, "_settling"):  # __init__ may have refused
            self._stop_settling()  # nobody will send the next turn

    def __repr__(self) -> str:
        return f"Chat({len(self.turns)} turns, {self.context_tokens} of {self.max_kv_size} tokens)"

    # --- the history ----------------------------------------------------------

    @property
    def messages(self) -> list[Message]:
        """The history, as a list of its own."""
        return list(self._messages)

    @property
    def system_prompt(self) -> str | None:
        """The system prompt. Changed, it means that the whole conversation is read again."""
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
        """The tools on offer. Changed, they mean that the whole conversation is read again."""
        return self._tools

    @tools.setter
    def tools(self, tools: Sequence[Tool] | None) -> None:
        self._use(Toolbox(tools), tuple(tools or ()))

    def _use(self, toolbox: Toolbox, tools: tuple[Tool, ...]) -> None:
        if tools is not self._tools:
            self._toolbox, self._tools, self._constraint = toolbox, tools, None

    @property
    def turns(self) -> list[str]:
        """What the user said, turn by turn."""
        return [self._messages[i]["content"] for i in self._turn_starts(self._messages)]

    @property
    def prompt_limit(self) -> int:
        """Tokens up to which a prompt goes in whole: beyond, `send` raises or the oldest turns are dropped."""
        return self._prompt_limit(self.options)

    def _prompt_limit(self, options: Options) -> int:
        if self.settings.overflow == "error":
            return self.max_kv_size - 1
        return self.max_kv_size - min(options.reply_limit, self.max_kv_size // 4)  # the rest is the reply's

    @staticmethod
    def _turn_starts(messages: Sequence[Message]) -> list[int]:
        return [i for i, message in enumerate(messages) if message["role"] == "user"]

    # --- turns ----------------------------------------------------------------

    def send(self, text: str | Message, **options: Unpack[TurnOptions]) -> Turn:
        """Says `text` and streams the reply: `Thinking`, `Answer`, `ToolCall`, `ToolResult`, and `Done` at the end.

        In place of the text a whole message of the user may be given; `messages` keeps keys of your own in it.
        `Done` is the sum over the rounds of the turn. `options` are the fields of `Options`, for this turn, and `tools`
        from this turn on. The turn begins when it is iterated. A turn that is dropped half way, or closed, keeps the
        partial reply, marked as cut.

        Raises ValueError, before anything is done, for an empty text, an option without meaning and a full
        context, TypeError for an unknown option, and RuntimeError while another thread's turn is under way: a chat
        is one person's.
        """
        message = _user_message(text)
        self._end_abandoned_turn()
        if self.open_calls:
            raise ValueError("the last reply waits for the results of its calls: give them to resume(), or undo()")
        return self._begin([*self._messages, message], options)

    def reply(self, **options: Unpack[TurnOptions]) -> Turn:
        """Replies to the history as it is, which must end with the user's words or a tool's result."""
        self._end_abandoned_turn()
        check_answerable(self._messages)
        return self._begin(list(self._messages), options)

    def resume(self, results: Sequence[Any], **options: Unpack[TurnOptions]) -> Turn:
        """Goes on with the results of `open_calls`: a list of JSON values, one for each, in their order."""
        self._end_abandoned_turn()
        check("results", results, isinstance(results, (list, tuple)), "a list, one for each open call")
        json.dumps(results, allow_nan=False)  # raises for what is no JSON
        calls = self.open_calls
        if not calls or len(results) != len(calls):
            raise ValueError(f"{len(calls)} calls wait for results, and {len(results)} results were given")
        return self._begin([*self._messages, *tool_messages(results)], options)

    def retry(self, **options: Unpack[TurnOptions]) -> Turn:
        """Replies to the last turn again; the old reply goes once the new one begins."""
        self._end_abandoned_turn()
        last = self._turn_index(-1)
        return self._begin(self._messages[: last + 1], options, replaces=True)

    def edit(self, turn: int, text: str | Message, **options: Unpack[TurnOptions]) -> Turn:
        """Says `text` in place of a turn, counted from 0 (or from the end: -1 is the last); what followed it goes."""
        message = _user_message(text)
        self._end_abandoned_turn()
        index = self._turn_index(turn)
        return self._begin([*self._messages[:index], message], options, replaces=True)

    def undo(self) -> str:
        """Takes the last turn back, and returns what it said."""
        self._end_abandoned_turn()
        index = self._turn_index(-1)
        text: str = self._messages[index]["content"]
        self._messages, self.dropped = self._messages[:index], 0
        self._prepare()
        return text

    def reset(self) -> None:
        """Forgets the conversation but for the system prompt."""
        self._end_abandoned_turn()
        self._messages = self._messages[: self._system_length]
        self.dropped = 0
        self._prepare()

    def cancel(self) -> None:
        """Ends the turn under way, from any thread; what came is kept, and its `Done` says "cancelled"."""
        if (running := self._running) is not None:
            running.cancel()

    def settle(self) -> None:
        """Returns when the next turn is prepared: everything up to here has been read in the form it will have."""
        if self._running is not None:
            if (settling := self._settling) is not None:
                settling.wait()
        elif ids := self._prepare(idle=False):
            for _ in self._owner.submit(self._cache.settle(ids)):
                pass

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Calls of the last reply that wait for `resume`, because their tools are known by a schema only."""
        last: Message = self._messages[-1] if self._messages else {}
        calls = [call.get("function", call) for call in last.get("tool_calls") or ()]
        return tuple(ToolCall(call["name"], call.get("arguments", call.get("parameters"))) for call in calls)

    def _turn_index(self, turn: int) -> int:
        starts = self._turn_starts(self._messages)
        if not starts:
            raise ValueError("the conversation has no turns yet")
        if not isinstance(turn, int) or not -len(starts) <= turn < len(starts):
            raise ValueError(f"there is no turn {turn!r}: the conversation has {len(starts)}")
        return starts[turn]

    def _end_abandoned_turn(self) -> None:
        """A turn that this thread began and left (an interrupted notebook cell, say) is closed here."""
        if (running := self._running) is None:
            return
        turn = running.turn() if running.turn is not None else None
        if turn is None:
            self._running = None
            return
        if running.thread is threading.current_thread() or running.cancelled.is_set():
            with contextlib.suppress(ValueError):  # it is being asked for its next event just now
                turn.close()
                return
        raise RuntimeError("a turn of this chat is under way: cancel() it or wait for its end")

    def _begin(self, messages: list[Message], options: Mapping[str, Any], replaces: bool = False) -> Turn:
        """Checks a turn; it changes the chat only once it is iterated."""
        options = dict(options)
        toolbox, tools = self._toolbox, self._tools
        if (given := options.pop("tools", None)) is not None:
            toolbox, tools = Toolbox(given), tuple(given)
        self._compute_weights()
        plan = Plan(messages, toolbox, tools, self._options(options))
        plan.before, plan.replaces = self._messages, replaces
        self._fit(plan)
        self._request(plan)
        self._constraint_of(plan)
        running = Running()
        turn = Turn(self._turn(plan, running), running)
        running.turn = weakref.ref(turn)
        return turn

    def _compute_weights(self) -> None:
        """Weights that this thread has changed are computed here: the owner's thread cannot do it."""
        mx.eval(self.model.parameters())
        if self._draft is not None:
            mx.eval(self._draft.model.parameters())

    def _options(self, given: Mapping[str, Any]) -> Options:
        """The options of a turn: those given, and else those of the chat."""
        given = {name: value for name, value in given.items() if value is not None}
        options = Options.read(given, self.options, also=("tools",))
        if not options.thinking and "thinking_budget" not in given:
            options = dataclasses.replace(options, thinking_budget=None)
        if self._draft is None and not options.prompt_lookup and "num_draft_tokens" not in given:
            options = dataclasses.replace(options, num_draft_tokens=None)
        return options

    def _request(self, plan: Plan) -> Request:
        draft = self._draft.model.config if self._draft else None
        return Request(
            self.model.config, self.tokenizer, tuple(plan.ids), plan.options, self.max_kv_size, self._cache.kv, draft
        )

    def _render(
        self, messages: Sequence[Message], tools: tuple[Tool, ...], *, thinking: bool, reply: bool
    ) -> list[int]:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=reply, enable_thinking=thinking
        )

    def _fit(self, plan: Plan) -> None:
        """Renders the prompt, without the oldest turns where they have to go. Raises ValueError if it is too long."""
        system = self._system_length
        starts = self._turn_starts(plan.messages)
        dropped = self.dropped if system + self.dropped in starts else 0

        def without(dropped: int) -> list[int]:
            seen = [*plan.messages[:system], *plan.messages[system + dropped :]]
            return self._render(seen, plan.tools, thinking=plan.options.thinking, reply=True)

        ids, limit = without(dropped), self._prompt_limit(plan.options)
        if len(ids) > limit and self.settings.overflow == "drop_oldest":
            # Down to three quarters of what may be used: dropping means reading the rest again.
            later = [start - system for start in starts if start > system + dropped] or [dropped]
            fitting = bisect.bisect_left(later, True, key=lambda dropped: len(without(dropped)) <= limit * 3 // 4)
            dropped = later[min(fitting, len(later) - 1)]
            ids = without(dropped)
        if len(ids) >= self.max_kv_size:
            what, advice = "conversation has", "undo() or edit() a turn, reset(), or set overflow='drop_oldest'"
            if self.settings.overflow == "drop_oldest":
                what, advice = "newest turn alone has", "make it shorter"
            raise ValueError(
                f"the {what} {len(ids)} tokens, and the context of {self.max_kv_size} must hold it and a "
                f"reply: {advice}"
            )
        plan.ids, plan.dropped = ids, dropped

    def _constraint_of(self, plan: Plan) -> ToolConstraint | None:
        """What holds calls to the schemas, if that is wanted; made once for the chat's own tools."""
        if not plan.options.constrain_tools or not plan.tools:
            return None
        if plan.tools is not self._tools:
            return tool_constraint(self.model.config, self.tokenizer, plan.tools)
        if self._constraint is None:
            self._constraint = tool_constraint(self.model.config, self.tokenizer, plan.tools)
        return self._constraint

    def _turn(self, plan: Plan, running: Running) -> Generator[TurnEvent, None, None]:
        """The events of a turn; keeps the history whole, however it ends."""
        try:
            with self._lock:
                if self._running is not None:
                    raise RuntimeError("another turn of this chat is under way")
                if self._messages is not plan.before:
                    raise RuntimeError("the conversation has changed since this turn was made")
                self._running = running
            self._messages, self.dropped = plan.messages, plan.dropped
            self._use(plan.toolbox, plan.tools)
            for rounds_left in range(self.settings.max_tool_rounds, -1, -1):
                done, problems = yield from self._reply(plan, running)
                total = running.total = done if running.total is None else running.total + done
                if not (yield from self._run_calls(plan, running, done, problems, rounds_left)):
                    break
                if running.cancelled.is_set() or not plan.fits:
                    total = dataclasses.replace(total, finish_reason="length" if not plan.fits else "cancelled")
                    break
        finally:
            if self._running is running:
                self._running = None
                if plan.came is not None:  # interrupted while it was being put into the history
                    self._keep(plan.came, None, plan)
                self._answer_calls(plan)
                self._prepare()
        yield total

    def _reply(self, plan: Plan, running: Running) -> Generator[TurnEvent, None, tuple[Done, list[str]]]:
        """One reply of the model, put into the history whole or cut: its `Done`, and what was wrong with its calls."""
        self._stop_settling()
        generation = Generation(
            self.model,
            self._request(plan),
            prompt_cache=self._cache,
            constraint=self._constraint_of(plan),
            draft=self._draft,
        )
        came = plan.came = Came()
        job = self._owner.submit(generation)
        running.begin(generation, job)
        done = None
        try:
            for event in job:
                if isinstance(event, Done):
                    done = event if not came.cut else dataclasses.replace(event, finish_reason="cancelled")
                elif running.cancelled.is_set():
                    came.cut = True  # it was made ahead of a slow reader, and comes too late
                else:
                    if not isinstance(event, Logprobs):
                        came.add(event)
                    yield event
        except Exception:
            came.finish_reason = "error"
            raise
        finally:
            if done is None:
                generation.cancel()
            try:
                job.close()
            finally:  # of an impatient Ctrl-C, too
                running.end()
                self._keep(came, done, plan)
        # Without an end of its own it was cancelled while it waited for its place.
        return done or Done("cancelled", len(plan.ids), 0, 0, 0, 0.0, 0.0, 0.0, 0), came.problems

    def _keep(self, came: Came, done: Done | None, plan: Plan) -> None:
        """Puts a reply into the history. Where nothing came that could replace an old one, the old one stays."""
        if done is not None:
            came.finish_reason, came.stats = done.finish_reason, dataclasses.asdict(done)
        if plan.replaces and not came.anything and came.finish_reason in ("cancelled", "error"):
            self._messages, plan.came = plan.before, None
            return
        plan.replaces = False
        self._append(came.message())
        plan.came = None
        if came.calls and came.finish_reason != "tool_calls":
            self._append(*tool_messages([{"error": "not run: the reply was cut off"}] * len(came.calls), failed=True))

    def _run_calls(
        self, plan: Plan, running: Running, done: Done, problems: list[str], rounds_left: int
    ) -> Generator[TurnEvent, None, bool]:
        """Runs the calls of the last reply; whether the model is to go on with their results."""
        calls = self.open_calls
        if done.finish_reason not in ("stop", "tool_calls") or not (calls or (problems and self._toolbox)):
            return False
        if self._are_the_callers(calls):
            return False
        results: list[Message] = []
        try:
            self._prepare()
            for call in calls:
                result = self._run_call(call, running, rounds_left)
                results += tool_messages([result.content], failed=result.failed, seconds=result.seconds)
                yield result
        finally:
            not_run = [{"error": "not run: the turn was ended"}] * (len(calls) - len(results))
            wrong = [{"error": f"this is no valid call: {problem}"} for problem in problems]
            results += tool_messages([*not_run, *wrong], failed=True)
            self._append_results(plan, results)
        return rounds_left > 0

    def _are_the_callers(self, calls: Sequence[ToolCall]) -> bool:
        """Whether results are the caller's to give: of a tool that is known by its schema only."""
        return any(call.name in self._toolbox.names and not self._toolbox.runnable(call.name) for call in calls)

    def _answer_calls(self, plan: Plan) -> None:
        """Leaves no call without a result that nobody would give."""
        if (calls := self.open_calls) and not self._are_the_callers(calls):
            self._append_results(
                plan, tool_messages([{"error": "not run: the turn was ended"}] * len(calls), failed=True)
            )

    def _run_call(self, call: ToolCall, running: Running, rounds_left: int) -> ToolResult:
        def refused(reason: str) -> ToolResult:
            return ToolResult(call, {"error": reason}, failed=True, seconds=0.0)

        if running.cancelled.is_set():
            return refused("not run: the turn was ended")
        if rounds_left == 0:
            return refused(f"not run: a turn has {self.settings.max_tool_rounds} rounds of calls, and they are used up")
        try:
            self._toolbox.arguments(call)
        except ToolError as error:
            return refused(str(error))
        if self.approve is not None and self.approve(call) is not True:
            return refused("not run: the user did not allow this call")
        return self._toolbox.run(call, timeout=self.settings.tool_timeout, cancelled=running.cancelled)

    def _append_results(self, plan: Plan, results: Sequence[Message]) -> None:
        """Puts results into the history, and makes the prompt that follows. What is too long is replaced."""
        too_long = {"error": "the result is too long for what is left of the context"}
        before = self._messages
        for messages in (results, [{**result, "content": too_long, "failed": True} for result in results]):
            plan.messages = self._messages = [*before, *messages]
            with contextlib.suppress(ValueError):
                self._fit(plan)
                plan.fits, self.dropped = True, plan.dropped
                return
        plan.fits = False

    def _append(self, *messages: Message) -> None:
        self._messages = [*self._messages, *messages]

    # --- the caches -----------------------------------------------------------

    def _prepare(self, idle: bool = True) -> list[int]:
        """Has the history read in the form that the next prompt will begin with, when the thread is idle.

        Returns its ids, if the context holds them; with `idle=False` it does no more than that.
        """
        system = self._system_length
        dropped = self.dropped if system + self.dropped < len(self._messages) else 0
        messages = [*self._messages[:system], *self._messages[system + dropped :]]
        ids: list[int] = []
        if self._turn_starts(messages):
            ids = self._render(messages, self._tools, thinking=False, reply=False)
        self.context_tokens = len(ids)
        if len(ids) >= self.max_kv_size:
            ids = []
        with self._lock:
            self._stop_settling()
            if ids and idle and self.settings.settle:
                self._settling = self._owner.when_idle(self._cache.settle(ids))
        return ids

    def _stop_settling(self) -> None:
        with self._lock:
            if self._settling is not None:
                self._settling.drop()
                self._settling = None

    # --- the file -------------------------------------------------------------

    def save(self, path: str | Path, caches: bool = False) -> None:
        """Writes the conversation to a JSON file, whole or not at all; with `caches` what was read of it, beside it.

        The caches go to PATH.cache, and may be large. Tools are functions and cannot be saved: their names are.
        Raises ValueError in place of a file that is no saved chat.
        """
        path = Path(path)
        if path.is_file() and path.stat().st_size and FILE_FORMAT not in path.read_text("utf-8", "replace")[:200]:
            raise ValueError(f"{path} is there already and is no saved chat; choose another name, or delete it")
        content = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "messages": self._messages,
            "dropped": self.dropped,
            "tools": list(self._toolbox.names),
            "settings": {
                "overflow": self.settings.overflow,
                **{name: getattr(self.options, name) for name in SAVED_OPTIONS if name not in SAMPLING_FIELDS},
                "sampling": {name: getattr(self.options, name) for name in SAMPLING_FIELDS},
            },
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        if caches:
            self.settle()
            self._owner.call(lambda: self._cache.save(_cache_path(path)))
        with atomic_file(path) as stream:
            stream.write(text.encode())

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Tool] = (),
        caches: bool = False,
        **settings: Any,
    ) -> Chat:
        """The conversation that `save` wrote. `settings` are those of `Chat` and come before the saved ones.

        `caches` takes up what was read of it; without that file, or where it is damaged, there is a warning, and
        the conversation is read again.
        Raises FileNotFoundError for a file that is not there, and ValueError for one that is no saved chat, or,
        with `caches`, for caches of another model.
        """
        path = Path(path)
        content = _read_chat(path)
        saved = content["settings"]
        if missing := sorted(set(content["tools"]) - set(Toolbox(tools).names)):
            warnings.warn(f"{path} was saved with tools that are not given now: {', '.join(missing)}", stacklevel=2)
        system_prompt = settings.pop("system_prompt", None)
        if (sampling := saved.pop("sampling", None)) is not None and settings.get("sampling") is None:
            saved |= {name: getattr(sampling, name) for name in SAMPLING_FIELDS}
        chat = cls(model, tokenizer, tools=tools, messages=content["messages"], **(saved | settings))
        if system_prompt is not None:
            chat.system_prompt = system_prompt
        chat.dropped = content["dropped"]
        chat._stop_settling()
        if caches and _cache_path(path).is_file():
            pool = chat._owner.checkpoints
            kv = chat._cache.kv
            chat._cache = chat._owner.call(lambda: PromptCache.load(_cache_path(path), model, tokenizer, pool, kv))
        elif caches:
            warnings.warn(f"there are no caches {_cache_path(path)}; starting without them", stacklevel=2)
        chat._prepare()
        return chat


def _user_message(text: str | Message) -> Message:
    """What the user says, as a message. Raises ValueError for what is empty or no text."""
    if not isinstance(text, Mapping):
        check("the text to send", text, isinstance(text, str), "a string")
        text = {"role": "user", "content": text}
    [message] = check_messages([text])
    if message["role"] != "user":
        raise ValueError(f"only messages of the user can be sent, not of role {message['role']!r}")
    if not message["content"].strip():
        raise ValueError("there is nothing to send: the text is empty")
    return message


def _read_sampling(values: Mapping[str, Any]) -> Sampling:
    """A Sampling from JSON, in which token ids are texts."""
    bias = values.get("logit_bias")
    return Sampling(**{**values, "logit_bias": bias and {int(token): value for token, value in bias.items()}})


def _cache_path(path: Path) -> Path:
    return path.with_name(path.name + CACHE_SUFFIX)


def _read_chat(path: Path) -> dict[str, Any]:
    """The content of a saved chat, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved chat {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"its format is not {FILE_FORMAT!r}")
        if content.get("version") != FILE_VERSION:
            raise ValueError(f"it has version {content.get('version')!r}, and this program reads {FILE_VERSION}")
        messages, dropped = content.get("messages"), content.get("dropped", 0)
        if messages != []:
            check_messages(messages)  # type: ignore[arg-type]
        if not isinstance(dropped, int) or not 0 <= dropped <= len(messages):  # type: ignore[arg-type]
            raise ValueError(f"dropped is {dropped!r}")
        settings, tools = content.get("settings", {}), content.get("tools", [])
        if not isinstance(settings, dict) or set(settings) - SAVED_SETTINGS:
            raise ValueError("its settings are malformed")
        if not isinstance(tools, list) or not all(isinstance(name, str) for name in tools):
            raise ValueError("its tools are malformed")
        if settings.get("sampling") is not None:
            settings["sampling"] = _read_sampling(settings["sampling"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved chat: {error}") from error
    return {"messages": messages, "dropped": dropped, "settings": settings, "tools": tools}
