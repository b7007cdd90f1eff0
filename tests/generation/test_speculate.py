"""Speculative decoding gives the same tokens for any drafts, window positions and sampling options."""

from __future__ import annotations

import gc
import random
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import mlx.core as mx
import pytest
from conftest import (
    Always,
    Greedy,
    distance,
    greedy_tokens,
    mostly_heavy,
    random_ids,
    roll_dice,
    small_caches,
    tiny_model,
)
from speculation import Chain, ScriptedDrafter, speculative

from exaone4_mlx import Chat, Logprobs, PromptCache, Reply, Sampling, Tokenizer, generate, stream_generate
from exaone4_mlx.generation import speculate
from exaone4_mlx.generation.decode import Sampler, TokenStream
from exaone4_mlx.generation.draft import DraftModel
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.model.cache import RotatingKVCache
from exaone4_mlx.model.kv import KVQuantization


def plain(model: Any, prompt: list[int], sample: Any) -> TokenStream:
    cache = model.make_cache()
    return TokenStream(model, prefill(model, prompt, cache), cache, sample)


@pytest.mark.parametrize("length", mostly_heavy(range(1, 34), 5))
def test_greedy_tokens_are_the_same_at_every_wrap_position(length: int) -> None:
    """Each length wraps the window of 7 tokens, and compacts its buffer of 19 rows, at another position."""
    model = small_caches(tiny_model(), reserve=8, slack=5)
    prompt = random_ids(length, length)[0].tolist()
    expected = greedy_tokens(model, prompt, 24)
    stream = speculative(model, prompt, Greedy(), ScriptedDrafter([*prompt, *expected], length), 2)
    assert list(islice(stream, 24)) == expected
    assert 0 < stream.accepted < stream.drafted, "the test needs right and wrong drafts"


def test_a_wrapped_window_that_does_not_rewind_changes_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant is that of mlx-lm: a wrapped window cannot be trimmed, and mlx-lm does not check it."""
    rewind = RotatingKVCache.rewind
    monkeypatch.setattr(RotatingKVCache, "rewind", lambda self, n: rewind(self, n if self.offset < self.window else 0))
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 40)
    assert list(islice(speculative(model, prompt, Greedy(), ScriptedDrafter([*prompt, *expected], 0)), 40)) != expected


WAYS = {
    "greedy": Sampling(temperature=0, seed=3),
    "temperature": Sampling(temperature=1.0, top_p=1.0, seed=3),
    "top_p": Sampling(temperature=2.0, top_p=0.8, seed=3),
    "top_k": Sampling(temperature=2.0, top_p=1.0, top_k=5, seed=3),
    "min_p": Sampling(temperature=2.0, top_p=0.9, min_p=0.05, seed=3),
    "penalties": Sampling(
        temperature=2.0, top_p=0.95, presence_penalty=1.5, frequency_penalty=0.7, repetition_penalty=1.3, seed=3
    ),
    "xtc": Sampling(temperature=2.0, top_p=0.9, xtc_probability=0.5, xtc_threshold=0.02, seed=3),
    "greedy penalties": Sampling(temperature=0, presence_penalty=4.0, repetition_penalty=1.5, logit_bias={7: 3.0}),
}


@pytest.mark.parametrize("way", mostly_heavy(WAYS, 3))
def test_a_seed_gives_the_same_tokens_with_and_without_drafts(way: str) -> None:
    """Also with penalties: each position counts the draft tokens before it."""
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    sampling = WAYS[way].resolved(False)
    more: Any = {"min_tokens": 40, "stop_ids": range(0, 61, 2)}
    expected = list(islice(plain(model, prompt, Sampler(sampling, prompt, 61, **more)), 60))
    assert all(token % 2 for token in expected[:40]) and not all(token % 2 for token in expected[40:])
    stream = speculative(model, prompt, Sampler(sampling, prompt, 61, **more), ScriptedDrafter([*prompt, *expected], 0))
    assert list(islice(stream, 60)) == expected
    assert stream.accepted > 20


@pytest.mark.parametrize("seed", mostly_heavy(range(6), 1))
@pytest.mark.parametrize("way", ["greedy", "penalties"])
def test_restrict_and_force_give_the_same_tokens_with_and_without_drafts(seed: int, way: str) -> None:
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    sampling = WAYS[way].resolved(False)
    allowed = mx.array([token % 3 == 0 for token in range(61)])

    def steered(stream: Any) -> list[int]:
        rng, tokens = random.Random(seed), []
        for _ in range(25):
            what = rng.random()
            if what < 0.25:
                stream.restrict(allowed)
            elif what < 0.4:
                forced = [rng.randrange(3, 61) for _ in range(rng.randrange(1, 4))]
                stream.force(forced)
                tokens += forced
            tokens += islice(stream, rng.randrange(1, 5))
        stream.close()
        return tokens

    more: Any = {"min_tokens": 20, "stop_ids": range(0, 61, 2)}
    expected = steered(plain(model, prompt, Sampler(sampling, prompt, 61, **more)))
    drafter = ScriptedDrafter([*prompt, *expected], seed)
    stream = speculative(model, prompt, Sampler(sampling, prompt, 61, **more), drafter)
    assert steered(stream) == expected
    assert stream.accepted


@pytest.mark.parametrize("after", range(8))
def test_after_close_the_caches_hold_the_tokens_handed_out(after: int) -> None:
    model, prompt = small_caches(tiny_model(), reserve=12, slack=5), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 30)
    stream = speculative(model, prompt, Greedy(), ScriptedDrafter([*prompt, *expected], 0))
    cache, tokens = stream._cache, list(islice(stream, after))
    stream.close()
    assert [layer.offset for layer in cache] == [20 + after] * 4
    fresh = model(mx.array([[*prompt, *tokens, 9]]))[:, -1]
    assert distance(model(mx.array([[9]]), cache)[:, -1], fresh) < 1e-4


@pytest.mark.parametrize("most", [0, 3])
def test_logprobs_equal_those_of_the_plain_stream(most: int) -> None:
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    tokens = list(islice(plain(model, prompt, Greedy()), 20))
    cache, drafter = model.make_cache(), ScriptedDrafter([*prompt, *tokens], 0)
    expected = TokenStream(model, prefill(model, prompt, cache), cache, Greedy(), 3)
    stream = speculative(model, prompt, Greedy(), drafter, most, logprobs=3)
    for token in tokens:
        assert next(stream) == next(expected) == token
        (ids, values), (expected_ids, expected_values) = stream.logprobs, expected.logprobs
        assert ids.tolist() == expected_ids.tolist() and ids[0].item() == token
        assert distance(values, expected_values) < 1e-4 and values[0].item() == values[1].item()


def test_a_stream_without_drafts_runs_one_step_ahead() -> None:
    """It hands a token out after the next step has started, and the caches hold only the tokens handed out."""
    model, prompt, calls = tiny_model(), random_ids(20)[0].tolist(), 0
    expected = greedy_tokens(model, prompt, 12)
    stream = speculative(model, prompt, Greedy(), ScriptedDrafter([*prompt, *expected], 0), 0, limit=30)
    cache, inner = stream._cache, stream._model

    def counted(ids: mx.array, caches: Any) -> mx.array:
        nonlocal calls
        calls += 1
        return inner(ids, caches)

    stream._model = counted
    for count, token in enumerate(expected[:10], start=1):
        assert next(stream) == token
        assert calls == count and cache[0].offset == 20 + count


def test_quantized_caches_work_with_drafts() -> None:
    model, kv = tiny_model(head_dim=32), KVQuantization(8, 8, 32, "all")
    prompt = random_ids(20)[0].tolist()
    cache = model.make_cache(kv)
    expected = list(islice(TokenStream(model, prefill(model, prompt, cache), cache, Greedy()), 40))
    stream = speculative(model, prompt, Greedy(), ScriptedDrafter([*prompt, *expected], 0), kv=kv)
    assert list(islice(stream, 40)) == expected


@pytest.mark.parametrize("most", [1, 3])
def test_no_draft_tokens_exceed_the_limit(most: int) -> None:
    model, prompt = tiny_model(), random_ids(20)[0].tolist()
    expected = greedy_tokens(model, prompt, 30)
    for limit in range(21, 30):
        drafter = ScriptedDrafter([*prompt, *expected], 0, wrong=0)
        stream = speculative(model, prompt, Greedy(), drafter, most, limit=limit)
        assert list(islice(stream, limit - 20)) == expected[: limit - 20]
        assert stream._cache[0].offset <= limit, "no buffer grows for tokens beyond the limit"


@pytest.mark.parametrize("broken", [False, True])
def test_sampled_tokens_have_the_distribution_of_the_model(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chi-square test over all pairs of a vocabulary of four, with an inaccurate draft model.

    The broken variant accepts every draft token. Acceptance is well above that of two independent samples.
    """
    if broken:
        monkeypatch.setattr(speculate, "common_prefix", lambda drafts, sampled: len(drafts))
    logits = mx.random.normal((4, 4), key=mx.random.key(1)) * 1.2
    noisy = logits + 0.7 * mx.random.normal((4, 4), key=mx.random.key(2))
    model, draft = Chain(logits), Chain(noisy)
    sampler = Sampler(Sampling(temperature=1.0, top_p=1.0, seed=5), [0], 4)
    stream = speculative(model, [0], sampler, DraftModel(draft), 2)
    tokens = list(islice(stream, 1000))
    p, q = mx.softmax(logits, axis=-1), mx.softmax(noisy, axis=-1)
    pairs, firsts = Counter(pairwise(tokens)), Counter(tokens[:-1])
    chi_square = sum(
        (pairs[i, j] - firsts[i] * p[i, j].item()) ** 2 / (firsts[i] * p[i, j].item())
        for i in range(4)
        for j in range(4)
    )
    # 12 degrees of freedom: 0.1 % of correct samples are above 32.9
    assert (chi_square < 32.9) != broken, chi_square
    if not broken:
        weights = [firsts[i] / len(tokens) for i in range(4)]
        best = sum(w * mx.minimum(p[i], q[i]).sum().item() for i, w in enumerate(weights))
        independent = sum(w * (p[i] * q[i]).sum().item() for i, w in enumerate(weights))
        first_right = stream.accepted / stream.drafted  # the second of two counts only after a right first one
        assert first_right > (independent + best) / 2


# --- in replies ---------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "What is the capital of Peru?", "sampling": Sampling(temperature=0)},
    "thinking": {"prompt": "What is 348 + 275?", "thinking": True, "thinking_budget": 5, "sampling": Sampling(seed=1)},
    "tools": {
        "prompt": "Roll a D6 dice twice!",
        "tools": [roll_dice],
        "constrain_tools": True,
        "sampling": Sampling(seed=1),
    },
    "stop": {"prompt": "What is 348 + 275?", "stop": "62", "sampling": Sampling(seed=1)},
    "max_tokens": {"prompt": "Write a poem about the sea.", "max_tokens": 5, "sampling": Sampling(seed=1)},
    "min_tokens": {"prompt": "Hello", "min_tokens": 12, "max_tokens": 16, "stop": "a", "sampling": Sampling(seed=1)},
    "sampling": {"prompt": "Hello", "sampling": Sampling(temperature=1.5, top_p=0.9, presence_penalty=1.0, seed=4)},
}


def outcome(reply: Reply) -> tuple[Any, ...]:
    return reply.text, reply.thinking, reply.tool_calls, reply.finish_reason, reply.answer_tokens, reply.thinking_tokens


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exaone4_mlx.generation.draft.DraftScheduler", Always)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("what", "how"),
    [
        *((what, "prompt_lookup") for what in ("plain", "stop", "max_tokens", "min_tokens")),
        *((what, "draft_model") for what in ("thinking", "sampling")),
        *(pytest.param("tools", how, marks=pytest.mark.heavy) for how in ("prompt_lookup", "draft_model")),
    ],
)
def test_the_reply_is_the_same_with_drafts(what: str, how: str, demo: tuple[Any, Tokenizer]) -> None:
    options = CASES[what]
    expected = generate(*demo, **options)
    assert expected.drafted_tokens == 0
    reply = generate(*demo, **options, **{how: True if how == "prompt_lookup" else demo[0]})
    assert outcome(reply) == outcome(expected)
    if how == "draft_model":
        assert 0 < reply.accepted_tokens <= reply.drafted_tokens


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("how", mostly_heavy(["prompt_lookup", "draft_model"], 1))
def test_chat_turns_are_the_same_with_drafts(how: str, demo: tuple[Any, Tokenizer]) -> None:
    """With and without thinking. Draft tokens after the end of a reply are not in the next prompt."""
    greedy = Sampling(temperature=0)
    plain = Chat(*demo, sampling=greedy)
    drafting = Chat(*demo, sampling=greedy, **{how: True if how == "prompt_lookup" else demo[0]})
    for text, thinking in (("My name is Mina.", False), ("What is 12 + 30?", True), ("What is my name?", False)):
        ended = [list(chat.send(text, thinking=thinking))[-1] for chat in (plain, drafting)]
        assert ended[1].cached_tokens == ended[0].cached_tokens
    assert [m["content"] for m in drafting.messages] == [m["content"] for m in plain.messages]
    assert "Mina" in drafting.messages[-1]["content"]


def test_a_closed_reply_leaves_correct_caches(demo: tuple[Any, Tokenizer], always: None) -> None:
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
def test_invalid_options_are_refused_before_work(
    options: dict[str, Any], message: str, unread: tuple[Any, Tokenizer]
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_generate(*unread, "Hello", **options)
    if "logprobs" not in options:
        with pytest.raises(ValueError, match=message):
            Chat(*unread, **options)


def test_a_draft_of_another_vocabulary_and_two_drafters_are_refused(unread: tuple[Any, Tokenizer]) -> None:
    model, tokenizer = unread
    with pytest.raises(ValueError, match="the draft model has a vocabulary of 61 tokens, and the model one of 3072"):
        stream_generate(model, tokenizer, "Hello", draft_model=tiny_model())
    with pytest.raises(ValueError, match="there are a draft model and prompt_lookup"):
        Chat(model, tokenizer, draft_model=model, prompt_lookup=True)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    other = tiny_model(vocab_size=3072, rope_parameters=rope)
    with pytest.raises(ValueError, match="RoPE of type 'dynamic' depends on the length"):
        stream_generate(other, tokenizer, "Hello", prompt_lookup=True)


def test_a_prompt_cache_of_other_bits_is_refused(unread: tuple[Any, Tokenizer], demo: tuple[Any, Tokenizer]) -> None:
    cache = PromptCache(*demo, kv=KVQuantization(8, 8, 64, "all"))
    assert generate(*demo, "Hello", prompt_cache=cache, max_tokens=2).answer_tokens == 2, "the same bits are accepted"
    with pytest.raises(ValueError, match="the prompt cache holds cache: keys 8 bits"):
        generate(*demo, "Hello", prompt_cache=cache, kv=4)


def test_a_chat_reuses_quantized_caches(demo: tuple[Any, Tokenizer]) -> None:
    chat = Chat(*demo, kv=KVQuantization.read(demo[0].config, 8, kv_bits_values=4), sampling=Sampling(temperature=0))
    list(chat.send("My name is Mina."))
    chat.settle()
    done = list(chat.send("What is my name?"))[-1]
    assert "Mina" in chat.messages[-1]["content"] and done.cached_tokens > 20
    kinds = [layer.rows.kv for layer in chat._cache.layers]
    assert [kind is not None for kind in kinds] == [False, False, False, True] * 2


def test_logprobs_are_those_of_the_model(demo: tuple[Any, Tokenizer]) -> None:
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


def test_logprobs_are_the_same_with_drafts(demo: tuple[Any, Tokenizer], always: None) -> None:
    replies = [generate(*demo, "Who are you?", logprobs=2, **more) for more in ({}, {"draft_model": demo[0]})]
    for one, other in zip(*(reply.logprobs for reply in replies), strict=True):
        assert (one.id, [t.id for t in one.top]) == (other.id, [t.id for t in other.top])
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_the_end_of_a_reply_does_not_change_the_cache_of_other_work(
    unread: tuple[Any, Tokenizer], always: None
) -> None:
    """A former version rewound caches that held another prompt by then."""
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
    tokens = [next(second) for _ in range(3)]
    list(first)
    assert [e.id for e in (*tokens, *second) if isinstance(e, Logprobs)] == [one.id for one in alone.logprobs]


def test_a_consumed_reply_keeps_no_caches(unread: tuple[Any, Tokenizer]) -> None:
    gc.collect()
    before = mx.get_active_memory()
    stream = stream_generate(*unread, "Hello", max_tokens=20, draft_model=unread[0])
    list(stream)
    gc.collect()
    assert mx.get_active_memory() - before < 10_000
    assert stream.so_far.answer_tokens == 20


def test_max_kv_size_limits_prompt_and_reply(unread: tuple[Any, Tokenizer]) -> None:
    reply = generate(*unread, [5] * 20, max_kv_size=30, sampling=Sampling(temperature=0))
    assert (reply.answer_tokens + reply.thinking_tokens, reply.finish_reason) == (10, "length")
    with pytest.raises(ValueError, match="the prompt has 20 tokens, and max_kv_size 20 must hold it and a reply"):
        generate(*unread, [5] * 20, max_kv_size=20)
    with pytest.raises(ValueError, match="max_kv_size must be a number of tokens from 2 to the model's 8192"):
        generate(*unread, "Hello", max_kv_size=8193)


def test_draft_model_must_be_a_model(unread: tuple[Any, Tokenizer]) -> None:
    for refused in (lambda: generate(*unread, "Hello", draft_model="demo"), lambda: Chat(*unread, draft_model="demo")):
        with pytest.raises(ValueError, match=r"draft_model must be a model, as load\(\) returns it"):
            refused()
