"""The options of a training: refusals, steps, and learning rates."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, get_type_hints

import pytest

from exaone4_mlx.tuning.request import TuningOptions, TuningRequest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fine_tune_type": "qlora"}, "fine_tune_type must be one of lora, dora, full, not 'qlora'"),
        ({"rank": 0}, "rank must be a positive whole number, not 0"),
        ({"batch_size": 2.0}, "batch_size must be a positive whole number, not 2.0"),
        ({"num_layers": 0}, "num_layers must be a positive whole number, or -1 for all, not 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, not 1.0"),
        ({"learning_rate": 0}, "learning_rate must be above 0 and below 10, not 0"),
        ({"max_seq_length": 1}, "max_seq_length must be a whole number above 1, not 1"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of cosine, linear, constant, not 'step'"),
        ({"iters": 5, "epochs": 1}, "iters and epochs exclude each other"),
        ({"resume": True}, "resume needs adapter_path"),
        ({"max_grad_norm": -1}, "max_grad_norm must be a positive number, or 0, not -1"),
        ({"scale": float("nan")}, "scale must be a positive number, not nan"),
        ({"seed": -1}, "seed must be a whole number below 2"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningRequest(**options)


def test_options_and_their_types_are_the_fields() -> None:
    assert get_type_hints(TuningOptions) == get_type_hints(TuningRequest)
    assert {field.name for field in dataclasses.fields(TuningRequest)} == set(TuningOptions.__annotations__)


def test_steps_follow_from_epochs_or_iters() -> None:
    assert TuningRequest(iters=7).steps(batches=100) == 7
    assert TuningRequest().steps(batches=5) == 15
    assert TuningRequest(epochs=1.5, grad_accumulation_steps=2).steps(batches=10) == 8


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_falls(schedule: str) -> None:
    request = TuningRequest(learning_rate=1.0, lr_schedule=schedule, warmup_steps=4)
    rates = [request.rate(step, 20) for step in range(1, 21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    falls = [b < a for a, b in itertools.pairwise(rates[4:])]
    assert all(falls) if schedule != "constant" else rates[4:] == [1.0] * 16
    assert schedule == "constant" or 0 < rates[-1] < 0.1
    assert TuningRequest().warmup(50) == 5
    assert TuningRequest().warmup(50_000) == 100
