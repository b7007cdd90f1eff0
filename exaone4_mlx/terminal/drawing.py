"""Drawing on a terminal with `rich`: lines that may still change, and Markdown without backgrounds.

Notes:
- Everything that is written ends with the style that it began with, and the cursor is never hidden: after any
  interruption the terminal is as it was.
- The number of rows to erase follows from the present width of the terminal, so that it may be resized. A terminal
  that became narrower has broken the lines into more rows; rich's `Live` alone does not count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.segment import ControlType, Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from ..text.format import clean
from ..text.markdown import CODE_LANGUAGES, formula_end, markdown_parser

Line = list[Segment]

THEME = Theme({"markdown.code": "cyan", "markdown.code_block": ""})  # no backgrounds: terminals are light or dark


class TerminalConsole(Console):
    """A console that never hides the cursor."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Lines:
    """Rendered lines, as something that a console prints."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from line
            yield Segment.line()


class LiveLines(Live):
    """The last lines of the terminal, made by `make()` at each drawing. Prints of the console go above them."""

    def __init__(self, console: Console, make: Callable[[], list[Line]]) -> None:
        self._make = make
        self._widths: list[int] = []  # of the lines on the screen
        super().__init__(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )

    def get_renderable(self) -> RenderableType:
        return self

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._make()
        self._widths = [Segment.get_line_length(line) for line in lines]
        yield Lines(lines)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        _, *rest = super().process_renderables(renderables)
        width = max(1, self.console.size.width)
        rows = sum(max(1, -(-columns // width)) for columns in self._widths)
        erase = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (rows - 1)
        return [Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *erase), *rest]


def lines_of(console: Console, content: RenderableType, width: int) -> list[Line]:
    """The rendered lines, cleaned and without spaces at their ends. Markdown has no empty lines around it."""
    lines = [_stripped(line) for line in console.render_lines(content, console.options.update(width=width), pad=False)]
    if isinstance(content, Markdown):
        shown = [number for number, line in enumerate(lines) if line]
        lines = lines[shown[0] : shown[-1] + 1] if shown else [[]]
    return lines


def _stripped(line: Line) -> Line:
    line = [segment._replace(text=clean(segment.text)) for segment in line]
    while line and not line[-1].text.strip(" "):
        line.pop()
    if line:
        line[-1] = line[-1]._replace(text=line[-1].text.rstrip(" "))
    return line


# --- Markdown ---------------------------------------------------------------------------------------------------


def block_content(block: str) -> RenderableType:
    """A block of Markdown; a formula stays as it is."""
    if formula_end(block.strip()):
        return Text(block, style="italic")
    return ReplyMarkdown(block)


class PlainHeading(Heading):
    """Bold, and left-aligned."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.stylize("bold underline" if self.tag in ("h1", "h2") else "bold")
        yield text


class PlainCode(CodeBlock):
    """Code that can be copied: no background, no indentation, between dim lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = "" if self.lexer_name == "text" else f" {self.lexer_name}"
        yield Text(f"───{name}", style="dim")
        yield Syntax(
            str(self.text).rstrip(),
            self.lexer_name if self.lexer_name.lower() in CODE_LANGUAGES else "text",
            theme=self.theme,
            background_color="default",
            word_wrap=True,
        )
        yield Text("───", style="dim")


class WholeTable(TableElement):
    """A table whose cells break long words, which rich would cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
            yield table


class ReplyMarkdown(Markdown):
    """A block with the parser that app and notebooks share. Links show their address."""

    elements = {  # noqa: RUF012
        **Markdown.elements,
        "heading_open": PlainHeading,
        "fence": PlainCode,
        "code_block": PlainCode,
        "table_open": WholeTable,
    }

    def __init__(self, block: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = markdown_parser(as_written=True).parse(block)
