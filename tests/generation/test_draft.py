"""Drafters: a draft model, prompt lookup, and the scheduler that chooses the number of draft tokens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT, Greedy, greedy_tokens, mostly_heavy, random_ids, small_caches, tiny_model
from speculation import Chain, speculative

from exaone4_mlx import Tokenizer
from exaone4_mlx.generation.draft import LOOKUP_DRAFTS, DraftModel, DraftScheduler, PromptLookup

# --- a draft model ------------------------------------------------------------


@pytest.mark.parametrize("length", mostly_heavy([12, 1, 30], 1))
def test_a_draft_model_changes_no_token_and_saves_steps(length: int) -> None:
    model, draft = tiny_model(), tiny_model()
    draft.model.norm.weight = draft.model.norm.weight * (1 + 0.2 * mx.random.normal((32,), key=mx.random.key(0)))
    prompt = random_ids(length)[0].tolist()
    expected = greedy_tokens(model, prompt, 60)
    stream = speculative(model, prompt, Greedy(), DraftModel(draft, 16))
    calls = 0

    def counted(*given: Any) -> mx.array:
        nonlocal calls
        calls += 1
        return model(*given)

    stream._model = counted
    assert list(islice(stream, 60)) == expected
    assert 0 < stream.accepted < stream.drafted
    assert calls < 50


def test_a_draft_model_keeps_its_caches_for_the_next_reply() -> None:
    model, drafter = tiny_model(), DraftModel(tiny_model(), 64)
    prompt = random_ids(20)[0].tolist()
    stream = speculative(model, prompt, Greedy(), drafter)
    prompt += islice(stream, 10)
    prompt += [3, 4, 5]
    stream = speculative(model, prompt, Greedy(), drafter)
    drafter.draft(prompt, 1, Greedy())
    assert drafter.processed_tokens <= 4, "the three new tokens, and the last token if it was not a draft token"
    drafter.begin(other := random_ids(40, 9)[0].tolist())
    drafter.draft(other, 1, Greedy())
    assert drafter.processed_tokens == 40, "another conversation"
    drafter.model.model.norm.weight = mx.arange(32) / 8
    drafter.begin(other)
    drafter.draft(other, 1, Greedy())
    assert drafter.processed_tokens == 40, "other weights"


def test_a_draft_model_processes_only_the_last_window_of_a_prompt() -> None:
    drafter = DraftModel(tiny_model(), 16)
    long = random_ids(100)[0].tolist()
    drafter.begin(long)
    assert drafter.draft(long, 2, Greedy())[0].item() == greedy_tokens(tiny_model(), long[-16:], 1)[0]
    assert drafter._layers[0].offset == 17


def test_a_draft_model_processes_one_token_of_the_same_prompt() -> None:
    """As after retry(): the caches hold the whole prompt, but the logits need the last token again."""
    drafter, prompt = DraftModel(tiny_model(), 64), random_ids(40)[0].tolist()
    drafter.draft(prompt, 3, Greedy())
    drafter.begin(prompt[:30])
    drafter.draft(prompt[:30], 1, Greedy())
    assert drafter.processed_tokens == 1


def test_a_draft_model_starts_again_after_an_error_in_a_step() -> None:
    drafter, prompt = DraftModel(tiny_model(), 64), random_ids(40)[0].tolist()
    expected = [token.item() for token in drafter.draft(prompt, 3, Greedy())]
    drafter._layers[0].rewind(1)  # as after an error in the second layer
    assert [token.item() for token in drafter.draft(prompt, 3, Greedy())] == expected
    assert {layer.offset for layer in drafter._layers} == {42}


def test_the_scheduler_ignores_the_time_of_a_drafters_prefill() -> None:
    """A prefill happens once and does not predict the time of the next steps."""
    model, prompt = tiny_model(), random_ids(60)[0].tolist()
    drafter = DraftModel(tiny_model(), 64)
    stream = speculative(model, prompt, Greedy(), drafter)
    list(islice(stream, 20))
    assert len(drafter.scheduler._seconds[3]) == stream.drafted // 3 - 1


# --- prompt lookup ------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9]),
        ([1, 2, 3, 7, 8, 2, 3, 4, 5, 6, 2, 3], [4, 5, 6]),  # the latest of equal matches
        ([1, 2, 3, 4, 8, 2, 3, 5, 8, 1, 2, 3], [4, 8, 2]),  # the longest, although it is not the latest
        ([5, 5, 5], [5]),
        ([1, 2, 3, 4, 2], []),  # one token is not a match
        ([1], []),
        ([], []),
        ([256, 0, 65536, 1, 0, 256], []),  # the bytes of 0, 256 occur, but not at the beginning of a token
        ([0x01000000, 0x02, 7, 0x010000, 0x0200], []),
    ],
)
def test_lookup_proposes_the_tokens_after_the_longest_match(history: list[int], expected: list[int]) -> None:
    lookup = PromptLookup()
    lookup.begin(history)
    assert [token.item() for token in lookup.draft(history, 3, Greedy())] == expected


def test_lookup_accepts_a_history_whose_end_was_replaced() -> None:
    lookup = PromptLookup()
    lookup.begin([1, 2, 3, 4, 5, 6])
    lookup.draft([1, 2, 3, 4, 5, 6, 8, 9, 9, 9], 1, Greedy())
    assert [token.item() for token in lookup.draft([1, 2, 3, 4, 5, 6, 8, 2, 3], 2, Greedy())] == [4, 5]


@pytest.mark.parametrize("length", [9, 24])
def test_lookup_changes_no_token(length: int) -> None:
    model, prompt = small_caches(tiny_model(vocab_size=8, eos_token_id=2), reserve=16), [3, 4, 5, 6, 7] * 5
    expected = greedy_tokens(model, prompt[:length], 80)
    stream = speculative(model, prompt[:length], Greedy(), PromptLookup())
    assert list(islice(stream, 80)) == expected
    assert stream.accepted > 0


class Writing(Chain):
    """A model that writes one text after any prompt."""

    def __init__(self, prompt: list[int], text: list[int], vocab_size: int) -> None:
        super().__init__(mx.eye(vocab_size))
        self.text = mx.array([*prompt, *text, *[0] * 32])  # drafts may exceed the text

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        start = cache[0].offset
        super().__call__(ids, cache)
        return self.table[self.text[start + 1 : start + 1 + ids.shape[1]]][None]


def test_lookup_saves_most_steps_of_an_edited_text(demo: tuple[Any, Tokenizer]) -> None:
    """The prompt holds a source file, and the reply the same file with one name changed, as in README."""
    source = (ROOT / "exaone4_mlx" / "text" / "reply.py").read_text()[:3000]
    prompt, text = (demo[1].encode(part) for part in (f"{source}\n\n", source.replace("self", "this")))
    model = Writing(prompt, text, 3072)
    stream = speculative(model, prompt, Greedy(), PromptLookup(), LOOKUP_DRAFTS)
    assert list(islice(stream, len(text))) == text
    steps = len(text) - stream.accepted
    assert steps < 0.25 * len(text), f"{steps} steps for {len(text)} tokens"


# --- the scheduler -----------------------------------------------------------------


def scheduled(
    chance: float, seconds: Any, most: int = 4, steps: int = 400, seed: int = 0
) -> tuple[Counter[int], DraftScheduler]:
    """The chosen numbers, if `chance` is the chance of a right draft token and seconds(n) the time of a step."""
    scheduler, rng, chosen = DraftScheduler(most), random.Random(seed), Counter()
    for _ in range(steps):
        drafts = scheduler.choose()
        right = next((i for i in range(drafts) if rng.random() >= chance), drafts)
        scheduler.record_step(drafts, seconds(drafts) * rng.uniform(1, 1.3))
        scheduler.record_acceptance(drafts, right)
        chosen[drafts] += 1
    return chosen, scheduler


def test_many_tokens_are_drafted_if_steps_are_cheap_and_acceptance_is_high() -> None:
    chosen, _ = scheduled(0.9, lambda n: 1 + 0.05 * n)
    assert chosen[4] > 300


def test_few_tokens_are_drafted_if_each_costs_much() -> None:
    chosen, _ = scheduled(0.6, lambda n: 1 + 0.3 * n)
    assert chosen[1] + chosen[2] > 250 and chosen[4] < 60


def test_drafting_stops_if_it_does_not_pay_and_is_tried_again_less_and_less_often() -> None:
    chosen, scheduler = scheduled(0.05, lambda n: 1 + 0.4 * n)
    assert chosen[0] > 370
    assert scheduler._pause > DraftScheduler.FIRST_PAUSE


def test_drafting_starts_again_when_the_text_changes() -> None:
    _, scheduler = scheduled(0.0, lambda n: 1 + 0.2 * n, steps=100)
    for _ in range(400):
        drafts = scheduler.choose()
        scheduler.record_step(drafts, 1 + 0.2 * drafts)
        scheduler.record_acceptance(max(drafts, 1), max(drafts, 1))  # a free draft is compared without being processed
    assert scheduler.choose() == 4
