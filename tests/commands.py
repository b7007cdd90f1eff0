"""Runs commands in this process or in another one, for the tests of the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx.cli.main import main

GENERATE = ["generate", "--model", "demo", "--temp", "0", "--dtype", "float32"]
PROGRAM = [sys.executable, "-m", "exaone4_mlx"]


class TerminalText(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of `generate` with these arguments; it must succeed."""
    assert main([*GENERATE, *arguments]) == 0
    return capsys.readouterr().out


def errors(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard error of a command that must fail with exit code 1 and print no result."""
    assert main(arguments) == 1, arguments
    out, err = capsys.readouterr()
    assert out == "", arguments
    return err


def process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
    """A command in a process of its own."""
    options = {"capture_output": True, "check": False, "timeout": 60, "cwd": ROOT} | options
    return subprocess.run([*PROGRAM, *arguments], **options)
