"""Lines, keys, history and questions of the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from exaone4_mlx.terminal.input import TerminalInput, history_file


@contextmanager
def typing(text: str, history: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TerminalInput]:
    monkeypatch.setenv("EXAONE4_MLX_HISTORY", str(history))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(text)
        yield TerminalInput(lambda text: [], lambda text: pytest.fail(text))


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, text in {
        "Hello\r": "Hello",
        "안녕\r": "안녕",
        "one\x1b\rtwo\r": "one\ntwo",
        "one\\\rtwo\r": "one\ntwo",
        '"""one\rtwo"""\r': '"""one\ntwo"""',
        "lost\x03kept\r": "kept",
    }.items():
        with typing(typed, tmp_path / "history", monkeypatch) as line:
            assert line.read("> ") == text, typed


def test_text_cleared_by_ctrl_c_stays_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing("a long question\x03short\r", tmp_path / "history", monkeypatch) as line:
        assert line.read("> ") == "short"
    assert "+a long question" in (tmp_path / "history").read_text()


def test_ctrl_c_and_ctrl_d_at_an_empty_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing("\x03", tmp_path / "history", monkeypatch) as line, pytest.raises(KeyboardInterrupt):
        line.read("> ")
    with typing("\x04", tmp_path / "history", monkeypatch) as line, pytest.raises(EOFError):
        line.read("> ")


def test_the_history_is_kept_and_only_its_owner_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "history"
    with typing("first 질문\r", file, monkeypatch) as line:
        line.read("> ")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.chmod(0o644)
    with typing("\x1b[A\r", file, monkeypatch) as line:
        assert line.read("> ") == "first 질문"
    assert file.stat().st_mode & 0o777 == 0o600


def test_lines_can_stay_out_of_the_history_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with typing("secret\r", tmp_path / "history", monkeypatch):
        line = TerminalInput(lambda text: [], pytest.fail, stores=False)
        assert line.read("> ") == "secret"
    assert "secret" not in (tmp_path / "history").read_text()


def test_a_history_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXAONE4_MLX_HISTORY", str(tmp_path / "file" / "history"))
    warned: list[str] = []
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("Hello\r")
        assert TerminalInput(lambda text: [], warned.append).read("> ") == "Hello"
    assert warned and "not stored" in warned[0]


def test_the_path_of_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXAONE4_MLX_HISTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_file() == Path.home() / ".local/state/exaone4_mlx/history"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert history_file() == Path.home() / "Library/Application Support/exaone4_mlx/history"


def test_questions_accept_yes_no_and_always_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TerminalInput, "_discard_typed", staticmethod(lambda session: None))  # the test types ahead
    for typed, answer in {
        "x\ry\r": "yes",
        "\rNo\r": "no",
        "a\r": "always",
        "\x04": "no",
        "What about Lima?\ryes\r": "yes",
    }.items():
        with typing(typed, tmp_path / "history", monkeypatch) as line:
            assert line.ask() == answer, typed
