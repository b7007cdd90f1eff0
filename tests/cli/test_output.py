"""Progress bars and JSON of the commands."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time

import pytest
from commands import TerminalText

from exaone4_mlx.cli.output import progress_bar, show_json


def test_progress_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(screen: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", screen)
        with progress_bar("reading the prompt", " tokens") as progress:
            progress(0, 100)
            time.sleep(0.6)
            progress(50, 100)
            progress(60, 100)
        return screen.getvalue()

    assert "reading the prompt" in drawn(TerminalText())
    assert drawn(io.StringIO()) == ""


def test_json_has_null_for_infinity_and_nan(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [math.inf, 1.5], "b": {"c": math.nan}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}


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
