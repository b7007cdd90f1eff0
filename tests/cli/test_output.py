"""Progress bars and JSON of the commands."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from commands import GENERATE, TerminalText
from conftest import until

from exaone4_mlx.cli import output
from exaone4_mlx.cli.main import main
from exaone4_mlx.cli.output import progress_bar


def test_a_bar_counts_whole_numbers_and_appears_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = TerminalText()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(output, "BAR_SECONDS", 0.05)
    with progress_bar("reading the prompt", " tokens") as progress:
        until(lambda: "reading the prompt: 0 tokens" in screen.getvalue())
        progress(1500, 4000)
        until(lambda: "1500/4000" in screen.getvalue())
        with progress_bar("downloading x/y", "B") as inner:
            inner(1, 2)
            until(lambda: "downloading x/y:  50%" in screen.getvalue())
            before = screen.getvalue().count("reading")
            time.sleep(0.15)
            assert screen.getvalue().count("reading") == before, "one bar at a time"
        until(lambda: screen.getvalue().count("reading") > before)
    ended = screen.getvalue()
    time.sleep(0.15)
    assert screen.getvalue() == ended, "a bar that has ended is not drawn again"


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(what: str, unit: str) -> str:
        with progress_bar(what, unit) as progress:
            for done in (0, 2_500_000, 4_000_000):
                progress(done, 4_000_000)
        return capsys.readouterr().err

    assert printed("loading", "B") == ""
    monkeypatch.setattr(output, "LINE_SECONDS", 0)
    assert printed("loading", "B") == "loading: 0 MB of 4 MB\nloading: 2 MB of 4 MB\n"
    assert printed("evaluating", " blocks").splitlines()[1] == "evaluating: 2500000 of 4000000 blocks"
    output.set_quiet(True)
    assert printed("loading", "B") == ""
    output.set_quiet(False)


def test_quiet_prints_the_result_and_warnings_only(capsys: pytest.CaptureFixture[str], machine: Any) -> None:
    ask = [*GENERATE, "-p", "Hello", "-m", "3", "--q-bits", "4", "--quiet"]
    assert main(ask) == 0
    out, err = capsys.readouterr()
    assert out and err == ""
    machine(1, 100)
    assert main(ask) == 0
    assert [line[:8] for line in capsys.readouterr().err.splitlines()] == ["warning:", "(6 MB wi"]
    assert main(["generate", "--model", "dmeo", "-p", "x", "--quiet"]) == 1
    assert "there is no folder dmeo" in capsys.readouterr().err


def test_standard_output_can_be_reserved_for_results() -> None:
    """Also against what a tool writes past Python: by a file descriptor, or by a program that it runs."""
    code = (
        "import os, subprocess, sys\nfrom exaone4_mlx.cli.output import results_alone, show\n"
        "show('1')\nwith results_alone():\n    show('2'); print('a'); os.write(1, b'b'); subprocess.run(['echo', 'c'])\n"
        "    print('d', file=sys.__stdout__, flush=True); show('한')\nprint('4')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert ended.stdout.split() == ["1", "2", "한", "4"], ended
    assert sorted(ended.stderr.replace("b", "b ").split()) == ["a", "b", "c", "d"], ended
