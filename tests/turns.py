"""Helpers of the tests of prompt caches: a tokenizer with one token that begins turns, and models with small caches."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from conftest import random_ids, small_caches, tiny_model

from exaone4_mlx import Tokenizer
from exaone4_mlx.files.folders import DEMO_FOLDER

TURN = 7  # in place of [|user|]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_pretrained(DEMO_FOLDER)
    tokenizer.turn_start_ids = frozenset({TURN})
    return tokenizer


def small_model(seed: int = 0, reserve: int = 4, slack: int = 3, **changes: Any) -> Any:
    """A tiny hybrid model whose caches compact every few tokens and can rewind `reserve` tokens."""
    return small_caches(tiny_model(seed, **({"max_position_embeddings": 600} | changes)), reserve, slack)


def ids(length: int, seed: int = 0) -> list[int]:
    return [id if id != TURN else TURN + 1 for id in random_ids(length, seed)[0].tolist()]


def cold(model: Any, prompt: list[int]) -> mx.array:
    return model(mx.array([prompt]))[:, -1]
