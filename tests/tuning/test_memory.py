"""The memory of a training: the sum beside the measured peak."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from conftest import tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx.tuning.examples import Example
from exaone4_mlx.tuning.loop import Loop
from exaone4_mlx.tuning.memory import adapter_config, tuning_fit
from exaone4_mlx.tuning.request import TuningRequest
from exaone4_mlx.tuning.tune import in_training


def some_examples(count: int, length: int, learned: int, vocab_size: int) -> list[Example]:
    rng = random.Random(0)
    flags = tuple(i >= length - learned for i in range(length))
    return [Example("", tuple(rng.randrange(vocab_size) for _ in range(length)), flags) for _ in range(count)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({}, {"grad_checkpoint": True}),
        ({}, {"fine_tune_type": "full"}),
        ({}, {"fine_tune_type": "dora", "num_layers": 2}),
        ({"intermediate_size": 512}, {"batch_size": 2}),
        ({"vocab_size": 4096}, {"rank": 32}),
    ],
)
def test_the_sum_bounds_the_peak(shape: dict[str, Any], options: dict[str, Any]) -> None:
    shape = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "head_dim": 32,
        "num_hidden_layers": 6,
        "vocab_size": 512,
    } | shape
    model = tiny_model(**shape, sliding_window=None, sliding_window_pattern=None, max_position_embeddings=4096)
    request = TuningRequest(iters=2, **({"num_layers": -1} | options))
    examples = some_examples(4, 128, 32, shape["vocab_size"])
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    counted = tuning_fit(model.config, weights, examples, request)
    with in_training(model, adapter_config(model.config, request), 0):
        mx.clear_cache()
        other = mx.get_active_memory() - weights
        mx.reset_peak_memory()
        list(Loop(model, request, examples, ()).run())
        peak = mx.get_peak_memory() - other
    assert 0.45 * counted.total_bytes < peak < counted.total_bytes, (peak, counted)


def test_each_part_grows_with_what_it_counts() -> None:
    config = tiny_model().config
    examples = some_examples(8, 64, 8, 61)

    def fit(**options: Any) -> Any:
        return tuning_fit(config, 1000, examples, TuningRequest(**options))

    assert fit(batch_size=4).activation_bytes == 2 * fit(batch_size=2).activation_bytes
    assert fit(grad_checkpoint=True).activation_bytes < fit().activation_bytes
    assert fit(rank=16).adapter_bytes == 2 * fit(rank=8).adapter_bytes
    assert fit(batch_size=8).logits_bytes == 2 * fit(batch_size=4).logits_bytes
    assert fit(num_layers=1).adapter_bytes < fit(num_layers=2).adapter_bytes
    assert fit().total_bytes > 1000
