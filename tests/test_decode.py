"""The stream of ids: endless, in chunks, one step ahead."""

from __future__ import annotations

from itertools import islice

import mlx.core as mx
import pytest
from conftest import random_ids, tiny_model

from exaone4_mlx.generation.decode import decode, prefill


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


def stream(model, prompt: list[int], step_size: int = 2048) -> list[int]:
    cache = model.make_cache()
    return list(islice(decode(model, prefill(model, prompt, cache, step_size), cache, greedy), 20))


def one_by_one(model, prompt: list[int]) -> list[int]:
    """The same with no cache at all: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(20):
        ids.append(greedy(model(mx.array([ids]))[:, -1]).item())
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 6, 7, 8, 40])
def test_stream_equals_computing_everything_again(length: int) -> None:
    model, prompt = tiny_model(), random_ids(length)[0].tolist()
    expected = one_by_one(model, prompt)
    assert len(set(expected)) > 3, "a model that repeats itself proves nothing"
    for step_size in (1, 5, 2048):
        assert stream(model, prompt, step_size) == expected


def test_progress_is_told_chunk_by_chunk() -> None:
    model, calls = tiny_model(), []
    prefill(model, [5] * 10, model.make_cache(), 4, lambda done, total: calls.append((done, total)))
    assert calls == [(0, 10), (4, 10), (8, 10), (10, 10)]


def test_next_step_is_under_way_before_a_token_is_handed_out() -> None:
    """When the first token comes, the second one is already being computed: the cache has seen the first."""
    model = tiny_model()
    cache = model.make_cache()
    tokens = decode(model, prefill(model, [5] * 10, cache), cache, greedy)
    next(tokens)
    assert cache[0].offset == 11


def test_prompt_chunks_need_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 102,400 entries are made for the last position only."""
    model, lengths = tiny_model(), []
    logits = type(model).logits
    monkeypatch.setattr(
        type(model), "logits", lambda self, hidden: lengths.append(hidden.shape[1]) or logits(self, hidden)
    )
    prefill(model, [5] * 10, model.make_cache(), 4)
    assert lengths == [1]
