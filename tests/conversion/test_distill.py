"""Distillation: the predictions move towards the original's, and never away from them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_ids, tiny_model

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.conversion import distill as module
from exaone4_mlx.conversion.distill import distill
from exaone4_mlx.conversion.evaluate import divergence

WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_hidden_layers": 2}


def quantized(bits: int = 3, dtype: mx.Dtype = mx.bfloat16, mode: str = "affine", **changes: Any) -> Exaone4ForCausalLM:
    model = tiny_model(dtype=dtype, **WIDE | changes)
    nn.quantize(model, 32, bits, mode=mode)
    return model


def training_data(count: int = 20, first: int = 0, **changes: Any) -> tuple[list[list[int]], list[mx.array], mx.array]:
    """Texts, the hidden states of the original, and its output matrix."""
    teacher = tiny_model(**WIDE | changes)
    texts = [random_ids(12 + seed % 3, seed=seed)[0].tolist() for seed in range(first, first + count)]
    head = teacher.model.embed_tokens if teacher.config.tie_word_embeddings else teacher.lm_head
    return texts, [teacher.model(mx.array([ids]))[0] for ids in texts], head.weight


def mean_kl(model: Exaone4ForCausalLM, texts: list[list[int]], targets: list[mx.array], head: mx.array) -> float:
    kl = [divergence(model(mx.array([ids]))[0], target @ head.T) for ids, target in zip(texts, targets, strict=True)]
    return mx.mean(mx.concatenate(kl)).item()


@pytest.mark.heavy
def test_other_texts_are_predicted_better() -> None:
    model = quantized(4, mx.float32)
    unseen = training_data(10, first=100)
    before = mean_kl(model, *unseen)
    distill(model, *training_data(30), steps=14, batch_size=4, learning_rate=3e-3)
    after = mean_kl(model, *unseen)
    assert after < 0.95 * before, f"KL {after:.3f}, {before:.3f} before"


@pytest.mark.parametrize("tied", [False, True])
def test_the_student_computes_what_the_model_computes(tied: bool) -> None:
    model = quantized(dtype=mx.float32, tie_word_embeddings=tied)
    texts, targets, head = training_data(3, tie_word_embeddings=tied)
    student = module._Student(model, head)
    ours = module.mean_divergence(student, student.start(), list(zip(texts, targets, strict=True)))
    assert ours == pytest.approx(mean_kl(model, texts, targets, head), rel=1e-3)
    gradient = mx.grad(student.divergence)(student.start(), texts[0], targets[0])
    assert all(mx.any(part != 0).item() for part in gradient.values()), "a tuned parameter has no effect"


def test_steps_that_increase_the_loss_are_discarded() -> None:
    model = quantized()
    before = dict(module.tree_flatten(model.parameters()))
    tuned = distill(model, *training_data(), steps=3, batch_size=2, learning_rate=5.0)
    assert tuned and all(mx.array_equal(value, before[name]) for name, value in tuned.items())
    assert all(mx.array_equal(value, before[name]) for name, value in module.tree_flatten(model.parameters()))


def test_tuned_tensors_are_returned_and_put_into_the_model_in_their_dtype() -> None:
    model = quantized()
    before = dict(module.tree_flatten(model.parameters()))
    tuned = distill(model, *training_data(), steps=6, batch_size=4, learning_rate=3e-3)
    after = dict(module.tree_flatten(model.parameters()))
    assert {name for name in tuned if not name.endswith(("norm.weight", ".scales", ".biases"))} == set()
    assert {name for name in before if name not in tuned} == {
        name for name in before if name.endswith(".weight") and not name.endswith("norm.weight")
    }
    for name, value in after.items():
        assert value.dtype == before[name].dtype
        assert (name in tuned) == (not mx.array_equal(value, before[name])), name
        assert name not in tuned or mx.array_equal(value, tuned[name])


def test_the_loss_includes_the_rounding_to_bfloat16() -> None:
    model, (texts, targets, head) = quantized(), training_data()
    student = module._Student(model, head)
    offsets = {name: offset + 0.01 for name, offset in student.start().items()}
    for name, value in student.values(offsets).items():
        assert mx.array_equal(value, value.astype(mx.bfloat16)), f"{name} is not rounded to its stored dtype"
    gradient = mx.grad(student.divergence)(offsets, texts[0], targets[0])
    assert all(mx.any(part != 0).item() for part in gradient.values()), "the gradient passes the rounding"


def test_slices_of_the_logits_give_the_loss_of_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (texts, targets, head) = quantized(), training_data(2)
    student = module._Student(model, head)
    whole = student.divergence(student.start(), texts[0], targets[0]).item()
    monkeypatch.setattr(module, "POSITIONS", 5)
    assert student.divergence(student.start(), texts[0], targets[0]).item() == pytest.approx(whole, rel=1e-5)


def test_layers_without_affine_quantization_are_not_tuned() -> None:
    model, (texts, targets, head) = tiny_model(**WIDE), training_data()
    model.lm_head = model.lm_head.to_quantized(32, 4)
    mlp = model.layers[0].mlp
    mlp.up_proj = mlp.up_proj.to_quantized(32, 4, mode="mxfp4")
    tuned = distill(model, texts, targets, head, steps=2, batch_size=2)
    assert {name for name in tuned if "norm" not in name} == {"lm_head.scales", "lm_head.biases"}


def test_the_same_seed_gives_the_same_bytes_and_progress_counts_steps() -> None:
    seen = []
    runs = [
        distill(
            quantized(4),
            *training_data(),
            steps=3,
            batch_size=2,
            learning_rate=1e-3,
            seed=seed,
            progress=lambda *step: seen.append(step),
        )
        for seed in (1, 1, 2)
    ]
    assert all(mx.array_equal(value, runs[1][name]) for name, value in runs[0].items())
    assert any(distance(value, runs[2][name]) > 0 for name, value in runs[0].items())
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]


def test_unusable_data_is_refused() -> None:
    texts, targets, head = training_data(3)
    with pytest.raises(ValueError, match="no layer in affine"):
        distill(tiny_model(**WIDE), texts, targets, head)
    with pytest.raises(ValueError, match="at least two texts"):
        distill(quantized(), texts[:1], targets[:1], head)
    with pytest.raises(ValueError, match="3 texts cannot have 2 targets"):
        distill(quantized(), texts, targets[:2], head)
    with pytest.raises(ValueError, match=r"text 1 of 13 tokens cannot have a target of shape \(12, 64\)"):
        distill(quantized(), texts, [targets[0], targets[0], targets[2]], head)
