"""Sizes that are computed without loading are those of the loaded model, its caches and its prompts.

Bytes of caches are exact, and bytes of reading a prompt are an upper bound that is not far above.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, Greedy, mostly_heavy, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx import Exaone4Config, convert, load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation.draft import DRAFT_STEP_SIZE, DRAFT_WINDOW, DraftModel
from exaone4_mlx.generation.options import PREFILL_STEP_SIZE
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.measure.fit import fit, fit_sizes
from exaone4_mlx.measure.sizes import (
    cache_bytes,
    draft_cache_bytes,
    draft_windows,
    prefill_bytes,
    read_sizes,
    weight_shapes,
)
from exaone4_mlx.model.cache import RotatingKVCache, make_caches, visible
from exaone4_mlx.model.kv import KVQuantization
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


@pytest.mark.heavy
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

    def download(repo: str, revision: str | None, allow_patterns: list[str], **more: Any) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(hf_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    estimate = read_sizes("LGAI-EXAONE/nowhere", "main")
    assert asked == [("LGAI-EXAONE/nowhere", "main", ["config.json"])]
    assert estimate.has_no_files == (cached != "all") and fit_sizes(estimate) == fit("demo")


# --- caches and prompts -------------------------------------------------------------------------------------------

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
        mx.eval(cache.buffers)
        total += cache.nbytes
    return total


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
        estimate = sum(cache_bytes(model.config, length, dtype.size))
        assert estimate == filled_bytes(model, length, dtype), f"{length} tokens"


@pytest.mark.parametrize("max_position_embeddings", [64, 256, 300])
def test_a_short_context_bounds_the_last_bucket(max_position_embeddings: int) -> None:
    model = tiny_model(max_position_embeddings=max_position_embeddings)
    for length in (1, 63, max_position_embeddings):
        assert sum(cache_bytes(model.config, length, 4)) == filled_bytes(model, length, mx.float32)


def test_window_and_reserve_are_counted_apart() -> None:
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
        estimate = sum(cache_bytes(model.config, length, 4))
        assert filled_bytes(model, length, mx.float32, step=61) <= min(estimate * 1.5 + bucket, 12_000 / 256 * bucket)


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
        estimate = cache_bytes(model.config, length, dtype.size, kv)
        assert sum(estimate) == filled_bytes(model, length, dtype, caches=model.make_cache(kv)), f"{length} tokens"
    estimate = cache_bytes(model.config, 600, dtype.size, kv)
    assert estimate[0] < plain[0] and (estimate[1:] == plain[1:]) == (not plain[1] or "global" in choice)


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
    model: Exaone4ForCausalLM, length: int, step: int, kv: KVQuantization | None = None, with_caches: bool = False
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
    estimate = prefill_bytes(model.config, length, dtype.size, step_size=step)
    assert measured <= estimate <= 2.5 * measured, (
        f"estimated {estimate / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB"
    )


on_the_cpu = pytest.mark.skipif(
    mx.default_device() != mx.Device(mx.cpu), reason="the bound is measured on the CPU only"
)


@on_the_cpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("peak", mostly_heavy(PEAKS, 1))
def test_the_peak_of_prefill_is_below_the_bound_and_not_far_below(peak: str, dtype: mx.Dtype) -> None:
    check_peak(PEAKS[peak][0], dtype, PEAKS[peak][1], STEPS.get(peak, PREFILL_STEP_SIZE))


@on_the_cpu
@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("length", [50, 1000, 5000])
def test_the_peak_of_prefill_is_below_the_bound_for_a_medium_model(length: int, dtype: mx.Dtype) -> None:
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
@pytest.mark.heavy
@pytest.mark.parametrize("choice", ["4", "keys 8, values 4"])
def test_the_peak_of_a_prompt_is_lower_with_quantized_caches_and_below_the_bound(choice: str) -> None:
    sizes = ALL_GLOBAL | {"head_dim": 128, "num_hidden_layers": 8}
    model = Exaone4ForCausalLM(Exaone4Config.from_dict(TINY | SMALL | sizes))
    model.set_dtype(mx.bfloat16)
    length, step = 512, 32
    kv = KVQuantization.read(model.config, **KV_CHOICES[choice])
    plain, packed = (peak_of_prefill(model, length, step, how, with_caches=True) for how in (None, kv))
    estimate = prefill_bytes(model.config, length, 2, kv=kv, step_size=step) + sum(
        cache_bytes(model.config, length, 2, kv)
    )
    message = f"{plain / 1e6:.2f} MB without, {packed / 1e6:.2f} with, estimated {estimate / 1e6:.2f}"
    assert packed <= plain and packed <= estimate <= 2 * packed, message
