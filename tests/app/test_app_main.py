"""`python -m app`: its command line, before anything heavy is done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from app import models
from app.__main__ import main


def run(*arguments: str, code: str = "import app.__main__ as m; raise SystemExit(m.main())") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_help_needs_neither_gradio_nor_mlx() -> None:
    code = (
        "import sys, app.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "finally: print('heavy:', sorted({'gradio', 'mlx.core', 'huggingface_hub'} & set(sys.modules)))"
    )
    status, out = run(code=code)
    assert status == 0 and "heavy: []" in out, out


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main([flag])
    short, _, long = capsys.readouterr().out.partition("all options.\n")
    assert len(short.splitlines()) <= 24 and max(map(len, short.splitlines())) <= 80, short
    assert "--ignore-memory" in long and "--ignore-memory" not in short


def test_logic_of_the_app_needs_no_gradio() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "import app.i18n, app.settings, app.render, app.models, app.session, "
        "app.engine, app.state, app.status"
    )
    assert run(code=code) == (0, "")


def test_messages_and_words_need_no_mlx() -> None:
    code = "import sys; sys.modules['mlx.core'] = None; import app.i18n, app.render"
    assert run(code=code) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "demo", "--tools", "missing.py"], "there is no file of tools missing.py"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (
            ["--model", "demo", "--max-kv-size", "9000"],
            "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 9000",
        ),
        (
            ["--model", "demo", "--max-kv-size", "1"],
            "--max-kv-size must be a number of tokens from 2 to the model's 8192, not 1",
        ),
        (["--model", "demo", "--kv-layers", "global"], "--kv-layers 'global' has no effect without --kv-bits"),
        (["--model", "demo", "--draft-model", "/no/such/folder"], "/no/such/folder"),
        (["--model", "demo", "--num-draft-tokens", "2"], "--num-draft-tokens needs --draft-model or --prompt-lookup"),
    ],
)
def test_what_is_wrong_is_one_line_before_weights_are_read(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(models, "Loading", lambda path, **more: pytest.fail(f"{path} is being read"))
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and expected in error


def test_what_will_not_fit_is_said_and_what_cannot_work_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def loading(path: str, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "Loading", loading)
    monkeypatch.setattr("exaone4_mlx.measure.fit.memory_of_this_machine", lambda: 100_000_000)
    command = ["--model", "demo", "--data-dir", str(tmp_path)]
    assert main(command) == 130
    warning, helps, loads = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: this may take 2") and "and a model may have 100 MB here" in warning
    assert re.fullmatch(r"\(--max-kv-size \d+ fits; --kv-bits 8 and .*; --ignore-memory hides this warning\)", helps)
    assert loads == "loading demo"
    for quiet in (["--ignore-memory"], ["--max-kv-size", "500"]):
        assert main([*command, *quiet]) == 130
        assert capsys.readouterr().err == "loading demo\n", quiet
    monkeypatch.setattr("exaone4_mlx.measure.fit.physical_memory", lambda: 8_000_000)
    assert main(command) == 1
    assert "error: the weights have 11 MB, and this machine has 8 MB of memory; " in capsys.readouterr().err
    assert main([*command, "--ignore-memory"]) == 130


def test_tools_file_with_a_syntax_error_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text("def roll(:\n    pass\n")
    assert main(["--model", "demo", "--tools", str(tools), "--data-dir", str(tmp_path)]) == 1
    assert f"{tools}:1" in capsys.readouterr().err
    assert not (tmp_path / "conversations").exists()


def test_invalid_tools_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text("raise RuntimeError('no network')\n")
    assert main(["--model", "demo", "--tools", str(tools), "--data-dir", str(tmp_path)]) == 1
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error == f"error: {tools}:1: RuntimeError: no network"


def test_with_debug_an_error_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        main(["--model", "/no/such/folder", "--debug", "--data-dir", str(tmp_path)])


def test_interrupt_while_a_model_is_read_ends_quietly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def interrupted(path: str, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "Loading", interrupted)
    assert main(["--model", "demo", "--data-dir", str(tmp_path)]) == 130
    assert "error" not in capsys.readouterr().err


@pytest.mark.heavy
def test_proxies_do_not_keep_the_app_from_starting(tmp_path: Path) -> None:
    proxies = {
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "all_proxy": "socks5://127.0.0.1:9",
    }
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies
    command = [sys.executable, "-m", "app", "--model", "demo", "--no-browser", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = [running.stderr.readline()]
        while lines[-1] and "EXAONE is at" not in lines[-1]:
            lines.append(running.stderr.readline())
        running.send_signal(signal.SIGINT)
        lines.append(running.stderr.read())
    assert "EXAONE is at http://127.0.0.1:" in "".join(lines), lines
    assert "Traceback" not in lines[-1]
    assert running.returncode == 130
