"""Sizes that are read without loading are those of the loaded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx import Exaone4Config, convert, load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation.decode import prefill
from exaone4_mlx.measure.allocation import cache_bytes
from exaone4_mlx.measure.fit import fit, fit_sizes
from exaone4_mlx.measure.sizes import read_sizes, weight_shapes
from exaone4_mlx.model.network import Exaone4ForCausalLM
from exaone4_mlx.model.pretrained import load_network


def used_bytes(folder: Path, length: int = 3) -> int:
    """The same of a checkpoint that has read a real prompt."""
    model = load_network(Exaone4ForCausalLM, folder)
    cache = model.make_cache()
    prefill(model, random_ids(length).tolist()[0], cache)
    return sum(layer.nbytes for layer in cache)


def cache_bytes_of(folder: Path, length: int = 3) -> int:
    estimate = fit(folder, max_kv_size=length)
    return estimate.global_cache_bytes + estimate.local_window_bytes + estimate.local_reserve_bytes


def saved(folder: Path, tensors: Iterable[tuple[str, mx.array]], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tensors))
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return folder


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_caches_have_the_dtype_of_the_weights(tmp_path: Path, dtype: mx.Dtype) -> None:
    folder = saved(tmp_path / "model", tree_flatten(tiny_model(dtype=dtype).parameters()))
    assert cache_bytes_of(folder) == used_bytes(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantized_caches_have_the_dtype_of_the_scales(tmp_path: Path, dtype: str) -> None:
    summary = convert("demo", tmp_path / "model", dtype=dtype, search=False)
    assert cache_bytes_of(summary.path) == used_bytes(summary.path)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_scales_without_a_dtype_of_their_own_leave_it_to_the_norms(tmp_path: Path, dtype: str, size: int) -> None:
    summary = convert("demo", tmp_path / "model", dtype=dtype, q_mode="mxfp4", search=False)
    estimate, used = cache_bytes_of(summary.path), used_bytes(summary.path)
    assert estimate == sum(cache_bytes(load_network(Exaone4ForCausalLM, summary.path).config, 3, size))
    # In float32 the first layer's values alone are what MLX unpacks an mxfp4 embedding to, bfloat16.
    assert used == (estimate if dtype == "bfloat16" else estimate * 31 / 32)


def test_an_mxfp4_embedding_is_bfloat16_beside_float16_norms(tmp_path: Path) -> None:
    """The two promote to float32: the caches are twice what either alone would have."""
    summary = convert("demo", tmp_path / "model", dtype="float16", q_mode="mxfp4", search=False)
    estimate, used = cache_bytes_of(summary.path), used_bytes(summary.path)
    assert used == estimate * 31 / 32
    assert fit(summary.path, dtype="float16") == fit(summary.path), "a cast leaves the embedding what it is"


def test_weights_of_two_dtypes_have_caches_of_what_they_promote_to(tmp_path: Path) -> None:
    tensors = [
        (name, array.astype(mx.float32) if array.ndim == 1 else array)
        for name, array in tree_flatten(tiny_model(dtype=mx.bfloat16).parameters())
    ]
    folder = saved(tmp_path / "model", tensors)
    estimate, used = cache_bytes_of(folder), used_bytes(folder)
    assert estimate * 15 / 16 == used, "all in float32 but the first of four layers' values"


def test_the_output_head_does_not_affect_caches(tmp_path: Path) -> None:
    tensors = dict(tree_flatten(tiny_model(dtype=mx.bfloat16).parameters()))
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(mx.float32)
    folder = saved(tmp_path / "model", tensors.items())
    assert cache_bytes_of(folder) == used_bytes(folder)


@pytest.mark.parametrize("quantize", [False, True], ids=["full precision", "quantized"])
def test_weights_are_those_of_the_loaded_model(tmp_path: Path, quantize: bool) -> None:
    folder = convert("demo", tmp_path / "model", quantize=quantize, search=False).path
    model, _ = load(folder)
    assert fit(folder).weights_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def test_extra_tensors_that_load_ignores_are_not_counted(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True, dtype=mx.bfloat16)
    tensors = dict(tree_flatten(model.parameters()))
    plain = fit(saved(tmp_path / "plain", tensors.items(), tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(8)  # float32, and would be the caches' dtype
    assert fit(saved(tmp_path / "extra", tensors.items(), tie_word_embeddings=True)) == plain


def test_an_output_head_of_its_own_is_counted(tmp_path: Path) -> None:
    model = tiny_model()
    folder = saved(tmp_path / "model", tree_flatten(model.parameters()))
    assert fit(folder).weights_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))


@pytest.mark.parametrize(("dtype", "q_bits"), [("float16", None), ("float32", None), (None, 8), ("float32", 4)])
def test_cast_or_quantized_weights_are_those_of_the_loaded_model(dtype: Any, q_bits: Any) -> None:
    model, _ = load("demo", dtype=dtype, q_bits=q_bits)
    estimate = fit("demo", dtype=dtype, q_bits=q_bits, max_kv_size=3)
    assert estimate.weights_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    size = 4 if dtype == "float32" else 2
    caches = estimate.global_cache_bytes, estimate.local_window_bytes, estimate.local_reserve_bytes
    assert caches == cache_bytes(model.config, 3, size)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a head of its own"])
def test_shapes_follow_from_the_config(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    assert weight_shapes(model.config) == shapes


def test_config_json_gives_the_same_as_the_weights(tmp_path: Path) -> None:
    assert fit(DEMO_FOLDER / "config.json") == fit("demo")
    shutil.copy(DEMO_FOLDER / "config.json", tmp_path)
    assert fit(tmp_path, q_bits=4) == fit("demo", q_bits=4)


def test_the_config_json_of_a_quantized_folder_gives_the_same_as_its_weights(
    quantized_demo: Path, tmp_path: Path
) -> None:
    assert fit(quantized_demo / "config.json") == fit(quantized_demo)
    folder = convert("demo", tmp_path / "model", q_mode="mxfp4", search=False).path
    assert fit(folder / "config.json") == fit(folder)


def test_a_layer_that_the_config_excludes_counts_in_full_precision(
    quantized_demo: Path, edit_json: Callable[..., None], tmp_path: Path
) -> None:
    file = Path(shutil.copy(quantized_demo / "config.json", tmp_path))
    plain = {"group_size": 64, "bits": 4, "mode": "affine"}
    edit_json(file, quantization=plain, quantization_config=None)
    estimate, config = fit(file).weights_bytes, Exaone4Config.from_file(file)
    edit_json(file, quantization=plain | {"model.embed_tokens": False})
    assert fit(file).weights_bytes - estimate == config.vocab_size * config.hidden_size * (16 - 4.5) / 8


def test_the_32b_model_in_four_bits(shared: Path) -> None:
    file = shared / "configs" / "EXAONE-4.0-32B.config.json"
    parameters = 32_003_216_384
    estimate = fit(file)
    assert estimate.weights_bytes == 2 * parameters and estimate.max_kv_size == 131_072
    assert (estimate.global_cache_bytes, estimate.local_window_bytes) == (8_589_934_592, 805_306_368)
    norms = 64 * (2 * 5120 + 2 * 128) + 5120
    assert fit(file, q_bits=4).weights_bytes == (parameters - norms) * 4.5 / 8 + 2 * norms


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("fit must read headers only")

    monkeypatch.setattr(mx, "load", never)
    monkeypatch.setattr(mx, "array", never)
    monkeypatch.setattr(mx, "zeros", never)
    assert fit("demo").weights_bytes > 10_000_000
    assert fit(DEMO_FOLDER / "config.json").weights_bytes > 10_000_000


@pytest.mark.parametrize("cached", ["config.json", "all", "a part"])
def test_only_config_json_of_a_hub_id_is_downloaded(
    hf_folder: Path, monkeypatch: pytest.MonkeyPatch, cached: str
) -> None:
    """With the weights at hand, they count as they are stored; with a part of them, as none."""
    if cached != "all":
        (hf_folder / "model.safetensors").unlink()
    if cached == "a part":
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (hf_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    asked: list[Any] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(hf_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    estimate = read_sizes("LGAI-EXAONE/nowhere", "main")
    assert asked == [("LGAI-EXAONE/nowhere", "main", ["config.json"])]
    assert estimate.has_no_files == (cached != "all") and fit_sizes(estimate) == fit("demo")
