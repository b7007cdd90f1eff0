"""What a model needs is told beforehand, to the byte."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx import Exaone4Config, convert, load
from exaone4_mlx.generation.decode import PREFILL_STEP_SIZE, prefill
from exaone4_mlx.model.cache import RotatingKVCache
from exaone4_mlx.model.network import Exaone4ForCausalLM
from exaone4_mlx.weights.checkpoint import load_model
from exaone4_mlx.weights.fit import STEP_SIZE, cache_bytes, fit, memory_of_this_machine

ALL_GLOBAL = {"sliding_window": None, "sliding_window_pattern": None}
#: window 7: buckets of 256, the window, its buffer of 7 - 1 + 64 + 512 rows, prefill's chunks of 2048, the model's end
LENGTHS = (1, 6, 7, 8, 255, 256, 257, 512, 513, 581, 582, 583, 2047, 2048, 2049, 4096, 4097, 6145, 8193, 11_999, 12_000)
#: window 4096: the same, where the buffer of 4671 rows is longer than a chunk
LONG_LENGTHS = (100, 2048, 2049, 4095, 4096, 4097, 4670, 4671, 4672, 6144, 9000)


def filled_bytes(model: Exaone4ForCausalLM, length: int, dtype: mx.Dtype, step: int = STEP_SIZE) -> int:
    """`nbytes` of the model's caches after `length` tokens, `step` at a time."""
    config, total = model.config, 0
    for cache in model.make_cache():
        for start in range(0, length, step):
            rows = mx.zeros((1, config.num_key_value_heads, min(step, length - start), config.head_dim), dtype)
            cache.update(rows, rows)
        mx.eval(cache.state)
        total += cache.nbytes
    return total


def used_bytes(folder: Path, length: int = 3) -> int:
    """The same of a checkpoint that has read a real prompt."""
    model = load_model(folder)
    cache = model.make_cache()
    prefill(model, random_ids(length).tolist()[0], cache)
    return sum(layer.nbytes for layer in cache)


def cache_bytes_of(folder: Path, length: int = 3) -> int:
    told = fit(folder, context=length)
    return told.global_cache_bytes + told.local_window_bytes + told.local_reserve_bytes


def saved(folder: Path, tensors: Iterable[tuple[str, mx.array]], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tensors))
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return folder


# --- caches -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, LENGTHS),
        (ALL_GLOBAL, LENGTHS),
        ({"sliding_window": 4096}, LONG_LENGTHS),
        ({"sliding_window": 300}, LENGTHS),
    ],
    ids=["hybrid", "all global", "long window", "window across buckets"],
)
def test_the_sum_is_what_real_caches_allocate(
    changes: dict[str, Any], lengths: tuple[int, ...], dtype: mx.Dtype
) -> None:
    model = tiny_model(max_position_embeddings=12_000, **changes)
    for length in lengths:
        told = sum(cache_bytes(model.config, length, dtype.size))
        assert told == filled_bytes(model, length, dtype), f"{length} tokens"


@pytest.mark.parametrize("max_position_embeddings", [64, 256, 300])
def test_a_short_context_bounds_the_last_bucket(max_position_embeddings: int) -> None:
    model = tiny_model(max_position_embeddings=max_position_embeddings)
    for length in (1, 63, max_position_embeddings):
        assert sum(cache_bytes(model.config, length, 4)) == filled_bytes(model, length, mx.float32)


def test_window_and_reserve_stand_apart() -> None:
    model = tiny_model(max_position_embeddings=2000)
    row = 2 * 2 * 16 * 4  # key and value, heads, head size, float32
    (full,) = {cache.max_rows for cache in model.make_cache() if isinstance(cache, RotatingKVCache)}
    assert cache_bytes(model.config, 2000, 4) == (2000 * row, 3 * 7 * row, 3 * (full - 7) * row)
    assert cache_bytes(model.config, 5, 4) == (256 * row, 3 * 5 * row, 3 * 251 * row), "a bucket's slack is reserve"


def test_small_steps_grow_a_global_buffer_by_half_at_most() -> None:
    """The docstring's promise to those who do not come to a length by one prompt."""
    model = tiny_model(max_position_embeddings=12_000, **ALL_GLOBAL)
    bucket = 256 * 4 * 2 * 2 * 16 * 4  # rows, layers, key and value, heads, head size, float32
    for length in (300, 1281, 2500, 12_000):
        told = sum(cache_bytes(model.config, length, 4))
        assert filled_bytes(model, length, mx.float32, step=61) <= min(told * 1.5 + bucket, 12_000 / 256 * bucket)


def test_chunks_are_those_of_prefill() -> None:
    assert STEP_SIZE == PREFILL_STEP_SIZE


def test_the_32b_model_at_its_longest(shared: Path) -> None:
    config = Exaone4Config.from_file(shared / "configs" / "EXAONE-4.0-32B.config.json")
    assert cache_bytes(config, 131_072) == (8_589_934_592, 805_306_368, 48 * (64 + 512 - 1) * 4096)


def test_the_1_2b_model_has_global_layers_only(shared: Path) -> None:
    config = Exaone4Config.from_file(shared / "configs" / "EXAONE-4.0-1.2B.config.json")
    assert cache_bytes(config, 65_536) == (4_026_531_840, 0, 0)


# --- the dtype of the activations, and weights --------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_caches_have_the_dtype_of_the_weights(tmp_path: Path, dtype: mx.Dtype) -> None:
    folder = saved(tmp_path / "model", tree_flatten(tiny_model(dtype=dtype).parameters()))
    assert cache_bytes_of(folder) == used_bytes(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantized_caches_have_the_dtype_of_the_scales(tmp_path: Path, dtype: str) -> None:
    summary = convert("demo", tmp_path / "model", dtype=dtype)
    assert cache_bytes_of(summary.path) == used_bytes(summary.path)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_scales_without_a_dtype_of_their_own_leave_it_to_the_norms(tmp_path: Path, dtype: str, size: int) -> None:
    summary = convert("demo", tmp_path / "model", dtype=dtype, q_mode="mxfp4")
    told, used = cache_bytes_of(summary.path), used_bytes(summary.path)
    assert told == sum(cache_bytes(load_model(summary.path).config, 3, size))
    # In float32 the first layer's values alone are what MLX unpacks an mxfp4 embedding to, bfloat16.
    assert used == (told if dtype == "bfloat16" else told * 31 / 32)


def test_an_mxfp4_embedding_is_bfloat16_beside_float16_norms(tmp_path: Path) -> None:
    """The two promote to float32: the caches are twice what either alone would have."""
    summary = convert("demo", tmp_path / "model", dtype="float16", q_mode="mxfp4")
    told, used = cache_bytes_of(summary.path), used_bytes(summary.path)
    assert used == told * 31 / 32


def test_weights_of_two_dtypes_have_caches_of_what_they_promote_to(tmp_path: Path) -> None:
    tensors = [
        (name, array.astype(mx.float32) if array.ndim == 1 else array)
        for name, array in tree_flatten(tiny_model(dtype=mx.bfloat16).parameters())
    ]
    folder = saved(tmp_path / "model", tensors)
    told, used = cache_bytes_of(folder), used_bytes(folder)
    assert told * 15 / 16 == used, "all in float32 but the first of four layers' values"


def test_the_output_head_says_nothing_about_caches(tmp_path: Path) -> None:
    tensors = dict(tree_flatten(tiny_model(dtype=mx.bfloat16).parameters()))
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(mx.float32)
    folder = saved(tmp_path / "model", tensors.items())
    assert cache_bytes_of(folder) == used_bytes(folder)


@pytest.mark.parametrize("quantize", [False, True], ids=["full precision", "quantized"])
def test_weights_are_those_of_the_loaded_model(tmp_path: Path, quantize: bool) -> None:
    folder = convert("demo", tmp_path / "model", quantize=quantize).path
    model, _ = load(folder)
    assert fit(folder).weights_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def test_extra_tensors_that_load_passes_over_are_not_counted(tmp_path: Path) -> None:
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


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("fit must read headers only")

    monkeypatch.setattr(mx, "load", never)
    monkeypatch.setattr(mx, "array", never)
    monkeypatch.setattr(mx, "zeros", never)
    assert fit("demo").weights_bytes > 10_000_000


# --- does it fit --------------------------------------------------------------


def test_context_is_the_longest_where_none_is_given() -> None:
    told = fit("demo")
    assert (told.context, told.largest_context) == (8192, 8192) and told.fits
    assert fit("demo", context=8192) == told


def test_total_is_weights_and_caches() -> None:
    told = fit("demo", context=3000)
    parts = told.weights_bytes, told.global_cache_bytes, told.local_window_bytes, told.local_reserve_bytes
    assert min(parts) > 0 and told.total_bytes == sum(parts)
    assert told.total_bytes == told.weights_bytes + sum(cache_bytes(load("demo")[0].config, 3000))


def test_it_fits_to_the_last_byte_and_not_beyond() -> None:
    needed = fit("demo", context=3000).total_bytes
    assert fit("demo", context=3000, memory=needed).fits
    assert not fit("demo", context=3000, memory=needed - 1).fits


@pytest.mark.parametrize("context", [1, 256, 257, 2048, 3000, 8191])
def test_the_largest_context_fits_and_one_token_more_does_not(context: int) -> None:
    memory = fit("demo", context=context).total_bytes
    largest = fit("demo", memory=memory).largest_context
    assert largest >= context and fit("demo", context=largest, memory=memory).fits
    assert largest == 8192 or not fit("demo", context=largest + 1, memory=memory).fits


def test_no_context_fits_where_the_weights_do_not() -> None:
    told = fit("demo", memory=1_000_000)
    assert (told.largest_context, told.fits, told.memory_bytes) == (0, False, 1_000_000)


def test_memory_is_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 21_474_836_480})
    assert memory_of_this_machine() == fit("demo").memory_bytes == 21_474_836_480


def test_memory_is_the_physical_one_without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert memory_of_this_machine() == fit("demo").memory_bytes == 4_096_000


# --- what is refused ----------------------------------------------------------


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="context 8193 is more than the 8192 tokens that this model reaches"):
        fit("demo", context=8193)
    with pytest.raises(ValueError, match="context 257 is more than the 256 tokens"):
        cache_bytes(Exaone4Config.from_dict(TINY), 257)


@pytest.mark.parametrize("context", [0, -1, 2.5, True, "8192"])
def test_a_context_is_a_positive_whole_number(context: Any) -> None:
    with pytest.raises(ValueError, match="context must be a positive whole number of tokens, not "):
        fit("demo", context=context)


@pytest.mark.parametrize("memory", [0, -1, 2.5, True, "16 GB"])
def test_memory_is_a_positive_whole_number(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a positive whole number of bytes, not "):
        fit("demo", memory=memory)


def test_what_load_cannot_find_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere, and no hub id either"):
        fit(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is not a model folder"):
        fit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        fit(tmp_path)


def test_what_is_no_exaone_4_checkpoint_is_refused(hf_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(hf_folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(ValueError, match="of method 'bitsandbytes' is not read here"):
        fit(hf_folder)
    edit_json(hf_folder / "config.json", model_type="llama")
    with pytest.raises(ValueError, match="not an EXAONE 4 model: model_type is 'llama'"):
        fit(hf_folder)


def test_damaged_weights_are_refused(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fit(hf_folder)


def test_a_revision_is_for_hub_ids() -> None:
    with pytest.raises(ValueError, match="the demo model has no revisions"):
        fit("demo", revision="main")
