"""Folders are shared with mlx-lm: it reads what we write, we read what it writes, and both say the same."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, greedy_tokens, random_ids, tiny_model
from documented import rope_config
from mlx.utils import tree_flatten, tree_unflatten

from exaone4_mlx import Sampling, convert, generate, load
from exaone4_mlx.files.folders import DEMO_FOLDER

PROMPT = "Which one is bigger, 3.12 vs 3.9? What is the capital of France? " * 4  # several windows long


@pytest.fixture(scope="module")
def mlx_lm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells that there is no torch
        return pytest.importorskip("mlx_lm")


def their_load(mlx_lm: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    return model


def ids() -> list[int]:
    return load("demo")[1].encode(PROMPT)


def their_greedy_tokens(model: Any, prompt: list[int], count: int = 24) -> list[int]:
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def assert_same(ours: Any, theirs: Any, limit: float = 1e-3) -> None:
    prompt = ids()
    ours.set_dtype(mx.float32)
    assert distance(ours(mx.array([prompt])), theirs(mx.array([prompt]))) < limit
    assert greedy_tokens(ours, prompt, 24) == their_greedy_tokens(theirs, prompt)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"q_bits": 8, "q_group_size": 32}, marks=pytest.mark.heavy),
        {"q_mode": "mxfp4", "q_group_size": 32},
        {"quantize": False},
    ],
    ids=["4 bit", "8 bit", "mxfp4", "unquantized"],
)
def test_mlx_lm_reads_what_we_convert(mlx_lm: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    convert("demo", tmp_path / "ours", search=False, **options)
    # An mxfp4 embedding is bfloat16, and there queries and keys are rounded between norm and weight, as in transformers.
    limit = 0.05 if options.get("q_mode") == "mxfp4" else 1e-3
    assert_same(load(tmp_path / "ours")[0], their_load(mlx_lm, tmp_path / "ours"), limit)


@pytest.mark.parametrize(
    "options",
    [{"q_bits": 4, "q_group_size": 64}, {"quant_predicate": "mixed_4_6"}],
    ids=["4 bit", "mixed"],
)
@pytest.mark.heavy
def test_we_read_what_mlx_lm_converts(mlx_lm: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlx_lm.convert(str(DEMO_FOLDER), str(tmp_path / "theirs"), quantize=True, **options)
    assert_same(load(tmp_path / "theirs")[0], their_load(mlx_lm, tmp_path / "theirs"))


@pytest.mark.heavy
def test_adapters_of_four_bits_are_fused_saved_and_read_by_both(mlx_lm: Any, tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, tokenizer = load("demo", q_bits=4, q_group_size=32)
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 4.0, "dropout": 0.0})
    with pytest.raises(ValueError, match=r"is a LoRALinear, not a layer of Exaone4ForCausalLM: fuse it first"):
        model.save_pretrained(tmp_path / "out")
    adapters = [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]
    for _, module in adapters:
        module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(1)) / 100
    model.update_modules(tree_unflatten([(name, module.fuse()) for name, module in adapters]))
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    saved = load(tmp_path / "out")[0]
    assert saved.layers[-1].mlp.up_proj.bits == 4
    assert distance(saved(mx.array([ids()])), model(mx.array([ids()]))) == 0
    assert_same(saved, their_load(mlx_lm, tmp_path / "out"))


@pytest.mark.parametrize("window", [7, None], ids=["hybrid", "all global"])
def test_untied_models_are_shared_too(mlx_lm: Any, tmp_path: Path, window: int | None) -> None:
    """The 32B has a head of its own, and 1.2B's layers all see everything."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 3072}
    model = tiny_model(**sizes, sliding_window=window, sliding_window_pattern="LLLG" if window else None)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(model.config.to_dict()))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, tmp_path / "hf")
    mx.save_safetensors(str(tmp_path / "hf" / "model.safetensors"), dict(tree_flatten(model.parameters())))
    convert(tmp_path / "hf", tmp_path / "ours", search=False)
    assert_same(load(tmp_path / "ours")[0], their_load(mlx_lm, tmp_path / "ours"))


@pytest.mark.heavy
def test_old_mlx_community_config_is_read(mlx_lm: Any, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """Folders of the model's release days have neither layer_types nor rope_parameters."""
    convert("demo", tmp_path / "old", search=False)
    theirs = their_load(mlx_lm, tmp_path / "old")
    edit_json(tmp_path / "old" / "config.json", layer_types=None, rope_parameters=None)
    assert_same(load(tmp_path / "old")[0], theirs)


@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
def test_mlx_lm_computes_the_same_from_the_config_that_we_write(mlx_lm: Any, rope: str) -> None:
    """For the RoPE types that it knows. What it drops of yarn's keys, attention_factor, is the default here."""
    from mlx_lm.models import exaone4

    ours = tiny_model(**rope_config(rope, sliding_window_pattern="LLLG"))
    theirs = exaone4.Model(exaone4.ModelArgs.from_dict(json.loads(json.dumps(ours.config.to_dict()))))
    theirs.update(ours.parameters())
    assert distance(ours(random_ids(50)), theirs(random_ids(50))) < 1e-4


def test_our_model_runs_under_their_generator(mlx_lm: Any) -> None:
    model, _ = load("demo", dtype="float32")
    assert their_greedy_tokens(model, ids()) == greedy_tokens(model, ids(), 24)


def test_quantized_folder_generates(tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", search=False)
    model, tokenizer = load(tmp_path / "out", dtype="float32")
    assert generate(model, tokenizer, "Hello", sampling=Sampling(temperature=0.0), max_tokens=30).text


@pytest.mark.heavy
def test_the_server_of_mlx_lm_finds_calls_of_a_converted_model(tmp_path: Path) -> None:
    """Without `tool_parser_type` it says that the model does not support tools, and a call is the answer's text."""
    pytest.importorskip("mlx_lm")
    convert("demo", tmp_path / "out", quantize=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--model", str(tmp_path / "out"), "--port", port]
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    question = {
        "messages": [{"role": "user", "content": "What is 1234 * 56?"}],
        "tools": [{"type": "function", "function": {"name": "calculator", "parameters": parameters}}],
        "temperature": 0,
        "max_tokens": 60,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "mlx_lm", "server", *options], **silent) as server:
        try:
            answer = json.loads(wait_for(lambda: urllib.request.urlopen(request, timeout=60).read(), server))
        finally:
            server.terminate()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("calculator", {"expression": "1234 * 56"})


def wait_for(ask: Callable[[], bytes], server: subprocess.Popen[bytes]) -> bytes:
    """The result of `ask` as soon as the server listens."""
    for _ in range(600):
        try:
            return ask()
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
    raise TimeoutError
