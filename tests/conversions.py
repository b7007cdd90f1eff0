"""Helpers of the conversion tests: checkpoints to convert, and conversions that are interrupted or killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT

from exaone4_mlx import Exaone4Config, Exaone4ForCausalLM, convert
from exaone4_mlx.conversion.plan import CHUNK_WEIGHTS
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import named_parameters

#: Converts the demo, and kills its own process some seconds after the first tensor, or at the progress of that number.
KILLED = """
import json, os, signal, sys, threading
from exaone4_mlx import convert
path, options, seconds, number = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
calls = []
def progress(done, total, stage):
    calls.append(stage)
    if len(calls) == 1 and seconds >= 0:
        threading.Timer(seconds, kill).start()
    if len(calls) == number:
        kill()
convert("demo", path, progress=progress, **options)
"""

#: Runs conversions, and prints the peak memory of each and its estimate.
MEASURED = """
import json, sys
from exaone4_mlx.conversion import plan
from exaone4_mlx.conversion.convert import run_conversion
from exaone4_mlx.conversion.prepare import prepare
from exaone4_mlx.conversion.request import ConversionRequest
plan.CHUNK_WEIGHTS = int(sys.argv[1])
for source, target, options in json.loads(sys.argv[2]):
    conversion = prepare(source, target, ConversionRequest(**options))
    print(run_conversion(conversion).peak_bytes, conversion.peak_bytes)
"""


def random_checkpoint(folder: Path, layers: int, vocabulary: int = 3072) -> Path:
    """The demo with random weights and another number of layers and tokens."""
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("recipe", "*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    pattern = ["sliding_attention"] * 3 + ["full_attention"]
    config |= {"num_hidden_layers": layers, "vocab_size": vocabulary, "layer_types": (pattern * layers)[:layers]}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = named_parameters(Exaone4ForCausalLM(Exaone4Config.from_dict(config)))
    weights = {name: mx.random.normal(array.shape, dtype=mx.bfloat16) for name, array in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def weights_of(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model.safetensors"))  # type: ignore[return-value]


def edit_weights(folder: Path, **changes: Callable[[mx.array], mx.array]) -> None:
    """Replaces weights of a checkpoint: `changes` are functions by name, with __ in place of dots."""
    weights = weights_of(folder)
    for name, change in changes.items():
        name = name.replace("__", ".")
        weights[name] = change(weights[name])
    mx.save_safetensors(str(folder / "new.safetensors"), weights)
    (folder / "new.safetensors").rename(folder / "model.safetensors")  # arrays that are read later keep their file


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file except the report, which has times."""
    files = [file for file in folder.iterdir() if file.name != "report.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def killed(path: Path, options: dict[str, Any], seconds: float = -1, number: int = -1) -> bool:
    """Whether a conversion in its own process was killed before its end."""
    arguments = [str(path), json.dumps(options), str(seconds), str(number)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def interrupted(path: Path, number: int = 20, source: str | Path = "demo", **options: Any) -> Path:
    """The staging folder of a conversion that is interrupted at the progress of that number."""
    calls: list[int] = []

    def progress(done: int, total: int, stage: str) -> None:
        calls.append(done)
        if len(calls) == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, path, progress=progress, **options)
    return path.with_name(path.name + ".partial")


def peak_memory(*conversions: tuple[Path | str, Path, dict[str, Any]], chunk: int = CHUNK_WEIGHTS) -> list[int]:
    """The peak memory in bytes of each conversion (source, target, options), which is below its estimate.

    They run in a process of their own: arrays of other tests would count in this one.
    """
    arguments = [
        str(chunk),
        json.dumps([[str(source), str(target), options] for source, target, options in conversions]),
    ]
    lines = subprocess.check_output([sys.executable, "-c", MEASURED, *arguments], cwd=ROOT, text=True).splitlines()
    figures = [tuple(map(int, line.split())) for line in lines]
    assert all(peak < estimate for peak, estimate in figures), f"the estimate is an upper bound: {figures}"
    return [peak for peak, _ in figures]
