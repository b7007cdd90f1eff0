"""The endless stream of ids, with prefill in chunks and one step ahead."""

from __future__ import annotations

from itertools import islice

import mlx.core as mx
import pytest
from conftest import Greedy, random_ids, tiny_model

from exaone4_mlx.generation.decode import TokenStream, prefill


def token_stream(model, prompt: list[int], step_size: int = 2048, sample: Greedy | None = None) -> TokenStream:
    cache = model.make_cache()
    return TokenStream(model, prefill(model, prompt, cache, step_size), cache, sample or Greedy())


def stream(model, prompt: list[int], step_size: int = 2048) -> list[int]:
    return list(islice(token_stream(model, prompt, step_size), 20))


def one_by_one(model, prompt: list[int]) -> list[int]:
    """The same tokens without a cache: each token processes the whole text."""
    ids = list(prompt)
    for _ in range(20):
        ids.append(Greedy()(model(mx.array([ids]))[:, -1]).item())
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 6, 7, 8, 40])
def test_the_stream_equals_decoding_without_a_cache(length: int) -> None:
    model, prompt = tiny_model(), random_ids(length)[0].tolist()
    expected = one_by_one(model, prompt)
    assert len(set(expected)) > 3, "the test needs a model that does not repeat one token"
    for step_size in (1, 5, 2048):
        assert stream(model, prompt, step_size) == expected


def test_the_next_step_starts_before_a_token_is_handed_out() -> None:
    """When the first token is handed out, the second one is being sampled: the caches hold the first token only."""
    model = tiny_model()
    cache = model.make_cache()
    tokens = TokenStream(model, prefill(model, [5] * 10, cache), cache, Greedy())
    assert cache[0].offset == 10
    next(tokens)
    assert cache[0].offset == 11


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_forced_tokens_replace_the_sampled_token(after: int) -> None:
    model, prompt, forced = tiny_model(), random_ids(20)[0].tolist(), [9, 8, 7]
    sample = Greedy()
    tokens = token_stream(model, prompt, sample=sample)
    tokens_before = list(islice(tokens, after))
    tokens.force(forced)
    assert list(islice(tokens, 20)) == one_by_one(model, [*prompt, *tokens_before, *forced])
    assert sample.replaced == [(9, 8, 7)]


def test_restrict_applies_to_one_token() -> None:
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    tokens = token_stream(model, prompt)
    tokens_before = list(islice(tokens, 5))
    allowed = mx.zeros(61, mx.bool_)
    allowed[mx.array([3, 4])] = True
    tokens.restrict(allowed)
    tokens_before.append(next(tokens))
    assert tokens_before[-1] in (3, 4)
    assert list(islice(tokens, 20)) == one_by_one(model, [*prompt, *tokens_before])


def test_prompt_chunks_need_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head, with 102,400 outputs, runs for the last position only."""
    model, lengths = tiny_model(), []
    logits = type(model).logits
    monkeypatch.setattr(
        type(model), "logits", lambda self, hidden: lengths.append(hidden.shape[1]) or logits(self, hidden)
    )
    prefill(model, [5] * 10, model.make_cache(), 4)
    assert lengths == [1]
