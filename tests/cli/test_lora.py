"""`exaone4-mlx lora`: data before weights, what is learned, memory, and a killed run that is resumed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import PROGRAM, TerminalText, errors, process
from conftest import ROOT, distance, random_ids, tiny_model

from exaone4_mlx import Tokenizer, load
from exaone4_mlx.cli.main import main

LESSONS = [{"prompt": f"Question {n}?", "completion": f"Answer {n} {n}."} for n in range(9)]
OPTIONS = ["--iters", "3", "--rank", "2", "--learning-rate", "0.01", "--quiet"]


def write_lines(folder: Path, **splits: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, entries in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data", train=LESSONS[:7], valid=LESSONS[7:])


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shape = {"num_hidden_layers": 2, "sliding_window_pattern": "LG", "vocab_size": 3072}
    tiny_model(**shape, max_position_embeddings=4096, pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run_prints_its_losses_and_writes_the_adapter(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lora", "--model", str(tiny_folder), "--data", str(data), "--adapter-path", str(tmp_path / "a")]
    assert main([*command, *OPTIONS]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'a'}: 3 steps in" in out
    assert "validation loss" in out and "drift" in out
    assert main([*command[:-1], str(tmp_path / "b"), *OPTIONS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 3 and len(found["train_losses"]) == 3
    model, _ = load(tiny_folder, adapter_path=tmp_path / "a")
    ids = random_ids(9)
    tuned = model(ids)
    model.set_adapters()
    assert distance(model(ids), tuned) > 0.01


def test_data_is_checked_before_the_weights_are_read(
    tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_lines(tmp_path / "bad", train=[LESSONS[0], {"prompt": "a"}])
    err = errors(capsys, "lora", "--model", "demo", "--data", str(bad))
    assert err == f'error: {bad / "train.jsonl"}, line 2: "completion" must be a string that is not blank\n'
    long = write_lines(tmp_path / "long", train=[{"prompt": "a", "completion": "word " * 99}])
    err = errors(capsys, "lora", "--model", "demo", "--data", str(long), "--max-seq-length", "50")
    assert "would be cut off; --max-seq-length is 50: raise it, or leave this example out" in err
    err = errors(capsys, "lora", "--model", "demo", "--data", str(tmp_path), "--epochs", "0")
    assert err == "error: --epochs must be a positive number, not 0.0\n"


def test_show_marks_what_is_learned(
    data: Path, no_weights: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["lora", "--model", "demo", "--data", str(data), "--show", "2"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.count("--- ") == 2
    assert out.endswith("Question 1?[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\n⟦Answer 1 1.[|endofturn|]⟧\n")
    assert err.startswith("train: 7 examples of ")
    monkeypatch.setenv("TERM", "xterm")
    terminal = TerminalText()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(command) == 0
    assert "\x1b[32mAnswer 1 1.[|endofturn|]\x1b[0m" in terminal.getvalue()


def test_weights_are_quantized_where_memory_asks_for_it(
    data: Path, no_weights: None, machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lora", "--model", "demo", "--data", str(data), "--num-layers", "1", "--rank", "1", "--batch-size", "1"]
    for memory, expected in ((100, None), (12, "the weights are quantized to 4 bits"), (5, "the training needs")):
        machine(memory, memory)
        err = errors(capsys, *command)
        assert expected is None or expected in err
        assert ("the weights are being read" in err) == (memory > 5), "what does not fit is refused before it is loaded"
        assert ("quantized to" in err) == (memory == 12)
    assert main([*command, "--ignore-memory", "--show", "1"]) == 0


@pytest.mark.heavy
def test_a_killed_run_that_is_resumed_ends_with_the_same_bytes(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Kill -9 at a random step. The state on disk is whole at any time."""
    options = ["--model", tiny_folder, "--data", data, "--iters", "40", "--rank", "2", "--dropout", "0.2"]
    options += ["--save-every", "3", "--steps-per-eval", "5", "--learning-rate", "0.01"]
    command = ["lora", *map(str, options), "--adapter-path"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert process(*command, whole, timeout=300).returncode == 0
    seed = random.randrange(10**6)
    killed_after = random.Random(seed).randrange(4, 36)
    script = (
        "import os, signal, sys\n"
        "from exaone4_mlx.tuning import tune\n"
        "write = tune.write_state\n"
        "count = 0\n"
        "from exaone4_mlx.tuning.loop import Loop\n"
        "step = Loop._step\n"
        "def counted(self, number):\n"
        f"    if number == {killed_after}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number)\n"
        "Loop._step = counted\n"
        "from exaone4_mlx.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command, str(parts)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert process(*command, parts, "--resume", timeout=300).returncode == 0
    same = (parts / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()
    assert same, f"killed before step {killed_after}"


@pytest.mark.heavy
def test_ctrl_c_says_how_to_go_on(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    command = ["lora", "--model", str(tiny_folder), "--data", str(data), "--iters", "100000", "--save-every", "1"]
    command += ["--adapter-path", str(tmp_path / "a"), "--steps-per-eval", "1"]
    running = subprocess.Popen([*PROGRAM, *command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stderr is not None
    while "step 3:" not in running.stderr.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert "the same command with --resume goes on from the last save" in running.communicate(timeout=60)[1]
    assert running.returncode == 130
