"""`load` reads every kind of folder with an EXAONE 4 checkpoint. For any other folder an error names the cause."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, in_a_thread
from mlx.utils import tree_flatten

from exaone4_mlx import CheckpointError, load
from exaone4_mlx.files.safetensors import INDEX_NAME
from exaone4_mlx.model.network import Exaone4ForCausalLM
from exaone4_mlx.model.pretrained import load_network

IDS = mx.array([[40, 50, 60, 70, 80]])
Q_NORM = "model.layers.3.self_attn.q_norm.weight"


def tensors_of(folder: Path) -> dict[str, mx.array]:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    return tensors


def save(folder: Path, tensors: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(folder / "changed.safetensors"), tensors)
    (folder / "changed.safetensors").rename(folder / "model.safetensors")


def save_sharded(folder: Path, count: int = 3) -> None:
    tensors = tensors_of(folder)
    mx.eval(tensors)
    names, weight_map = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        shard = {name: tensors[name] for name in names[i::count]}
        mx.save_safetensors(str(folder / file), shard)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors").unlink()
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# --- supported folders --------------------------------------------------------


def test_sharded_and_single_files_are_the_same_model(hf_folder: Path) -> None:
    expected = load_network(Exaone4ForCausalLM, hf_folder)(IDS)
    save_sharded(hf_folder)
    assert distance(load_network(Exaone4ForCausalLM, hf_folder)(IDS), expected) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", mx.bfloat16, None])
def test_dtype_is_a_name_or_an_mx_dtype(dtype: Any) -> None:
    model, _ = load("demo", dtype=dtype)
    expected = {"float32": mx.float32, "float16": mx.float16}.get(dtype, mx.bfloat16)
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {expected}


def test_loaded_arrays_work_in_any_thread() -> None:
    """A stream belongs to a thread. An unevaluated array would fail in another thread."""
    model, _ = load("demo")
    assert in_a_thread(lambda: model(IDS).shape) == (1, 5, 3072)
    assert in_a_thread(lambda: distance(model(IDS), model(IDS))) == 0


def test_quantizing_while_loading_is_smaller_and_close(demo: Any) -> None:
    exact, _ = demo
    model, _ = load("demo", dtype="float32", q_bits=8, q_group_size=32)
    layer = model.layers[0].mlp.gate_proj
    assert (layer.bits, layer.group_size, layer.weight.dtype) == (8, 32, mx.uint32)
    assert distance(model(IDS), exact(IDS)) < 1.0, "8 bits change logits of scale ten to twenty only a little"


def test_harmless_extra_tensors_are_ignored(hf_folder: Path) -> None:
    expected = load_network(Exaone4ForCausalLM, hf_folder)(IDS)
    tensors = tensors_of(hf_folder)
    tensors["model.rotary_emb.inv_freq"] = mx.zeros(32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save(hf_folder, tensors)
    assert distance(load_network(Exaone4ForCausalLM, hf_folder)(IDS), expected) == 0


def test_tokenizer_larger_than_the_model_warns(hf_folder: Path, edit_json: Callable[..., None]) -> None:
    tensors = tensors_of(hf_folder)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:3000]
    save(hf_folder, tensors)
    edit_json(hf_folder / "config.json", vocab_size=3000)
    with pytest.warns(UserWarning, match="the tokenizer knows 3072 tokens, the model 3000"):
        load(hf_folder)


def test_demo_loads_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("demo")


def test_progress_counts_bytes_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    load("demo", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 10_000_000
    assert calls == sorted(calls)


# --- errors -------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: save(folder, {k: v for k, v in tensors_of(folder).items() if k != name})


def put(name: str, array: Callable[[], mx.array]) -> Callable[[Path], None]:
    return lambda folder: save(folder, tensors_of(folder) | {name: array()})


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "tensor missing": (drop(Q_NORM), CheckpointError, f"lacks tensor {Q_NORM}"),
    "unknown tensor": (put("model.extra", lambda: mx.zeros(3)), CheckpointError, "holds tensor model.extra, which"),
    "tensor misshapen": (put(Q_NORM, lambda: mx.zeros(65)), CheckpointError, r"q_norm.weight has shape \(65,\), not \(64,\)"),
    "tensor of another dtype": (put(Q_NORM, lambda: mx.zeros(64, mx.int32)), CheckpointError, "q_norm.weight has dtype I32"),
    "head differs from tied embedding": (
        put("lm_head.weight", lambda: mx.zeros((3072, 256))), CheckpointError, "lm_head.weight differs from"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, "has no tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_errors_name_the_cause(case: str, hf_folder: Path) -> None:
    damage, error, message = BAD_FOLDERS[case]
    damage(hf_folder)
    with pytest.raises(error, match=message):
        load(hf_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "not an EXAONE 4 model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config of method 'bitsandbytes' is not supported"),
        ({"quantization": {"bits": 4}}, "quantization lacks group_size"),
        ({"quantization": {"bits": 7, "group_size": 64}}, "affine quantization has 2, 3, 4, 5, 6 or 8 bits, not 7"),
    ],
)  # fmt: skip
def test_unsupported_configs_are_refused(
    changes: dict[str, Any], message: str, hf_folder: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(hf_folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(hf_folder)


def test_invalid_options_are_refused() -> None:
    for options, message in (
        ({"dtype": "int8"}, "dtype must be one of bfloat16, float16, float32, not 'int8'"),
        ({"q_bits": 7}, "bits, not 7"),
        ({"q_bits": 4, "q_group_size": 48}, "groups of 32, 64 or 128, not 48"),
        ({"q_group_size": 32}, "q_group_size 32 needs q_bits beside it"),
    ):
        with pytest.raises(ValueError, match=message):
            load("demo", **options)
