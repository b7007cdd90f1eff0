"""Speculation: the same tokens, whatever is guessed, at every position of a window, with every way to draw."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT, Always, Greedy, distance, greedy_tokens, random_ids, small_caches, tiny_model

from exaone4_mlx import Chat, Logprobs, PromptCache, Reply, Sampling, Tokenizer, generate, stream_generate
from exaone4_mlx.generation import speculate
from exaone4_mlx.generation.decode import TokenStream, prefill
from exaone4_mlx.generation.sampling import Sampler
from exaone4_mlx.generation.speculate import LOOKUP_DRAFTS, DraftModel, DraftScheduler, PromptLookup, SpeculativeStream
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.model.kv import KVQuantization


class Knowing:
    """Guesses what will come, and is wrong now and then."""

    is_free = False
    read_tokens = 0

    def __init__(self, text: Sequence[int], seed: int, wrong: float = 0.3) -> None:
        self._text, self._rng, self._wrong = list(text), random.Random(seed), wrong

    def begin(self, history: Sequence[int]) -> None:
        pass

    def draft(self, history: Sequence[int], count: int, sample: Any) -> list[mx.array]:
        guesses = self._text[len(history) : len(history) + count]
        return [mx.array([5 if self._rng.random() < self._wrong else guess]) for guess in guesses]


def plain(model: Any, prompt: list[int], sample: Any) -> TokenStream:
    cache = model.make_cache()
    return TokenStream(model, prefill(model, prompt, cache), cache, sample)


def speculative(model: Any, prompt: list[int], sample: Any, drafter: Any, most: int = 3, kv: Any = None) -> Any:
    cache = model.make_cache(kv)
    logits = prefill(model, prompt, cache)
    drafter.pace = Always(most)
    return SpeculativeStream(model, logits, cache, sample, drafter, prompt, most)


@pytest.mark.parametrize("length", range(1, 34))
def test_greedy_tokens_are_the_same_at_every_wrap_position(length: int) -> None:
    """The window of 7 tokens wraps, and its buffer of 19 rows is compacted, at another place for each length."""
    model = small_caches(tiny_model(), reserve=8, slack=5)
    prompt = random_ids(length, length)[0].tolist()
    expected = greedy_tokens(model, prompt, 24)
    stream = speculative(model, prompt, Greedy(), Knowing([*prompt, *expected], length), 2)
    assert list(islice(stream, 24)) == expected
    assert 0 < stream.accepted < stream.drafted, "right and wrong guesses, or nothing is shown"


def test_window_that_does_not_go_back_once_it_has_wrapped_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant is mlx-lm's: there a window that has wrapped cannot be trimmed, and nobody asks."""
    rewind = RotatingKVCache.rewind
    monkeypatch.setattr(RotatingKVCache, "rewind", lambda self, n: rewind(self, n if self.offset < self.window else 0))
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 40)
    assert list(islice(speculative(model, prompt, Greedy(), Knowing([*prompt, *expected], 0)), 40)) != expected


WAYS = {
    "greedy": Sampling(temperature=0, seed=3),
    "temperature": Sampling(temperature=1.0, top_p=1.0, seed=3),
    "top_p": Sampling(temperature=2.0, top_p=0.8, seed=3),
    "top_k": Sampling(temperature=2.0, top_p=1.0, top_k=5, seed=3),
    "min_p": Sampling(temperature=2.0, top_p=0.9, min_p=0.05, seed=3),
    "penalties": Sampling(
        temperature=2.0, top_p=0.95, presence_penalty=1.5, frequency_penalty=0.7, repetition_penalty=1.3, seed=3
    ),
    "greedy penalties": Sampling(temperature=0, presence_penalty=4.0, repetition_penalty=1.5, logit_bias={7: 3.0}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_gives_the_same_reply_with_and_without_guesses(way: str) -> None:
    """Penalties among them: each position counts the guesses before it."""
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    sampling = WAYS[way].resolved(False)
    expected = list(islice(plain(model, prompt, Sampler(sampling, prompt, 61)), 60))
    stream = speculative(model, prompt, Sampler(sampling, prompt, 61), Knowing([*prompt, *expected], 0))
    assert list(islice(stream, 60)) == expected
    assert stream.accepted > 20


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", ["greedy", "penalties"])
def test_steering_at_any_place_is_what_it_is_without_guesses(seed: int, way: str) -> None:
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    sampling = WAYS[way].resolved(False)
    allowed = mx.array([token % 3 == 0 for token in range(61)])

    def steered(stream: Any) -> list[int]:
        rng, came = random.Random(seed), []
        for _ in range(25):
            what = rng.random()
            if what < 0.25:
                stream.restrict(allowed)
            elif what < 0.4:
                forced = [rng.randrange(3, 61) for _ in range(rng.randrange(1, 4))]
                stream.force(forced)
                came += forced
            came += islice(stream, rng.randrange(1, 5))
        stream.close()
        return came

    expected = steered(plain(model, prompt, Sampler(sampling, prompt, 61)))
    stream = speculative(model, prompt, Sampler(sampling, prompt, 61), Knowing([*prompt, *expected], seed))
    assert steered(stream) == expected
    assert stream.accepted


@pytest.mark.parametrize("after", range(8))
def test_closed_caches_hold_what_was_handed_out(after: int) -> None:
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 30)
    cache = model.make_cache()
    logits = prefill(model, prompt, cache)
    knowing = Knowing([*prompt, *expected], 0)
    knowing.pace = Always(3)
    stream = SpeculativeStream(model, logits, cache, Greedy(), knowing, prompt, 3)
    came = list(islice(stream, after))
    stream.close()
    assert [layer.offset for layer in cache] == [20 + after] * 4
    fresh = model(mx.array([[*prompt, *came, 9]]))[:, -1]
    assert distance(model(mx.array([[9]]), cache)[:, -1], fresh) < 1e-4


@pytest.mark.parametrize("wrong", [0, 1], ids=["guesses", "no guesses"])
def test_logprobs_are_those_of_the_plain_stream(wrong: int) -> None:
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    tokens = list(islice(plain(model, prompt, Greedy()), 20))
    cache, other = model.make_cache(), model.make_cache()
    expected = TokenStream(model, prefill(model, prompt, cache), cache, Greedy(), 3)
    drafter = Knowing([*prompt, *tokens], 0)
    drafter.pace = Always(0 if wrong else 3)
    stream = SpeculativeStream(
        model, prefill(model, prompt, other), other, Greedy(), drafter, prompt, 0 if wrong else 3, None, 3
    )
    for token in tokens:
        assert next(stream) == next(expected) == token
        (ids, values), (expected_ids, expected_values) = stream.logprobs, expected.logprobs
        assert ids.tolist() == expected_ids.tolist() and ids[0].item() == token
        assert distance(values, expected_values) < 1e-4 and values[0].item() == values[1].item()


def test_a_stream_without_guesses_runs_one_step_ahead() -> None:
    """It hands a token out after the next step has started, and the caches hold only the tokens handed out."""
    model, prompt, calls = tiny_model(), random_ids(20)[0].tolist(), 0
    expected = greedy_tokens(model, prompt, 12)
    cache = model.make_cache()
    drafter = Knowing([*prompt, *expected], 0)
    drafter.pace = Always(0)
    stream = SpeculativeStream(model, prefill(model, prompt, cache), cache, Greedy(), drafter, prompt, 0, 30)
    inner = stream._model

    def counted(ids: mx.array, caches: Any) -> mx.array:
        nonlocal calls
        calls += 1
        return inner(ids, caches)

    stream._model = counted
    for count, token in enumerate(expected[:10], start=1):
        assert next(stream) == token
        assert calls == count and cache[0].offset == 20 + count


def test_quantized_caches_can_be_guessed_on() -> None:
    model, kv = tiny_model(head_dim=32), KVQuantization(8, 8, 32, "all")
    prompt = random_ids(20)[0].tolist()
    cache = model.make_cache(kv)
    expected = list(islice(TokenStream(model, prefill(model, prompt, cache), cache, Greedy()), 40))
    stream = speculative(model, prompt, Greedy(), Knowing([*prompt, *expected], 0), kv=kv)
    assert list(islice(stream, 40)) == expected


# --- a draft model ------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 12, 30])
def test_draft_model_changes_no_token_and_saves_steps(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_draft_model_keeps_what_it_read_from_one_reply_to_the_next() -> None:
    model, drafter = tiny_model(), DraftModel(tiny_model(), 64)
    prompt = random_ids(20)[0].tolist()
    stream = speculative(model, prompt, Greedy(), drafter)
    prompt += islice(stream, 10)
    prompt += [3, 4, 5]
    stream = speculative(model, prompt, Greedy(), drafter)
    drafter.draft(prompt, 1, Greedy())
    assert drafter.read_tokens <= 4, "the three new tokens, and the last token if the drafter did not guess it"
    drafter.begin(other := random_ids(40, 9)[0].tolist())
    drafter.draft(other, 1, Greedy())
    assert drafter.read_tokens == 40, "another conversation"
    drafter.model.model.norm.weight = mx.arange(32) / 8
    drafter.begin(other)
    drafter.draft(other, 1, Greedy())
    assert drafter.read_tokens == 40, "other weights"


def test_draft_model_reads_a_window_of_a_long_prompt_only() -> None:
    drafter = DraftModel(tiny_model(), 16)
    long = random_ids(100)[0].tolist()
    drafter.begin(long)
    assert drafter.draft(long, 2, Greedy())[0].item() == greedy_tokens(tiny_model(), long[-16:], 1)[0]
    assert drafter._layers[0].offset == 17


def test_draft_model_reads_one_token_for_a_reply_to_the_same_prompt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after retry(): all that it holds is right, and the last token has to be read for what follows it."""
    drafter, prompt = DraftModel(tiny_model(), 64), random_ids(40)[0].tolist()
    drafter.draft(prompt, 3, Greedy())
    drafter.begin(prompt[:30])
    drafter.draft(prompt[:30], 1, Greedy())
    assert drafter.read_tokens == 1


def test_draft_model_that_failed_in_the_middle_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, prompt = DraftModel(tiny_model(), 64), random_ids(40)[0].tolist()
    expected = [token.item() for token in drafter.draft(prompt, 3, Greedy())]
    drafter._layers[0].rewind(1)  # as if the others had seen one token more
    assert [token.item() for token in drafter.draft(prompt, 3, Greedy())] == expected
    assert {layer.offset for layer in drafter._layers} == {42}


def test_reading_a_prompt_is_not_held_against_guessing() -> None:
    """What a draft model has to catch up with is read once, and says nothing of the steps to come."""
    model, prompt = tiny_model(), random_ids(60)[0].tolist()
    drafter = DraftModel(tiny_model(), 64)
    stream = speculative(model, prompt, Greedy(), drafter)
    list(islice(stream, 20))
    assert len(drafter.pace._seconds[3]) == stream.drafted // 3 - 1


@pytest.mark.parametrize("most", [1, 3])
def test_nothing_is_guessed_that_would_come_too_late(most: int) -> None:
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 30)
    for limit in range(21, 30):
        cache = model.make_cache()
        knowing = Knowing([*prompt, *expected], 0, wrong=0)
        knowing.pace = Always(most)
        logits = prefill(model, prompt, cache)
        stream = SpeculativeStream(model, logits, cache, Greedy(), knowing, prompt, most, limit)
        assert list(islice(stream, limit - 20)) == expected[: limit - 20]
        assert cache[0].offset <= limit, "so that no buffer grows for what is not wanted"


class Chain:
    """A model of a language in which the next token depends on the last one only."""

    def __init__(self, table: mx.array) -> None:
        self.table = table
        self.config = SimpleNamespace(layers=[SimpleNamespace(window=None)])

    def fused(self) -> Chain:
        return self

    def prefill(self, ids: mx.array, cache: list[Any], whole_length: int) -> mx.array:
        return self(ids, cache)[:, -1:]

    def make_cache(self, kv: Any = None) -> list[KVCache]:
        return [KVCache()]

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        cache[0].update(*[mx.zeros((1, 1, ids.shape[1], 1))] * 2)
        return self.table[ids]


@pytest.mark.parametrize("broken", [False, True])
def test_drawn_tokens_have_exactly_the_models_distribution(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over all pairs of a vocabulary of four, with a draft that is wrong by some.

    The broken variant takes every guess for right. And acceptance is well above that of two independent draws.
    """
    if broken:
        monkeypatch.setattr(speculate, "common_prefix", lambda guesses, drawn: len(guesses))
    logits = mx.random.normal((4, 4), key=mx.random.key(1)) * 1.2
    noisy = logits + 0.7 * mx.random.normal((4, 4), key=mx.random.key(2))
    model, draft = Chain(logits), Chain(noisy)
    sampler = Sampler(Sampling(temperature=1.0, top_p=1.0, seed=5), [0], 4)
    stream = speculative(model, [0], sampler, DraftModel(draft), 2)
    tokens = list(islice(stream, 2500))
    p, q = mx.softmax(logits, axis=-1), mx.softmax(noisy, axis=-1)
    pairs, firsts = Counter(pairwise(tokens)), Counter(tokens[:-1])
    chi_square = sum(
        (pairs[i, j] - firsts[i] * p[i, j].item()) ** 2 / (firsts[i] * p[i, j].item())
        for i in range(4)
        for j in range(4)
    )
    # 12 degrees of freedom: 0.1 % of right samples are above 32.9
    assert (chi_square < 32.9) != broken, chi_square
    if not broken:
        weights = [firsts[i] / len(tokens) for i in range(4)]
        best = sum(w * mx.minimum(p[i], q[i]).sum().item() for i, w in enumerate(weights))
        independent = sum(w * (p[i] * q[i]).sum().item() for i, w in enumerate(weights))
        first_right = stream.accepted / stream.drafted  # of two, the second counts only behind a right first
        assert first_right > (independent + best) / 2


# --- prompt lookup ------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "guessed"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9]),
        ([1, 2, 3, 7, 8, 2, 3, 4, 5, 6, 2, 3], [4, 5, 6]),  # the latest of equals
        ([1, 2, 3, 4, 8, 2, 3, 5, 8, 1, 2, 3], [4, 8, 2]),  # the longest, though it is not the latest
        ([5, 5, 5], [5]),
        ([1, 2, 3, 4, 2], []),  # one token is no match
        ([1], []),
        ([], []),
        ([256, 0, 65536, 1, 0, 256], []),  # the bytes of 0, 256 stand there, but not at a token's beginning
        ([0x01000000, 0x02, 7, 0x010000, 0x0200], []),
    ],
)
def test_lookup_guesses_what_followed_the_same_tokens(history: list[int], guessed: list[int]) -> None:
    lookup = PromptLookup()
    lookup.begin(history)
    assert [token.item() for token in lookup.draft(history, 3, Greedy())] == guessed


def test_lookup_follows_a_history_of_which_the_end_was_taken_back() -> None:
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


# --- how many -----------------------------------------------------------------


def paced(
    chance: float, seconds: Any, most: int = 4, steps: int = 400, seed: int = 0
) -> tuple[Counter[int], DraftScheduler]:
    """The numbers chosen where each guess is right with a chance, and a step with n of them takes seconds(n)."""
    pace, rng, chosen = DraftScheduler(most), random.Random(seed), Counter()
    for _ in range(steps):
        guesses = pace.choose()
        right = next((i for i in range(guesses) if rng.random() >= chance), guesses)
        pace.note(guesses, seconds(guesses) * rng.uniform(1, 1.3))
        pace.judge(guesses, right)
        chosen[guesses] += 1
    return chosen, pace


def test_pace_guesses_far_where_checking_is_cheap_and_guesses_are_right() -> None:
    chosen, _ = paced(0.9, lambda n: 1 + 0.05 * n)
    assert chosen[4] > 300


def test_pace_guesses_few_where_each_costs_much() -> None:
    chosen, _ = paced(0.6, lambda n: 1 + 0.3 * n)
    assert chosen[1] + chosen[2] > 250 and chosen[4] < 60


def test_pace_stops_where_guessing_does_not_pay_and_looks_again_ever_more_seldom() -> None:
    chosen, pace = paced(0.05, lambda n: 1 + 0.4 * n)
    assert chosen[0] > 370
    assert pace._pause > DraftScheduler.FIRST_PAUSE


def test_pace_begins_again_when_the_text_changes() -> None:
    _, pace = paced(0.0, lambda n: 1 + 0.2 * n, steps=100)
    for _ in range(400):
        guesses = pace.choose()
        pace.note(guesses, 1 + 0.2 * guesses)
        pace.judge(max(guesses, 1), max(guesses, 1))  # looked at, where they are free
    assert pace.choose() == 4


# --- in replies ---------------------------------------------------------------

TOOLS = [
    {
        "name": "roll_dice",
        "description": "Roll a dice.",
        "parameters": {"type": "object", "properties": {"max_num": {"type": "integer"}}, "required": ["max_num"]},
    }
]
ASKED: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "What is the capital of Peru?", "sampling": Sampling(temperature=0)},
    "thinking": {"prompt": "What is 348 + 275?", "thinking": True, "thinking_budget": 5, "sampling": Sampling(seed=1)},
    "tools": {"prompt": "Roll a D6 dice twice!", "tools": TOOLS, "constrain_tools": True, "sampling": Sampling(seed=1)},
    "stop": {"prompt": "What is 348 + 275?", "stop": "62", "sampling": Sampling(seed=1)},
    "max_tokens": {"prompt": "Write a poem about the sea.", "max_tokens": 5, "sampling": Sampling(seed=1)},
    "sampling": {"prompt": "Hello", "sampling": Sampling(temperature=1.5, top_p=0.9, presence_penalty=1.0, seed=4)},
}


def told(reply: Reply) -> tuple[Any, ...]:
    return reply.text, reply.thinking, reply.tool_calls, reply.finish_reason, reply.answer_tokens, reply.thinking_tokens


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "DraftScheduler", Always)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("what", "how"),
    [
        *((what, "prompt_lookup") for what in ("plain", "stop", "max_tokens")),
        *((what, "draft_model") for what in ("thinking", "sampling")),
        *(pytest.param("tools", how, marks=pytest.mark.heavy) for how in ("prompt_lookup", "draft_model")),
    ],
)
def test_reply_is_the_same_with_guesses(what: str, how: str, demo: tuple[Any, Tokenizer]) -> None:
    options = ASKED[what]
    expected = generate(*demo, **options)
    assert expected.drafted_tokens == 0
    reply = generate(*demo, **options, **{how: True if how == "prompt_lookup" else demo[0]})
    assert told(reply) == told(expected)
    if how == "draft_model":
        assert 0 < reply.accepted_tokens <= reply.drafted_tokens


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("how", ["prompt_lookup", "draft_model"])
def test_chat_goes_on_as_without_guesses(how: str, demo: tuple[Any, Tokenizer]) -> None:
    """Over turns that think and turns that do not; what one reply guessed too far is no part of the next prompt."""
    greedy = Sampling(temperature=0)
    plain = Chat(*demo, sampling=greedy)
    guessing = Chat(*demo, sampling=greedy, **{how: True if how == "prompt_lookup" else demo[0]})
    for text, thinking in (("My name is Mina.", False), ("What is 12 + 30?", True), ("What is my name?", False)):
        ended = [list(chat.send(text, thinking=thinking))[-1] for chat in (plain, guessing)]
        assert ended[1].cached_tokens == ended[0].cached_tokens
    assert [m["content"] for m in guessing.messages] == [m["content"] for m in plain.messages]
    assert "Mina" in guessing.messages[-1]["content"]


def test_reply_that_is_cut_leaves_its_cache_right(demo: tuple[Any, Tokenizer], always: None) -> None:
    model, tokenizer = demo
    cache = PromptCache(model, tokenizer)
    stream = stream_generate(model, tokenizer, "Who are you?", draft_model=model, prompt_cache=cache)
    for _ in zip(range(4), stream, strict=False):
        pass
    stream.close()
    ids = [*cache.ids, 9]
    logits, cached = cache.prefill(ids)
    assert cached == len(ids) - 1
    assert distance(logits, model(mx.array([ids]))[:, -1]) < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft_tokens": 3}, "there is neither a draft model nor prompt_lookup"),
        ({"num_draft_tokens": 0, "prompt_lookup": True}, "num_draft_tokens must be a whole number of at least 1"),
        ({"prompt_lookup": 3}, "prompt_lookup must be true or false"),
        ({"logprobs": -1}, "logprobs must be a whole number of at least 0"),
        ({"kv": 5}, "kv must be 8, 4 or a KVQuantization"),
    ],
)
def test_senseless_options_are_refused_before_work(
    options: dict[str, Any], message: str, unread: tuple[Any, Tokenizer]
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_generate(*unread, "Hello", **options)
    if "logprobs" not in options:
        with pytest.raises(ValueError, match=message):
            Chat(*unread, **options)


def test_draft_of_another_vocabulary_and_two_ways_to_guess_are_refused(unread: tuple[Any, Tokenizer]) -> None:
    model, tokenizer = unread
    with pytest.raises(ValueError, match="the draft model has a vocabulary of 61 tokens, and the model one of 3072"):
        stream_generate(model, tokenizer, "Hello", draft_model=tiny_model())
    with pytest.raises(ValueError, match="there are a draft model and prompt_lookup"):
        Chat(model, tokenizer, draft_model=model, prompt_lookup=True)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    other = tiny_model(vocab_size=3072, rope_parameters=rope)
    with pytest.raises(ValueError, match="RoPE of type 'dynamic' depends on the length"):
        stream_generate(other, tokenizer, "Hello", prompt_lookup=True)


def test_prompt_cache_of_other_bits_is_refused(unread: tuple[Any, Tokenizer], demo: tuple[Any, Tokenizer]) -> None:
    cache = PromptCache(*demo, kv=KVQuantization(8, 8, 64, "all"))
    assert generate(*demo, "Hello", prompt_cache=cache, max_tokens=2).answer_tokens == 2, "its own bits are taken"
    with pytest.raises(ValueError, match="the prompt cache holds cache: keys 8 bits"):
        generate(*demo, "Hello", prompt_cache=cache, kv=4)


def test_chat_with_quantized_caches_reuses_them(demo: tuple[Any, Tokenizer]) -> None:
    chat = Chat(*demo, kv=KVQuantization.read(demo[0].config, 8, kv_bits_values=4), sampling=Sampling(temperature=0))
    list(chat.send("My name is Mina."))
    chat.settle()
    done = list(chat.send("What is my name?"))[-1]
    assert "Mina" in chat.messages[-1]["content"] and done.cached_tokens > 20
    kinds = [layer.rows.kv for layer in chat._cache.layers]
    assert [kind is not None for kind in kinds] == [False, False, False, True] * 2


def test_logprobs_are_the_models_own(demo: tuple[Any, Tokenizer]) -> None:
    model, tokenizer = demo
    reply = generate(model, tokenizer, "Hello", logprobs=3, sampling=Sampling(temperature=2.0, seed=1), max_tokens=6)
    assert [len(one.top) for one in reply.logprobs] == [3] * 6
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    for one in reply.logprobs:
        values = model(mx.array([ids]))[0, -1]
        values = values - mx.logsumexp(values)
        assert one.logprob == pytest.approx(values[one.id].item(), abs=1e-3)
        assert [top.id for top in one.top] == mx.argsort(-values)[:3].tolist()
        assert one.text == tokenizer.decode([one.id])
        ids.append(one.id)
    assert not generate(model, tokenizer, "Hello", max_tokens=2).logprobs


def test_logprobs_are_the_same_with_guesses(demo: tuple[Any, Tokenizer], always: None) -> None:
    replies = [generate(*demo, "Who are you?", logprobs=2, **more) for more in ({}, {"draft_model": demo[0]})]
    for one, other in zip(*(reply.logprobs for reply in replies), strict=True):
        assert (one.id, [t.id for t in one.top]) == (other.id, [t.id for t in other.top])
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


class Writing(Chain):
    """A model that writes one text, whatever it is asked."""

    def __init__(self, prompt: list[int], text: list[int], vocab_size: int) -> None:
        super().__init__(mx.eye(vocab_size))
        self.text = mx.array([*prompt, *text, *[0] * 32])  # more is guessed than it writes

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        start = cache[0].offset
        super().__call__(ids, cache)
        return self.table[self.text[start + 1 : start + 1 + ids.shape[1]]][None]


def test_lookup_saves_most_steps_of_an_edited_text(demo: tuple[Any, Tokenizer]) -> None:
    """A file of ours in the prompt, and in the reply with a name changed: as many steps as README says."""
    source = (ROOT / "exaone4_mlx" / "generation" / "stopping.py").read_text()[:3000]
    prompt, text = (demo[1].encode(part) for part in (f"{source}\n\n", source.replace("limit", "bound")))
    model = Writing(prompt, text, 3072)
    stream = speculative(model, prompt, Greedy(), PromptLookup(), LOOKUP_DRAFTS)
    assert list(islice(stream, len(text))) == text
    steps = len(text) - stream.accepted
    assert steps < 0.25 * len(text), f"{steps} steps for {len(text)} tokens"


def test_end_of_a_reply_leaves_other_work_on_its_cache_alone(unread: tuple[Any, Tokenizer], always: None) -> None:
    """The broken variant went back in caches that had another prompt in them by then."""
    cache = PromptCache(*unread)
    prompts = [random_ids(length, length, 3000)[0].tolist() for length in (20, 60)]
    greedy = Sampling(temperature=0)
    alone = generate(*unread, prompts[1], sampling=greedy, max_tokens=40, logprobs=0)
    first = stream_generate(
        *unread, prompts[0], sampling=greedy, max_tokens=30, prompt_cache=cache, logprobs=0, draft_model=unread[0]
    )
    seen = 0
    while seen < 30:
        seen += isinstance(next(first), Logprobs)
    second = stream_generate(*unread, prompts[1], sampling=greedy, max_tokens=40, prompt_cache=cache, logprobs=0)
    came = [next(second) for _ in range(3)]
    list(first)
    assert [e.id for e in (*came, *second) if isinstance(e, Logprobs)] == [one.id for one in alone.logprobs]


def test_reply_that_was_read_keeps_no_caches(unread: tuple[Any, Tokenizer]) -> None:
    gc.collect()
    before = mx.get_active_memory()
    stream = stream_generate(*unread, "Hello", max_tokens=20, draft_model=unread[0])
    list(stream)
    gc.collect()
    assert mx.get_active_memory() - before < 10_000
    assert stream.so_far.answer_tokens == 20


def test_max_kv_size_bounds_prompt_and_reply(unread: tuple[Any, Tokenizer]) -> None:
    reply = generate(*unread, [5] * 20, max_kv_size=30, sampling=Sampling(temperature=0))
    assert (reply.answer_tokens + reply.thinking_tokens, reply.finish_reason) == (10, "length")
    with pytest.raises(ValueError, match="the prompt has 20 tokens, and max_kv_size 20 must hold it and a reply"):
        generate(*unread, [5] * 20, max_kv_size=20)
    with pytest.raises(ValueError, match="max_kv_size must be a number of tokens from 2 to the model's 8192"):
        generate(*unread, "Hello", max_kv_size=8193)


def test_what_is_no_model_cannot_draft(unread: tuple[Any, Tokenizer]) -> None:
    for refused in (lambda: generate(*unread, "Hello", draft_model="demo"), lambda: Chat(*unread, draft_model="demo")):
        with pytest.raises(ValueError, match=r"draft_model must be a model, as load\(\) returns it"):
            refused()
