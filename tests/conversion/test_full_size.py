"""The full-size 1.2B with random weights: converted in bounded memory, compared with mlx-lm, loaded, and run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import LLAMA3, ROOT
from mlx.utils import tree_flatten

from exaone4_mlx import Exaone4Config, Exaone4ForCausalLM
from exaone4_mlx.files.folders import DEMO_FOLDER

pytestmark = pytest.mark.heavy

#: Sizes of EXAONE-4.0-1.2B, as published.
SIZES: dict[str, Any] = {
    "model_type": "exaone4",
    "vocab_size": 102_400,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 65_536,
    "rms_norm_eps": 1e-5,
    "rope_parameters": LLAMA3 | {"rope_theta": 1_000_000.0, "original_max_position_embeddings": 8192},
    "sliding_window": None,
    "sliding_window_pattern": None,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 361,
}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of 2.56 GB in Hugging Face's layout, with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("full")
    config = Exaone4Config.from_dict(SIZES)
    (folder / "config.json").write_text(json.dumps(SIZES | config.to_dict() | {"torch_dtype": "bfloat16"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((DEMO_FOLDER / name).read_bytes())
    keys = iter(mx.random.split(mx.random.key(0), 1000))
    weights = {}
    for name, array in tree_flatten(Exaone4ForCausalLM(config).parameters()):
        scale = 0.3 if array.ndim == 1 else array.shape[-1] ** -0.5
        noise = mx.random.normal(array.shape, scale=scale, key=next(keys))
        weights[name] = ((1.0 if array.ndim == 1 else 0.0) + noise).astype(mx.bfloat16)
        mx.eval(weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


#: Prints the peak resident memory of its own process in MB. Linux counts a parent's peak in ru_maxrss too.
PRINT_PEAK = """
import pathlib, re, resource, sys
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1e3)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def peak_and_seconds(script: str) -> tuple[float, float]:
    """Peak resident memory in MB and seconds of a new Python process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", script + PRINT_PEAK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.split()[-1]), time.perf_counter() - started


def test_memory_is_bounded_and_the_result_runs(full_size: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {name: full_size.parent / name for name in ("search", "plain", "theirs")}
    peaks, seconds = {}, {}
    for name, script in {
        "search": "from exaone4_mlx import convert; convert({!r}, {!r})",
        "plain": "from exaone4_mlx import convert; convert({!r}, {!r}, search=False)",
        "theirs": "from mlx_lm import convert; convert({!r}, {!r}, quantize=True)",
    }.items():
        peaks[name], seconds[name] = peak_and_seconds(script.format(str(full_size), str(folders[name])))
    reply = subprocess.run(
        [sys.executable, "-m", "exaone4_mlx", "generate", "--model", str(folders["search"]), "-p", "Hello",
         "--dtype", "float32", "--max-tokens", "1", "--temp", "0", "--json"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    reply_values = json.loads(reply.stdout)
    with capsys.disabled():
        for name, peak in peaks.items():
            print(f"\nfull-size 1.2B to 4 bits, {name}: {seconds[name]:.0f} s, peak {peak:.0f} MB", end="")
        print(
            f"\none token after loading: {reply_values['prefill_seconds']:.1f} s of prefill, "
            f"peak {reply_values['peak_bytes'] / 1e6:.0f} MB"
        )
    ours, plain, theirs = (mx.load(str(folder / "model.safetensors")) for folder in folders.values())
    assert all(mx.array_equal(plain[name], theirs[name]).item() for name in theirs), "the same weights, bit for bit"
    assert {name: array.shape for name, array in ours.items()} == {n: array.shape for n, array in theirs.items()}
    assert max(peaks["search"], peaks["plain"]) < 900 < peaks["theirs"]
    assert reply_values["answer_tokens"] + (reply_values["finish_reason"] == "stop") == 1


#: Loads the part of a rank. Prints the bytes that were read, those of the weights, and MLX's peak.
READ_A_PART = """
import types, pathlib, mlx.core as mx
from mlx.utils import tree_flatten
from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.model.pretrained import load_network
read = lambda: int(pathlib.Path("/proc/self/io").read_text().split()[1])
ranks = types.SimpleNamespace(rank={rank}, size={size}, pipeline=False, agree=lambda *a: None, total=lambda x: x)
before = read()
model = load_network(Exaone4ForCausalLM, pathlib.Path({folder!r}), ranks=ranks)
weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
print(read() - before, weights, mx.get_active_memory(), end=" ")
"""


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="bytes that were read are counted on Linux only")
@pytest.mark.parametrize(("rank", "size"), [(1, 2), (3, 4)])
def test_a_rank_reads_and_keeps_its_share(full_size: Path, rank: int, size: int) -> None:
    """Embedding and norms are in each rank; of all else it reads and keeps 1/N."""
    whole = (full_size / "model.safetensors").stat().st_size
    replicated = 2 * (102_400 * 2048 + (2 * 30 + 1) * 2048 + 2 * 30 * 64)
    share = replicated + (whole - replicated) / size
    script = READ_A_PART.format(rank=rank, size=size, folder=str(full_size)) + PRINT_PEAK
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    read, weights, active, peak = map(float, done.stdout.split())
    print(f"\nrank {rank} of {size}: read {read / 1e6:.0f} MB, kept {weights / 1e6:.0f} MB, peak {peak:.0f} MB", end="")
    assert weights <= share
    assert read < share + 8e6, "headers, and the first bytes of each tensor for the fingerprint"
    assert active < share + 1e6
    assert peak < share / 1e6 + 600, "MLX and Python, and one tensor"
