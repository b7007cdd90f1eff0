"""The chat on the command line: what it shows, what it reads, what its commands do."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len

from exaone4_mlx import Answer, Thinking, ToolCall
from exaone4_mlx.conversation.chat import Chat, ChatSettings
from exaone4_mlx.generation.options import Options, Sampling
from exaone4_mlx.model.kv import KVQuantization
from exaone4_mlx.terminal.commands import COMMANDS, completions, continues as goes_on, read_line
from exaone4_mlx.terminal.drawing import THEME, TerminalConsole
from exaone4_mlx.terminal.input import TerminalInput, history_file
from exaone4_mlx.terminal.markdown import BlockStream
from exaone4_mlx.terminal.pipe import PipeScreen
from exaone4_mlx.terminal.repl import Repl
from exaone4_mlx.terminal.screen import Screen
from exaone4_mlx.terminal.status import Progress, extras_text, turn_text as summary
from exaone4_mlx.text.events import Done
from exaone4_mlx.text.format import call_text, cell_width, clean, shortened
from exaone4_mlx.tools.toolbox import ToolResult

REPLY = r"""# Sorting 정렬

A paragraph that
has two lines.
## Steps
1. First:
   ```python
   def f():

       return 1
   ```
2. Second
- loose

- list

| a | b |
|---|---|
| 1 | 2 |

\[ a \\ b \]
```
code

# no heading
```
In
1986. it was so.
---
The end"""

BLOCKS = [
    "# Sorting 정렬",
    "A paragraph that\nhas two lines.",
    "## Steps",
    "1. First:\n   ```python\n   def f():\n\n       return 1\n   ```\n2. Second",
    "- loose\n\n- list",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    r"\[ a \\ b \]",
    "```\ncode\n\n# no heading\n```",
    "In\n1986. it was so.\n---",
    "The end",
]
DONE = Done("stop", 100, 40, 20, 30, 1.0, 2.0, 1.0, 10**9)


# --- markdown that is still being written ---------------------------------------


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(0, 30)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def blocks_of(pieces: list[str]) -> list[str]:
    stream = BlockStream()
    return [block for piece in pieces for block in stream.feed(piece)] + stream.close()


def test_a_reply_falls_into_blocks() -> None:
    assert blocks_of([REPLY]) == BLOCKS


def test_any_cut_of_the_text_gives_the_same_blocks() -> None:
    rng = random.Random(1)
    for _ in range(50):
        assert blocks_of(cut(REPLY, rng)) == BLOCKS


def test_no_line_is_lost_whatever_is_written() -> None:
    rng = random.Random(2)
    lines = [*REPLY.split("\n"), "", "  indented", "$$", "~~~", "> quoted", "* * *", "````", "   ```js"]
    for _ in range(300):
        text = "\n".join(rng.choices(lines, k=rng.randrange(1, 25)))
        blocks = blocks_of(cut(text, rng))
        assert [line for line in "\n".join(blocks).split("\n") if line.strip()] == [
            line for line in text.split("\n") if line.strip()
        ]


def test_what_is_open_is_the_block_in_the_making() -> None:
    stream = BlockStream()
    assert stream.feed("One.\n\n```py\na = 1\nb =") == ["One."]
    assert stream.open == "```py\na = 1\nb ="
    assert stream.close() == ["```py\na = 1\nb ="]
    assert stream.open == ""


# --- a terminal -------------------------------------------------------------------


class Terminal:
    """What a screen full of text looks like after it was written to: lines, and those scrolled away."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows, self.row, self.column = [""], 0, 0
        self.jump = self.tallest_jump = 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[^\x1b]", text):
            if part.startswith("\x1b"):
                self._command(part)
            elif part == "\n":
                self._next_row()
            elif part == "\r":
                self.column = self.jump = 0
            else:
                self._put(part)

    def flush(self) -> None:
        pass

    def _command(self, code: str) -> None:
        if code.endswith("A"):
            self.row -= int(code[2:-1] or 1)
            assert self.row >= 0
            self.jump += 1
            self.tallest_jump = max(self.tallest_jump, self.jump)
        elif code == "\x1b[2K":
            assert self.column == 0, "rows are erased from their beginning"
            self.rows[self.row] = ""
        else:
            assert code.endswith("m"), f"nothing but colours, upwards and erasing: {code!r}"

    def _next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    def _put(self, letter: str) -> None:
        if self.column + cell_len(letter) > self.width:
            self._next_row()
        assert cell_len(self.rows[self.row]) == self.column, "letters are written at the end of a row"
        self.rows[self.row] += letter
        self.column += cell_len(letter)

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(60, 12)


def screen_on(terminal: Any, clock: Callable[[], float] = time.monotonic, **options: Any) -> Screen:
    width, height = getattr(terminal, "width", 60), getattr(terminal, "height", 12)
    console = TerminalConsole(
        file=terminal, width=width, height=height, force_terminal=True, theme=THEME, color_system="standard",
        highlight=False, _environ={},
    )  # fmt: skip
    return Screen(count_tokens=lambda text: len(text.split()), console=console, clock=clock, **options)


def shown(events: list[Any], terminal: Terminal, drawn: bool = True, **options: Any) -> str:
    """What is left on a terminal; `drawn` after each event."""
    screen = screen_on(terminal, clock=Clock(), **options)  # a thought takes no time, however busy the machine is
    with screen.reply():
        for event in events:
            screen.show(event)
            if drawn:
                screen.refresh()
    return terminal.text


def pieces(kind: type, text: str, size: int = 3) -> list[Any]:
    return [kind(text[i : i + size]) for i in range(0, len(text), size)]


def test_drawing_leaves_nothing_behind(terminal: Terminal) -> None:
    """The same is left on the screen whether the block in the making was drawn a hundred times or never."""
    events = [*pieces(Thinking, "가나다 " * 60), *pieces(Answer, REPLY), DONE]
    drawn = shown(events, terminal)
    assert drawn == shown(events, Terminal(60, 12), drawn=False)
    assert "Sorting 정렬" in drawn and "The end" in drawn and r"\[ a \\ b \]" in drawn


@pytest.mark.parametrize("width", [20, 40, 100])
def test_what_is_drawn_again_is_never_taller_than_the_screen(width: int) -> None:
    terminal = Terminal(width, 8)
    code = "```python\n" + "\n".join(f"line_{n} = {n}" for n in range(40)) + "\n```"
    text = shown([*pieces(Thinking, "한 생각 " * 100), *pieces(Answer, code, 9), DONE], terminal)
    assert 3 <= terminal.tallest_jump <= 7
    assert all(f"line_{n} = {n}" in text for n in range(40)), "the finished block is printed whole"


def test_erased_rows_are_counted_at_the_present_width() -> None:
    written: list[str] = []

    class File(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    screen = screen_on(File(), markdown=False)
    screen.console.width = 80
    with screen.reply():
        screen.show(Answer("x" * 70))
        screen.refresh()
        screen.console.width = 31
        screen.show(Answer("y"))
        screen.refresh()
        assert written[-1].count("\x1b[1A") == 2, "70 columns take 3 rows in a terminal of 31 columns"


def test_a_thought_is_dim_and_folds_to_a_line() -> None:
    terminal, clock = Terminal(60, 12), Clock()
    screen = screen_on(terminal, clock=clock)
    with screen.reply():
        screen.show(Thinking("I add "))
        clock.now = 3.2
        screen.show(Thinking("the digits."))
        screen.refresh()
        assert terminal.text.endswith("I add the digits.")
        screen.show(Answer("623"))
        assert terminal.text.startswith("▸ thought 3.2 s, 4 tokens; /thought shows it")
    assert terminal.text == "▸ thought 3.2 s, 4 tokens; /thought shows it\n\n623\n"


def test_every_writing_ends_in_the_style_that_it_began_with() -> None:
    written: list[str] = []

    class File(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    screen = screen_on(File())
    events = [*pieces(Thinking, "dim " * 9), *pieces(Answer, "**bold** `code`"), ToolCall("f", {})]
    with contextlib.suppress(KeyboardInterrupt), screen.reply():
        for event in events:
            screen.show(event)
            screen.refresh()
        raise KeyboardInterrupt
    for text in written:
        styles = re.findall(r"\x1b\[([\d;]*)m", text)
        assert not styles or styles[-1] == "0", "whatever interrupts, the terminal is not left dim"
        assert "\x1b[?25l" not in text, "the cursor stays visible"
    assert "not run" in "".join(written)


def test_what_a_model_writes_cannot_command_the_terminal(terminal: Terminal) -> None:
    evil = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b5Ae\u202ef"
    events = [Thinking(evil), Answer(evil + "\n"), ToolCall(evil, {"x": evil}), DONE]
    written = shown([*events[:3], ToolResult(ToolCall(evil, {"x": evil}), {"error": evil}, True, 1.0), DONE], terminal)
    assert not set(written) & set("\x1b\x07\r\x9b\u202e")
    assert "a]0;titleb[2Jcd5Aef" in written


def test_a_call_and_its_result_share_a_line_or_take_two() -> None:
    call = ToolCall("roll_dice", {"max_num": 6})
    events = [call, call, ToolResult(call, 3, False, 0.01), ToolResult(call, {"error": "no dice"}, True, 0.0)]
    text = shown([*events, DONE], Terminal(60, 12))
    assert text.splitlines() == ["▸ roll_dice(max_num=6) → 3  0.01 s", "▸ roll_dice(max_num=6) ✗ no dice"]
    narrow = shown([*events, DONE], Terminal(30, 12)).splitlines()
    assert narrow[:2] == ["▸ roll_dice(max_num=6)", "  → 3  0.01 s"]


def test_a_call_without_a_result_is_said_not_to_have_run(terminal: Terminal) -> None:
    assert "▸ f() ✗ not run" in shown([ToolCall("f", {}), Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)], terminal)


def test_a_call_that_was_asked_for_is_shown_whole_and_once(terminal: Terminal) -> None:
    call = ToolCall("send", {"text": "word " * 30})
    screen = screen_on(terminal)
    with screen.reply():
        screen.show(call)
        screen.refresh()
        with screen.asking(call):
            screen.refresh()
            assert terminal.text.count("word") == 30, "the user sees all of what is to run"
        screen.show(ToolResult(call, "ok", False, 1.0))
    assert terminal.text.count("send(") == 1
    assert terminal.text.endswith('  → "ok"  1.00 s\n')


def test_what_a_tool_prints_appears_above_what_is_being_drawn(terminal: Terminal) -> None:
    screen = screen_on(terminal)
    with screen.reply():
        screen.show(Answer("one\n\ntwo\nand"))
        screen.refresh()
        sys.stdout.write("from a tool\n")
        sys.stderr.write("half a line")
        screen.show(Answer(" three"))
    lines = [line for line in terminal.text.splitlines() if line]
    assert lines == ["one", "from a tool", "two and three", "half a line"] or lines == [
        "one", "from a tool", "half a line", "two and three",
    ]  # fmt: skip


def test_text_that_is_no_call_is_shown_with_the_reason(terminal: Terminal) -> None:
    text = shown([Answer("<tool_call>{</tool_call>", "not JSON"), DONE], terminal)
    assert "<tool_call>{</tool_call>" in text and "✗ invalid tool call: not JSON" in text


@pytest.mark.parametrize(
    ("reason", "told"), [("length", "/set max_tokens"), ("repetition", "/set presence_penalty 1.5"), ("cancelled", "[stopped]")]
)  # fmt: skip
def test_an_end_before_the_end_is_said(reason: str, told: str, terminal: Terminal) -> None:
    text = shown([Answer("half"), Done(reason, 1, 0, 0, 1, 0, 0, 0, 0)], terminal)
    assert told in " ".join(text.split())


def test_without_markdown_a_reply_is_shown_as_it_is() -> None:
    terminal = Terminal(60, 12)
    assert shown([*pieces(Answer, REPLY), DONE], terminal, markdown=False) == REPLY + "\n"


def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        file = io.StringIO()
        console = TerminalConsole(
            file=file, force_terminal=True, width=60, color_system="standard", _environ=environment
        )
        screen = Screen(console=console)
        with screen.reply():
            screen.show(Answer("```python\nimport os\n```"))
        assert bool(re.search(r"\x1b\[(\d+;)*(3|9)\d", file.getvalue())) is colours


def test_any_markdown_can_be_drawn() -> None:
    rng = random.Random(3)
    parts = [
        *"*_`#[]()!|>~-:\\<& ",
        "\n",
        "\n\n",
        "a",
        "한국어",
        "```",
        "1. ",
        "- ",
        "|---|",
        "<b>",
        "http://x.y",
        "&amp;",
        "   ",
    ]
    for n in range(60):
        text = "".join(rng.choices(parts, k=80))
        terminal = Terminal(rng.choice([12, 30, 80]), 10)
        shown([*pieces(Answer, text, 20), DONE], terminal, drawn=n % 2 == 0)


def test_reading_a_long_prompt_shows_progress_with_the_time_left(terminal: Terminal) -> None:
    clock = Clock()
    screen = screen_on(terminal, clock=clock)
    with screen.reply():
        screen.progress(1000, 11_000)
        screen.refresh()
        assert terminal.text.strip() == "", "nothing for what takes no time"
        clock.now = 2.0
        screen.progress(6000, 11_000)
        screen.refresh()
        assert terminal.text.endswith("reading: 6,000 of 11,000 tokens, 2 s left")
        screen.progress(11_000, 11_000)
        screen.show(Answer("ok"))
    assert terminal.text == "ok\n"


# --- words --------------------------------------------------------------------------


def test_korean_letters_take_two_columns() -> None:
    assert cell_width("한국어 a") == 8
    assert shortened("한국어 문장", 7) == "한국어…"
    assert shortened("short", 7) == "short"


def test_calls_read_like_python() -> None:
    assert call_text(ToolCall("f", {"city": "서울", "n": [1, 2]})) == 'f(city="서울", n=[1, 2])'
    assert call_text(ToolCall("f", "bare")) == 'f("bare")'
    assert call_text(ToolCall("f", None)) == "f()"
    assert clean("a\x1bb\n\tc") == "ab\n\tc"


def test_the_summary_counts() -> None:
    text = summary(DONE, 0.5, "context 9 of 10")
    assert text == "[50 tokens, 25.0 tokens/s, first after 0.50 s | prompt 100 (40 cached) | context 9 of 10]"
    drafted = dataclasses.replace(DONE, drafted_tokens=1200, accepted_tokens=31)
    assert "first after 0.50 s, 31 of 1,200 draft tokens accepted | prompt" in summary(drafted, 0.5, "context 9 of 10")


def test_banner_tells_what_is_out_of_the_ordinary() -> None:
    assert extras_text(None, None, False) == ""
    told = extras_text(KVQuantization(8, 4, 64, "global"), "demo-draft", False)
    assert told == "; cache of global layers: keys 8 bits, values 4 bits, groups of 64; drafts by demo-draft"
    assert extras_text(None, None, True) == "; drafts by prompt lookup"


def test_progress_in_words() -> None:
    assert Progress(0.0, 0).text(1.0, 0, 10, "reading", "tokens") == "reading: 0 of 10 tokens"
    text = Progress(0.0, 0).text(25.0, 5 * 10**8, 2 * 10**9, "loading", "bytes")
    assert text == "loading: 0.50 of 2.00 GB, 1 min 15 s left"


# --- what is typed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("Hello", ("", "Hello")),
        ("/think on", ("/think", "on")),
        ("/retry", ("/retry", "")),
        ("//usr is a folder", ("", "/usr is a folder")),
        ('"""/no command"""', ("", "/no command")),
        ('"""\na\nb\n"""', ("", "a\nb")),
        ("  indented", ("", "  indented")),
    ],
)
def test_a_line_is_a_text_or_a_command(line: str, read: tuple[str, str]) -> None:
    assert read_line(line) == read


def test_what_goes_on_in_the_next_line() -> None:
    assert goes_on("a\\") and goes_on('"""a') and goes_on('"""')
    assert not goes_on("a") and not goes_on('"""a"""') and not goes_on('""""""')


@contextmanager
def typing(text: str, history: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TerminalInput]:
    monkeypatch.setenv("EXAONE4_MLX_HISTORY", str(history))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(text)
        yield TerminalInput(lambda text: [], lambda text: pytest.fail(text))


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("Hello\r", "Hello"),
        ("안녕\r", "안녕"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', '"""one\ntwo"""'),
        ("lost\x03kept\r", "kept"),
    ],
)
def test_keys(typed: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing(typed, tmp_path / "history", monkeypatch) as line:
        assert line.read("> ") == text


def test_what_ctrl_c_clears_stays_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing("a long question\x03short\r", tmp_path / "history", monkeypatch) as line:
        assert line.read("> ") == "short"
    assert "+a long question" in (tmp_path / "history").read_text()


def test_ctrl_c_and_ctrl_d_at_an_empty_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing("\x03", tmp_path / "history", monkeypatch) as line, pytest.raises(KeyboardInterrupt):
        line.read("> ")
    with typing("\x04", tmp_path / "history", monkeypatch) as line, pytest.raises(EOFError):
        line.read("> ")


def test_history_outlives_the_session_and_is_for_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "history"
    with typing("first 질문\r", file, monkeypatch) as line:
        line.read("> ")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.chmod(0o644)
    with typing("\x1b[A\r", file, monkeypatch) as line:
        assert line.read("> ") == "first 질문"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXAONE4_MLX_HISTORY", str(tmp_path / "file" / "history"))
    said: list[str] = []
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("Hello\r")
        assert TerminalInput(lambda text: [], said.append).read("> ") == "Hello"
    assert said and "not stored" in said[0]


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXAONE4_MLX_HISTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_file() == Path.home() / ".local/state/exaone4_mlx/history"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert history_file() == Path.home() / "Library/Application Support/exaone4_mlx/history"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("x\ry\r", "yes"), ("\rNo\r", "no"), ("a\r", "always"), ("\x04", "no"), ("What about Lima?\ryes\r", "yes")],
)
def test_questions_take_a_line_and_no_other_words_for_an_answer(
    typed: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TerminalInput, "_discard_typed", staticmethod(lambda session: None))  # typed ahead, here
    with typing(typed, tmp_path / "history", monkeypatch) as line:
        assert line.ask() == answer


# --- the loop, with a chat that follows a script ----------------------------------------


class ScriptedChat:
    """Stands for a chat: each turn yields the next list of events, or raises the next error."""

    def __init__(self, *script: Any, tools: tuple[Any, ...] = ()) -> None:
        self.script, self.said, self.tools = list(script), [], tools
        self.options, self.settings, self.system_prompt = Options(), ChatSettings(overflow="drop_oldest"), None
        self.dropped, self.context_tokens = 0, 10
        self.max_kv_size = self.prompt_limit = 100
        self.cancelled = threading.Event()
        self.messages: list[Any] = []
        self.approve: Callable[[ToolCall], bool] = lambda call: True

    @property
    def turns(self) -> list[str]:
        return [text for kind, text in self.said if kind == "send"]

    def send(self, text: str, **options: Any) -> Any:
        return self._turn("send", text)

    def retry(self, **options: Any) -> Any:
        return self._turn("retry", "")

    def edit(self, turn: int, text: str, **options: Any) -> Any:
        return self._turn(f"edit {turn}", text)

    def cancel(self) -> None:
        self.cancelled.set()

    def _turn(self, kind: str, text: str) -> Any:
        self.said.append((kind, text))
        events = self.script.pop(0) if self.script else [Answer("ok"), DONE]
        if isinstance(events, Exception):
            raise events
        return (event(self) if callable(event) else event for event in events)


class Notes:
    """Stands for a screen: keeps what it is told."""

    def __init__(self, can_ask: bool = True) -> None:
        self.can_ask, self.lines, self.events = can_ask, [], []
        self.count_tokens: Callable[[str], int] = len

    def reply(self) -> AbstractContextManager[None]:
        return nullcontext()

    def asking(self, call: ToolCall) -> AbstractContextManager[None]:
        return nullcontext()

    def show(self, event: Any) -> None:
        self.events.append(event)

    def progress(self, done: int, total: int, what: str = "", unit: str = "") -> None:
        pass

    def status(self, text: str) -> None:
        self.lines.append(text)

    markdown = note = status

    def summary(self, text: str) -> None:
        self.lines.append(text)

    def error(self, text: str) -> None:
        self.lines.append(f"error: {text}")


class Lines:
    """Stands for an input: each line is a text, an exception, or a function that gives one of them."""

    def __init__(self, *lines: Any, answers: tuple[Any, ...] = ()) -> None:
        self.lines, self.answers, self.defaults = list(lines), list(answers), []

    def read(self, prompt: str, default: str = "") -> str:
        self.defaults.append(default)
        line = self.lines.pop(0) if self.lines else EOFError()
        return self._given(line)

    def ask(self) -> str:
        return self._given(self.answers.pop(0))

    def quiet(self) -> AbstractContextManager[None]:
        return nullcontext()

    @staticmethod
    def _given(value: Any) -> str:
        if isinstance(value, BaseException):
            raise value
        return str(value)


def talk(chat: Any, *lines: Any, can_ask: bool = True, **options: Any) -> tuple[int, Repl, Notes]:
    answers = options.pop("answers", ())
    notes = Notes(can_ask)
    repl = Repl(chat, notes, Lines(*lines, answers=answers), **options)
    return repl.loop(), repl, notes


def test_texts_are_sent_and_commands_are_not() -> None:
    chat = ScriptedChat()
    code, _, notes = talk(chat, "Hello", "", "   ", "/foo bar", "//foo", "/retry now")
    assert chat.said == [("send", "Hello"), ("send", "/foo")]
    assert code == 0
    assert any(line.startswith("error: there is no command /foo: /help lists the commands") for line in notes.lines)
    assert any("/retry takes no argument" in line for line in notes.lines)


def test_an_error_is_one_line_and_the_conversation_goes_on() -> None:
    chat = ScriptedChat(ValueError("full:\nundo() or edit() a turn, reset()"))
    code, _, notes = talk(chat, "Hello", "Again")
    assert "error: full: /undo or /edit a turn, /reset" in notes.lines
    assert chat.said == [("send", "Hello"), ("send", "Again")]
    assert code == 0
    assert talk(ScriptedChat(ValueError("x")), "Hello", can_ask=False)[0] == 1, "in a pipe it is the exit code"


def test_debug_shows_where_an_error_comes_from() -> None:
    assert "Traceback" in "".join(talk(ScriptedChat(ValueError("x")), "Hello", debug=True)[2].lines)


def test_ctrl_c_leaves_at_the_second_time_within_two_seconds() -> None:
    clock = Clock()

    class Slow(Lines):
        def read(self, prompt: str, default: str = "") -> str:
            clock.now += waits.pop(0)
            raise KeyboardInterrupt

    waits = [0.0, 2.5, 1.0]
    notes = Notes()
    assert Repl(ScriptedChat(), notes, Slow(), clock=clock).loop() == 0
    assert not waits, "the second came too late, the third in time"
    assert notes.lines.count("press Ctrl-C again, or Ctrl-D, to exit") == 2


def test_exit_and_the_end_of_the_input_leave() -> None:
    chat = ScriptedChat()
    assert talk(chat, "/exit", "Hello")[0] == 0
    assert talk(chat)[0] == 0
    assert chat.said == []


def test_ctrl_c_while_a_reply_is_made_cancels_it() -> None:
    def interrupt(chat: ScriptedChat) -> Answer:
        os.kill(os.getpid(), signal.SIGINT)
        assert chat.cancelled.wait(5), "the chat is told, in another thread"
        return Answer("half")

    before = signal.getsignal(signal.SIGINT)
    cancelled = Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)
    chat = ScriptedChat([interrupt, cancelled])
    code, _, notes = talk(chat, "Hello", "Again")
    assert code == 0
    assert notes.events[:2] == [Answer("half"), cancelled]
    assert len(chat.said) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_ends_a_reply_at_once() -> None:
    def hang(chat: ScriptedChat) -> Answer:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        raise AssertionError("not interrupted")

    chat = ScriptedChat([hang, DONE])
    _, _, notes = talk(chat, "Hello", "Again")
    assert "[stopped]" in notes.lines
    assert len(chat.said) == 2


def test_ctrl_c_in_a_pipe_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(ScriptedChat([Answer("x"), Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)]), "Hello", "Again", can_ask=False)


def test_tools_ask_before_they_run() -> None:
    call, free = ToolCall("send", {}), ToolCall("dice", {})
    answers: list[Any] = []

    def approving(chat: ScriptedChat) -> Answer:
        answers.append([chat.approve(call), chat.approve(free)])
        return Answer("")

    chat = ScriptedChat(*[[approving, DONE]] * 5)
    interrupt = KeyboardInterrupt()
    talk(chat, *"12345", asks=["send"], answers=("no", "yes", interrupt, "always"))
    assert answers == [[False, True], [True, True], [False, True], [True, True], [True, True]]
    assert chat.cancelled.is_set(), "Ctrl-C at the question ends the turn"


def test_edit_puts_the_text_into_the_input_line() -> None:
    chat = ScriptedChat()
    _, repl, notes = talk(chat, "one", "two", "/edit 1", "one!", "/edit", "", "/edit 9", "three")
    assert repl.keys.defaults == ["", "", "", "one", "", "two", "", "", ""]
    assert chat.said == [("send", "one"), ("send", "two"), ("edit 0", "one!"), ("send", "three")]
    assert any("drops the 1 turns after it" in line for line in notes.lines)
    assert "error: there is no turn 9: the conversation has 2" in notes.lines


def test_a_context_that_fills_up_is_said_once() -> None:
    def fill(tokens: int, dropped: int = 0) -> Callable[[ScriptedChat], Answer]:
        def filled(chat: ScriptedChat) -> Answer:
            chat.context_tokens, chat.dropped = tokens, dropped
            return Answer("")

        return filled

    chat = ScriptedChat(*[[fill(*state), DONE] for state in ((81,), (90,), (60, 4), (85, 4))])
    _, _, notes = talk(chat, *"1234")
    said = [line for line in notes.lines if ("context" in line or "room" in line) and not line.startswith("[")]
    assert [line.split(":")[0] for line in said] == [
        "81% of the context for the conversation is used",
        "the context is full",
        "85% of the context for the conversation is used",
    ]
    assert "first 4 messages" in said[1]


def test_warnings_wait_for_the_prompt() -> None:
    notes = Notes()
    repl = Repl(ScriptedChat(), notes, Lines("Hello"))
    repl.warned.append("something")
    repl.loop()
    assert notes.lines[0] == "warning: something"


def test_settings() -> None:
    chat = ScriptedChat()
    _, _, notes = talk(
        chat, "/set presence_penalty 1.5", "/set seed 3", "/set max_tokens 9", "/set top_p 7", "/set colour red",
        "/set seed x", "/set seed", "/set", "/budget 5", "/budget -1", "/think on", "/think maybe", "/system Be brief.",
    )  # fmt: skip
    assert chat.options == Options(presence_penalty=1.5, seed=3, max_tokens=9, thinking_budget=5, thinking=True)
    assert chat.system_prompt == "Be brief."
    errors = [line for line in notes.lines if line.startswith("error")]
    assert [error[:25] for error in errors] == [
        "error: top_p must be abov",
        "error: there is no settin",
        "error: seed must be a who",
        "error: seed needs a value",
        "error: /budget needs a wh",
        "error: /think takes on or",
    ]
    assert any(line.startswith("temperature 0.1, top_p 1.0") for line in notes.lines)
    talk(chat, "/set presence_penalty default", "/set max_tokens default", "/budget off", "/system off")
    assert chat.options == Options(seed=3, thinking=True)
    assert chat.system_prompt is None


def test_tools_are_switched() -> None:
    def one() -> int:
        return 1

    def two() -> int:
        return 2

    chat = ScriptedChat(tools=(one, two))
    _, repl, notes = talk(chat, "/tools off", "/tools two", "/tools three", asks=["two"])
    assert list(chat.tools) == [two]
    assert notes.lines[-3:-1] == ["off one", "on  two, asks before it runs"]
    assert "there is no tool 'three'; the tools are one, two" in notes.lines[-1]
    talk(chat, "/tools on")
    repl.screen.lines.clear()
    assert "error: there are no tools" in talk(ScriptedChat(), "/tools")[2].lines[0]


def test_tab_completes_commands_and_what_follows_them(tmp_path: Path) -> None:
    def dice() -> int:
        return 1

    repl = Repl(ScriptedChat(tools=(dice,)), Notes(), Lines())
    assert list(completions(repl, "/th")) == [("/think", 3), ("/thought", 3)]
    assert ("dice", 1) in completions(repl, "/tools d")
    assert list(completions(repl, "/set pres")) == [("presence_penalty", 4)]
    (tmp_path / "talk.json").write_text("")
    assert list(completions(repl, f"/load {tmp_path}/ta")) == [(f"{tmp_path}/talk.json", len(f"{tmp_path}/ta"))]
    assert list(completions(repl, "//th")) == list(completions(repl, "th")) == []


def test_help_names_every_command() -> None:
    lines = talk(ScriptedChat(), "/help")[2].lines
    assert all(any(line.startswith(name) for line in lines) for name in COMMANDS)


# --- a pipe -----------------------------------------------------------------------------


def test_answers_go_out_plain_and_the_rest_beside(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PipeScreen()
    call = ToolCall("dice", {"n": 6})
    events = [
        Thinking("Hm"), Thinking("."), Answer("\n"), Answer("One "), Answer("line\n"), Answer("\n"), call,
        ToolResult(call, 3, False, 0.1), Answer("two\n\n"), DONE,
    ]  # fmt: skip
    with screen.reply():
        for event in events:
            screen.show(event)
        sys.stdout.write("from a tool\n")
    out, err = capsys.readouterr()
    assert out == "One line\ntwo\n"
    assert err == "<think>\nHm.\n</think>\ndice(n=6) -> 3  0.10 s\nfrom a tool\n"


# --- a real chat ------------------------------------------------------------------------


@pytest.fixture
def chat(demo: Any) -> Chat:
    return Chat(*demo, sampling=Sampling(temperature=0), settle=False)


def answers(notes: Notes) -> list[str]:
    texts = [""]
    for event in notes.events:
        if isinstance(event, Answer):
            texts[-1] += event.text
        elif isinstance(event, Done):
            texts.append("")
    return texts[:-1]


def test_a_conversation_with_the_demo(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    code, repl, notes = talk(
        chat, "What is the capital of Peru?", "/retry", "/edit 1", "What is the capital of Italy?", "Hello", "/undo",
        "/think on", "What is 348 + 275?", "/thought", "/stats", f"/save {file}", f"/save {file}", "/reset", f"/load {file}",
    )  # fmt: skip
    assert code == 0 and not [line for line in notes.lines if line.startswith("error")]
    peru, again, rome, _, total = answers(notes)
    assert "Lima" in peru and "Lima" in again and "Rome" in rome and "623" in total
    assert "removed: Hello" in notes.lines
    assert any("5 + 8" in line or "348" in line for line in notes.lines if not line.startswith("["))
    assert any(line.startswith("2 turns, 4 messages; context") for line in notes.lines)
    assert repl.chat is not chat
    assert repl.chat.turns == ["What is the capital of Italy?", "What is 348 + 275?"]
    assert repl.chat.options.thinking, "settings come from the file"
    assert notes.lines[-2] == "> What is 348 + 275?" and "623" in notes.lines[-1]


def test_saving_destroys_nothing(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("dear")
    _, _, notes = talk(chat, f"/save {file}", "/save", "/load", f"/load {file}", f"/load {tmp_path}/none")
    assert file.read_text() == "dear"
    errors = [line for line in notes.lines if line.startswith("error")]
    assert len(errors) == 5 and "exists already" in errors[0] and "is not a saved chat" in errors[3]


def test_caches_are_saved_and_taken_up(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(chat, "Hello", f"/save {file} caches")
    assert (tmp_path / "talk.json.cache").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, notes = talk(Chat(chat.model, chat.tokenizer, settle=False), f"/load {file}", "Hello")
    assert notes.events[-1].cached_tokens > 10


def test_a_loaded_conversation_keeps_the_flags_that_its_file_knows_nothing_of(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(chat, f"/save {file}")
    unsaved = {"max_kv_size": 900, "kv": 8, "prompt_lookup": True, "num_draft_tokens": 3}
    _, repl, _ = talk(chat, f"/load {file}", unsaved=unsaved)
    loaded = repl.chat
    assert loaded is not chat and loaded.max_kv_size == 900
    assert (loaded.options.prompt_lookup, loaded.options.num_draft_tokens, loaded._cache.kv.key_bits) == (True, 3, 8)


# --- the command --------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "exaone4_mlx.chat", "--model", "demo", "--dtype", "float32", "--temp", "0"]

DICE = '''
import time

def roll_dice(max_num: int) -> int:
    """Roll a dice with the number 1 to N. User can select the number N.

    Args:
        max_num: Max number of the dice
    """
    print("rolling")
    time.sleep({seconds})
    return 4
'''


def piped(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=lines, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def test_a_line_of_standard_input_is_a_turn() -> None:
    ran = piped("What is the capital of Peru?\n/think on\nWhat is 348 + 275?\n")
    assert ran.returncode == 0
    assert ran.stdout == "The capital of Peru is Lima.\n348 + 275 = 623.\n"
    assert "<think>" in ran.stderr and "\x1b" not in ran.stdout + ran.stderr


def test_the_flags_of_memory_and_speculation_reach_the_chat() -> None:
    ran = piped("Hello\n" + "word " * 300, "--max-kv-size", "200", "--kv-bits", "8", "--prompt-lookup")
    assert ran.returncode == 1, "the second turn is too long"
    assert ran.stdout == "Hello! I am a small demonstration model. How can I help you?\n"
    assert "of 200]" in ran.stderr and "and the context of 200 must hold it and a reply" in ran.stderr


def test_an_error_in_a_pipe_is_the_exit_code_and_ends_nothing() -> None:
    ran = piped("/nonsense\nHello")
    assert ran.returncode == 1
    assert ran.stdout.startswith("Hello!")
    assert "error: there is no command /nonsense" in ran.stderr


def test_tools_in_a_pipe_must_not_ask(tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(DICE.format(seconds=0))
    refused = piped("Roll D6 dice twice!\n", "--tools", str(file))
    assert refused.returncode == 1 and "add --no-ask-tools" in refused.stderr
    ran = piped("Roll D6 dice twice!\n", "--tools", str(file), "--no-ask-tools")
    assert ran.returncode == 0
    assert ran.stdout == "You rolled 4 and 4.\n"
    assert str(file) in ran.stderr and "roll_dice(max_num=6) -> 4" in ran.stderr and "rolling" in ran.stderr


def test_what_is_wrong_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    for arguments in (["--load", str(tmp_path / "none")], ["--tools", str(tmp_path / "none.py")], ["--top-p", "7"]):
        ran = piped("Hello\n", *arguments)
        assert (ran.returncode, ran.stdout) == (1, ""), arguments
        assert ran.stderr.startswith("error: ") or "\nerror: " in ran.stderr


# --- a terminal of tmux ---------------------------------------------------------------------


class Tmux:
    """A real terminal: type into it, and look at it."""

    def __init__(self, name: str, width: int, height: int, history: Path) -> None:
        self.name, self.size, self.history = name, (str(width), str(height)), history

    def start(self, *arguments: str) -> None:
        width, height = self.size
        command = f"{' '.join([*COMMAND, *arguments])}; echo code $?; stty -a; sleep 100"
        environment = ["-e", f"EXAONE4_MLX_HISTORY={self.history}", "-e", "LC_ALL=C.UTF-8"]
        self._run(
            "new-session", "-d", "-s", self.name, "-x", width, "-y", height, *environment, "-c", str(ROOT), command
        )
        self.wait_for(r"^(think)?> ?$")

    def type(self, text: str) -> None:
        self._run("send-keys", "-t", self.name, "-l", text)
        self.keys("Enter")

    def keys(self, *keys: str) -> None:
        self._run("send-keys", "-t", self.name, *keys)

    def resize(self, width: int) -> None:
        self._run("resize-window", "-t", self.name, "-x", str(width))

    def screen(self, *options: str) -> str:
        return self._run("capture-pane", "-p", "-S", "-100", "-t", self.name, *options)

    def wait_for(self, pattern: str, count: int = 1, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while len(re.findall(pattern, text := self.screen(), re.MULTILINE)) < count:
            assert time.monotonic() < end, f"{pattern} does not come:\n{text}"
            time.sleep(0.1)
        return text

    def close(self) -> None:
        self._run("kill-session", "-t", self.name)

    @staticmethod
    def _run(*arguments: str) -> str:
        return subprocess.run(["tmux", "-u", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is absent")
    terminal = Tmux(f"exaone4-{os.getpid()}", 100, 35, tmp_path / "history")
    yield terminal
    terminal.close()


@pytest.mark.heavy
def test_thoughts_and_tools_in_a_real_terminal(tmux: Tmux) -> None:
    tmux.start("--thinking", "--builtin-tools")
    tmux.type("D6 주사위를 두 번 굴려 줘!")
    text = tmux.wait_for(r"^\[\d+ tokens")
    assert re.search(
        r"^▸ thought [\d.]+ s, \d+ tokens; /thought shows it\n▸ roll_dice\(max_num=6\) → \d", text, re.MULTILINE
    )
    assert re.search(r"\n\n\d[^\n]*나왔습니다\.\n\n\[", text)
    tmux.type("/retry")
    tmux.wait_for(r"^\[\d+ tokens", count=2)
    tmux.keys("C-d")
    assert re.search(r" echo ", tmux.wait_for(r"^code 0")), "the terminal echoes again"


@pytest.mark.heavy
def test_ctrl_c_stops_a_tool_and_leaves_the_terminal_whole(tmux: Tmux, tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(DICE.format(seconds=60))
    tmux.start("--tools", str(file))
    tmux.type("Roll D6 dice twice!")
    tmux.wait_for("run it\\?")
    tmux.type("y")
    tmux.wait_for("rolling")
    tmux.resize(40)
    tmux.keys("C-c")
    text = tmux.wait_for(r"^> ?$")
    assert "✗ roll_dice was cancelled" in text and "[stopped]" in text
    assert "run it?" not in text
    assert tmux._run("display", "-p", "-t", tmux.name, "#{cursor_flag}").strip() == "1"
    tmux.keys("C-c")
    tmux.wait_for("Ctrl-C again")
    tmux.keys("C-c")
    assert re.search(r" echo ", tmux.wait_for(r"^code 0"))
