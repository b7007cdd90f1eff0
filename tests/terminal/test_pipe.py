"""A chat without a terminal."""

from __future__ import annotations

import io
import sys

import pytest
from chat_terminals import DONE

from exaone4_mlx import Answer, Thinking, ToolCall
from exaone4_mlx.terminal.pipe import PipeInput, PipeScreen
from exaone4_mlx.tools.toolbox import ToolResult


def test_answers_go_to_standard_output_and_the_rest_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_lines_are_read_in_any_usual_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp949"):
        data = "안녕?\r\n\n끝".encode(encoding)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        lines = PipeInput()
        assert [lines.read("> ") for _ in range(3)] == ["안녕?", "", "끝"], encoding
        with pytest.raises(EOFError):
            lines.read("> ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\0b\n")))
    with pytest.raises(ValueError, match="a line of standard input holds no text"):
        PipeInput().read("> ")
