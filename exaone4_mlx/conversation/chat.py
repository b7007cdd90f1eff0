"""`Chat`: a conversation that remembers, thinks, uses tools and never reads the same tokens twice.

Notes:
- A chat may be used from any thread, one turn at a time.
- Only functions that were given as tools can run. Calls of tools that are known by their schema are left to the
  caller (`resume`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..generation.cache_file import check_count, place_of
from ..generation.generate import evaluate_weights, make_draft
from ..generation.options import OPTION_NAMES, SAMPLING_FIELDS, Options, check
from ..generation.prefix_store import PrefixStore
from ..generation.prompt_cache import PromptCache
from ..generation.reply_options import ReplyOptions
from ..generation.request import check_answerable, check_drafting, check_kv_size
from ..generation.worker import Worker
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.format import count_text
from ..text.input_messages import check_messages
from ..text.message import Message, Reply, tool_messages, turn_starts
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from ..tools.describe import Tool
from ..tools.toolbox import Toolbox
from .begun import BegunReply, begun_reply
from .chat_file import cache_path, check_place, read_chat, saved_options, write_chat
from .history import ChatSettings, History
from .turn import Turn, TurnState

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
#: Former attributes of a chat, and what to use.
REPLACED = {
    "system": "set chat.system_prompt",
    "context_limit": "set chat.max_kv_size",
    "sampling": "set chat.options = dataclasses.replace(chat.options, temperature=…)",
}
CHAT_PARAMETERS = (
    "system_prompt", "tools", "messages", "approve", "max_kv_size", "prompt_cache", "kv", "draft_model", "prefix_store",
)  # fmt: skip


class Chat(History):
    """A conversation with a model. It may be used from any thread, one turn at a time.

    `messages` is the history, OpenAI-style, the system prompt first. Each reply has its thought as
    `reasoning_content`, its `finish_reason`, and its counts as `stats`; each result of a tool has `failed`, and the
    `seconds` that the tool ran, if it ran.
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
        prefix_store: PrefixStore | None = None,
        **options: Unpack[ChatOptions],
    ) -> None:
        """A new conversation, or one that continues `messages`.

        `system_prompt` is the system prompt, unless the messages begin with one. `tools` are functions, which the
        model may call, or JSON schemas. `options` are the fields of `Options` (`thinking`, `temperature`, `max_tokens`
        and so on), which hold for each reply unless `send` overrides them, and the fields of `ChatSettings`.

        `approve(call)` is called, in the caller's thread, before each tool call runs. `max_kv_size` limits the tokens
        that the model sees at once, and so the memory of the caches. `prompt_cache` is one that holds a part of the
        conversation already; without one, `prefix_store` has what other chats read. `kv` and `draft_model` are those of
        `stream_generate`.

        Raises ValueError for an invalid setting, and TypeError for an unknown one.
        """
        super().__init__(check_messages(messages) if messages else [])
        self.model, self.tokenizer = model, tokenizer
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in CHAT_SETTINGS if name in given}
        self.options = Options.read(given, also=(*CHAT_SETTINGS, *CHAT_PARAMETERS))
        self.settings = ChatSettings(**own)
        if system_prompt is not None and self._system_length:
            raise ValueError("there are two system prompts: one given as such, and one among the messages")
        if system_prompt is not None:
            self.system_prompt = system_prompt
        self.tools = tools
        plain = callable(approve) and not inspect.iscoroutinefunction(approve)
        check("approve", approve, approve is None or plain, "a function that returns True or False, and no coroutine")
        self.approve = approve
        check_kv_size(max_kv_size, model.config)
        self.max_kv_size = max_kv_size or model.config.max_position_embeddings  # prompt and reply together
        self._draft = make_draft(draft_model)
        check_drafting(model.config, self.options, self._draft.model.config if self._draft else None)
        self._worker = Worker.of(model)
        evaluate_weights(model, self._draft)  # for idle work, which may come before the first reply
        check("prompt_cache", prompt_cache, isinstance(prompt_cache, (PromptCache, type(None))), "a PromptCache")
        stored = KVQuantization.coerce(kv, model.config)
        self._cache = prompt_cache or PromptCache(model, tokenizer, self._worker.checkpoints, stored, prefix_store)
        self._cache.check_model(model, stored)
        if messages:
            self.prepare()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses an attribute that has no effect, such as `chat.temperature = 0`."""
        holder = "options" if name in OPTION_NAMES else "settings" if name in CHAT_SETTINGS else None
        if holder is not None:
            raise AttributeError(f"set chat.{holder} = dataclasses.replace(chat.{holder}, {name}={value!r})")
        if name in REPLACED:
            raise AttributeError(f"a chat has no {name!r}: {REPLACED[name]}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Chat({count_text(len(self.turns), 'turn')}, {self.context_tokens} of {self.max_kv_size} tokens)"

    # --- turns ----------------------------------------------------------------

    def send(self, text: str | Message, **options: Unpack[TurnOptions]) -> Turn:
        """Sends `text` and streams the reply: `Thinking`, `Answer`, `ToolCall`, `ToolResult`, and `Done` at the end.

        `text` may be a whole message of the user; `messages` keeps further keys in it.
        `Done` is the sum over the rounds of the turn. `options` are the fields of `Options`, for this turn, and `tools`
        from this turn on. The turn begins when it is iterated. A turn that is dropped half way, or closed, keeps the
        partial reply, marked as cut.

        Raises ValueError, before anything is done, for an empty text, an option without meaning and a full
        context, TypeError for an unknown option, and RuntimeError while a turn of another thread is in
        progress.
        """
        message = _user_message(text)
        self._end_abandoned_turn()
        if self.open_calls:
            raise ValueError("the last reply waits for the results of its calls: give them to resume(), or undo()")
        return self._begin([*self._messages, message], options)

    def ask(self, text: str | Message, **options: Unpack[TurnOptions]) -> Reply:
        """Sends `text` and returns the whole reply: the texts and calls of all rounds of the turn, joined."""
        return self.send(text, **options).whole()

    def reply(self, **options: Unpack[TurnOptions]) -> Turn:
        """Replies to the history, which must end with a message of the user or a tool."""
        self._end_abandoned_turn()
        check_answerable(self._messages)
        return self._begin(list(self._messages), options)

    def resume(self, results: Sequence[Any], **options: Unpack[TurnOptions]) -> Turn:
        """Continues with the results of `open_calls`: a list of JSON values, one for each, in their order."""
        self._end_abandoned_turn()
        check("results", results, isinstance(results, (list, tuple)), "a list, one for each open call")
        json.dumps(results, allow_nan=False)  # raises for what is no JSON
        calls = self.open_calls
        if not calls or len(results) != len(calls):
            raise ValueError(f"{len(calls)} calls wait for results, and {len(results)} results were given")
        return self._begin([*self._messages, *tool_messages(results)], options)

    def retry(self, **options: Unpack[TurnOptions]) -> Turn:
        """Replies to the last turn again; the new reply replaces the old one."""
        self._end_abandoned_turn()
        last = self._turn_index(-1)
        return self._begin(self._messages[: last + 1], options, replaces=True)

    def continue_reply(
        self, text: str | Message | None = None, *, turn: int = -1, **options: Unpack[TurnOptions]
    ) -> Turn:
        """Continues the last reply of a turn: one that was cut or stopped, or one that ended by itself.

        The events are those of the new part. In `messages` both parts are one message, with the sums of their counts.
        `text` replaces the answer first; a message of the assistant can replace the thought, too. A reply in memory is
        continued from its own tokens: greedily it is the reply that was not cut, and with a seed its random numbers go
        on. `max_tokens` and `min_tokens` count the new tokens. Whether the reply has a thought does not change. A reply
        was cut inside a tool call is continued from before it. The turns after `turn` (-1 is the last) are removed.

        Raises ValueError if there is no such reply, if it ended with calls of tools, and for an empty text.
        """
        self._end_abandoned_turn()
        starts = [*turn_starts(self._messages), len(self._messages)]
        end = len(self._messages) if turn == -1 else starts[starts.index(self._turn_index(turn)) + 1]
        before, begun = begun_reply(self.tokenizer, self._messages[:end], self.written, text)
        if options.get("prefill_response") is not None:
            raise ValueError("prefill_response begins a new reply: to change the last one, give its text")
        if begun.is_empty:  # cut before it had a text
            return self._begin(before, options, replaces=True)
        if options.get("thinking") not in (None, begun.thinking):
            raise ValueError(f"this reply was begun with thinking={begun.thinking}: retry() makes another one")
        return self._begin(before, {**options, "thinking": begun.thinking}, replaces=True, begun=begun)

    def edit(self, turn: int, text: str | Message, **options: Unpack[TurnOptions]) -> Turn:
        """Sends `text` in place of a turn, counted from 0 (-1 is the last); the turns after it are removed."""
        message = _user_message(text)
        self._end_abandoned_turn()
        index = self._turn_index(turn)
        return self._begin([*self._messages[:index], message], options, replaces=True)

    def undo(self) -> str:
        """Removes the last turn, and returns its text."""
        self._end_abandoned_turn()
        index = self._turn_index(-1)
        text: str = self._messages[index]["content"]
        self._messages, self.dropped = self._messages[:index], 0
        self.prepare()
        return text

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self._end_abandoned_turn()
        self._messages = self._messages[: self._system_length]
        self.dropped = 0
        self.prepare()

    def cancel(self) -> None:
        """Ends the turn in progress, from any thread. The partial reply is kept, and `Done` says "cancelled"."""
        if (state := self.turn_state) is not None:
            state.cancel()

    def settle(self) -> None:
        """Returns when the next turn is prepared: the model has read the history in the form of the next prompt."""
        if self.turn_state is not None:
            if (settling := self._settling) is not None:
                settling.wait()
        elif ids := self.prepare(idle=False):
            for _ in self._worker.submit(self._cache.settle(ids), uses=id(self._cache)):
                pass

    def _turn_index(self, turn: int) -> int:
        starts = turn_starts(self._messages)
        if not starts:
            raise ValueError("the conversation has no turns yet")
        if not isinstance(turn, int) or not -len(starts) <= turn < len(starts):
            raise ValueError(f"there is no turn {turn!r}: the conversation has {len(starts)}")
        return starts[turn]

    def _end_abandoned_turn(self) -> None:
        """Closes a turn that this thread began and left, such as that of an interrupted notebook cell."""
        if (state := self.turn_state) is None:
            return
        turn = state.turn() if state.turn is not None else None
        if turn is None:
            self.turn_state = None
            return
        if state.thread is threading.current_thread() or state.cancelled.is_set():
            with contextlib.suppress(ValueError):  # "generator already executing", in another thread
                turn.close()
                return
        raise RuntimeError("a turn of this chat is in progress: cancel() it or wait for its end")

    def _begin(
        self,
        messages: list[Message],
        options: Mapping[str, Any],
        replaces: bool = False,
        begun: BegunReply | None = None,
    ) -> Turn:
        """A checked turn; it changes the chat only once it is iterated."""
        toolbox, tools = self._toolbox, self._tools
        if (given := options.get("tools")) is not None:
            toolbox, tools = Toolbox(given), tuple(given)
        return Turn(TurnState(self, messages, toolbox, tools, self._options(options), replaces, begun))

    def _options(self, given: Mapping[str, Any]) -> Options:
        """The options of a turn: those given, and else those of the chat."""
        given = {name: value for name, value in given.items() if value is not None and name != "tools"}
        options = Options.read(given, self.options, also=("tools",))
        if not options.thinking and "thinking_budget" not in given:
            options = dataclasses.replace(options, thinking_budget=None)
        if self._draft is None and not options.prompt_lookup and "num_draft_tokens" not in given:
            options = dataclasses.replace(options, num_draft_tokens=None)
        return options

    # --- the file -------------------------------------------------------------

    def save(self, path: str | Path, caches: bool = False) -> None:
        """Writes the conversation to a JSON file, whole or not at all; with `caches` also its caches, to PATH.cache.

        A name that ends in .md gives readable Markdown with the messages and without the settings. The caches may be
        large. Of the tools, which are functions, only the names are saved. Raises ValueError if
        another kind of file is there.
        """
        path = Path(path)
        check_place(path)
        content = {
            "messages": self._messages,
            "dropped": self.dropped,
            "tools": list(self._toolbox.names),
            "settings": {"overflow": self.settings.overflow, **saved_options(self.options)},
        }
        write_chat(path, content)
        if caches:
            self.settle()
            self._worker.call(lambda: self._cache.save(cache_path(path)), uses=id(self._cache))

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
        """The conversation that `save` wrote. `settings` are those of `Chat`; they override the saved ones.

        Of an export of the desktop chat, one of its files, or OpenAI-style messages it takes the messages.
        `caches` loads the caches, too. If their file is missing or damaged, there is a warning, and the model reads
        the conversation again. Raises FileNotFoundError for a missing file, and ValueError for one that is no saved
        chat, or, with `caches`, for caches of another model.
        """
        path = Path(path)
        content = read_chat(path)
        if missing := sorted(set(content["tools"]) - set(Toolbox(tools).names)):
            warnings.warn(f"{path} was saved with tools that are not given now: {', '.join(missing)}", stacklevel=2)
        saved, system_prompt = content["settings"], settings.pop("system_prompt", None)
        if settings.get("sampling") is not None:
            saved = {name: value for name, value in saved.items() if name not in SAMPLING_FIELDS}
        chat = cls(model, tokenizer, tools=tools, messages=content["messages"], **(saved | settings))
        if system_prompt is not None:
            chat.system_prompt = system_prompt
        chat.dropped = content["dropped"]
        chat.stop_settling()
        if caches:
            check_count(cache_path(path), model.ranks)
        if caches and place_of(cache_path(path), model.ranks).is_file():
            worker, made = chat._worker, chat._cache
            given = model, tokenizer, worker.checkpoints, made.kv, made.prefix_store
            chat._cache = worker.call(lambda: PromptCache.load(cache_path(path), *given))
        elif caches:
            warnings.warn(f"there are no caches {cache_path(path)}; starting without them", stacklevel=2)
        chat.prepare()
        return chat


def _user_message(text: str | Message) -> Message:
    """The message of the user. Raises ValueError for an empty text, and for anything that is no text."""
    if not isinstance(text, Mapping):
        check("the text to send", text, isinstance(text, str), "a string")
        text = {"role": "user", "content": text}
    [message] = check_messages([text])
    if message["role"] != "user":
        raise ValueError(f"only messages of the user can be sent, not of role {message['role']!r}")
    if not message["content"].strip():
        raise ValueError("there is nothing to send: the text is empty")
    return message
