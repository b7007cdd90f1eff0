"""Logits -> a token.

What is peculiar here:
- Penalties, temperature and probabilities are computed in float32: in bfloat16 neighbouring values merge.
- Order as in transformers and vLLM, for which LG tuned its advice: penalties, temperature, then top_k,
  top_p, min_p on what is left. (mlx-lm cuts off before it applies the temperature.)
- Presence and frequency penalties have OpenAI's meaning, over all generated tokens and no prompt;
  the repetition penalty is over both, as in transformers.
- top_p sorts nothing: a few tokens are drawn at once, and the first stands that is not ruled out.
- Randomness comes from a key of its own, split per token: the same seed gives the same reply.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import mlx.core as mx

from .options import Sampling

#: How often all the tokens drawn for a top_p may be ruled out; the most probable one is taken then.
ALL_RULED_OUT = 1e-9
#: As many may be drawn at once: more of them take longer than sorting the vocabulary.
MOST_DRAWS = 16


class Sampler:
    """Draws the tokens of one reply: `sampler(logits)` takes [1, V] and returns the token, [1].

    Nothing is evaluated here, so that the next step can be built on a token that is not known yet. Its arrays
    belong to the thread that makes it.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        if sampling.temperature is None or sampling.top_p is None:
            raise ValueError("temperature and top_p are open; call Sampling.resolved first")
        self._sampling = sampling
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._key = mx.random.key(secrets.randbits(64) if sampling.seed is None else sampling.seed)
        check_bias(sampling.logit_bias, vocab_size)
        self._bias = _dense(sampling.logit_bias, vocab_size) if sampling.logit_bias else None
        self._counts: mx.array | None = None  # [V], how often each token was generated
        if sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1:
            self._counts = mx.zeros(vocab_size)
        self._in_prompt: mx.array | None = None  # [V], booleans
        if sampling.repetition_penalty != 1:
            self._in_prompt = mx.zeros(vocab_size, mx.bool_)
            self._in_prompt[mx.array(list(prompt_ids))] = True

        self._counts_before = self._counts  # the last token
        self._draws = draws_for(sampling)

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """The next token, [1]; with `allowed`, booleans [V], one of those."""
        logits = self._penalized(logits.astype(mx.float32))
        if allowed is not None:
            logits = mx.where(allowed, logits, -math.inf)
        if self._temperature == 0:
            token = mx.argmax(logits, axis=-1)
        else:
            self._key, key = mx.random.split(self._key)
            # Zero at the best token, so that no temperature is low enough to make every logit infinite.
            logits = (logits - mx.max(logits, axis=-1, keepdims=True)) / self._temperature
            token = self._drawn(logits, key) if self._draws else mx.random.categorical(self._cut_off(logits), key=key)
        self._counts_before = self._counts
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1.0)
        return token

    @property
    def state(self) -> tuple[mx.array | None, ...]:
        """What the next draw depends on, beside logits: set it to one from before, and it will be as it was then."""
        return self._key, self._counts, self._counts_before

    @state.setter
    def state(self, state: tuple[mx.array, mx.array | None, mx.array | None]) -> None:
        self._key, self._counts, self._counts_before = state

    def take_back(self, forced: Sequence[int] = ()) -> None:
        """Forgets the last token drawn, for which `forced` stand instead: penalties count those."""
        self._counts = self._counts_before
        if self._counts is not None and forced:
            self._counts = self._counts.at[mx.array(list(forced))].add(1.0)

    def _penalized(self, logits: mx.array) -> mx.array:
        s = self._sampling
        if self._counts is not None:
            generated = self._counts > 0
            if self._in_prompt is not None:
                scaled = mx.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
                logits = mx.where(generated | self._in_prompt, scaled, logits)
            logits = logits - s.presence_penalty * generated - s.frequency_penalty * self._counts
        return logits if self._bias is None else logits + self._bias

    def _drawn(self, logits: mx.array, key: mx.array) -> mx.array:
        """A token [1] of those that top_k and top_p leave: the first of several that is not ruled out.

        So each of them comes as often, in proportion, as if the others were not there. Ruled out is a token if those
        more probable than it make up top_p without it.
        """
        logits = self._cut_to_top_k(logits)
        probabilities = mx.softmax(logits, axis=-1)  # 1 V
        drawn = mx.random.categorical(logits, num_samples=self._draws, key=key)  # 1 N
        own = mx.take_along_axis(probabilities, drawn, axis=-1)[..., None]
        before = mx.where(probabilities[:, None] > own, probabilities[:, None], 0).sum(axis=-1)  # 1 N
        stands = before < self._top_p
        first = mx.take_along_axis(drawn, mx.argmax(stands, axis=-1, keepdims=True), axis=-1)[:, 0]
        return mx.where(stands.any(axis=-1), first, mx.argmax(logits, axis=-1).astype(first.dtype))

    def _cut_to_top_k(self, logits: mx.array) -> mx.array:
        count = self._sampling.top_k
        if not 0 < count < logits.shape[-1]:
            return logits
        smallest = mx.min(mx.topk(logits, count, axis=-1), axis=-1, keepdims=True)
        return mx.where(logits < smallest, -math.inf, logits)

    def _cut_off(self, logits: mx.array) -> mx.array:
        """Logits [1, V] with -inf for the tokens that top_k, top_p and min_p rule out. Ties stay together."""
        s = self._sampling
        logits = self._cut_to_top_k(logits)
        if self._top_p < 1:
            probabilities = mx.softmax(logits, axis=-1)
            ordered = -mx.sort(-probabilities, axis=-1)
            before = mx.cumsum(ordered, axis=-1) - ordered  # what is strictly more probable
            smallest = mx.min(mx.where(before < self._top_p, ordered, 2.0), axis=-1, keepdims=True)
            logits = mx.where(probabilities < smallest, -math.inf, logits)
        if s.min_p > 0:
            floor = mx.max(logits, axis=-1, keepdims=True) + math.log(s.min_p)
            logits = mx.where(logits < floor, -math.inf, logits)
        return logits


def draws_for(sampling: Sampling) -> int:
    """How many tokens to draw at once, so that hardly ever all are ruled out; 0 where sorting is better.

    A token is ruled out with a probability of 1 - top_p at most. What min_p rules out has no such bound.
    """
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    if top_p == 1 or sampling.min_p > 0:
        return 0
    draws = math.ceil(math.log(ALL_RULED_OUT) / math.log1p(-top_p))
    return draws if draws <= MOST_DRAWS else 0


def check_bias(bias: Mapping[int, float] | None, vocab_size: int) -> None:
    """Raises ValueError for a logit bias on a token that does not exist."""
    if wrong := [token for token in bias or () if not 0 <= token < vocab_size]:
        raise ValueError(f"logit_bias names token {wrong[0]}; there are tokens 0 to {vocab_size - 1}")


def _dense(bias: Mapping[int, float], vocab_size: int) -> mx.array:
    dense = mx.zeros(vocab_size)
    dense[mx.array(list(bias))] = mx.array([float(value) for value in bias.values()])
    return dense
