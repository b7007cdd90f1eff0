"""The events of a chat on a terminal, drawn with `rich`.

Notes:
- Finished blocks are printed once and scroll away. Only the open block is drawn again, at most about ten times a
  second, by a thread of its own. It is never taller than the screen.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rich.console import Console, RenderableType
from rich.text import Text

from ..text.events import Answer, Done, Thinking
from ..text.format import call_text, cell_width, clean, count_text, cut_to_width, result_text
from ..text.message import TurnEvent
from ..tools.call import ToolCall, ToolResult
from .drawing import THEME, Line, Lines, LiveLines, TerminalConsole, block_content, lines_of
from .markdown import BlockStream, LineStream
from .status import Progress, end_text

SECONDS_BETWEEN_DRAWINGS = 0.08
DRAWING_PART = 0.15  # of the time, at most, that drawing may take
SECONDS_BEFORE_PROGRESS = 0.5


class Screen:
    """Shows events. Inside `reply()` it draws continuously; outside it prints at once."""

    can_ask = True

    def __init__(
        self,
        count_tokens: Callable[[str], int] = len,
        markdown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or TerminalConsole(
            file=getattr(sys.stdout, "drawing", sys.stdout), highlight=False, theme=THEME
        )
        self.count_tokens = count_tokens  # of a thought
        self._markdown, self._clock = markdown, clock
        self._live = LiveLines(self.console, self._live_lines)
        self._lock = threading.RLock()
        self._streams = sys.stdout, sys.stderr
        self._dirty = self._silent = False
        self._last = ""  # "line" or "block": the last print in this reply
        self._clear()

    def _clear(self) -> None:
        self._blocks: BlockStream | LineStream = BlockStream() if self._markdown else LineStream()
        self._thought, self._thought_began, self._thought_ended = "", 0.0, 0.0
        self._calls: list[ToolCall] = []  # without results yet
        self._asked: ToolCall | None = None  # a call that is shown already
        self._status = self._progress = ""
        self._work: Progress | None = None

    # --- a reply ---------------------------------------------------------------

    @contextmanager
    def reply(self) -> Iterator[None]:
        """Encloses the events of a turn. Text that a tool prints appears above the open block."""
        self._clear()
        self._last = ""
        printed = PrintedNotes(self.note)
        stopped = threading.Event()
        drawer = threading.Thread(target=self._keep_drawing, args=(stopped,), name="screen", daemon=True)
        drawer.start()
        try:
            with self._live, redirect_stdout(printed), redirect_stderr(printed):
                try:
                    yield
                finally:
                    stopped.set()
                    with self._lock:
                        printed.close()
                        self._end()
        finally:
            stopped.set()  # also after an error of the terminal
            drawer.join()

    @contextmanager
    def asking(self, call: ToolCall, origin: str = "") -> Iterator[None]:
        """Encloses the question whether a call may run: the call is shown in full, and nothing is drawn.

        `origin` is the MCP server of the tool.
        """
        with self._lock:
            if call in self._calls:
                self._calls.remove(call)
            self._asked, self._silent = call, True
            server = f"  (MCP server {clean(origin)})" if origin else ""
            self._print(Text(f"▸ {call_text(call)}{server}", style="cyan"))
        try:
            with redirect_stdout(self._streams[0]), redirect_stderr(self._streams[1]):
                yield
        finally:
            self._silent, self._dirty = False, True

    def show(self, event: TurnEvent) -> None:
        with self._lock:
            self._dirty, self._progress, self._work = True, "", None
            if isinstance(event, Thinking):
                self._thought_ended = self._clock()
                if not self._thought:
                    self._thought_began = self._thought_ended
                self._thought += event.text
                return
            self._fold_thought()
            if isinstance(event, Answer):
                self._show_answer(event)
            elif isinstance(event, ToolCall):
                self._finish_blocks()
                self._calls.append(event)
            elif isinstance(event, ToolResult):
                self._show_result(event)
            elif isinstance(event, Done):
                self._end()
                if text := end_text(event.finish_reason):
                    self.note(text, style="yellow")

    def progress(self, done: int, total: int, what: str = "reading", unit: str = "tokens") -> None:
        """Reports progress, which is shown once the work takes a while. May be called in any thread."""
        with self._lock:
            now = self._clock()
            if self._work is None:
                self._work = Progress(now, done)
            self._progress = ""
            if done < total and now - self._work.began > SECONDS_BEFORE_PROGRESS:
                self._progress = self._work.text(now, done, total, what, unit)
            self._dirty = True

    def status(self, text: str) -> None:
        """A line below the open block. A signal handler calls this, so it takes no lock."""
        self._status, self._dirty = text, True

    # --- lines and texts outside the events --------------------------------------

    def note(self, text: str, style: str = "dim") -> None:
        self._print(Text(text, style=style))

    def error(self, text: str) -> None:
        self._print(Text(f"error: {text}", style="red"))

    def summary(self, text: str) -> None:
        """The counts below a reply, separated by empty lines."""
        self._print(Text(text + "\n", style="dim"), kind="block")
        self._last = ""

    def markdown(self, text: str) -> None:
        """Prints a whole text."""
        blocks = BlockStream()
        self._last = ""
        for block in [*blocks.feed(clean(text)), *blocks.close()]:
            self._print(block_content(block), kind="block")

    # --- parts of a reply --------------------------------------------------------

    def _fold_thought(self) -> None:
        if not self._thought:
            return
        seconds, tokens = self._thought_ended - self._thought_began, self.count_tokens(self._thought)
        self._thought = ""
        self._print(Text(f"▸ thought {seconds:.1f} s, {count_text(tokens, 'token')}; /thought shows it", style="dim"))

    def _show_answer(self, event: Answer) -> None:
        if event.problem:
            self._finish_blocks()
            self._print(Text(event.text.strip(), style="dim"))
            self._print(Text(f"✗ invalid tool call: {event.problem}", style="red"))
            return
        self._print_blocks(self._blocks.feed(clean(event.text)))

    def _finish_blocks(self) -> None:
        self._print_blocks(self._blocks.close())

    def _print_blocks(self, blocks: list[str]) -> None:
        for block in blocks:
            self._print(self._block(block), kind="block" if self._markdown else "line")

    def _block(self, text: str) -> RenderableType:
        return block_content(text) if self._markdown else Text(text)

    def _show_result(self, result: ToolResult) -> None:
        mark, style = ("✗", "red") if result.failed else ("→", "")
        outcome = f"{mark} {result_text(result.content, result.failed)}"
        self._print_call(result.call, outcome, style, f"  {result.seconds:.2f} s" if result.seconds else "")

    def _print_call(self, call: ToolCall, outcome: str, style: str, seconds: str = "") -> None:
        """A call and its outcome, on one line if there is room, else on two."""
        line, width = f"▸ {call_text(call)}", self._width
        shown = self._asked == call
        if shown:
            self._asked = None
        elif call in self._calls:
            self._calls.remove(call)
        if not shown and cell_width(f"{line} {outcome}{seconds}") <= width:
            self._print(Text.assemble((line, "cyan"), " ", (outcome, style), (seconds, "dim")))
            return
        if not shown:
            self._print(Text(cut_to_width(line, width), style="cyan"))
        outcome = cut_to_width(outcome, width - 2 - len(seconds))
        self._print(Text.assemble("  ", (outcome, style), (seconds, "dim")))

    def _end(self) -> None:
        """Prints everything that is open as it is."""
        self._fold_thought()
        self._finish_blocks()
        for call in [*([self._asked] if self._asked else []), *self._calls]:
            self._print_call(call, "✗ not run", "red")
        self._clear()
        self._live.refresh()
        self._dirty = False

    # --- drawing -----------------------------------------------------------------

    def _keep_drawing(self, stopped: threading.Event) -> None:
        pause = SECONDS_BETWEEN_DRAWINGS
        while not stopped.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(OSError):  # the terminal is gone; the thread of the turn gets the same error
                self.refresh()
            pause = max(SECONDS_BETWEEN_DRAWINGS, (time.monotonic() - began) / DRAWING_PART)

    def refresh(self) -> None:
        """Draws the open block again if it has changed."""
        with self._lock:
            if self._dirty and not self._silent:
                self._dirty = False
                self._live.refresh()

    def _live_lines(self) -> list[Line]:
        lines: list[Line] = []
        if self._silent:
            return lines
        if self._thought:
            lines = self._lines(Text(_tail(clean(self._thought), self._width, self._room), style="dim"))
        elif self._blocks.open:
            lines = [[]] * (self._last != "" and self._markdown) + self._lines(self._block(self._blocks.open))
        below = ["  …"] * (self._asked is not None) + [f"▸ {call_text(call)} …" for call in self._calls]
        below += [text for text in (self._progress, self._status) if text]
        ends = [line for text in below for line in self._lines(Text(cut_to_width(text, self._width), style="cyan"))]
        room = max(1, self._room - len(ends))
        if len(lines) > room:
            lines = [*self._lines(Text("⋮", style="dim")), *lines[len(lines) - room + 1 :]]
        return [*lines, *ends][-self._room :]

    @property
    def _width(self) -> int:
        """One column less than the terminal has: a letter of unclear width must not begin a new line."""
        return max(10, self.console.size.width - 1)

    @property
    def _room(self) -> int:
        return max(2, self.console.size.height - 1)

    def _print(self, content: RenderableType, kind: str = "line") -> None:
        """Prints above the open block. Blocks are separated by empty lines, lines are not."""
        with self._lock:
            apart = bool(self._last) and "block" in (kind, self._last)
            self._last = kind
            self.console.print(Lines([[]] * apart + self._lines(content)))

    def _lines(self, content: RenderableType) -> list[Line]:
        return lines_of(self.console, content, self._width)


class PrintedNotes(io.TextIOBase):
    """Replaces standard output during a reply: whole lines become notes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._line = note, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._note(line)
        return len(text)

    def close(self) -> None:
        if self._line:
            self._note(self._line)
        self._line = ""


def _tail(text: str, width: int, rows: int) -> str:
    """The end of a text: at least as much as `rows` rows can show."""
    text = text[-width * (rows + 1) :]
    return "\n".join(text.split("\n")[-rows - 1 :])
