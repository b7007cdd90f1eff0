"""top_k, top_p, min_p and XTC: which tokens are left, and how one of them is sampled; the most probable tokens.

Notes:
- They follow the temperature. (mlx-lm applies top_p and min_p before the temperature.)
- top_p does not sort the vocabulary: several tokens are sampled at once, and the first one that top_p allows is taken.
- XTC compares probabilities at temperature 1, as in mlx-lm, among the tokens that top_k, top_p and min_p leave. It
  never excludes the line end and the stop tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..text.events import Logprobs, TokenLogprob
from ..text.tokenizer import Tokenizer
from .options import Sampling

#: The accepted probability that top_p excludes all sampled tokens. The most probable token is taken then.
ALL_EXCLUDED = 1e-9
#: The limit of tokens sampled at once. More of them take longer than sorting the vocabulary.
MAX_DRAWS = 16

TopLogprobs = tuple[mx.array, ...]


def top_logprobs(logits: mx.array, token: mx.array, count: int | None) -> TopLogprobs:
    """The `count` most probable ids [count], and the log-probabilities [1 + count] of `token` and of these ids.

    `logits` are [1, V], `token` is [1]. The result is not evaluated. It is empty if `count` is None.
    """
    if count is None:
        return ()
    values = logits[0].astype(mx.float32)
    values = values - mx.logsumexp(values)
    count = min(count, values.size)
    best = mx.argpartition(-values, count - 1)[:count] if 0 < count < values.size else mx.arange(count)
    ids = best[mx.argsort(-values[best])]
    return ids, values[mx.concatenate([token, ids.astype(token.dtype)])]


def logprobs(top: TopLogprobs, token: int, tokenizer: Tokenizer) -> Logprobs:
    """The event of a token, made from the arrays of its stream."""
    ids: Any = top[0].tolist()
    found: Any = top[1].tolist()
    entries = [TokenLogprob(id, tokenizer.decode([id]), value) for id, value in zip((token, *ids), found, strict=True)]
    return Logprobs(**vars(entries[0]), top=tuple(entries[1:]))


def check_bias(bias: Mapping[int, float] | None, vocab_size: int, excluded: Collection[int] = ()) -> None:
    """Raises ValueError if `bias` has the id of a token that does not exist, or leaves only tokens of `excluded`."""
    if wrong := [token for token in bias or () if not 0 <= token < vocab_size]:
        raise ValueError(f"logit_bias names token {wrong[0]}; there are tokens 0 to {vocab_size - 1}")
    gone = {*excluded, *(token for token, value in (bias or {}).items() if value == -math.inf)}
    if bias and all(token in gone for token in range(vocab_size)):
        before = ", and stop tokens are excluded before min_tokens" if excluded else ""
        raise ValueError(f"logit_bias excludes every token{before}; leave one of them above minus infinity")


class Sample(Protocol):
    """Samples the next token [1] from logits [1, V], among the tokens `allowed` [V] if they are given."""

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array: ...

    def replace_last(self, forced: Sequence[int] = ()) -> None:
        """Forgets the last sampled token, and counts the tokens `forced` in its place."""

    state: Any  # assign an earlier value to go back to it


def mask_of(ids: Collection[int], vocab_size: int) -> mx.array:
    """Booleans [V], true at `ids`."""
    return mx.zeros(vocab_size).at[mx.array([id for id in ids if id < vocab_size], mx.int32)].add(1.0) > 0


class Truncation:
    """Samples among the tokens that the options leave. Tokens of `xtc_kept`, booleans [V], are not excluded by XTC."""

    def __init__(self, sampling: Sampling, xtc_kept: mx.array) -> None:
        self._sampling, self._xtc_kept = sampling, xtc_kept
        self._top_p = 1.0 if sampling.top_p is None else sampling.top_p
        self._draws = draws_for(sampling)

    def sample(self, scaled: mx.array, logits: mx.array, key: mx.array) -> mx.array:
        """A token [1]. `scaled` [1, V] are the `logits` [1, V] divided by the temperature."""
        if self._draws:
            return self._sample_allowed(scaled, key)
        scaled, s = self.cut_off(scaled), self._sampling
        if s.xtc_probability > 0:
            key, chance = mx.random.split(key)
            excluded = xtc_excluded(mx.where(scaled == -math.inf, scaled, logits), s.xtc_threshold) & ~self._xtc_kept
            is_applied = mx.random.uniform(key=chance) <= s.xtc_probability
            scaled = mx.where(is_applied & excluded, -math.inf, scaled)
        return mx.random.categorical(scaled, key=key)

    def cut_off(self, logits: mx.array) -> mx.array:
        """Logits [1, V] with -inf for the tokens that top_k, top_p and min_p exclude. Ties stay together."""
        logits = self._cut_to_top_k(logits)
        if self._top_p < 1:
            probabilities = mx.softmax(logits, axis=-1)
            ordered = -mx.sort(-probabilities, axis=-1)
            before = mx.cumsum(ordered, axis=-1) - ordered  # the probability of all strictly more probable tokens
            smallest = mx.min(mx.where(before < self._top_p, ordered, 2.0), axis=-1, keepdims=True)
            logits = mx.where(probabilities < smallest, -math.inf, logits)
        if self._sampling.min_p > 0:
            floor = mx.max(logits, axis=-1, keepdims=True) + math.log(self._sampling.min_p)
            logits = mx.where(logits < floor, -math.inf, logits)
        return logits

    def _sample_allowed(self, logits: mx.array, key: mx.array) -> mx.array:
        """A token [1] that top_k and top_p allow: the first allowed one of several sampled tokens.

        This is rejection sampling, so the allowed tokens keep their relative probabilities. top_p excludes a token if
        the more probable tokens together have at least the probability top_p.
        """
        logits = self._cut_to_top_k(logits)
        probabilities = mx.softmax(logits, axis=-1)  # 1 V
        drawn = mx.random.categorical(logits, num_samples=self._draws, key=key)  # 1 N
        own = mx.take_along_axis(probabilities, drawn, axis=-1)[..., None]
        before = mx.where(probabilities[:, None] > own, probabilities[:, None], 0).sum(axis=-1)  # 1 N
        is_allowed = before < self._top_p
        first = mx.take_along_axis(drawn, mx.argmax(is_allowed, axis=-1, keepdims=True), axis=-1)[:, 0]
        return mx.where(is_allowed.any(axis=-1), first, mx.argmax(logits, axis=-1).astype(first.dtype))

    def _cut_to_top_k(self, logits: mx.array) -> mx.array:
        count = self._sampling.top_k
        if not 0 < count < logits.shape[-1]:
            return logits
        smallest = mx.min(mx.topk(logits, count, axis=-1), axis=-1, keepdims=True)
        return mx.where(logits < smallest, -math.inf, logits)


def xtc_excluded(logits: mx.array, threshold: float) -> mx.array:
    """The tokens that XTC excludes: those above the threshold, without the least probable one. Booleans [1, V]."""
    probabilities = mx.softmax(logits, axis=-1)
    above = mx.where(probabilities > threshold, probabilities, math.inf)
    return probabilities > mx.min(above, axis=-1, keepdims=True)


def draws_for(sampling: Sampling) -> int:
    """The number of tokens to sample at once, so that top_p almost never excludes all; 0 if sorting is better.

    top_p excludes a sampled token with a probability of at most 1 - top_p. For min_p and XTC there is no such limit.
    """
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    if top_p == 1 or sampling.min_p > 0 or sampling.xtc_probability > 0:
        return 0
    draws = math.ceil(math.log(ALL_EXCLUDED) / math.log1p(-top_p))
    return draws if draws <= MAX_DRAWS else 0
