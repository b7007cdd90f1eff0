"""The endless stream of ids, with prefill in chunks and one step ahead. Sampling follows its options.

A chi-square test checks each option of sampling.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import Greedy, random_ids, tiny_model

from exaone4_mlx import Sampling
from exaone4_mlx.generation.decode import Sampler, TokenStream
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.generation.truncation import Truncation, draws_for, xtc_excluded


def their_sample_utils() -> Any:
    """mlx_lm.sample_utils, without its package: that would import transformers."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        pytest.skip("mlx_lm is not installed")
    made = importlib.util.spec_from_file_location("their_sample_utils", Path(spec.origin).with_name("sample_utils.py"))
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


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


# --- sampling -----------------------------------------------------------------

LOGITS = mx.array([[2.0, 1.0, 0.0, -1.0, 1.0, -3.0]])
SIZE = LOGITS.shape[1]
DRAWS = 400


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


def sampler(prompt: list[int] | None = None, **options: Any) -> Sampler:
    options = {"temperature": 1.0, "top_p": 1.0, "seed": 7} | options
    return Sampler(Sampling(**options), prompt or [], SIZE)


def chi_square(draw: Sampler, expected: list[float]) -> float:
    """Of DRAWS tokens; of a few where only one token may be sampled."""
    count = 50 if max(expected) == 1 else DRAWS
    tokens = [draw(LOGITS) for _ in range(count)]
    counts = Counter(mx.concatenate(tokens).tolist())
    assert all(counts[token] == 0 for token in range(SIZE) if expected[token] == 0), "an excluded token was sampled"
    return sum((counts[t] - count * p) ** 2 / (count * p) for t, p in enumerate(expected) if p > 0)


def renormalized(probabilities: list[float], kept: set[int]) -> list[float]:
    total = sum(probabilities[token] for token in kept)
    return [p / total if token in kept else 0.0 for token, p in enumerate(probabilities)]


PLAIN = softmax(LOGITS[0].tolist())  # about .54 .20 .07 .03 .20 .004
WITHOUT_0 = [0.0, *(value / sum(PLAIN[1:]) for value in PLAIN[1:])]
CRITICAL = 20.5  # chi-square with 5 degrees of freedom: 0.1 % of correct samples are above


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PLAIN),
        ({"temperature": 0.5}, softmax([2 * value for value in LOGITS[0].tolist()])),
        ({"top_k": 1}, renormalized(PLAIN, {0})),
        ({"top_k": 2}, renormalized(PLAIN, {0, 1, 4})),
        ({"top_k": 99}, PLAIN),
        ({"top_p": 0.5}, renormalized(PLAIN, {0})),
        ({"top_p": 0.6}, renormalized(PLAIN, {0, 1, 4})),
        ({"top_p": 0.95}, renormalized(PLAIN, {0, 1, 2, 4})),
        ({"min_p": 0.1}, renormalized(PLAIN, {0, 1, 2, 4})),
        ({"top_k": 3, "min_p": 0.5}, renormalized(PLAIN, {0})),
        ({"logit_bias": {5: 5.0}}, softmax([2.0, 1.0, 0.0, -1.0, 1.0, 2.0])),
        ({"logit_bias": {0: -math.inf}}, renormalized(PLAIN, {1, 2, 3, 4, 5})),
        ({"logit_bias": {"0": -math.inf}}, renormalized(PLAIN, {1, 2, 3, 4, 5})),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.05}, renormalized(PLAIN, {2, 3, 5})),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.05, "min_p": 0.1}, renormalized(PLAIN, {2})),
        (
            {"xtc_probability": 0.5, "xtc_threshold": 0.15},
            [0.5 * p + 0.5 * q for p, q in zip(PLAIN, WITHOUT_0, strict=True)],
        ),
    ],
)
def test_sampled_tokens_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    assert chi_square(sampler(**options), expected) < CRITICAL


def test_top_p_applies_after_the_temperature() -> None:
    """As in transformers and vLLM. The order of mlx-lm would keep three tokens here."""
    hot = softmax([value / 2 for value in LOGITS[0].tolist()])
    assert chi_square(sampler(temperature=2.0, top_p=0.8), renormalized(hot, {0, 1, 2, 4})) < CRITICAL


def test_xtc_excludes_the_tokens_that_mlx_lm_excludes() -> None:
    theirs = their_sample_utils()
    for seed, threshold in itertools.product(range(20), (0.0, 0.02, 0.1, 0.5)):
        logits = 3 * mx.random.normal((1, 30), key=mx.random.key(seed))
        expected = theirs.apply_xtc(logits, 1.0, threshold, [3, 7])[0].tolist()
        ours = xtc_excluded(logits, threshold)[0].tolist()
        assert [id for id, value in enumerate(expected) if value == -math.inf] == [
            id for id, is_excluded in enumerate(ours) if is_excluded and id not in (3, 7)
        ], (seed, threshold)


def test_xtc_keeps_line_ends_and_stop_tokens_and_leaves_greedy_sampling_alone() -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, xtc_probability=1.0, xtc_threshold=0.05, seed=1)
    draw = Sampler(sampling, [], 6, stop_ids=[0], line_end_ids=[4])
    assert {draw(LOGITS).item() for _ in range(200)} == {0, 2, 3, 4, 5}
    assert greedy(xtc_probability=1.0) == [0, 0, 0, 0]


def test_no_stop_token_is_among_the_first_min_tokens() -> None:
    draw = Sampler(Sampling(temperature=0.0, top_p=1.0, logit_bias={0: 99.0}), [], 6, min_tokens=4, stop_ids=[0, 4])
    assert [draw(LOGITS).item() for _ in range(2)] == [1, 1]
    draw.replace_last([5, 5])  # a sampled token gives way to two forced ones
    assert [draw(LOGITS).item() for _ in range(2)] == [1, 0]


def test_top_p_does_not_sort_if_few_samples_are_enough(tmp_path: Path) -> None:
    """At top_p 0.95, one sample in twenty is excluded, and all of seven samples with a probability of 1e-9."""
    assert [draws_for(Sampling(top_p=p)) for p in (1.0, 0.99, 0.95, 0.75, 0.7)] == [0, 5, 7, 15, 0]
    assert draws_for(Sampling(top_p=0.95, min_p=0.1)) == 0, "min_p has no such limit"
    for top_p, sorts in ((0.95, False), (0.5, True)):
        mx.export_to_dot(str(tmp_path / "graph.dot"), sampler(top_p=top_p)(LOGITS))
        assert ('"Sort"' in (tmp_path / "graph.dot").read_text()) == sorts


def test_sampling_at_once_allows_the_same_tokens_as_sorting() -> None:
    """With 2,000 tokens, most of them in the tail, some with equal logits."""
    for seed in range(3):
        logits = mx.round(4 * mx.random.normal((1, 2000), key=mx.random.key(seed))) / 2
        draw = Sampler(Sampling(temperature=1.0, top_p=0.9, top_k=500, seed=seed), [], 2000)
        kept = Truncation(draw._sampling, mx.array(False)).cut_off(logits)[0].tolist()
        left = {token for token, logit in enumerate(kept) if logit > -math.inf}
        drawn = set(mx.concatenate([draw(logits) for _ in range(200)]).tolist())
        assert drawn <= left, "a token was sampled that sorting excludes"
        assert min(kept[token] for token in drawn) == min(kept[token] for token in left), (
            "the least probable allowed token must be sampled"
        )


def test_the_most_probable_token_is_taken_if_all_samples_are_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.random, "categorical", lambda logits, num_samples, key: mx.full((1, num_samples), 5))
    assert sampler(top_p=0.95)(LOGITS).tolist() == [0]


def greedy(prompt: list[int] | None = None, **options: Any) -> list[int]:
    draw = sampler(prompt, temperature=0.0, **options)
    return [draw(LOGITS).item() for _ in range(4)]


def test_greedy_takes_the_most_probable() -> None:
    assert greedy() == [0, 0, 0, 0]


def test_the_presence_penalty_counts_generated_tokens_once_and_no_prompt() -> None:
    assert greedy([0, 1, 4], presence_penalty=1.5) == [0, 1, 4, 0]


def test_the_frequency_penalty_grows_with_each_token() -> None:
    assert greedy([0, 1, 4], frequency_penalty=0.9) == [0, 0, 1, 4]


def test_the_repetition_penalty_counts_prompt_and_reply() -> None:
    """Positive logits are divided, negative ones multiplied."""
    assert greedy([0], repetition_penalty=4.0) == [1, 4, 0, 0]
    draw = Sampler(Sampling(temperature=0.0, top_p=1.0, repetition_penalty=2.0), [1], 2)
    assert draw(mx.array([[-3.0, -2.0]])).item() == 0


def test_the_same_seed_gives_the_same_tokens() -> None:
    one, other, third = sampler(seed=1), sampler(seed=1), sampler(seed=2)
    sequences = [[draw(LOGITS).item() for _ in range(50)] for draw in (one, other, third)]
    assert sequences[0] == sequences[1] != sequences[2]


def test_the_global_random_state_does_not_change() -> None:
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(5)
    sampler()(LOGITS)
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_penalties_are_computed_in_float32() -> None:
    """In bfloat16, 20 - 0.01 is 20, and the first token would be taken again."""
    draw = Sampler(Sampling(temperature=0.0, top_p=1.0, presence_penalty=0.01), [], 2)
    assert [draw(mx.array([[20.0, 20.0]], mx.bfloat16)).item() for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-37])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    draw = Sampler(Sampling(temperature=temperature, top_p=1.0, seed=1), [], 4)
    assert {draw(mx.array([[2.0, 1.0, 8.0, -1.0]])).item() for _ in range(20)} == {2}


def test_default_values_are_those_that_lg_recommends() -> None:
    thinking, answering = Sampling().resolved(thinking=True), Sampling().resolved(thinking=False)
    assert (thinking.temperature, thinking.top_p) == (0.6, 0.95)
    assert (answering.temperature, answering.top_p) == (0.1, 1.0)
    assert Sampling(temperature=0.0).resolved(thinking=True).temperature == 0.0
    assert Sampling(temperature=0.0).resolved(thinking=True).top_p == 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be 0 or more .*, not -1"),
        ({"temperature": math.nan}, "temperature must be 0 or more .*, not nan"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1 .*, not 0"),
        ({"top_p": 2}, "top_p must be above 0 and at most 1 .*, not 2"),
        ({"top_k": -1}, "top_k must be a whole number, 0 or more, not -1"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1, not 1.5"),
        ({"xtc_probability": 1.5}, "xtc_probability must be from 0 to 1, not 1.5"),
        ({"xtc_threshold": 0.6}, "xtc_threshold must be from 0 to 0.5, not 0.6"),
        ({"xtc_threshold": "x"}, "xtc_threshold must be a number, not 'x'"),
        ({"presence_penalty": math.inf}, "presence_penalty must be a finite number .*, not inf"),
        ({"presence_penalty": 10**400}, "presence_penalty must be a number, not 1000"),
        ({"temperature": 10**400}, "temperature must be a number, not 1000"),
        ({"logit_bias": {1: 10**400}}, "logit_bias must be numbers by token id"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0 .*, not 0"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be numbers by token id"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 1.5}, "seed must be a whole number from 0"),
    ],
)
def test_invalid_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_a_bias_of_a_missing_token_is_refused() -> None:
    with pytest.raises(ValueError, match="logit_bias names token 6; there are tokens 0 to 5"):
        sampler(logit_bias={6: 1.0})


def test_limits_of_sampling_are_those_of_float32() -> None:
    """What float32 turns into 0 or infinity is refused by name; at the limits every token is a possible one."""
    for name, values in {
        "temperature": (1e-39, 5e-324, 1e39, 1e31),
        "top_p": (1e-39, 5e-324),
        "presence_penalty": (1e39, -1e39, 1e31),
        "frequency_penalty": (1e39, -1e38),
        "repetition_penalty": (1e39, 1e-39),
        "logit_bias": ({3: 1e39}, {3: -1e39}, {3: 10**38}),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} must be "):
                Sampling(**{name: value})
    logits = mx.array([[0.0, 50.0, -50.0, 8.0, -math.inf]])
    for limits in (
        {"temperature": 1.2e-38}, {"temperature": 1e30}, {"top_p": 1.2e-38}, {"top_p": 1.2e-38, "min_p": 5e-324},
        {"presence_penalty": 1e30, "frequency_penalty": 1e30, "logit_bias": {3: -1e30, 1: -1e30}},
        {"presence_penalty": -1e30, "frequency_penalty": -1e30, "logit_bias": {3: 1e30}, "repetition_penalty": 1e-30},
        {"repetition_penalty": 1e30, "temperature": 1.2e-38}, {"repetition_penalty": 1e-30, "temperature": 1e30},
        {"logit_bias": {0: -math.inf, 1: -math.inf, 3: -math.inf}, "temperature": 1.2e-38, "top_k": 3},
    ):  # fmt: skip
        sampler = Sampler(Sampling(**{"seed": 1, **limits}).resolved(True), [0, 1, 2], 5)  # type: ignore[arg-type]
        for _ in range(8):
            scores = sampler._penalized(logits)
            assert not mx.isnan(scores).any() and mx.max(scores).item() < math.inf, limits
            assert sampler(logits).item() != 4, limits


def test_a_bias_that_excludes_every_token_is_refused() -> None:
    everything = dict.fromkeys(range(61), -math.inf)
    Sampler(Sampling(temperature=0, top_p=1, logit_bias=everything | {7: -1e30}), [5], 61)
    with pytest.raises(ValueError, match="logit_bias excludes every token; leave one"):
        Sampler(Sampling(temperature=0, top_p=1, logit_bias=everything), [5], 61)
    all_but_a_stop = Sampling(temperature=0, top_p=1, logit_bias={id: -math.inf for id in range(61) if id != 2})
    with pytest.raises(ValueError, match="excludes every token, and stop tokens are excluded before min_tokens"):
        Sampler(all_but_a_stop, [5], 61, min_tokens=1, stop_ids=[2, 999])
