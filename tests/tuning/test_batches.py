"""Batches: every example in each epoch, similar lengths together, a function of the seed."""

from __future__ import annotations

import random

from exaone4_mlx.tuning.batches import LENGTH_STEP, Batches, TrainingBatch
from exaone4_mlx.tuning.examples import Example


def example(length: int, learned: int = 1, first: int = 1) -> Example:
    return Example("here", tuple(range(first, first + length)), (False,) * (length - learned) + (True,) * learned)


def test_a_batch_points_at_the_token_before_each_learned_one() -> None:
    batch = TrainingBatch.of([example(3, learned=2, first=10), example(5, learned=1, first=20)])
    assert batch.ids.shape == (2, LENGTH_STEP)
    ids, positions, targets = batch.ids.reshape(-1).tolist(), batch.positions.tolist(), batch.targets.tolist()
    counted = [(ids[place], target) for place, target in zip(positions, targets, strict=True) if target >= 0]
    assert counted == [(10, 11), (11, 12), (23, 24)]
    assert (batch.learned_tokens, batch.tokens) == (3, 8)


def test_every_example_is_in_one_batch_of_each_epoch() -> None:
    examples = [example(3 + i % 40, first=100 * i) for i in range(23)]
    batches = Batches(examples, 4, seed=0)
    assert batches.per_epoch == 6
    epochs = [
        sorted(row[0] for number in range(6) for row in batches[6 * epoch + number].ids.tolist()) for epoch in range(3)
    ]
    assert epochs == [[100 * i for i in range(23)]] * 3


def test_batches_hold_similar_lengths() -> None:
    """mlx-lm's CacheDataset computes 2.8 times the tokens of such texts."""
    rng = random.Random(0)
    examples = [example(int(rng.lognormvariate(5, 1)) + 8) for _ in range(256)]
    batches = Batches(examples, 8, seed=0)
    computed = sum(batches[number].ids.size for number in range(batches.per_epoch))
    assert computed < 1.25 * sum(len(one.ids) for one in examples)


def test_batches_follow_from_the_seed_alone() -> None:
    examples = [example(9, first=100 * i) for i in range(9)]

    def order(seed: int, numbers: range) -> list[object]:
        batches = Batches(examples, 2, seed)
        return [batches[number].ids.tolist() for number in numbers]

    assert order(1, range(10)) == order(1, range(10))
    assert order(1, range(10))[7:] == order(1, range(7, 10)), "a resumed run must take the batches of the whole one"
    assert order(1, range(5)) != order(2, range(5))
    assert order(1, range(5)) != order(1, range(5, 10)), "each epoch has its own order"
