"""A chat without a terminal: each line of standard input is a turn, and replies are printed as text or as JSON.

Notes:
- Standard output holds the answers and nothing else, each ended by a line end. Thoughts, tools, counts and
  errors go to standard error.
- An answer of several lines does not say where it ends: `JsonScreen` prints one object for each turn.
- There is nobody to ask, so a tool that asks first does not run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, TextIO

from ..files.text import BOMS_16, decode_text
from ..text.format import call_text, cut_to_width, result_text
from .status import end_text

if TYPE_CHECKING:
    from ..text.message import TurnEvent
    from ..tools.call import ToolCall

LINE_WIDTH = 200  # maximum columns of the line of a tool


class PipeScreen:
    """Shows events as plain text."""

    can_ask = False

    def __init__(self, out: TextIO | None = None) -> None:
        """`out` takes the answers: by default standard output."""
        self._out, self._err = out or sys.stdout, sys.stderr
        self._in_thought = False
        self._at_line_start = True
        self._held = ""  # line ends that are printed only if more text follows

    @contextmanager
    def reply(self) -> Iterator[None]:
        """Encloses the events of a turn. Text that a tool prints goes to standard error."""
        try:
            with redirect_stdout(self._err):
                yield
        finally:
            self._end_thought()
            self._end_line()

    def show(self, event: TurnEvent) -> None:
        from ..text.events import Answer, Done, Thinking
        from ..tools.call import ToolResult

        if isinstance(event, Thinking):
            if not self._in_thought:
                self._say("<think>\n")
                self._in_thought = True
            self._say(event.text)
            return
        self._end_thought()
        if isinstance(event, Answer):
            self._write(event.text)
            if event.problem:
                self.error(f"the model wrote an invalid tool call: {event.problem}")
        elif isinstance(event, ToolResult):
            self._end_line()
            mark = "failed: " if event.failed else ""
            line = f"{call_text(event.call)} -> {mark}{result_text(event.content, event.failed)}"
            self._say(f"{cut_to_width(line, LINE_WIDTH)}  {event.seconds:.2f} s\n")
        elif isinstance(event, Done):
            self._end_line()
            if text := end_text(event.finish_reason):
                self.note(text)

    def markdown(self, text: str) -> None:
        self.note(text)

    def progress(self, done: int, total: int, what: str = "", unit: str = "") -> None:
        """Not shown."""

    def status(self, text: str) -> None:
        """Not shown: a signal handler calls this, and must not write."""

    def asking(self, call: ToolCall, origin: str = "") -> AbstractContextManager[None]:
        return nullcontext()

    def summary(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        self._say(text + "\n")

    def error(self, text: str) -> None:
        self._say(f"error: {text}\n")

    def _write(self, text: str) -> None:
        """Writes a part of an answer, without the line ends around the answer."""
        text = self._held + text
        shown = text.rstrip("\n")
        self._held = text[len(shown) :]
        if self._at_line_start:
            shown = shown.lstrip("\n")
            self._held = self._held if shown else ""
        if shown:
            self._out.write(shown)
            self._out.flush()
            self._at_line_start = False

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._out.write("\n")
            self._out.flush()
        self._at_line_start, self._held = True, ""

    def _end_thought(self) -> None:
        if self._in_thought:
            self._say("\n</think>\n")
            self._in_thought = False

    def _say(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()


class JsonScreen(PipeScreen):
    """Hands the events of each turn to `show_reply`, and each error to `show_error`; both print one object."""

    def __init__(
        self, show_reply: Callable[[list[TurnEvent]], None], show_error: Callable[[str], None], out: TextIO
    ) -> None:
        super().__init__(out)
        self._show_reply, self._show_error = show_reply, show_error
        self._events: list[TurnEvent] = []

    def show(self, event: TurnEvent) -> None:
        from ..text.events import Done

        self._events.append(event)
        if isinstance(event, Done):
            events, self._events = self._events, []
            self._show_reply(events)

    def error(self, text: str) -> None:
        self._events = []
        self._show_error(text)
        super().error(text)


class PipeInput:
    """The lines of standard input."""

    def __init__(self) -> None:
        self._ready: list[str] = []  # of UTF-16, whose line ends are no bytes of their own: it is read as a whole

    def read(self, prompt: str, default: str = "") -> str:
        """The next line. Raises EOFError at the end, and ValueError for a line that is no text."""
        if self._ready:
            return self._ready.pop(0)
        if sys.stdin.isatty():
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        if line.startswith(BOMS_16):
            first, *self._ready = decode_text(line + sys.stdin.buffer.read(), "standard input").splitlines() or [""]
            return first
        return decode_text(line, "a line of standard input").rstrip("\r\n")

    def ask(self) -> str:
        return "no"

    def quiet(self) -> AbstractContextManager[Callable[[], object]]:
        return nullcontext(lambda: None)
