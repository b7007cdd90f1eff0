"""`load` reads every kind of folder with an EXAONE 4 checkpoint. For any other folder an error names the cause."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT, distance, in_a_thread
from mlx.utils import tree_flatten

from exaone4_mlx import CheckpointError, load
from exaone4_mlx.files.folders import DEMO_FOLDER, find_folder
from exaone4_mlx.files.safetensors import INDEX_NAME
from exaone4_mlx.model.load import load_model

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


# --- what is read -------------------------------------------------------------


def test_sharded_and_single_files_are_the_same_model(hf_folder: Path) -> None:
    expected = load_model(hf_folder)(IDS)
    save_sharded(hf_folder)
    assert distance(load_model(hf_folder)(IDS), expected) == 0


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
    expected = load_model(hf_folder)(IDS)
    tensors = tensors_of(hf_folder)
    tensors["model.rotary_emb.inv_freq"] = mx.zeros(32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save(hf_folder, tensors)
    assert distance(load_model(hf_folder)(IDS), expected) == 0


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


# --- what is refused ----------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: save(folder, {k: v for k, v in tensors_of(folder).items() if k != name})


def put(name: str, array: Callable[[], mx.array]) -> Callable[[Path], None]:
    return lambda folder: save(folder, tensors_of(folder) | {name: array()})


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def shard_absent(folder: Path) -> None:
    save_sharded(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def wrong_index(folder: Path) -> None:
    save_sharded(folder)
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"][Q_NORM] = "model-00001-of-00003.safetensors"
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    (folder / INDEX_NAME).write_text(json.dumps(index))


def twice(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "tensor missing": (drop(Q_NORM), CheckpointError, f"lacks tensor {Q_NORM}"),
    "unknown tensor": (put("model.extra", lambda: mx.zeros(3)), CheckpointError, "holds tensor model.extra, which"),
    "tensor misshapen": (put(Q_NORM, lambda: mx.zeros(65)), CheckpointError, r"q_norm.weight has shape \(65,\), not \(64,\)"),
    "tensor of another dtype": (put(Q_NORM, lambda: mx.zeros(64, mx.int32)), CheckpointError, "q_norm.weight has dtype I32"),
    "head differs from tied embedding": (
        put("lm_head.weight", lambda: mx.zeros((3072, 256))), CheckpointError, "lm_head.weight differs from"),
    "file truncated": (truncated, CheckpointError, "model.safetensors is truncated: tensor"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_text("hello, " * 9), CheckpointError, "is not a safetensors file"),
    "header truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
        CheckpointError, "truncated in its header"),
    "header malformed": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]"), CheckpointError, "header is malformed"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), CheckpointError, "is not a safetensors file"),
    "shard absent": (shard_absent, FileNotFoundError, "lacks model-00002-of-00003.safetensors, listed in"),
    "wrong index": (wrong_index, CheckpointError, "index.json lists tensor"),
    "tensor twice": (twice, CheckpointError, "is in model-2.safetensors and in model.safetensors"),
    "index without map": (lambda f: (f / INDEX_NAME).write_text("{}"), CheckpointError, "has no weight_map"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors"),
    "only pytorch": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), FileNotFoundError, "the format of pytorch_model.bin is not supported"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, "has no tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_errors_name_the_damaged_file(case: str, hf_folder: Path) -> None:
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


def test_a_missing_folder_is_refused() -> None:
    for path, message in (
        ("/no/such/folder", "no folder /no/such/folder, and no hub id either"),
        ("./LGAI-EXAONE/model", "and no hub id either"),
        ("gpt2", "no folder gpt2, and no hub id either"),
        (__file__, "is a file; a model is a folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find_folder(path)


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError, match=r"^some/repo at revision v1 .* cannot be downloaded: cannot reach the hub$"
    ):
        find_folder("some/repo", revision="v1")


def test_downloaded_model_is_found_offline(tmp_path: Path) -> None:
    """A model in the hub's cache needs no network. The test uses a new process: the hub reads its settings once."""
    snapshot = tmp_path / "hub" / "models--some--repo" / "snapshots" / ("0" * 40)
    shutil.copytree(DEMO_FOLDER, snapshot, ignore=shutil.ignore_patterns("recipe"))
    (tmp_path / "hub" / "models--some--repo" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--repo" / "refs" / "main").write_text("0" * 40)
    script = "from exaone4_mlx.files.folders import find_folder; print(find_folder('some/repo'))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(snapshot)


def test_only_useful_files_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(DEMO_FOLDER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load("some/repo", revision="v1")
    assert (asked["repo"], asked["revision"]) == ("some/repo", "v1")
    assert "*model*.safetensors" in asked["allow_patterns"]
    assert not {"*", "*.bin", "*.safetensors"} & set(asked["allow_patterns"])


def test_invalid_options_are_refused() -> None:
    for options, message in (
        ({"dtype": "int8"}, "dtype must be one of bfloat16, float16, float32, not 'int8'"),
        ({"q_bits": 7}, "bits, not 7"),
        ({"q_bits": 4, "q_group_size": 48}, "groups of 32, 64 or 128, not 48"),
        ({"q_group_size": 32}, "q_group_size 32 needs q_bits beside it"),
        ({"revision": "main"}, "the demo model has no revisions"),
    ):
        with pytest.raises(ValueError, match=message):
            load("demo", **options)
