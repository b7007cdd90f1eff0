"""The state of a conversation in the terminal, and one turn of it from beginning to end.

Notes:
- Ctrl-C during a reply cancels it, and the partial reply is kept. `Chat.cancel` runs in its own thread, because a
  signal handler may interrupt code that holds the locks of the chat. Ctrl-C while the reply stops ends the process.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..text.format import count_text
from .status import context_text, turn_text

if TYPE_CHECKING:
    from typing import TypeGuard

    from ..conversation.chat import Chat
    from ..conversation.turn import Turn
    from ..text.events import Done
    from ..text.message import TurnEvent
    from ..tools.call import ToolCall

CONTEXT_WARNING = 0.8  # used part of the context from which on a warning is shown


class Output(Protocol):
    """Where a chat is shown: `screen.Screen` or `pipe.PipeScreen`."""

    can_ask: bool

    def reply(self) -> AbstractContextManager[None]: ...
    def asking(self, call: ToolCall, origin: str = "") -> AbstractContextManager[None]: ...
    def show(self, event: TurnEvent) -> None: ...
    def markdown(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str = ..., unit: str = ...) -> None: ...
    def status(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def summary(self, text: str) -> None: ...


class Input(Protocol):
    """Where lines come from: `input.TerminalInput` or `pipe.PipeInput`."""

    def read(self, prompt: str, default: str = "") -> str: ...
    def ask(self) -> str: ...
    def quiet(self) -> AbstractContextManager[Callable[[], object]]: ...


class TerminalSession:
    """A chat with the place where it is shown and the place where lines come from.

    `asks` are the names of the tools that ask before they run, `unsaved` the settings that a saved chat does not hold.
    """

    def __init__(
        self,
        chat: Chat,
        screen: Output,
        keys: Input,
        *,
        asks: Iterable[str] = (),
        unsaved: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chat, self.screen, self.keys, self.clock = chat, screen, keys, clock
        self.all_tools = chat.tools
        self.asks = set(asks)
        self.totals: Done | None = None  # of all turns
        self.saved_to: Path | None = None  # a file that /save may overwrite
        self.editing: tuple[int, str] | None = None  # the turn that the next line replaces, and its text
        self._unsaved = dict(unsaved or {})
        self._warned_of_context = False
        chat.approve = self.approve

    @property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.__name__ for tool in self.all_tools if not isinstance(tool, Mapping))

    def origin_of(self, name: str) -> str:
        """The MCP server of a tool; "" for another tool."""
        found = (tool for tool in self.all_tools if getattr(tool, "__name__", "") == name)
        return str(getattr(next(found, None), "origin", ""))

    def set_options(self, **changes: Any) -> None:
        """Changes options of the chat. Raises ValueError for a value out of range."""
        self.chat.options = dataclasses.replace(self.chat.options, **changes)

    def put_on(self, path: str) -> None:
        """Puts an adapter onto the model, in place of others; "off" takes all off, and "" changes nothing.

        Raises ValueError for an adapter that cannot be used.
        """
        model = self.chat.model
        try:
            if path:
                model.set_adapters([] if path == "off" else path)
        except OSError as error:
            raise ValueError(str(error)) from error
        names = ", ".join(f"{adapter.name} (scale {scale:g})" for adapter, scale in model.adapters)
        self.screen.note(f"adapters: {names}" if names else "the model has no adapter")

    def take_turn(self, begin: Callable[..., Turn]) -> None:
        """Shows the turn that `begin(**options)` starts."""
        dropped_before, began = self.chat.dropped, self.clock()
        first_token_seconds: float | None = None
        done: Done | None = None
        turn = begin(progress=self.screen.progress)
        with self.keys.quiet() as restore, self._ctrl_c_cancels(restore), self.screen.reply():
            for event in turn:
                if first_token_seconds is None and not is_done(event):
                    first_token_seconds = self.clock() - began
                self.screen.show(event)
                done = event if is_done(event) else None
        if done is not None:
            context = context_text(self.chat.context_tokens, self.chat.max_kv_size)
            self.screen.summary(turn_text(done, first_token_seconds, context))
            self.totals = done if self.totals is None else self.totals + done
        self._warn_of_context(dropped_before)
        if not self.screen.can_ask and (done is None or done.finish_reason == "cancelled"):
            raise KeyboardInterrupt

    def approve(self, call: ToolCall) -> bool:
        """Whether a call may run. Asks the user if its tool is one of `asks`."""
        if call.name not in self.asks:
            return True
        with self.screen.asking(call, self.origin_of(call.name)):
            try:
                answer = self.keys.ask()
            except (KeyboardInterrupt, EOFError):
                self.chat.cancel()
                return False
        if answer == "always":
            self.asks.discard(call.name)
        return answer in ("yes", "always")

    def load(self, path: Path, **settings: Any) -> None:
        """Continues a saved conversation with its settings; those given here replace them."""
        from ..conversation.chat import Chat
        from ..conversation.chat_file import CACHE_SUFFIX

        settings = self._unsaved | {"constrain_tools": self.chat.options.constrain_tools} | settings
        self.chat = Chat.load(
            path,
            self.chat.model,
            self.chat.tokenizer,
            tools=self.all_tools,
            caches=path.with_name(path.name + CACHE_SUFFIX).exists(),
            approve=self.approve,
            **settings,
        )
        self.saved_to, self._warned_of_context = path.resolve(), False
        turns = self.chat.turns
        self.screen.note(f"{path}: {count_text(len(turns), 'turn')}")
        if turns:
            self.screen.note(f"> {turns[-1]}")
            answers = [message["content"] for message in self.chat.messages if message["role"] == "assistant"]
            self.screen.markdown(answers[-1] if answers else "")

    def _warn_of_context(self, dropped_before: int) -> None:
        used, limit = self.chat.context_tokens, self.chat.prompt_limit
        nearly_full = used > CONTEXT_WARNING * limit
        if self.chat.dropped > dropped_before:
            self.screen.note(
                f"the context is full: the model no longer sees the first "
                f"{count_text(self.chat.dropped, 'message')}; "
                "they stay in the conversation"
            )
        elif nearly_full and not self._warned_of_context:
            then = {
                "drop_oldest": "when it is full, the model no longer sees the oldest turns",
                "error": "when it is full, no more turns are possible; /undo, /edit and /reset make room",
            }[self.chat.settings.overflow]
            self.screen.note(f"{min(used / limit, 1):.0%} of the context for the conversation is used: {then}")
        self._warned_of_context = nearly_full

    @contextmanager
    def _ctrl_c_cancels(self, restore: Callable[[], object]) -> Iterator[None]:
        """The first Ctrl-C cancels the turn, which then ends regularly.

        The second one ends the process by the default action, also if the turn does not end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(signal_number: int, frame: Any) -> None:
            restore()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

        def cancel(signal_number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, end if self.screen.can_ask else signal.SIG_DFL)
            self.screen.status("stopping … (Ctrl-C again ends the program)")
            threading.Thread(target=self.chat.cancel, daemon=True).start()

        before = signal.signal(signal.SIGINT, cancel)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def is_done(event: TurnEvent) -> TypeGuard[Done]:
    from ..text.events import Done

    return isinstance(event, Done)
