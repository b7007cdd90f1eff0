"""The events of a chat on a terminal, with `rich`.

What is peculiar here:
- What is finished is printed once and scrolls away. Only the block in the making is drawn again, at most some ten
  times a second, by a thread of its own; it never is taller than the screen.
- Everything that is written ends with the style that it began with, and the cursor is never hidden: whatever
  interrupts, the terminal stays as it was.
- How far to go back up is computed from the width that the terminal has now, so that it may be resized.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from ..conversation.turn import TurnEvent
from ..text.events import Answer, Done, Thinking
from ..text.format import call_text, cell_width, clean, result_text, shortened
from ..tools.call import ToolCall
from ..tools.toolbox import ToolResult
from .markdown import FORMULA_ENDS, BlockStream
from .status import Progress, end_text

SECONDS_BETWEEN_DRAWINGS = 0.08
DRAWING_PART = 0.15  # of the time, at most, that drawing may take
SECONDS_BEFORE_PROGRESS = 0.5
THEME = Theme({"markdown.code": "cyan", "markdown.code_block": ""})  # no backgrounds: terminals are light or dark
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
SPACES_AT_END = re.compile(r"[ ]+((?:\x1b\[[\d;]*m)*)$")


class Screen:
    """Shows events. Within `reply()` it draws by itself; outside, what is shown is printed at once."""

    can_ask = True

    def __init__(
        self,
        count_tokens: Callable[[str], int] = len,
        markdown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, theme=THEME)
        self.count_tokens = count_tokens  # of a thought
        self._markdown, self._clock = markdown, clock
        self._region = Region(self._write, lambda: self.console.size.width)
        self._lock = threading.RLock()
        self._dirty = self._silent = False
        self._last = ""  # "line" or "block": what was printed last in this reply
        self._clear()

    def _clear(self) -> None:
        self._blocks = BlockStream() if self._markdown else LineStream()
        self._thought, self._thought_began, self._thought_ended = "", 0.0, 0.0
        self._calls: list[ToolCall] = []  # that wait for their results
        self._asked: ToolCall | None = None  # one that was shown already
        self._status = self._progress = ""
        self._work: Progress | None = None

    # --- a reply ---------------------------------------------------------------

    @contextmanager
    def reply(self) -> Iterator[None]:
        """Around the events of a turn. What a tool prints meanwhile appears above what is being drawn."""
        self._clear()
        self._last = ""
        printed = _Printed(self.note)
        stopped = threading.Event()
        drawer = threading.Thread(target=self._keep_drawing, args=(stopped,), name="screen", daemon=True)
        drawer.start()
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                yield
        finally:
            stopped.set()
            with self._lock:
                printed.close()
                self._end()
            drawer.join()

    @contextmanager
    def asking(self, call: ToolCall) -> Iterator[None]:
        """While the user is asked whether a call may run: the call is shown whole, and nothing is drawn."""
        with self._lock:
            self._print(Text(f"▸ {call_text(call)}", style="cyan"))
            if call in self._calls:
                self._calls.remove(call)
            self._asked, self._silent = call, True
        try:
            with redirect_stdout(self.console.file), redirect_stderr(sys.__stderr__):
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
        """How far some work is; shown once it takes a while. May be called in any thread."""
        with self._lock:
            now = self._clock()
            if self._work is None:
                self._work = Progress(now, done)
            self._progress = ""
            if done < total and now - self._work.began > SECONDS_BEFORE_PROGRESS:
                self._progress = self._work.text(now, done, total, what, unit)
            self._dirty = True

    def status(self, text: str) -> None:
        """A line below what is being made; called in a signal handler, so it takes no lock."""
        self._status, self._dirty = text, True

    # --- lines and texts of their own ------------------------------------------

    def note(self, text: str, style: str = "dim") -> None:
        self._print(Text(clean(text), style=style))

    def error(self, text: str) -> None:
        self._print(Text(f"error: {clean(text)}", style="red"))

    def summary(self, text: str) -> None:
        """The counts below a reply, apart from it and from what follows."""
        self._print(Text(text + "\n", style="dim"), kind="block")
        self._last = ""

    def markdown(self, text: str) -> None:
        """A whole text."""
        blocks = BlockStream()
        self._last = ""
        for block in [*blocks.feed(clean(text)), *blocks.close()]:
            self._print(_rendered(block), kind="block")

    # --- parts of a reply --------------------------------------------------------

    def _fold_thought(self) -> None:
        if not self._thought:
            return
        seconds, tokens = self._thought_ended - self._thought_began, self.count_tokens(self._thought)
        self._thought = ""
        self._print(Text(f"▸ thought {seconds:.1f} s, {tokens:,} tokens; /thought shows it", style="dim"))

    def _show_answer(self, event: Answer) -> None:
        if event.problem:
            self._finish_blocks()
            self._print(Text(clean(event.text.strip()), style="dim"))
            self._print(Text(f"✗ that is no call: {clean(event.problem)}", style="red"))
            return
        self._print_blocks(self._blocks.feed(clean(event.text)))

    def _finish_blocks(self) -> None:
        self._print_blocks(self._blocks.close())

    def _print_blocks(self, blocks: list[str]) -> None:
        for block in blocks:
            self._print(self._block(block), kind="block" if self._markdown else "line")

    def _block(self, text: str) -> RenderableType:
        return _rendered(text) if self._markdown else Text(text)

    def _show_result(self, result: ToolResult) -> None:
        mark, style = ("✗", "red") if result.failed else ("→", "")
        told = f"{mark} {result_text(result.content, result.failed)}"
        self._print_call(result.call, told, style, f"  {result.seconds:.2f} s" if result.seconds else "")

    def _print_call(self, call: ToolCall, told: str, style: str, seconds: str = "") -> None:
        """A call and what became of it: on one line where there is room, else on two."""
        line, width = f"▸ {call_text(call)}", self._width
        shown = self._asked == call
        if shown:
            self._asked = None
        elif call in self._calls:
            self._calls.remove(call)
        if not shown and cell_width(f"{line} {told}{seconds}") <= width:
            self._print(Text.assemble((line, "cyan"), " ", (told, style), (seconds, "dim")))
            return
        if not shown:
            self._print(Text(shortened(line, width), style="cyan"))
        told = shortened(told, width - 2 - len(seconds))
        self._print(Text.assemble("  ", (told, style), (seconds, "dim")))

    def _end(self) -> None:
        """Whatever is open is printed as it is."""
        self._fold_thought()
        self._finish_blocks()
        for call in [*([self._asked] if self._asked else []), *self._calls]:
            self._print_call(call, "✗ not run", "red")
        self._clear()
        self._region.draw([])
        self._dirty = False

    # --- drawing -----------------------------------------------------------------

    def _keep_drawing(self, stopped: threading.Event) -> None:
        pause = SECONDS_BETWEEN_DRAWINGS
        while not stopped.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(OSError):  # the terminal is gone: the turn's own thread will hear of it
                self.refresh()
            pause = max(SECONDS_BETWEEN_DRAWINGS, (time.monotonic() - began) / DRAWING_PART)

    def refresh(self) -> None:
        """Draws what is in the making, if it has changed."""
        with self._lock:
            if self._dirty and not self._silent:
                self._dirty = False
                self._region.draw(self._live_lines())

    def _live_lines(self) -> list[str]:
        lines = []
        if self._thought:
            lines = self._lines(Text(_tail(clean(self._thought), self._width, self._room), style="dim"))
        elif self._blocks.open:
            lines = [""] * (self._last != "" and self._markdown) + self._lines(self._block(self._blocks.open))
        below = ["  …"] * (self._asked is not None) + [f"▸ {call_text(call)} …" for call in self._calls]
        below += [text for text in (self._progress, self._status) if text]
        ends = [line for text in below for line in self._lines(Text(shortened(text, self._width), style="cyan"))]
        room = max(1, self._room - len(ends))
        if len(lines) > room:
            lines = [*self._lines(Text("⋮", style="dim")), *lines[len(lines) - room + 1 :]]
        return [*lines, *ends][-self._room :]

    @property
    def _width(self) -> int:
        """One column less than there are: a letter of unclear width must not begin a new line."""
        return max(10, self.console.size.width - 1)

    @property
    def _room(self) -> int:
        return max(2, self.console.size.height - 1)

    def _print(self, content: RenderableType, kind: str = "line") -> None:
        """Prints for good. Blocks stand apart, lines together."""
        with self._lock:
            apart = bool(self._last) and "block" in (kind, self._last)
            self._last = kind
            lines = [""] * apart + self._lines(content)
            self._region.draw([], above=lines)
            self._dirty = True

    def _lines(self, content: RenderableType) -> list[str]:
        """What is to be written, line by line."""
        with self.console.capture() as capture:
            self.console.print(content, width=self._width)
        lines = [SPACES_AT_END.sub(r"\1", line) for line in capture.get().removesuffix("\n").split("\n")]
        return _trimmed(lines) if isinstance(content, Markdown) else lines

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


class Region:
    """The last lines of the terminal, which may still change; the cursor stands at the end of them."""

    def __init__(self, write: Callable[[str], None], width: Callable[[], int]) -> None:
        self._write, self._terminal_width = write, width
        self._widths: list[int] = []

    def draw(self, lines: list[str], above: list[str] = []) -> None:  # noqa: B006 (is not changed)
        """Puts `lines` in the place of the old ones, and `above` before them, for good."""
        if not lines and not above and not self._widths:
            return
        text = self._erased() + "".join(line + "\n" for line in above) + "\n".join(lines)
        self._widths = [cell_len(ESCAPE.sub("", line)) for line in lines]
        self._write(text)

    def _erased(self) -> str:
        """What takes the lines away. In a terminal made narrower they have been broken into more rows."""
        if not self._widths:
            return ""
        width = max(1, self._terminal_width())
        up = sum(max(1, -(-columns // width)) for columns in self._widths) - 1
        return "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"


class LineStream(BlockStream):
    """Text as it is, line by line."""

    @property
    def open(self) -> str:
        return self._partial

    def _add(self, line: str) -> None:
        self._finished.append(line)

    def _finish(self) -> None:
        """Lines are finished by themselves."""


class _Printed(io.TextIOBase):
    """Stands for standard output while a reply is made: whole lines become notes."""

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


def _trimmed(lines: list[str]) -> list[str]:
    """Without the empty lines around a block: there is one between any two."""
    shown = [i for i, line in enumerate(lines) if ESCAPE.sub("", line).strip()]
    return lines[shown[0] : shown[-1] + 1] if shown else [""]


def _tail(text: str, width: int, rows: int) -> str:
    """The end of a text, of whole lines where they are short: a little more than `rows` rows can show."""
    text = text[-width * (rows + 1) :]
    return "\n".join(text.split("\n")[-rows - 1 :])


# --- markdown -------------------------------------------------------------------


def _rendered(block: str) -> RenderableType:
    if block.strip()[:2] in FORMULA_ENDS:
        return Text(block, style="italic")
    return _Markdown(block, code_theme="ansi_dark", hyperlinks=False)


class _Heading(Heading):
    """Bold, and on the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.stylize("bold underline" if self.tag in ("h1", "h2") else "bold")
        yield text


class _CodeBlock(CodeBlock):
    """Code as it can be copied: no background, no indentation, between dim lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = "" if self.lexer_name == "text" else f" {self.lexer_name}"
        yield Text(f"───{name}", style="dim")
        yield Syntax(
            str(self.text).rstrip(),
            self.lexer_name,
            theme=self.theme,
            background_color="default",
            word_wrap=True,
        )
        yield Text("───", style="dim")


class _Markdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _Heading, "fence": _CodeBlock, "code_block": _CodeBlock}  # noqa: RUF012
