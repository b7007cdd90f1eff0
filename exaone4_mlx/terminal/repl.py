"""A conversation on the command line: `python -m exaone4_mlx.chat`.

What is peculiar here:
- On a terminal there are markdown, line editing and questions; without one a line of standard input is a turn,
  and answers go out plain. The loop is the same.
- Ctrl-C while a reply is made ends it in good order. It is told to the chat in a thread of its own, because a
  signal handler may interrupt code that holds the chat's locks.
- Nothing that goes wrong in a turn ends the conversation.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from .commands import Leave, completions, read_line, run_command
from .format import context_text, extras_text, summary

if TYPE_CHECKING:
    from typing import TypeGuard

    from ..conversation.chat import Chat
    from ..conversation.turn import Turn, TurnEvent
    from ..text.events import Done
    from ..tools.call import ToolCall

CONTEXT_WARNING = 0.8  # of the context, used
STEP_SIZE = 512  # prompt tokens between two looks at Ctrl-C, and at how far it is
SECONDS_TO_LEAVE = 2.0  # between two Ctrl-C


class Screen(Protocol):
    """Where a chat is shown: `screen.Screen` or `pipe.PipeScreen`."""

    can_ask: bool
    count_tokens: Callable[[str], int]

    def reply(self) -> AbstractContextManager[None]: ...
    def asking(self, call: ToolCall) -> AbstractContextManager[None]: ...
    def show(self, event: TurnEvent) -> None: ...
    def markdown(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str = ..., unit: str = ...) -> None: ...
    def status(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def summary(self, text: str) -> None: ...


class Input(Protocol):
    """Where turns come from: `input.TerminalInput` or `pipe.PipeInput`."""

    def read(self, prompt: str, default: str = "") -> str: ...
    def ask(self) -> str: ...
    def quiet(self) -> AbstractContextManager[None]: ...


# --- the command ------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a chat."""
    from ..cli import loading, main as cli

    chat = parser.add_argument_group("chat")
    chat.add_argument("--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    chat.add_argument(
        "--overflow",
        choices=("error", "drop_oldest"),
        help="when the context is full, refuse, or let the model forget the oldest turns (default: drop_oldest)",
    )
    chat.add_argument("--load", type=Path, metavar="FILE", help="go on with a conversation that /save wrote")
    chat.add_argument(
        "--ask-tools",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ask before a tool runs (default: before those of FILE.py, not before the built-in ones)",
    )
    chat.add_argument("--no-markdown", action="store_true", help="show replies as they are written")
    chat.add_argument("-v", "--verbose", action="store_true", help="tell about the model")
    chat.add_argument("--debug", action="store_true", help="show tracebacks")
    cli.add_thinking_flags(parser)
    cli.add_tool_flags(parser)
    loading.add_model_flags(parser)
    loading.add_draft_flags(parser)
    cli.add_sampling_flags(parser)
    # A loaded conversation keeps what it has; and a prompt that is being read can be stopped soon.
    parser.set_defaults(thinking=None, prefill_step_size=STEP_SIZE)


def run(options: argparse.Namespace) -> int:
    """Loads the model and talks until the end; the exit code. Raises what is wrong with options and files."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    screen = _screen(terminal, markdown=not options.no_markdown)
    if terminal:
        signal.signal(signal.SIGTERM, _leave)
    with _warnings_kept() as warned:
        repl = _repl(options, terminal, screen)
        repl.warned = warned
        return repl.loop()


def _leave(signal_number: int, frame: Any) -> None:
    """Ends the program in good order, so that the terminal is as it was before."""
    raise SystemExit(128 + signal_number)


def _screen(terminal: bool, markdown: bool) -> Screen:
    if terminal:
        from .screen import Screen

        return Screen(markdown=markdown)
    from .pipe import PipeScreen

    return PipeScreen()


def _input(terminal: bool, complete: Callable[[str], Iterable[tuple[str, int]]], screen: Screen) -> Input:
    if terminal:
        from .input import TerminalInput

        return TerminalInput(complete, screen.note)
    from .pipe import PipeInput

    return PipeInput()


def _repl(options: argparse.Namespace, terminal: bool, screen: Screen) -> Repl:
    """Everything that the options ask for. What needs no weights is checked before they are read."""
    from ..cli import loading, main as cli

    replies = cli.reply_options(options)
    if options.load is not None and not options.load.is_file():
        raise FileNotFoundError(f"there is no saved chat {options.load}")
    tools = cli.read_tools(options)
    asks = _asking(tools, options.ask_tools)
    if asks and not terminal:
        raise ValueError("without a terminal nobody can be asked before a tool runs: add --no-ask-tools")
    found = loading.find_model(options)
    loading.check_memory(found, options, found.context(options))
    made = loading.load(found, options)
    screen.count_tokens = lambda text: len(found.tokenizer.encode(text))

    from ..conversation.chat import Chat
    from ..generation.options import SAMPLING_FIELDS, Sampling

    sampling = Sampling(**{name: getattr(replies, name) for name in SAMPLING_FIELDS})
    given = {
        "thinking": options.thinking,
        "thinking_budget": options.thinking_budget,
        "max_tokens": options.max_tokens,
        "sampling": sampling if sampling != Sampling() else None,
        "overflow": options.overflow,
        "system_prompt": options.system_prompt,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    chat = Chat(
        made.model,
        made.tokenizer,
        tools=tools,
        constrain_tools=options.constrain_tools,
        **{"overflow": "drop_oldest", **made.settings, **settings},
    )
    keys = _input(terminal, lambda text: completions(repl, text), screen)
    every_turn = {
        "stop_on_repetition": replies.stop_on_repetition,
        "prefill_step_size": replies.prefill_step_size,
    }
    repl = Repl(chat, screen, keys, asks=asks, every_turn=every_turn, always=made.settings, debug=options.debug)
    if options.load is not None:
        repl.load(options.load, **settings)
    if terminal:
        extras = extras_text(made.kv, options.draft_model, options.prompt_lookup)
        screen.note(
            f"exaone4_mlx {__version__}, {options.model}: {found.config.num_hidden_layers} layers, "
            f"context {chat.max_kv_size:,} tokens{extras}. /help lists the commands, Ctrl-D leaves.\n"
        )
    return repl


def _asking(tools: Iterable[Callable[..., Any]], ask: bool | None) -> set[str]:
    """The names of the tools that ask before they run; unless told, the built-in ones do not."""
    from ..tools.builtin import BUILTIN_TOOLS

    asking = {True: tools, False: (), None: [tool for tool in tools if tool not in BUILTIN_TOOLS]}[ask]
    return {tool.__name__ for tool in asking}


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Warnings, of any thread, go into a list until there is a place to show them."""
    kept: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *rest, **more: kept.append(str(message))
        yield kept


# --- the loop -----------------------------------------------------------------------


class Repl:
    """Reads, and lets the model reply or a command do its work, until the end."""

    def __init__(
        self,
        chat: Chat,
        screen: Screen,
        keys: Input,
        *,
        asks: Iterable[str] = (),
        every_turn: Mapping[str, Any] | None = None,
        always: Mapping[str, Any] | None = None,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chat, self.screen, self.keys = chat, screen, keys
        self.all_tools = chat.tools
        self.asks = set(asks)  # names of the tools that ask before they run
        self.totals: Done | None = None  # of all turns
        self.saved_to: Path | None = None  # a file that /save may write again
        self.warned: list[str] = []
        self._every_turn = {"progress": screen.progress, **(every_turn or {})}  # options
        self._always = dict(always or {})  # settings of every chat that a file does not hold
        self._debug, self._clock = debug, clock
        self._editing: tuple[int, str] | None = None  # a turn, and its text until it has been put into the line
        self._context_told = False
        chat.approve = self.approve

    @property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.__name__ for tool in self.all_tools if not isinstance(tool, Mapping))

    def loop(self) -> int:
        """Until the end: 0, or 1 if something failed that nobody was there to see."""
        failed = False
        last_ctrl_c = float("-inf")
        while True:
            try:
                text = self._read()
                self.do(text)
            except (EOFError, Leave):
                return int(failed and not self.screen.can_ask)
            except KeyboardInterrupt:
                if not self.screen.can_ask:
                    raise
                if self._clock() - last_ctrl_c <= SECONDS_TO_LEAVE:
                    return 0
                last_ctrl_c, self._editing = self._clock(), None
                self.screen.note("Ctrl-C again, or Ctrl-D, leaves")
            except Exception as error:
                failed = True
                self._tell_error(error)

    def _read(self) -> str:
        while self.warned:
            self.screen.note(f"warning: {self.warned.pop(0)}")
        _, text = self._editing or (0, "")
        return self.keys.read("think> " if self.chat.options.thinking else "> ", default=text)

    def do(self, line: str) -> None:
        """What a line asks for. Raises ValueError, before anything is changed, for what cannot be done."""
        command, text = read_line(line)
        editing, self._editing = self._editing, None
        if command:
            run_command(self, command, text)
        elif not text.strip():
            if editing is not None:
                self.screen.note("it stays as it is")
        elif editing is not None:
            self.take_turn(lambda options: self.chat.edit(editing[0], text, **options))
        else:
            self.take_turn(lambda options: self.chat.send(text, **options))

    def edit(self, turn: int, text: str) -> None:
        """The next line takes the place of a turn, whose text it begins with."""
        self._editing = (turn, text)

    def take_turn(self, begin: Callable[[dict[str, Any]], Turn]) -> None:
        """Shows a turn from beginning to end."""
        dropped_before, began = self.chat.dropped, self._clock()
        first_token_seconds: float | None = None
        done: Done | None = None
        turn = begin(self._every_turn)
        with self.keys.quiet(), self._ctrl_c_cancels(), self.screen.reply():
            try:
                for event in turn:
                    if first_token_seconds is None and not is_done(event):
                        first_token_seconds = self._clock() - began
                    self.screen.show(event)
                    done = event if is_done(event) else None
            except KeyboardInterrupt:
                turn.close()
                self.screen.note("[stopped]")
        if done is not None:
            context = context_text(self.chat.context_tokens, self.chat.max_kv_size)
            self.screen.summary(summary(done, first_token_seconds, context))
            self.totals = done if self.totals is None else self.totals + done
        self._tell_context(dropped_before)
        if not self.screen.can_ask and (done is None or done.finish_reason == "cancelled"):
            raise KeyboardInterrupt

    def approve(self, call: ToolCall) -> bool:
        """Whether a call may run: asked, if its tool is one that asks."""
        if call.name not in self.asks:
            return True
        with self.screen.asking(call):
            try:
                answer = self.keys.ask()
            except (KeyboardInterrupt, EOFError):
                self.chat.cancel()
                return False
        if answer == "always":
            self.asks.discard(call.name)
        return answer in ("yes", "always")

    def load(self, path: Path, **settings: Any) -> None:
        """Goes on with a saved conversation, whose settings hold but for those given."""
        from ..conversation.chat import CACHE_SUFFIX, Chat

        settings = self._always | {"constrain_tools": self.chat.options.constrain_tools} | settings
        self.chat = Chat.load(
            path,
            self.chat.model,
            self.chat.tokenizer,
            tools=self.all_tools,
            caches=path.with_name(path.name + CACHE_SUFFIX).exists(),
            approve=self.approve,
            **settings,
        )
        self.saved_to, self._context_told = path.resolve(), False
        turns = self.chat.turns
        self.screen.note(f"{path}: {len(turns)} turns")
        if turns:
            self.screen.note(f"> {turns[-1]}")
            answers = [message["content"] for message in self.chat.messages if message["role"] == "assistant"]
            self.screen.markdown(answers[-1] if answers else "")

    def _tell_context(self, dropped_before: int) -> None:
        used, limit = self.chat.context_tokens, self.chat.prompt_limit
        full = used > CONTEXT_WARNING * limit
        if self.chat.dropped > dropped_before:
            self.screen.note(
                f"the context is full: the model does not see the first {self.chat.dropped} messages any more; "
                "they stay in the conversation"
            )
        elif full and not self._context_told:
            then = {
                "drop_oldest": "once it is full, the model does not see the oldest turns any more",
                "error": "once it is full, nothing more can be said; /undo, /edit and /reset make room",
            }[self.chat.settings.overflow]
            self.screen.note(f"{min(used / limit, 1):.0%} of the room for the conversation is used: {then}")
        self._context_told = full

    def _tell_error(self, error: Exception) -> None:
        if self._debug:
            self.screen.note("".join(traceback.format_exception(error)).rstrip())
        text = " ".join(str(error).split()) or type(error).__name__
        self.screen.error(re.sub(r"\b(undo|edit|reset|retry)\(\)", r"/\1", text))

    @contextmanager
    def _ctrl_c_cancels(self) -> Iterator[None]:
        """The first Ctrl-C ends the turn in good order, the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def cancel(signal_number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.screen.status("stopping …")
            threading.Thread(target=self.chat.cancel, daemon=True).start()

        before = signal.signal(signal.SIGINT, cancel)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def is_done(event: TurnEvent) -> TypeGuard[Done]:
    from ..text.events import Done

    return isinstance(event, Done)
