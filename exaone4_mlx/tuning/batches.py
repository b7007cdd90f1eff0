"""Examples -> padded batches of similar length.

Notes:
- Every example is in one batch of each epoch, also those of a last batch that is not full.
- The batches of a step are a function of seed and step. So a run that resumes needs no state of the data.
- Shapes are rounded up, so that the compiled step is traced for few of them.
- Padding is on the right: causal attention needs no mask for it.

Shapes: B examples, L tokens, P learned positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from .examples import Example

LENGTH_STEP, POSITIONS_STEP = 32, 64


@dataclass(frozen=True)
class TrainingBatch:
    """`ids` [B, L]; `positions` and `targets` [P] as `loss_sum` takes them; the number of learned tokens and of all."""

    ids: mx.array
    positions: mx.array
    targets: mx.array
    learned_tokens: int
    tokens: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TrainingBatch:
        length = round_up(max(len(example.ids) for example in examples), LENGTH_STEP)
        rows = [[*example.ids, *[0] * (length - len(example.ids))] for example in examples]
        places = [
            (number * length + i - 1, example.ids[i])
            for number, example in enumerate(examples)
            for i, is_learned in enumerate(example.learned)
            if is_learned
        ]
        padding = round_up(max(1, len(places)), POSITIONS_STEP) - len(places)
        positions = [place for place, _ in places] + [0] * padding
        targets = [target for _, target in places] + [-1] * padding
        tokens = sum(len(example.ids) for example in examples)
        return cls(mx.array(rows), mx.array(positions), mx.array(targets), len(places), tokens)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def in_order(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """The examples by length, `size` of them at a time."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


class Batches:
    """The batches of a run, by number. An epoch has `per_epoch` of them."""

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        self._examples, self._size, self._seed = examples, size, seed
        self.per_epoch = -(-len(examples) // size)
        self._epoch = lru_cache(maxsize=1)(self._shuffled)

    def __getitem__(self, number: int) -> TrainingBatch:
        epoch, place = divmod(number, self.per_epoch)
        return TrainingBatch.of(self._epoch(epoch)[place])

    def _shuffled(self, epoch: int) -> list[Sequence[Example]]:
        """Examples of equal length change their batch from epoch to epoch, and batches their order."""
        rng = random.Random(f"{self._seed} {epoch}")
        groups = list(in_order(rng.sample(self._examples, len(self._examples)), self._size))
        rng.shuffle(groups)
        return groups
