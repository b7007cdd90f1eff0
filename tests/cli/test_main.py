"""The program as a whole: exit codes, usage errors, streams, signals, and what a start imports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import GENERATE, PROGRAM, errors, output, process
from conftest import ROOT

from exaone4_mlx.cli.main import COMMANDS, main

HEAVY = ("transformers", "mlx_lm", "torch", "gradio", "huggingface_hub", "numpy")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        main([*GENERATE, "-p", "", "--debug"])


def test_an_x86_python_on_apple_silicon_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert "needs a native Python on Apple silicon" in errors(capsys, *GENERATE, "-p", "x")


def test_all_entry_points_run_the_same_program() -> None:
    fronts = [[sys.executable, "-m", "exaone4_mlx.generate"], [*PROGRAM, "generate"]]
    if (script := Path(sys.executable).with_name("exaone4-mlx")).exists():
        fronts.append([str(script), "generate"])
    runs = [
        subprocess.run([*front, *GENERATE[1:], "-p", ""], capture_output=True, text=True, cwd=ROOT) for front in fronts
    ]
    assert {(run.returncode, run.stdout, run.stderr) for run in runs} == {(1, "", "error: the prompt is empty\n")}


def test_importing_an_entry_point_runs_nothing() -> None:
    script = "import exaone4_mlx.generate, exaone4_mlx.__main__, convert; print('quiet')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "quiet\n"


# --- streams and signals ----------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_partial_reply_and_exits_with_130(hf_folder: Path, edit_json: Any) -> None:
    edit_json(hf_folder / "config.json", eos_token_id=0)  # a reply that never ends by itself
    edit_json(hf_folder / "tokenizer_config.json", eos_token="[PAD]")
    edit_json(hf_folder / "generation_config.json", eos_token_id=0)
    command = [*PROGRAM, "generate", "--model", str(hf_folder), "-p", "Hello", "--jsonl", "--temp", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    rest, err = running.communicate(timeout=30)
    assert "Traceback" not in err
    events = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert running.returncode == 130
    assert events[0]["type"] == "answer"
    assert events[-1]["finish_reason"] == "cancelled"
    assert events[-1]["answer_tokens"] >= len(events) - 1


SLOW_PROMPT = """
import os, signal, sys, time
from exaone4_mlx.generation import prefill
from exaone4_mlx.model import layer
prefill.CHECK_SECONDS, call = 0, layer.Layer.__call__
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
def slow(self, x, *rest):
    if x.shape[1] > 128:
        os.write(2, b"layer\\n")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            time.sleep(0.01)  # until the first Ctrl-C
        time.sleep(SECONDS / 100)
    return call(self, x, *rest)
layer.Layer.__call__ = slow
sys.argv = ["exaone4-mlx", "generate", "--model", "demo", "-p", "Hello " * 400, "--json"]
from exaone4_mlx.cli.program import run_program
run_program()
"""


def interrupted_prompt(seconds: float, presses: int = 1) -> tuple[int, str, str]:
    """Presses Ctrl-C while the first layer reads one chunk, and again after each line that says so."""
    script = f"SECONDS = {seconds}\n{SLOW_PROMPT}"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        err = ""
        try:
            for waits_for in ("layer\n", "stopping\n")[:presses]:
                while waits_for not in err:
                    line = running.stderr.readline()
                    assert line, err
                    err += line
                running.send_signal(signal.SIGINT)
            return running.wait(10), running.stdout.read(), err + running.stderr.read()
        finally:
            running.kill()


def test_ctrl_c_ends_a_prompt_within_a_chunk_and_says_so() -> None:
    code, out, err = interrupted_prompt(seconds=20)
    assert code == 130, err
    assert json.loads(out)["finish_reason"] == "cancelled"
    assert err.count("stopping") == 1
    assert err.count("layer") < 8, "of the demo's 8 layers"
    assert "Traceback" not in err


def test_the_second_ctrl_c_ends_the_process_at_once() -> None:
    code, out, err = interrupted_prompt(seconds=2000, presses=2)
    assert (code, out) == (-signal.SIGINT, "")
    assert "Traceback" not in err


def test_ctrl_c_ends_a_start_without_a_traceback() -> None:
    script = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == at:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
at, sys.argv = sys.argv[1], ["exaone4-mlx", "generate", "--model", "demo", "-p", "Hello"]
runpy.run_module("exaone4_mlx", run_name="__main__")
"""
    modules = ["exaone4_mlx.cli.main", "argparse", "exaone4_mlx.cli.generate", "mlx.core", "tokenizers"]
    started = {
        module: subprocess.Popen([sys.executable, "-c", script, module], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for module in modules
    }
    for module, running in started.items():
        _, err = running.communicate(timeout=30)
        assert running.returncode in (130, -signal.SIGINT), (module, err)
        assert err in ("", "stopping\n"), module


def test_a_closed_pipe_is_no_error() -> None:
    command = [*PROGRAM, *GENERATE, "-p", "Hello", "--jsonl"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(timeout=30) == 0
    assert running.stderr.read() == ""
    running.stderr.close()


def test_text_is_utf_8_in_every_locale(demo_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    latin = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    ask = ["-p", "안녕하세요", "--json", "-m", "5"]
    text = json.loads(process(*GENERATE, *ask, env=os.environ | latin).stdout)["text"]
    assert text == json.loads(output(capsys, *ask))["text"]


def test_a_prompt_that_is_not_text_is_refused() -> None:
    done = process(*GENERATE, "-p", b"a\xffb")
    assert (done.returncode, done.stderr) == (1, b"error: --prompt is not UTF-8 text\n")


@pytest.mark.heavy
def test_closed_standard_streams_are_no_error() -> None:
    command = " ".join([*PROGRAM, *GENERATE, "-p Hello -m 3"])
    for redirection in (">&-", "2>&-", "<&-"):
        done = subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == 0, redirection


# --- imports ----------------------------------------------------------------------------------------------------


def test_imports_and_a_whole_reply_import_nothing_heavy() -> None:
    """What an import imports is there after a reply, too."""
    script = f"""
import sys
from exaone4_mlx import generate
from exaone4_mlx.cli.main import main
main([*{GENERATE}, "-p", "Hello", "-m", "3"])
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_fits_a_screen_and_help_all_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        for flag in ("--help", "--help-all"):
            with pytest.raises(SystemExit) as exit:
                main([command, flag])
            assert exit.value.code == 0
        short, _, long = capsys.readouterr().out.partition("all options.\n")
        assert len(short.splitlines()) <= 24, command
        assert max(map(len, short.splitlines())) <= 80, command
        assert len(re.findall(rf"^  exaone4-mlx {command}", short, re.MULTILINE)) == 2, command
        assert set(re.findall(r"--[\w-]+", short)) <= set(re.findall(r"--[\w-]+", long)), command


def test_each_command_is_a_module_whose_help_imports_neither_mlx_nor_the_other_commands() -> None:
    for command in COMMANDS:
        program = ["exaone4_mlx", command] if command == "cluster" else [f"exaone4_mlx.{command}"]  # the name of a room
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", *program, "--help"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.startswith(f"usage: exaone4-mlx {command}"), done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time")]
        imported = {line.rpartition("|")[2].strip() for line in lines}
        assert "argparse" in imported
        heavy = {"mlx.core", "tokenizers", "jinja2", "transformers", "rich", "prompt_toolkit"}
        shared = {"evaluate"} | ({"convert"} if command == "fuse" else set())  # whose flags and table it has
        others = {f"exaone4_mlx.cli.{name}" for name in COMMANDS if name not in {command, *shared}}
        assert not (heavy | others) & imported, command
