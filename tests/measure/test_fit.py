"""What a model needs is told beforehand: weights and caches to the byte, what prefill computes with by a bound."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, Greedy, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx import Exaone4Config, convert, load
from exaone4_mlx.cli.main import main
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation.decode import prefill
from exaone4_mlx.generation.options import PREFILL_STEP_SIZE
from exaone4_mlx.generation.speculate import DRAFT_STEP_SIZE, DRAFT_WINDOW, DraftModel
from exaone4_mlx.measure.allocation import cache_bytes, draft_cache_bytes, draft_windows, prefill_bytes
from exaone4_mlx.measure.fit import fit, fit_sizes
from exaone4_mlx.measure.machine import memory_of_this_machine
from exaone4_mlx.measure.sizes import read_sizes, weight_shapes
from exaone4_mlx.model.cache import RotatingKVCache, make_caches, visible
from exaone4_mlx.model.kv import KVQuantization
from exaone4_mlx.model.load import load_model
from exaone4_mlx.model.network import Exaone4ForCausalLM

ALL_GLOBAL = {"sliding_window": None, "sliding_window_pattern": None}
#: window 7: buckets of 256, the window, its buffer of 7 - 1 + 64 + 512 rows, prefill's chunks of 2048, the model's end
LENGTHS = (1, 6, 7, 8, 255, 256, 257, 512, 513, 581, 582, 583, 2047, 2048, 2049, 4096, 4097, 6145, 8193, 11_999, 12_000)
#: window 4096: the same, where the buffer of 4671 rows is longer than a chunk
LONG_LENGTHS = (100, 2048, 2049, 4095, 4096, 4097, 4670, 4671, 4672, 6144, 9000)


def filled_bytes(
    model: Exaone4ForCausalLM,
    length: int,
    dtype: mx.Dtype,
    step: int = PREFILL_STEP_SIZE,
    caches: Sequence[Any] | None = None,
) -> int:
    """`nbytes` of the model's caches, or of these, after `length` tokens, `step` at a time."""
    config, total = model.config, 0
    for cache in caches or model.make_cache():
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
    told = fit(folder, max_kv_size=length)
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


def test_the_32b_model_at_its_longest(shared: Path) -> None:
    config = Exaone4Config.from_file(shared / "configs" / "EXAONE-4.0-32B.config.json")
    assert cache_bytes(config, 131_072) == (8_589_934_592, 805_306_368, 48 * (64 + 512 - 1) * 4096)


def test_the_1_2b_model_has_global_layers_only(shared: Path) -> None:
    config = Exaone4Config.from_file(shared / "configs" / "EXAONE-4.0-1.2B.config.json")
    assert cache_bytes(config, 65_536) == (4_026_531_840, 0, 0)


KV_CHOICES: dict[str, dict[str, Any]] = {
    "8": {"kv_bits": 8, "kv_layers": "all"},
    "4": {"kv_bits": 4, "kv_layers": "all"},
    "keys 8, values 4": {"kv_bits_keys": 8, "kv_bits_values": 4, "kv_layers": "all"},
    "values alone, global layers": {"kv_bits_values": 8, "kv_layers": "global"},
    "4, global layers by default": {"kv_bits": 4},
}


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize(("head_dim", "changes"), [(32, {}), (64, ALL_GLOBAL)], ids=["hybrid", "all global"])
@pytest.mark.parametrize("choice", KV_CHOICES)
def test_quantized_caches_are_counted_to_the_byte(
    choice: str, head_dim: int, changes: dict[str, Any], dtype: mx.Dtype
) -> None:
    """At 600 tokens and more the local buffers have been compacted, and rewound rows and slack are all there."""
    model = tiny_model(max_position_embeddings=12_000, head_dim=head_dim, **changes)
    kv = KVQuantization.read(model.config, **KV_CHOICES[choice])
    plain = cache_bytes(model.config, 600, dtype.size)
    for length in (5, 600, 2500):
        told = cache_bytes(model.config, length, dtype.size, kv)
        assert sum(told) == filled_bytes(model, length, dtype, caches=model.make_cache(kv)), f"{length} tokens"
    told = cache_bytes(model.config, 600, dtype.size, kv)
    assert told[0] < plain[0] and (told[1:] == plain[1:]) == (not plain[1] or "global" in choice)


def test_a_draft_model_slides_in_every_layer() -> None:
    """Also where its own layers see everything; narrower windows stay."""
    model = tiny_model(max_position_embeddings=12_000)
    assert draft_windows(model.config) == (7, 7, 7, DRAFT_WINDOW)
    for length in (5, 600, 4671, 6000, 12_000):
        caches = make_caches(draft_windows(model.config))
        assert draft_cache_bytes(model.config, length, 4) == filled_bytes(
            model, length, mx.float32, DRAFT_STEP_SIZE, caches
        )
    assert draft_cache_bytes(model.config, 6000) == draft_cache_bytes(model.config, 12_000), "and no longer grows"
    drafter, prompt = DraftModel(model), random_ids(700)[0].tolist()
    drafter.draft(prompt, 1, Greedy())
    assert draft_cache_bytes(model.config, 700, 4) == sum(layer.nbytes for layer in drafter._layers)


# --- prefill ------------------------------------------------------------------

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 12_000}
#: What most of the peak is -> (tokens, config)
PEAKS: dict[str, tuple[int, dict[str, Any]]] = {
    "scores": (2048, ALL_GLOBAL),
    "scores of a late chunk": (1024, {"num_hidden_layers": 4, "sliding_window": 300, "sliding_window_pattern": 2}),
    "buffers": (1000, ALL_GLOBAL | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}),
    "hidden states": (300, {"hidden_size": 1024}),
    "queries": (200, {"num_attention_heads": 32, "head_dim": 32}),
    "keys and values": (200, {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}),
    "the MLP": (300, {"intermediate_size": 2048}),
    "logits": (60, {"vocab_size": 100_000}),
}

#: Tokens in a chunk, where several show it in less time.
STEPS = {"scores of a late chunk": 256, "buffers": 16}


def peak_of_prefill(
    model: Exaone4ForCausalLM,
    length: int,
    step: int,
    kv: KVQuantization | None = None,
    with_caches: bool = False,
) -> int:
    """Bytes at the peak of reading a prompt, without weights, and without caches as they are afterwards."""
    mx.eval(model.parameters())
    ids = random_ids(length).tolist()[0]
    gc.collect()
    mx.synchronize()  # or else what the weights were cast from is freed later
    before, cache = mx.get_active_memory(), model.make_cache(kv)
    mx.reset_peak_memory()
    prefill(model, ids, cache, step)
    return mx.get_peak_memory() - before - (0 if with_caches else sum(layer.nbytes for layer in cache))


def check_peak(length: int, dtype: mx.Dtype, config: dict[str, Any], step: int = PREFILL_STEP_SIZE) -> None:
    model = Exaone4ForCausalLM(Exaone4Config.from_dict(TINY | SMALL | config))
    model.set_dtype(dtype)
    measured = peak_of_prefill(model, length, step)
    told = prefill_bytes(model.config, length, dtype.size, step_size=step)
    assert measured <= told <= 2.5 * measured, f"told {told / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB"


on_the_cpu = pytest.mark.skipif(
    mx.default_device() != mx.Device(mx.cpu), reason="the bound is measured on the CPU only"
)


@on_the_cpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("peak", PEAKS)
def test_prefill_stays_below_what_was_told_and_not_far_below(peak: str, dtype: mx.Dtype) -> None:
    check_peak(PEAKS[peak][0], dtype, PEAKS[peak][1], STEPS.get(peak, PREFILL_STEP_SIZE))


@on_the_cpu
@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("length", [50, 1000, 5000])
def test_so_it_does_for_a_medium_model(length: int, dtype: mx.Dtype) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    check_peak(length, dtype, sizes | heads | {"sliding_window": 600, "sliding_window_pattern": 2})


def test_metal_keeps_no_scores_where_its_attention_is_fused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Exaone4Config.from_file(shared / "configs" / "EXAONE-4.0-32B.config.json")
    scores = 40 * 2048 * 131_072 * 2  # heads, chunk, context, bfloat16
    assert prefill_bytes(config, 131_072) > scores
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert prefill_bytes(config, 131_072) < scores / 10
    odd = Exaone4Config.from_dict(TINY | {"max_position_embeddings": 131_072})
    assert prefill_bytes(odd, 131_072) > 4 * 2048 * 131_072 * 2, "Metal has no fused kernel for a head size of 16"


def test_the_mask_of_local_layers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU it is little beside the scores."""
    mx.eval(mx.arange(2))
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(visible(299, 2048, 300))
    measured = mx.get_peak_memory() - before
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    sizes = TINY | SMALL | {"head_dim": 64}
    local, everything = (Exaone4Config.from_dict(sizes | other) for other in ({"sliding_window": 300}, ALL_GLOBAL))
    assert prefill_bytes(local, 5000) - prefill_bytes(everything, 5000) >= measured


@pytest.mark.parametrize("changes", [{}, ALL_GLOBAL, {"sliding_window": 3000}], ids=["hybrid", "all global", "long"])
def test_a_longer_prompt_never_needs_less(changes: dict[str, Any]) -> None:
    """Or else the search for the largest context would end at the wrong one."""
    config = Exaone4Config.from_dict(TINY | {"max_position_embeddings": 12_000} | changes)
    needs = [prefill_bytes(config, length) for length in sorted({*range(1, 12_001, 61), *LENGTHS, *LONG_LENGTHS})]
    assert needs == sorted(needs)


@pytest.mark.parametrize("name", ["32B", "1.2B"])
@pytest.mark.parametrize("choice", KV_CHOICES)
def test_no_length_takes_more_with_quantized_caches(choice: str, name: str, shared: Path) -> None:
    """They are unpacked to read a prompt, one layer at a time: less than what they save, from the first token on."""
    config = Exaone4Config.from_file(shared / "configs" / f"EXAONE-4.0-{name}.config.json")
    kv = KVQuantization.read(config, **KV_CHOICES[choice])
    for length in (1, 256, 257, 2048, 2049, 4097, 30_000, config.max_position_embeddings):
        plain = sum(cache_bytes(config, length)) + prefill_bytes(config, length)
        assert sum(cache_bytes(config, length, 2, kv)) + prefill_bytes(config, length, kv=kv) <= plain, length


@on_the_cpu
@pytest.mark.parametrize("choice", ["4", "keys 8, values 4"])
def test_the_peak_of_a_prompt_is_lower_with_quantized_caches_and_told(
    choice: str,
) -> None:
    sizes = ALL_GLOBAL | {"head_dim": 128, "num_hidden_layers": 8}
    model = Exaone4ForCausalLM(Exaone4Config.from_dict(TINY | SMALL | sizes))
    model.set_dtype(mx.bfloat16)
    length, step = 512, 32
    kv = KVQuantization.read(model.config, **KV_CHOICES[choice])
    plain, packed = (peak_of_prefill(model, length, step, how, with_caches=True) for how in (None, kv))
    told = prefill_bytes(model.config, length, 2, kv=kv, step_size=step) + sum(cache_bytes(model.config, length, 2, kv))
    sizes_told = f"{plain / 1e6:.2f} MB without, {packed / 1e6:.2f} with, told {told / 1e6:.2f}"
    assert packed <= plain and packed <= told <= 2 * packed, sizes_told


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
    assert fit(summary.path, dtype="float16") == fit(summary.path), "a cast leaves the embedding what it is"


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


@pytest.mark.parametrize(("dtype", "q_bits"), [("float16", None), ("float32", None), (None, 8), ("float32", 4)])
def test_weights_that_would_be_cast_or_quantized_are_those_of_the_model_so_loaded(dtype: Any, q_bits: Any) -> None:
    model, _ = load("demo", dtype=dtype, q_bits=q_bits)
    told = fit("demo", dtype=dtype, q_bits=q_bits, max_kv_size=3)
    assert told.weights_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    size = 4 if dtype == "float32" else 2
    caches = told.global_cache_bytes, told.local_window_bytes, told.local_reserve_bytes
    assert caches == cache_bytes(model.config, 3, size)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a head of its own"])
def test_shapes_follow_from_the_config(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    assert weight_shapes(model.config) == shapes


def test_config_alone_tells_the_same_as_the_weights(tmp_path: Path) -> None:
    assert fit(DEMO_FOLDER / "config.json") == fit("demo")
    shutil.copy(DEMO_FOLDER / "config.json", tmp_path)
    assert fit(tmp_path, q_bits=4) == fit("demo", q_bits=4)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in three and six bits."""
    return convert("demo", tmp_path_factory.mktemp("fit") / "model", recipe="mixed_3_6", search=False).path


def test_the_config_of_a_quantized_folder_tells_the_same_as_its_weights(quantized: Path, tmp_path: Path) -> None:
    assert fit(quantized / "config.json") == fit(quantized)
    folder = convert("demo", tmp_path / "model", q_mode="mxfp4", search=False).path
    assert fit(folder / "config.json") == fit(folder)


def test_a_layer_that_the_config_excepts_counts_in_full(
    quantized: Path, edit_json: Callable[..., None], tmp_path: Path
) -> None:
    file = Path(shutil.copy(quantized / "config.json", tmp_path))
    plain = {"group_size": 64, "bits": 4, "mode": "affine"}
    edit_json(file, quantization=plain, quantization_config=None)
    told, config = fit(file).weights_bytes, Exaone4Config.from_file(file)
    edit_json(file, quantization=plain | {"model.embed_tokens": False})
    assert fit(file).weights_bytes - told == config.vocab_size * config.hidden_size * (16 - 4.5) / 8


def test_the_32b_model_in_four_bits(shared: Path) -> None:
    file = shared / "configs" / "EXAONE-4.0-32B.config.json"
    parameters = 32_003_216_384
    told = fit(file)
    assert told.weights_bytes == 2 * parameters and told.max_kv_size == 131_072
    assert (told.global_cache_bytes, told.local_window_bytes) == (8_589_934_592, 805_306_368)
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
def test_of_a_hub_id_nothing_but_config_json_is_downloaded(
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
    told = read_sizes("LGAI-EXAONE/nowhere", "main")
    assert asked == [("LGAI-EXAONE/nowhere", "main", ["config.json"])]
    assert told.has_no_files == (cached != "all") and fit_sizes(told) == fit("demo")


# --- does it fit --------------------------------------------------------------


def test_context_is_the_longest_where_none_is_given() -> None:
    told = fit("demo")
    assert (told.max_kv_size, told.largest_context) == (8192, 8192) and told.fits
    assert fit("demo", max_kv_size=8192) == told


def test_quantized_caches_and_a_draft_model_count() -> None:
    plain = fit("demo", max_kv_size=3000)
    config = load("demo")[0].config
    kv = KVQuantization.coerce(8, config)
    told = fit("demo", max_kv_size=3000, kv=8)
    assert told.cache_bytes == sum(cache_bytes(config, 3000, 2, kv)) < plain.cache_bytes
    assert told.prefill_bytes == prefill_bytes(config, 3000, kv=kv) and plain.draft_bytes == told.draft_bytes == 0
    drafted = fit("demo", max_kv_size=3000, draft_model="demo")
    assert drafted.draft_bytes == plain.weights_bytes + draft_cache_bytes(config, 3000)
    assert drafted.total_bytes == plain.total_bytes + drafted.draft_bytes + drafted.prefill_bytes - plain.prefill_bytes
    assert fit("demo", memory=drafted.total_bytes / 1e9, draft_model="demo").largest_context >= 3000
    assert fit("demo", memory=(drafted.total_bytes - 1) / 1e9, draft_model="demo").largest_context < 3000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": 3}, "kv must be 8, 4 or a KVQuantization, not 3"),
        ({"kv": KVQuantization(8, group_size=48)}, "kv_group_size must be 32 or 64"),
    ],
)
def test_caches_that_cannot_be_so_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit("demo", **options)


def test_weights_beyond_the_physical_memory_are_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever limit was asked about: a larger one can be set, but not beyond what there is."""
    told = fit("demo", memory=1e-9)
    assert not told.fits
    told.check_weights()
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 11_000}.__getitem__)
    with pytest.raises(MemoryError, match=r"the weights have 11 MB, and this machine has 11 MB of memory"):
        told.check_weights()


def test_total_is_weights_caches_and_prefill() -> None:
    told, config = fit("demo", max_kv_size=3000), load("demo")[0].config
    parts = told.weights_bytes, told.global_cache_bytes, told.local_window_bytes, told.local_reserve_bytes
    assert min(parts) > 0 and told.prefill_bytes == prefill_bytes(config, 3000) > 0
    assert told.total_bytes == sum(parts) + told.prefill_bytes
    assert told.total_bytes == told.weights_bytes + sum(cache_bytes(config, 3000)) + prefill_bytes(config, 3000)


def test_it_fits_to_the_last_byte_and_not_beyond() -> None:
    needed = fit("demo", max_kv_size=3000).total_bytes
    assert fit("demo", max_kv_size=3000, memory=needed / 1e9).fits
    assert not fit("demo", max_kv_size=3000, memory=(needed - 1) / 1e9).fits


@pytest.mark.parametrize("context", [1, 256, 257, 2048, 3000, 8191])
def test_the_largest_context_fits_and_one_token_more_does_not(context: int) -> None:
    memory = fit("demo", max_kv_size=context).total_bytes / 1e9
    largest = fit("demo", memory=memory).largest_context
    assert largest >= context and fit("demo", max_kv_size=largest, memory=memory).fits
    assert largest == 8192 or not fit("demo", max_kv_size=largest + 1, memory=memory).fits


def test_no_context_fits_where_the_weights_do_not() -> None:
    told = fit("demo", memory=0.001)
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
    with pytest.raises(ValueError, match="max_kv_size 8193 is more than the 8192 tokens of this model's context"):
        fit("demo", max_kv_size=8193)


@pytest.mark.parametrize("context", [0, -1, 2.5, True, "8192"])
def test_a_context_is_a_positive_whole_number(context: Any) -> None:
    with pytest.raises(ValueError, match="max_kv_size must be a positive whole number of tokens, not "):
        fit("demo", max_kv_size=context)


@pytest.mark.parametrize("memory", [0, -1, math.nan, math.inf, True, "16 GB"])
def test_memory_is_a_positive_number_of_gigabytes(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a positive number of gigabytes, not "):
        fit("demo", memory=memory)


def test_what_load_cannot_find_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere, and no hub id either"):
        fit(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is not a model folder"):
        fit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; the format of pytorch_model.bin is not"):
        fit(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks model-00001-of-00002\.safetensors"):
        fit(tmp_path)


def test_what_is_no_exaone_4_checkpoint_is_refused(hf_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(hf_folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(ValueError, match="of method 'bitsandbytes' is not supported"):
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
    with pytest.raises(ValueError, match=r"revision 'main' is for hub ids; .*config\.json is a local file"):
        fit(DEMO_FOLDER / "config.json", revision="main")


def test_a_quantized_model_keeps_its_bits(quantized: Path) -> None:
    with pytest.raises(ValueError, match="is quantized already; leave q_bits out"):
        fit(quantized, q_bits=8)
    with pytest.raises(ValueError, match="affine quantization has 2, 3, 4, 5, 6 or 8 bits, not 7"):
        fit("nowhere", q_bits=7)
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, not 'int8'"):
        fit("nowhere", dtype="int8")


def test_a_config_that_does_not_tell_the_size_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ValueError, match=r"config\.json alone does not tell how large 'awq' weights are"):
        fit(tmp_path)


# --- the command --------------------------------------------------------------


def test_the_table_has_a_column_for_each_width(capsys: pytest.CaptureFixture[str]) -> None:
    gigabytes = fit("demo", max_kv_size=100, q_bits=8).total_bytes / 1e9
    assert main(["fit", "--model", "demo", "--memory", str(gigabytes), "--max-kv-size", "100"]) == 0
    out = capsys.readouterr().out
    rows = {line[:26].strip(): line[26:].split("  ") for line in out.splitlines()}
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in rows.items()}
    assert cells["100 tokens"] == ["16 bits", "8 bits", "4 bits"]
    assert cells[f"fits into {gigabytes * 1e3:.0f} MB"] == ["no", "yes", "yes"]
    assert cells["largest context that fits"][0] == "none"
    names = "weights", "global cache", "local windows", "rewind reserve and slack", "prefill transient", "total"
    assert set(names) <= set(cells) and all(len(cells[name]) == 3 for name in names)


def test_a_quantized_model_has_one_column(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", str(quantized)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("  ")[-1].strip() == "as stored"


def test_the_table_counts_quantized_caches_and_a_draft_model(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, draft = (str(shared / "configs" / f"EXAONE-4.0-{size}.config.json") for size in ("32B", "1.2B"))

    def table(*flags: str) -> str:
        assert main(["fit", "--model", file, "--metal", "--q-bits", "4", *flags]) == 0
        return capsys.readouterr().out

    plain = table()
    assert "--kv-bits 8 saves 3.89 GB." in plain and "draft" not in plain
    told = table("--kv-bits-keys", "8", "--kv-bits-values", "4", "--draft-model", draft)
    assert "Keys in 8 bits and values in 4 bits, in groups of 64, in the caches of global layers." in told
    rows = {line[:26].strip(): line[26:].strip() for line in told.splitlines()}
    assert rows["global cache"] == "3.49 GB" and rows["local windows"] == "805 MB"
    assert rows["draft model, its caches"] == f"{(2_558_782_976 + 4671 * 30 * 2048) / 1e9:.2f} GB", (
        "a window and its slack"
    )
    with pytest.raises(ValueError, match=r"the draft model demo has a vocabulary of 3072 tokens, and .* one of 102400"):
        fit(file, draft_model="demo")
    assert "Keys and values are in 8 bits" in table("--kv-bits", "8")
    assert main(["fit", "--model", "demo", "--kv-bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["global_cache_bytes"] == fit("demo", kv=4).global_cache_bytes


def test_a_mac_can_be_planned_for_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where attention is not fused, the table says that there it is."""
    Exaone4Config(num_hidden_layers=2, head_dim=128, max_position_embeddings=8192).save_pretrained(tmp_path)
    here, there = fit(tmp_path, metal=False), fit(tmp_path, metal=True)
    assert here.prefill_bytes > 2 * there.prefill_bytes > 0
    assert here.total_bytes - here.prefill_bytes == there.total_bytes - there.prefill_bytes
    if not mx.metal.is_available():
        assert fit(tmp_path) == here
        assert main(["fit", "--model", str(tmp_path)]) == 0
        assert "On a Mac it is fused: --metal counts it so." in capsys.readouterr().out
    assert main(["fit", "--model", str(tmp_path), "--metal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prefill_bytes"] == there.prefill_bytes


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", "demo", "--max-kv-size", "3000", "--q-bits", "4", "--memory", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = fit("demo", max_kv_size=3000, q_bits=4, memory=1)
    assert told == {name: getattr(expected, name) for name in FIELDS} and told["fits"]


FIELDS = {
    "weights_bytes", "global_cache_bytes", "local_window_bytes", "local_reserve_bytes", "prefill_bytes", "total_bytes",
    "draft_bytes", "fits", "largest_context", "max_kv_size", "memory_bytes",
}  # fmt: skip


def test_the_limit_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*flags: str) -> str:
        assert main(["fit", "--model", "demo", *flags]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert "The memory is the physical memory of this machine." in output()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 21_474_836_480})
    told = output()
    assert "fits into 21.47 GB" in told
    assert "Metal's recommended working set on this machine; sudo sysctl iogpu.wired_limit_mb=N" in told
    assert "The memory is" not in output("--memory", "8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "demo", "--max-kv-size", "8193"], "8193 is more than the 8192 tokens"),
        (
            ["--model", "nowhere", "--max-kv-size", "0"],
            "--max-kv-size must be a positive whole number of tokens, not 0",
        ),
        (["--model", "nowhere", "--memory", "-1"], "memory must be a positive number of gigabytes, not -1.0"),
        (["--model", "nowhere", "--memory", "nan"], "memory must be a positive number of gigabytes, not nan"),
        (["--model", "nowhere", "--memory", "inf"], "memory must be a positive number of gigabytes, not inf"),
        (["--model", "nowhere", "--q-bits", "7"], "affine quantization has 2, 3, 4, 5, 6 or 8 bits, not 7"),
        (["--model", "nowhere"], "no folder nowhere, and no hub id either"),
        (["--model", "README.md"], "is not JSON"),
    ],
)
def test_errors_are_one_line_and_exit_1(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *flags]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1
