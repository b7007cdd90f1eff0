"""The logits after a prompt -> an endless stream of ids: sampling, decoding.

Notes:
- The stream never ends by itself. The caller handles stop tokens, limits and text.
- The stream runs one step ahead: the next token is sampled on the device while the caller handles the last one. The
  caches hold only tokens that were handed out, so a caller can stop, restrict or force after any token.
- Penalties, temperature and probabilities are computed in float32, because close values become equal in bfloat16.
- The order is that of transformers and vLLM, for which LG chose its recommended values: penalties, temperature, then
  truncation (truncation.py).
- Presence and frequency penalties count all generated tokens and no prompt tokens, as OpenAI defines them. The
  repetition penalty counts both, as in transformers.
- Each sampler has its own random key and splits it per token. So the same seed gives the same reply.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx

from ..files.safetensors import all_finite, is_finite
from ..model.cache import Cache
from ..model.fused import FusedModel
from ..model.network import Exaone4ForCausalLM
from .options import LogitsProcessor, Sampling
from .truncation import Sample, TopLogprobs, Truncation, check_bias, mask_of, top_logprobs

#: Both forms of the model have the calls that decoding needs. `model.fused()` is the fast one.
Model = Exaone4ForCausalLM | FusedModel

CLEAR_EVERY = 256  # tokens between two releases of freed buffers
CHECK_EVERY = 16  # tokens whose logits are checked at once


class Sampler:
    """Samples the tokens of one reply: `sampler(logits)` takes [1, V] and returns the token, [1].

    It evaluates nothing, so that the next step can use a token that is not computed yet. Use it in the thread that
    created it.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        vocab_size: int,
        *,
        min_tokens: int = 0,
        stop_ids: Collection[int] = (),
        line_end_ids: Collection[int] = (),
        processors: Sequence[LogitsProcessor] = (),
        begun: int = 0,
    ) -> None:
        """`stop_ids` are not sampled among the first `min_tokens` tokens. XTC excludes neither these nor line ends.

        The last `begun` of the `prompt_ids` are the beginning of the reply: penalties count them, and a seed gives the
        random numbers that follow theirs.
        """
        if sampling.temperature is None or sampling.top_p is None:
            raise ValueError("temperature and top_p must be set; call Sampling.resolved first")
        self._sampling = sampling
        self._temperature = sampling.temperature
        self._key = mx.random.key(secrets.randbits(64) if sampling.seed is None else sampling.seed)
        if sampling.seed is not None and self._temperature:
            for _ in range(begun):
                self._key = mx.random.split(self._key)[0]
                mx.eval(self._key)
        self._bias: mx.array | None = None  # [V]
        if bias := sampling.logit_bias:
            check_bias(bias, vocab_size, stop_ids if min_tokens else ())
            self._bias = mx.zeros(vocab_size)
            self._bias[mx.array(list(bias))] = mx.array([float(value) for value in bias.values()])
        self._counts: mx.array | None = None  # [V], how often each token was generated
        if sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1:
            self._counts = mx.zeros(vocab_size)
            if begun:
                self._counts = self._counts.at[mx.array(list(prompt_ids[-begun:]))].add(1.0)
        self._in_prompt: mx.array | None = None  # [V], booleans
        if sampling.repetition_penalty != 1:
            self._in_prompt = mask_of(set(prompt_ids), vocab_size)
        self._counts_before = self._counts  # before the last token
        self._length, self._min_tokens = 0, min_tokens  # tokens so far
        self._processors = processors
        self._tokens = self._tokens_before = mx.array(list(prompt_ids if processors else ()), mx.int32)
        self._is_stop = mask_of(stop_ids, vocab_size) if min_tokens else None
        self._truncation: Truncation | None = None
        if sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.xtc_probability:
            self._truncation = Truncation(sampling, mask_of({*stop_ids, *line_end_ids}, vocab_size))

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """The next token, [1]. It is one of `allowed`, booleans [V], if they are given."""
        logits = logits.astype(mx.float32)
        for process in self._processors:
            shape, logits = logits.shape, process(self._tokens, logits)
            if not isinstance(logits, mx.array) or logits.shape != shape:
                raise ValueError(f"a logits processor must return logits of shape {shape}")
        logits = self._penalized(logits)
        if self._is_stop is not None and self._length < self._min_tokens:
            logits = mx.where(self._is_stop, -math.inf, logits)
        if allowed is not None:
            logits = mx.where(allowed, logits, -math.inf)
        if self._temperature == 0:
            token = mx.argmax(logits, axis=-1)
        else:
            self._key, key = mx.random.split(self._key)
            # The best logit becomes 0, so that no temperature makes all logits infinite.
            scaled = (logits - mx.max(logits, axis=-1, keepdims=True)) / self._temperature
            if self._truncation is None:
                token = mx.random.categorical(scaled, key=key)
            else:
                token = self._truncation.sample(scaled, logits, key)
        self._counts_before, self._length = self._counts, self._length + 1
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1.0)
        if self._processors:
            self._tokens_before, self._tokens = self._tokens, mx.concatenate([self._tokens, token.astype(mx.int32)])
        return token

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything except logits that the next token depends on. Assign an earlier value to go back to it."""
        return self._key, self._counts, self._counts_before, self._length

    @state.setter
    def state(self, state: tuple[Any, ...]) -> None:
        self._key, self._counts, self._counts_before, self._length = state

    def replace_last(self, forced: Sequence[int] = ()) -> None:
        """Forgets the last sampled token. The penalties count the tokens `forced` in its place."""
        self._counts, self._length = self._counts_before, self._length - 1 + len(forced)
        if self._counts is not None and forced:
            self._counts = self._counts.at[mx.array(list(forced))].add(1.0)
        if self._processors:
            self._tokens = mx.concatenate([self._tokens_before, mx.array(list(forced), mx.int32)])

    def _penalized(self, logits: mx.array) -> mx.array:
        s = self._sampling
        if self._counts is not None:
            generated = self._counts > 0
            if self._in_prompt is not None:
                scaled = mx.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
                logits = mx.where(generated | self._in_prompt, scaled, logits)
            logits = logits - s.presence_penalty * generated - s.frequency_penalty * self._counts
        return logits if self._bias is None else logits + self._bias


class NonFiniteLogits(FloatingPointError):
    """Logits that are NaN or infinite. `nonfinite.py` explains them."""


def checked(logits: mx.array) -> mx.array:
    """The logits, evaluated. Raises NonFiniteLogits."""
    if not is_finite(logits):
        raise NonFiniteLogits
    return logits


class LogitsCheck:
    """Checks the logits of all tokens that are handed out, those of CHECK_EVERY tokens in one reduction."""

    def __init__(self) -> None:
        self._rows: list[mx.array] = []
        self._pending: mx.array | None = None

    def add(self, logits: mx.array) -> None:
        """Takes the logits [N, V] of a step. Call it before the next step is queued, and `read` after that."""
        self._rows.append(logits)
        if sum(map(len, self._rows)) >= CHECK_EVERY:
            self._pending = all_finite(mx.concatenate(self._rows))
            mx.async_eval(self._pending)
            self._rows.clear()

    def read(self) -> None:
        """Raises NonFiniteLogits if a check is due and fails."""
        if self._pending is not None and not self._pending.item():
            raise NonFiniteLogits
        self._pending = None

    def finish(self) -> None:
        """Checks the rest. Raises NonFiniteLogits."""
        self.read()
        if self._rows:
            checked(mx.concatenate(self._rows))
            self._rows.clear()


class TokenStream:
    """The endless tokens after a prefill: `next()` hands out one int.

    Streams in the same list `together` take their steps together. A step is due for a stream once its token was handed
    out, and the next `next()` of any of these streams takes it. Raises NonFiniteLogits at most CHECK_EVERY tokens
    later, or in `close`. `restrict` and `force` change the token after the one handed out last. `drafted`,
    `accepted` and `reads_next` are those of `SpeculativeStream`; here there are no drafts.
    """

    drafted = accepted = 0
    reads_next = False

    def __init__(
        self,
        model: Model,
        logits: mx.array,
        cache: list[Cache],
        sample: Sample,
        logprobs: int | None = None,
        together: list[TokenStream] | None = None,
    ) -> None:
        """`logits` [1, V] are those after the prompt, which `cache` holds. `logprobs` is as for `top_logprobs`.

        The stream joins the list `together`; the caller removes it.
        """
        self.model, self.cache, self._sample, self._top = model, cache, sample, logprobs
        self._count, self._check, self._together = 0, LogitsCheck(), together
        self._last: tuple[mx.array, TopLogprobs]  # the token of the last step
        self._token: int | None = None  # that is known and not handed out
        self._error: Exception | None = None  # of a step
        self._sample_next(logits)
        mx.async_eval(self._next)
        if together is not None:
            together.append(self)

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> int:
        if self._token is None:
            take_step([stream for stream in self._together or [self] if stream._token is None])
        if self._error is not None:
            raise self._error
        self._count += 1
        if self._count % CLEAR_EVERY == 0:
            mx.clear_cache()
        self._check.read()
        token, self._token = self._token, None
        assert token is not None
        return token

    @property
    def logprobs(self) -> TopLogprobs:
        """The log-probabilities of the token handed out last."""
        return self._last[1]

    def close(self) -> None:
        """Checks the logits that were not checked yet. The caches hold only tokens that were handed out."""
        self._check.finish()

    def restrict(self, allowed: mx.array) -> None:
        """Samples the next token again, from the tokens `allowed`, booleans [V]."""
        self._sample.replace_last()
        self._sample_next(self._logits, allowed)
        mx.async_eval(self._next)

    def force(self, ids: Sequence[int]) -> None:
        """Continues after `ids` in place of the next token. They are not handed out."""
        self._sample.replace_last(ids)
        hidden = self.model.prefill(mx.array([list(ids)]), self.cache, self.cache[0].offset + len(ids))
        self._sample_next(checked(self.model.logits(hidden)[:, -1]))
        mx.async_eval(self._next)

    def _sample_next(self, logits: mx.array, allowed: mx.array | None = None) -> None:
        self._logits, token = logits, self._sample(logits, allowed)
        # Evaluated together: after the next step is queued, log-probabilities would have to wait for it.
        self._next = token, () if self._top is None else top_logprobs(logits, token, self._top)


def take_step(streams: Sequence[TokenStream]) -> None:
    """One step of `streams`: each has a token or an error after it. Each model runs once, for all of its streams.

    An error of the model ends all of them. An error of a sampler ends its own stream.
    """
    for model in {id(stream.model): stream.model for stream in streams}.values():
        group = [stream for stream in streams if stream.model is model]
        try:
            _step(model, group)
        except Exception as error:
            for stream in group:
                stream._error = error


def _step(model: Model, streams: Sequence[TokenStream]) -> None:
    for stream in streams:
        stream._last = stream._next
        stream._check.add(stream._logits)
    rows = [(stream._last[0][None], stream.cache) for stream in streams]
    found = model.together(rows) if isinstance(model, FusedModel) else [model(*row) for row in rows]
    for stream, logits in zip(streams, found, strict=True):
        try:
            stream._sample_next(logits[:, -1])
        except Exception as error:
            stream._error = error
    mx.async_eval([stream._next for stream in streams])
    for stream in streams:
        stream._token = int(stream._last[0].item())  # type: ignore[arg-type]
