"""Trained projections and the loss, beside mlx-lm's layers and the plain cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx.tuning import trained
from exaone4_mlx.tuning.batches import TrainingBatch
from exaone4_mlx.tuning.examples import Example
from exaone4_mlx.tuning.trained import TrainedLinear, loss_sum


def linear(bits: int | None, inputs: int = 128, outputs: int = 48) -> Any:
    mx.random.seed(1)
    plain = nn.Linear(inputs, outputs, bias=False)
    return plain if bits is None else nn.QuantizedLinear.from_linear(plain, 64, bits)


def changed(module: TrainedLinear) -> TrainedLinear:
    module.lora_b = mx.random.normal(module.lora_b.shape) * 0.1
    if "m" in module:
        module.m = module.m * 1.5
    return module


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_values_and_gradients_are_those_of_mlx_lms_layers(bits: int | None, dora: bool) -> None:
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    ours = changed(TrainedLinear(linear(bits), 4, 3.0, 0.0, dora))
    theirs = (DoRALinear if dora else LoRALinear).from_base(linear(bits), r=4, scale=3.0)
    names = ["lora_a", "lora_b", *["m"] * dora]
    theirs.update({name: ours[name] for name in names})
    x, weights = mx.random.normal((2, 5, 128)), mx.random.normal((2, 5, 48))
    assert distance(ours(x), theirs(x)) < 1e-5

    def gradients(module: Any) -> dict[str, mx.array]:
        (module.base if module is ours else module.linear).freeze()
        _, found = nn.value_and_grad(module, lambda x: (module(x) * weights).sum())(x)
        return dict(tree_flatten(found))

    one, other = gradients(ours), gradients(theirs)
    assert set(one) == set(names)
    for name in names:
        assert distance(one[name], other[name]) < 1e-4 * mx.abs(other[name]).max().item(), name


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_dora_works_with_bits_that_do_not_divide_32(bits: int) -> None:
    """mlx-lm 0.32 computes the number of inputs as 32 // bits."""
    base = linear(bits)
    module = TrainedLinear(base, 4, 3.0, 0.0, dora=True)
    x = mx.random.normal((2, 5, 128))
    assert distance(module(x), base(x)) < 1e-5, "an adapter that is not trained changes nothing"
    weight = mx.dequantize(base.weight, base.scales, base.biases, 64, bits)
    module = changed(module)
    whole = weight + 3.0 * (module.lora_a @ module.lora_b).T
    whole = whole * (module.m / mx.linalg.norm(whole, axis=1))[:, None]
    assert distance(module(x), x @ whole.T) < 1e-4


def batch_of(lengths: list[int]) -> TrainingBatch:
    rows = [random_ids(length, seed=length)[0].tolist() for length in lengths]
    return TrainingBatch.of([Example("", tuple(row), tuple(i % 3 != 0 for i in range(len(row)))) for row in rows])


@pytest.mark.parametrize("positions", [1024, 7])
def test_the_loss_counts_the_learned_tokens_alone(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "HEAD_POSITIONS", positions)
    model, batch = tiny_model(), batch_of([21, 9])
    expected = 0.0
    for row in (batch.ids[0, :21], batch.ids[1, :9]):
        logits = model(row[None])[0]
        losses = nn.losses.cross_entropy(logits[:-1], row[1:])
        expected += sum(losses[i - 1].item() for i in range(1, len(row)) if i % 3)
    found = loss_sum(model, False, batch.ids, batch.positions, batch.targets).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_checkpointed_blocks_give_the_same_gradients_and_leave_the_class_alone() -> None:
    model, batch, call = tiny_model(), batch_of([21, 9]), None
    call = type(model.layers[0]).__call__

    def gradients(checkpoint: bool) -> dict[str, mx.array]:
        compute = nn.value_and_grad(model, lambda *batch: loss_sum(model, checkpoint, *batch))
        loss, found = compute(batch.ids, batch.positions, batch.targets)
        assert math.isfinite(loss.item())
        return dict(tree_flatten(found))

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert distance(gradient, checkpointed[name]) <= 1e-4 * mx.abs(gradient).max().item(), name
    assert type(model.layers[0]).__call__ is call
