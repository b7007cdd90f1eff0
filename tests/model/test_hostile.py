"""Folders that ask for too much or hold values of wrong types: one line that names the key, before anything is built."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, tiny_model

from exaone4_mlx import CheckpointError, Exaone4Config, Exaone4ForCausalLM, Exaone4ForSequenceClassification, fit
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import load_network
from exaone4_mlx.text.tokenizer import Tokenizer

TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10000, not 1000000000"),
    ({"num_labels": 10**9}, "num_labels must be at most 100000, not 1000000000"),
    ({"vocab_size": 10**12}, "vocab_size must be at most 16777216, not "),
    ({"head_dim": 2**40}, "head_dim must be at most 16384, not "),
    ({"sliding_window": 10**30}, "sliding_window must be at most 2147483647, not "),
    ({"rope_parameters": {"rope_type": "linear", "factor": 10**400}}, "RoPE key factor must be a positive number"),
    ({"rope_parameters": {"rope_theta": 1e300}}, "RoPE key rope_theta must be a positive number"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number"),
    ({"eos_token_id": {"id": 2}}, "eos_token_id must be a token id, not {'id': 2}"),
    ({"eos_token_id": [[2]]}, "eos_token_id must be a token id, not"),
    ({"eos_token_id": 10**30}, "eos_token_id must be a token id, not"),
    ({"hidden_act": "a" * 10**6}, "hidden_act 'aaaa"),
]


def test_a_config_of_a_kilobyte_cannot_ask_for_everything(tmp_path: Path) -> None:
    for changes, message in TOO_MUCH:
        (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
        with pytest.raises(ValueError, match=r"config\.json: ") as raised:
            Exaone4Config.from_file(tmp_path / "config.json")
        assert message in str(raised.value) and len(str(raised.value)) < 700, changes
    assert len(Exaone4Config.from_dict(TINY | {"sliding_window_pattern": 10**9}).layer_types) == 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with the demo's tokenizer."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_sizes_are_compared_with_the_tensors_before_a_network_is_built(folder: Path, edit_json: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", num_hidden_layers=10_000, layer_types=None, sliding_window_pattern=4)
    for read in (lambda: load_network(lambda config: pytest.fail("a network is built"), folder), lambda: fit(folder)):
        with pytest.raises(
            CheckpointError, match=r"num_hidden_layers is 10000 in config.json, and the weights have 4 "
        ):
            read()
    for change in ({"vocab_size": 2**24}, {"head_dim": 2**14}, {"hidden_size": 2**24}, {"intermediate_size": 2**24}):
        edit_json(folder / "config.json", **(config | change))
        for read in (lambda: load_network(Exaone4ForCausalLM, folder), lambda: fit(folder)):
            with pytest.raises(CheckpointError, match=r"model\.safetensors: model\..*weight has shape .*, not "):
                read()


def test_odd_types_of_tokens_and_quantization_name_their_key(folder: Path, edit_json: Any) -> None:
    for name, key, value in (
        ("generation_config.json", "eos_token_id", [[2]]),
        ("generation_config.json", "eos_token_id", {"a": 1}),
        ("tokenizer_config.json", "eos_token", {"content": 5}),
        ("tokenizer_config.json", "pad_token", [1]),
    ):
        before = (folder / name).read_bytes()
        edit_json(folder / name, **{key: value})
        with pytest.raises(ValueError, match=rf"{name}: {key} must be "):
            Tokenizer.from_pretrained(folder)
        (folder / name).write_bytes(before)
    for settings in ({"quant_method": "compressed-tensors", "config_groups": 5}, {"bits": [4], "group_size": 32}, "x"):
        edit_json(folder / "config.json", quantization_config=settings)
        with pytest.raises(ValueError, match="quantization"):
            load_network(Exaone4ForCausalLM, folder)


# --- a fuzzer, which this file runs in a process with a limit of memory: python test_hostile.py FOLDER SEED COUNT --------


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1, 2])
def test_random_damage_ends_in_one_line_and_bounded_memory(seed: int, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, __file__, str(folder), str(seed), "1000"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    assert not found["failures"], f"{len(found['failures'])} of {found['outcomes']}:\n" + "\n".join(
        found["failures"][:20]
    )
    assert found["peak_bytes"] < 1e9, "a folder of a few kilobytes needs little memory"


MEMORY, SECONDS = 3 << 30, 5.0  # of addresses, mostly MLX's; for one way of reading
VALUES: list[Any] = [
    None, True, 0, 1, -1, 3, 2**16, 2**31, 2**63, 10**30, 10**400, -(10**400), -0.0, 1.5, 1e-320, 1e308, float("nan"),
    float("inf"), "", "LLLG", "L" * 5000, "1", "\x1b[2J", "\ud800", [], [[1]], ["a"], [None], [1.5], [2**31], {},
    {"content": 5}, {"bits": 4}, [0] * 5000, "é" * 3000, {str(i): "a" for i in range(300)}, {"9" * 500: "a"},
]  # fmt: skip
KEYS = {
    "rope": "rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale truncate "
    "mscale_all_dim short_factor long_factor low_freq_factor high_freq_factor partial_rotary_factor type",
    "config": "rope_scaling rope_theta num_labels id2label label2id problem_type hidden_dropout dtype quantization "
    "quantization_config original_max_position_embeddings partial_rotary_factor num_experts",
    "quantization": "bits group_size mode version zero_point checkpoint_format dynamic desc_act weight_block_size "
    "sparsity_config transform_config config_groups format model.layers.0.mlp.up_proj quant_method",
    "entry": "dtype shape data_offsets",
}
TYPES = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
METHODS = ["awq", "gptq", "fp8", "compressed-tensors"]


def changed_text(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    number = rng.choice((b"9" * 5000, b"-1", b"1e999", b'"1"', b"[1]", b"NaN"))
    return rng.choice(
        (
            text[:at], text[:at] + rng.randbytes(8) + text[at + 1 :], text[:at] + b"[" * 100_000,
            text[:at] + text[max(0, at - 40) :], text.replace(b"1", number, 2),
        )
    )  # fmt: skip


def change(rng: random.Random, folder: Path) -> str:
    """Damages a file of a folder. Returns its kind."""

    def some(keys: str, known: dict[str, Any]) -> dict[str, Any]:
        return known | {rng.choice(KEYS[keys].split()): rng.choice(VALUES) for _ in range(rng.choice((1, 2, 4)))}

    kind = rng.choice(("config", "rope", "quantization", "text", "header", "header", "index", "tokenizer"))
    file = folder / "config.json"
    values = json.loads(file.read_text())
    if kind == "config":
        values = some("config", values) | {rng.choice(list(values)): rng.choice(VALUES)}
    elif kind == "rope":
        rope = {"rope_type": rng.choice(TYPES), "factor": 4.0, "original_max_position_embeddings": 64}
        values[rng.choice(("rope_parameters", "rope_scaling"))] = some("rope", rope)
    elif kind == "quantization":
        known = rng.choice(({}, {"bits": 4, "group_size": 32}, {"quant_method": rng.choice(METHODS)}))
        values[rng.choice(("quantization", "quantization_config"))] = some("quantization", known)
    elif kind == "text":
        file = folder / rng.choice(("config.json", "tokenizer_config.json", "generation_config.json"))
    elif kind == "header":
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:length])
        name = rng.choice(list(header))
        entry: Any = some("entry", header[name]) if isinstance(header[name], dict) else rng.choice(VALUES)
        header[rng.choice((name, name, "a" * 9999, "lm_head.qweight"))] = entry
        text = rng.choice((json.dumps(header).encode(), changed_text(rng, content[8:length])))
        file.write_bytes(struct.pack("<Q", rng.choice((len(text), len(text), 2**63, 0))) + text + content[length:])
    elif kind == "index":
        names = ["model.safetensors", "../model.safetensors", "/etc/passwd", "a\0.safetensors", "model-1.safetensors"]
        file = folder / "model.safetensors.index.json"
        values = {"weight_map": rng.choice(({"a": rng.choice((*names, *VALUES))}, *VALUES))}
    else:
        keys = ("eos_token_id", "eos_token", "pad_token", "padding_side", "chat_template")
        file = folder / rng.choice(("tokenizer_config.json", "generation_config.json"))
        values = json.loads(file.read_text()) | {rng.choice(keys): rng.choice(VALUES)}
    if kind == "text":
        file.write_bytes(changed_text(rng, file.read_bytes()))
    elif kind != "header":
        file.write_text(json.dumps(values))
    return kind


def main(source: Path, seed: int, count: int) -> None:
    rng, failures, outcomes = random.Random(seed), [], Counter[str]()
    folder = Path(tempfile.mkdtemp()) / "model"
    ways = {
        "config": lambda: Exaone4Config.from_pretrained(folder),
        "fit": lambda: fit(folder, memory=8),
        "fit of a config": lambda: fit(folder / "config.json", memory=8),
        "load": lambda: load_network(Exaone4ForCausalLM, folder),
        "classifier": lambda: Exaone4ForSequenceClassification.from_pretrained(folder),
        "tokenizer": lambda: Tokenizer.from_pretrained(folder),
    }
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    for number in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        kind = change(rng, folder)
        for way, read in ways.items():
            started, outcome, problem = time.perf_counter(), "read", ""
            try:
                read()
            except (ValueError, FileNotFoundError) as error:
                outcome, text = "refused", str(error)
                problem = text[:200] if "\n" in text or not 0 < len(text) < 1000 else ""
            except BaseException as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            outcomes[f"{kind} {outcome}"] += 1
            if problem or time.perf_counter() - started > SECONDS:
                failures.append(f"{number}, {kind}, {way}, {time.perf_counter() - started:.1f} s: {problem}")
    shutil.rmtree(folder.parent)
    status = Path("/proc/self/status")  # Linux counts the peak of the parent process in ru_maxrss, too
    if status.exists():
        peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"outcomes": outcomes, "failures": failures, "peak_bytes": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
