"""What the events of a reply leave on a terminal."""

from __future__ import annotations

import contextlib
import io
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from chat_terminals import DONE, REPLY, Clock, Terminal, pieces

from exaone4_mlx import Answer, Thinking, ToolCall
from exaone4_mlx.terminal.drawing import THEME, TerminalConsole
from exaone4_mlx.terminal.screen import Screen
from exaone4_mlx.text.events import Done
from exaone4_mlx.tools.toolbox import ToolResult


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(60, 12)


class Written(io.StringIO):
    """A terminal's file that keeps each write in `texts`."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.texts.append(text)
        return len(text)


def screen_on(terminal: Any, clock: Callable[[], float] = time.monotonic, **options: Any) -> Screen:
    width, height = getattr(terminal, "width", 60), getattr(terminal, "height", 12)
    console = TerminalConsole(
        file=terminal, width=width, height=height, force_terminal=True, theme=THEME, color_system="standard",
        highlight=False, _environ={},
    )  # fmt: skip
    return Screen(count_tokens=lambda text: len(text.split()), console=console, clock=clock, **options)


def shown(events: list[Any], terminal: Terminal, drawn: bool = True, **options: Any) -> str:
    """The text on a terminal after these events, with or without drawing after each."""
    screen = screen_on(terminal, clock=Clock(), **options)  # a thought takes no time on a busy machine
    with screen.reply():
        for event in events:
            screen.show(event)
            if drawn:
                screen.refresh()
    return terminal.text


def test_drawing_the_open_block_leaves_nothing_behind(terminal: Terminal) -> None:
    """The screen is the same whether the open block was drawn a hundred times or never."""
    events = [*pieces(Thinking, "가나다 " * 60), *pieces(Answer, REPLY), DONE]
    drawn = shown(events, terminal)
    assert drawn == shown(events, Terminal(60, 12), drawn=False)
    assert "Sorting 정렬" in drawn and "The end" in drawn and r"\[ a \\ b \]" in drawn


def test_no_language_of_code_stops_the_screen(terminal: Terminal) -> None:
    code = "<!--" * 14  # for which Pygments' lexer of mcschema never ends
    began = time.thread_time()
    drawn = shown([Answer(f"```mcschema\n{code}\n```"), DONE], terminal)
    assert "─── mcschema" in drawn and code in drawn and time.thread_time() - began < 3


def test_the_open_block_is_never_taller_than_the_screen() -> None:
    code = "```python\n" + "\n".join(f"line_{n} = {n}" for n in range(40)) + "\n```"
    for width in (20, 40, 100):
        terminal = Terminal(width, 8)
        text = shown([*pieces(Thinking, "한 생각 " * 100), *pieces(Answer, code, 9), DONE], terminal)
        assert 3 <= terminal.tallest_jump <= 7, width
        assert all(f"line_{n} = {n}" in text for n in range(40)), "the finished block is printed in full"


def test_the_items_of_a_loose_list_are_printed_one_by_one_with_their_numbers() -> None:
    terminal = Terminal(60, 8)
    text = shown([*(Answer(f"{n}. item\n\n") for n in range(3, 31)), DONE], terminal)
    assert [line.strip() for line in text.split("\n") if line] == [f"{n} item" for n in range(3, 31)]
    assert terminal.tallest_jump <= 2, "only the last item is drawn again"


def test_erased_rows_are_counted_at_the_present_width() -> None:
    file = Written()
    screen = screen_on(file, markdown=False)
    screen.console.width = 80
    with screen.reply():
        screen.show(Answer("x" * 70))
        screen.refresh()
        screen.console.width = 31
        screen.show(Answer("y"))
        screen.refresh()
        assert file.texts[-1].count("\x1b[1A") == 2, "70 columns take 3 rows in a terminal of 31 columns"


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


def test_every_write_ends_in_the_default_style() -> None:
    file = Written()
    screen = screen_on(file)
    events = [*pieces(Thinking, "dim " * 9), *pieces(Answer, "**bold** `code`"), ToolCall("f", {})]
    with contextlib.suppress(KeyboardInterrupt), screen.reply():
        for event in events:
            screen.show(event)
            screen.refresh()
        raise KeyboardInterrupt
    for text in file.texts:
        styles = re.findall(r"\x1b\[([\d;]*)m", text)
        assert not styles or styles[-1] == "0", "an interrupted terminal is not left dim"
        assert "\x1b[?25l" not in text, "the cursor stays visible"
    assert "not run" in "".join(file.texts)


def test_escape_codes_of_a_model_do_not_reach_the_terminal(terminal: Terminal) -> None:
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


def test_a_call_without_a_result_is_marked_as_not_run(terminal: Terminal) -> None:
    assert "▸ f() ✗ not run" in shown([ToolCall("f", {}), Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)], terminal)


def test_a_call_that_needs_an_answer_is_shown_in_full_and_once(terminal: Terminal) -> None:
    call = ToolCall("send", {"text": "word " * 30})
    screen = screen_on(terminal)
    with screen.reply():
        screen.show(call)
        screen.refresh()
        with screen.asking(call):
            screen.refresh()
            assert terminal.text.count("word") == 30, "the user sees the whole call"
        screen.show(ToolResult(call, "ok", False, 1.0))
    assert terminal.text.count("send(") == 1
    assert terminal.text.endswith('  → "ok"  1.00 s\n')


def test_text_that_a_tool_prints_appears_above_the_open_block(terminal: Terminal) -> None:
    screen = screen_on(terminal)
    with screen.reply():
        screen.show(Answer("one\n\ntwo and"))
        screen.refresh()
        sys.stdout.write("from a tool\n")
        sys.stderr.write("half a line")
        screen.show(Answer(" three"))
    lines = [line for line in terminal.text.splitlines() if line]
    assert lines == ["one", "from a tool", "two and three", "half a line"] or lines == [
        "one", "from a tool", "half a line", "two and three",
    ]  # fmt: skip


def test_an_invalid_call_is_shown_with_the_reason(terminal: Terminal) -> None:
    text = shown([Answer("<tool_call>{</tool_call>", "not JSON"), DONE], terminal)
    assert "<tool_call>{</tool_call>" in text and "✗ invalid tool call: not JSON" in text


def test_an_early_end_is_shown_with_advice() -> None:
    advice = {"length": "/continue goes on", "repetition": "/set presence_penalty 1.5", "cancelled": "[stopped]"}
    for reason, text in advice.items():
        events = [Answer("half"), Done(reason, 1, 0, 0, 1, 0, 0, 0, 0)]
        assert text in " ".join(shown(events, Terminal(60, 12)).split()), reason


def test_without_markdown_a_reply_is_shown_unchanged() -> None:
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


AS_WRITTEN = """\
<div class="a">본문</div> List<String> x < y
<details>
<summary>더 보기</summary>

숨은 내용 &lt; &nbsp; <!-- 주석 -->
</details>

\\(y\\) \\[z_1*z_2\\] $a_1*b_1$, 2*3*4, x**2 + y**2, 3~5시, 7~9시, __init__은

[1]: https://ko.wikipedia.org/wiki/한국 <https://a.b/~c>"""


def test_text_outside_code_is_shown_as_written() -> None:
    written = shown([*pieces(Answer, AS_WRITTEN), DONE], Terminal(90, 30))
    assert written.replace("\n", "") == AS_WRITTEN.replace("\n", "")
    links = "![그림](https://a.b/그림_1.png) [말](https://a.b/말)"
    assert shown([Answer(links), DONE], Terminal(90, 30)) == "!그림 (https://a.b/그림_1.png) 말 (https://a.b/말)\n"


def test_korean_bold_ends_before_a_particle() -> None:
    text = '**엑사원(EXAONE)**은 **"중요"**합니다, **100%**입니다.\n\n| **가(나)**은 | 3~5 |\n|---|---|\n| *가*는 | `**a)**은` |'
    written = shown([*pieces(Answer, text), DONE], Terminal(90, 30))
    assert written.replace("─", "").split() == (
        '엑사원(EXAONE)은 "중요"합니다, 100%입니다. 가(나)은 3~5 가는 **a)**은'.split()
    )
    assert "…" not in shown([Answer(f"| 가 |\n|---|\n| {'a' * 99} |\n"), DONE], Terminal(50, 12)), (
        "a long word is whole"
    )


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


def test_a_long_prompt_shows_progress_with_the_time_left(terminal: Terminal) -> None:
    clock = Clock()
    screen = screen_on(terminal, clock=clock)
    with screen.reply():
        screen.progress(1000, 11_000)
        screen.refresh()
        assert terminal.text.strip() == "", "no progress for quick work"
        clock.now = 2.0
        screen.progress(6000, 11_000)
        screen.refresh()
        assert terminal.text.endswith("reading: 6,000 of 11,000 tokens, 2 s left")
        screen.progress(11_000, 11_000)
        screen.show(Answer("ok"))
    assert terminal.text == "ok\n"
