"""Helpers of the tests of speculative decoding: a drafter that knows the text, a stream, a Markov model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from conftest import Always

from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.generation.speculate import SpeculativeStream
from exaone4_mlx.model.cache import KVCache


class ScriptedDrafter:
    """Proposes the tokens of a known text, some of them wrong."""

    is_free = False
    processed_tokens = 0

    def __init__(self, text: Sequence[int], seed: int, wrong: float = 0.3) -> None:
        self._text, self._rng, self._wrong = list(text), random.Random(seed), wrong

    def begin(self, history: Sequence[int]) -> None:
        pass

    def draft(self, history: Sequence[int], count: int, sample: Any) -> list[mx.array]:
        drafts = self._text[len(history) : len(history) + count]
        return [mx.array([5 if self._rng.random() < self._wrong else token]) for token in drafts]


def speculative(
    model: Any, prompt: list[int], sample: Any, drafter: Any, most: int = 3, kv: Any = None, **more: Any
) -> SpeculativeStream:
    """A stream with `most` draft tokens in each step."""
    cache = model.make_cache(kv)
    drafter.scheduler = Always(most)
    return SpeculativeStream(model, prefill(model, prompt, cache), cache, sample, drafter, prompt, most, **more)


class Chain:
    """A Markov model: the next token depends only on the last one."""

    def __init__(self, table: mx.array) -> None:
        self.table = table
        self.config = SimpleNamespace(layers=[SimpleNamespace(window=None)])

    def fused(self) -> Chain:
        return self

    def prefill(self, ids: mx.array, cache: list[Any], whole_length: int, pause: Any = None) -> mx.array:
        return self(ids, cache)[:, -1:]

    def make_cache(self, kv: Any = None) -> list[KVCache]:
        return [KVCache()]

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        cache[0].update(*[mx.zeros((1, 1, ids.shape[1], 1))] * 2)
        return self.table[ids]
