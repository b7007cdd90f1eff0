"""Progress bars and JSON of the commands."""

from __future__ import annotations

import io
import json
import math
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
