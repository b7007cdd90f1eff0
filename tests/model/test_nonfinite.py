"""Numbers that are none: a checkpoint or a reply with NaN, infinity or an overflow ends in an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from adapters import random_adapter
from conftest import tiny_model
from mlx.utils import tree_map

from exaone4_mlx import CheckpointError, PromptCache, generate, load
from exaone4_mlx.checkpoint.quantize import DEFAULTS, Quantization
from exaone4_mlx.files.safetensors import all_finite, is_finite
from exaone4_mlx.generation.decode import CHECK_EVERY, Sampler, TokenStream
from exaone4_mlx.generation.draft import DraftModel, PromptLookup
from exaone4_mlx.generation.options import Sampling
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.generation.speculate import SpeculativeStream
from exaone4_mlx.model.adapter import Adapter, AdapterConfig
from exaone4_mlx.model.nonfinite import explain

GATE, NORM = "model.layers.2.mlp.gate_proj.weight", "model.layers.2.post_feedforward_layernorm.weight"
NAN, INF = float("nan"), float("inf")


def test_the_bits_of_a_float_say_whether_it_is_finite() -> None:
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        largest = mx.finfo(dtype).max
        for value in (0.0, -0.0, 1e-40, largest, -largest, NAN, -NAN, INF, -INF):
            array = mx.zeros((3, 5), dtype)
            array[1, 2] = value
            for view in (array, array.T, array[1:, 2:], array[1, 2]):
                assert is_finite(view) == mx.all(mx.isfinite(view)).item(), (dtype, value)
    assert is_finite(mx.zeros((0, 4))) and is_finite(mx.array([0xFFFFFFFF], mx.uint32))


def changed(folder: Path, name: str, change: Any) -> Path:
    tensors: Any = mx.load(str(folder / "model.safetensors"))
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors | {name: change(tensors[name])})
    return folder


def with_value(value: float) -> Any:
    def change(array: mx.array) -> mx.array:
        wide = array.astype(mx.float32)
        wide[0, 0] = value
        return wide.astype(array.dtype)

    return change


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (NAN, {}, "holds NaN or infinity: the checkpoint is damaged"),
        (-INF, {"dtype": "float32"}, "holds NaN or infinity: the checkpoint is damaged"),
        (NAN, {"q_bits": 4}, "holds NaN or infinity: the checkpoint is damaged"),
        (1e5, {"dtype": "float16"}, "holds values beyond the range of float16; use bfloat16 or float32"),
        (1e5, {"dtype": "float16", "q_bits": 4}, "holds values beyond the range of float16"),
    ],
)
def test_load_names_the_weight_and_its_file(value: float, options: Any, message: str, hf_folder: Path) -> None:
    changed(hf_folder, GATE, with_value(value))
    with pytest.raises(CheckpointError, match=f"model.safetensors: {GATE} {message}"):
        load(hf_folder, **options)
    if value == 1e5:
        load(hf_folder, dtype="bfloat16")


def test_scales_of_quantized_weights_are_checked(hf_folder: Path, edit_json: Any) -> None:
    """Scales are floats, or bytes, and some bytes mean NaN or infinity."""
    tensors: Any = mx.load(str(hf_folder / "model.safetensors"))
    for mode, (bits, group_size) in DEFAULTS.items():
        setting = Quantization(bits, group_size, mode)
        parts = dict(setting.tensors(GATE, tensors[GATE]))
        scales = parts[GATE.replace(".weight", ".scales")]
        scales[0, 0] = NAN if mode == "affine" else 0xFF
        edit_json(hf_folder / "config.json", quantization=setting.as_dict())
        mx.save_safetensors(str(hf_folder / "new"), tensors | parts)
        (hf_folder / "new.safetensors").replace(hf_folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.gate_proj.* holds NaN or infinity"):
            load(hf_folder)


def test_an_overflow_of_float16_ends_the_reply_and_empties_its_cache(hf_folder: Path) -> None:
    """All weights are finite in float16, and the sum of layer 2 is not."""
    changed(hf_folder, NORM, lambda norm: norm * 0 + 30_000)
    model, tokenizer = load(hf_folder, dtype="float16")
    for kv, options in ((None, {}), (None, {"prompt_lookup": True}), (8, {"thinking": True})):
        cache = PromptCache(model, tokenizer, kv=kv)
        with pytest.raises(FloatingPointError) as error:
            generate(model, tokenizer, "Hello", max_tokens=24, temperature=0, prompt_cache=cache, **options)
        assert str(error.value) == (
            "the reply cannot be computed: the values after the MLP of layer 2 (local) are beyond the range of "
            "float16 (65,504): load the model in bfloat16 or float32 (--dtype)"
        )
        assert not cache.ids, "a later reply must not attend to NaN"
    assert generate(*load(hf_folder), "Hello", max_tokens=4, temperature=0).finish_reason == "length"


def test_the_first_part_that_is_not_finite_is_named(tokenizer: Any) -> None:
    nothing = tiny_model()
    found = explain(nothing, [5, 6, 7], nothing.fused())
    assert "the logits are NaN or infinite in float32: the weights are damaged" in found
    for name, where in {
        "model.embed_tokens": "the embeddings",
        "model.layers.1.self_attn.v_proj": r"the attention of layer 1 (local)",
        "model.layers.3.mlp.down_proj": r"the MLP of layer 3 (global)",
        "lm_head": "the logits",
    }.items():
        model = tiny_model()
        part = dict(model.named_modules())[name]
        part.weight = part.weight * NAN
        assert where in explain(model, [5, 6, 7], model.fused()), name


def test_an_adapter_that_overflows_is_named_and_not_the_weights(unread: Any) -> None:
    """Its arrays are finite, and what the model computes with them is not."""
    tokenizer = unread[1]
    model = tiny_model(vocab_size=unread[0].config.vocab_size)
    model.set_adapters(random_adapter(model=model.config, scale=1e30))
    with pytest.raises(FloatingPointError) as error:
        generate(model, tokenizer, "Hello", max_tokens=2)
    assert str(error.value) == (
        "the reply cannot be computed: the values after the attention of layer 0 (local) with the adapter are NaN or "
        "infinite in float32: lower the scale of the adapter (--adapter-scale), or leave it out"
    )
    cache = PromptCache(model, tokenizer, fused=model.fused())  # a named adapter of a server
    model.set_adapters()
    with pytest.raises(FloatingPointError, match=r"layer 0 \(local\) with the adapter are NaN"):
        generate(model, tokenizer, "Hello", max_tokens=2, prompt_cache=cache)
    generate(model, tokenizer, "Hello", max_tokens=2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_adapter_beyond_the_range_of_the_model_is_refused(kind: str) -> None:
    model, name = tiny_model(dtype=mx.float16), "model.layers.1.mlp.up_proj"
    whole = Adapter(AdapterConfig("full"), {f"{name}.weight": mx.ones((48, 32))})
    adapter = whole if kind == "full" else random_adapter()
    with pytest.raises(CheckpointError, match=r"with the adapter holds values beyond the range of float16; use bfl"):
        model.set_adapters(adapter, 1e7)
    assert not model.adapters


class Breaks:
    """A model whose logits are NaN once its cache holds `limit` tokens."""

    def __init__(self, limit: int) -> None:
        self.model, self.limit = tiny_model(), limit
        self.prefill, self.logits, self.config = self.model.prefill, self.model.logits, self.model.config

    def __call__(self, ids: mx.array, cache: Any) -> mx.array:
        return self.model(ids, cache) * (NAN if cache[0].offset >= self.limit else 1)


@pytest.mark.parametrize("speculative", [False, True])
def test_logits_of_every_token_are_checked_in_one_reduction_for_sixteen(
    speculative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[int] = []

    def counted(logits: mx.array) -> mx.array:
        checks.append(logits.shape[0])
        return all_finite(logits)

    def stream(limit: int) -> Any:
        model: Any = Breaks(limit)
        cache, prompt = model.model.make_cache(), [5, 6, 7]
        given = model, prefill(model, prompt, cache), cache, Sampler(Sampling().resolved(False), prompt, 61)
        return SpeculativeStream(*given, PromptLookup(), prompt, 4) if speculative else TokenStream(*given)

    for limit in (4, 9, 30):
        tokens, handed_out = stream(limit), []
        with pytest.raises(FloatingPointError):
            handed_out.extend(next(tokens) for _ in range(100))
        assert len(handed_out) < limit + CHECK_EVERY, limit
    short = stream(6)
    for _ in range(6):
        next(short)
    with pytest.raises(FloatingPointError):
        short.close()
    whole = stream(1000)
    monkeypatch.setattr("exaone4_mlx.generation.decode.all_finite", counted)
    monkeypatch.setattr("exaone4_mlx.generation.decode.is_finite", counted)
    for _ in range(48):
        next(whole)
    whole.close()
    assert all(rows >= CHECK_EVERY for rows in checks[:-1]) and 48 <= sum(checks) <= 56, checks


def test_a_draft_model_that_computes_nan_is_named(unread: Any) -> None:
    model, tokenizer = unread
    draft = tiny_model(vocab_size=model.config.vocab_size)
    draft.update(tree_map(lambda array: array * NAN, draft.parameters()))
    with pytest.raises(FloatingPointError, match=r"the draft model computes no drafts: .* the embeddings are NaN"):
        generate(model, tokenizer, "Hello", max_tokens=24, draft_model=draft)
    assert DraftModel(tiny_model()).draft([5, 6, 7], 2, Sampler(Sampling().resolved(False), [5], 61))


def test_a_prompt_cache_with_nan_is_neither_saved_nor_read(unread: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cache = PromptCache(*unread)
    cache.prefill([5, 6, 7])
    cache.layers[1].buffers[0][..., 1, 0] = NAN
    with pytest.raises(FloatingPointError, match="the prompt cache is not saved: its layer 1 keys holds NaN"):
        cache.save(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("exaone4_mlx.generation.cache_file.is_finite", lambda array: True)
    cache.save(tmp_path / "cache")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"is damaged .*NaN or infinity.* starting without it"):
        assert not PromptCache.load(tmp_path / "cache", *unread).ids
