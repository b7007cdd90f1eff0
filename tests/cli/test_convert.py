"""`convert` and convert.py, as a user runs them. The conversion itself: tests/conversion/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx.cli.main import main


def test_convert_py_writes_a_folder_that_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "convert.py", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--q-bits", "8"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "bits per weight" in result.stdout
    assert main(["generate", "--model", str(tmp_path / "out"), "-p", "Hello", "--temp", "0", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.strip()
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "already exists" in again.stderr


def test_the_summary_can_be_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--no-quantize", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_weight"] == pytest.approx(16)


@pytest.mark.usefixtures("demo_tokenizer")
def test_a_conversion_that_needs_too_much_memory_gets_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: Any
) -> None:
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--dry-run", "--calibrate", "gptq"]
    machine(100, 200)
    assert main(command) == 0
    assert re.search(
        r"warning: this needs about \d+ MB of memory at its peak, and MLX may use 100 MB here; "
        "--no-calibrate needs less",
        capsys.readouterr().err,
    )
    machine(100_000, 200_000)
    assert main(command) == 0
    assert "warning" not in capsys.readouterr().err
