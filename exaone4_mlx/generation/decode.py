"""Prompt ids -> an endless stream of ids.

What is peculiar here:
- The stream never ends by itself: stop tokens, limits and text are the caller's business.
- The prompt is processed in chunks, so that its memory is bounded and its progress can be told.
- One step ahead: while the caller looks at a token, the one after it is being drawn. The caches have seen
  the tokens that were handed out, and no others, so a caller may stop, or steer, after any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..model.cache import Cache
from ..model.fused import FusedModel
from ..model.network import Exaone4ForCausalLM
from .options import PREFILL_STEP_SIZE

#: Both forms of the model have the calls that decoding needs. `model.fused()` is the fast one.
Model = Exaone4ForCausalLM | FusedModel

CLEAR_EVERY = 256  # tokens between which freed buffers are given back


TopLogprobs = tuple[mx.array, ...]


class Sample(Protocol):
    """Draws the next token [1] from logits [1, V], among the tokens `allowed` [V] if that is given."""

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array: ...

    def take_back(self, forced: Sequence[int] = ()) -> None:
        """Forgets the last token drawn, for which `forced` stand instead."""

    state: Any  # which can be set to one from before


def prefill_chunks(
    model: Model,
    ids: Sequence[int],
    cache: list[Cache],
    step_size: int = PREFILL_STEP_SIZE,
) -> Iterator[tuple[int, mx.array]]:
    """Processes `ids` into `cache`, `step_size` tokens at a time.

    After each chunk it yields the tokens processed so far and the hidden state of the last of them, [1, 1, E]. Each
    chunk is computed before the next one; the last one is the caller's to evaluate.
    """
    array = mx.array(list(ids))[None]  # [1, L]
    whole_length = cache[0].offset + len(ids)
    for start in range(0, len(ids), step_size):
        hidden = model.prefill(array[:, start : start + step_size], cache, whole_length)
        if start + step_size < len(ids):
            mx.eval([layer.state for layer in cache])
            mx.clear_cache()
        yield min(start + step_size, len(ids)), hidden


def prefill(model: Model, ids: Sequence[int], cache: list[Cache], step_size: int = PREFILL_STEP_SIZE) -> mx.array:
    """Processes `ids` into `cache`: the logits after the last of them, [1, V]."""
    for _, last in prefill_chunks(model, ids, cache, step_size):
        hidden = last
    logits = model.logits(hidden)[:, -1]
    mx.eval(logits)
    return logits


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of ids at the beginning that are the same in both."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def top_logprobs(logits: mx.array, token: mx.array, count: int | None) -> TopLogprobs:
    """(ids [count], log-probabilities [1 + count]): the `count` most probable ids, and the values of `token` and those.

    `logits` are [1, V], `token` is [1]. The result is not evaluated. It is empty for `count` None.
    """
    if count is None:
        return ()
    values = logits[0].astype(mx.float32)
    values = values - mx.logsumexp(values)
    count = min(count, values.size)
    best = mx.argpartition(-values, count - 1)[:count] if 0 < count < values.size else mx.arange(count)
    ids = best[mx.argsort(-values[best])]
    return ids, values[mx.concatenate([token, ids.astype(token.dtype)])]


class TokenStream:
    """The tokens that follow a prefill, for ever: `next()` hands out one, [1] -> int.

    `restrict` and `force` change what comes after the token handed out last. `drafted` and `accepted` count the guesses
    of `SpeculativeStream`.
    """

    drafted = accepted = 0

    def __init__(
        self, model: Model, logits: mx.array, cache: list[Cache], sample: Sample, logprobs: int | None = None
    ) -> None:
        """`logits` [1, V] are those after the prompt, which `cache` holds. `logprobs` is as for `top_logprobs`."""
        self._model, self._cache, self._sample, self._top = model, cache, sample, logprobs
        self._logits = logits
        self._count = 0
        self._draw()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> int:
        token, self._last_logprobs = self._following, self._logprobs
        self._logits = self._model(token[None], self._cache)[:, -1]
        self._draw()
        self._count += 1
        if self._count % CLEAR_EVERY == 0:
            mx.clear_cache()
        return int(token.item())  # type: ignore[arg-type]

    @property
    def logprobs(self) -> TopLogprobs:
        """The log-probabilities of the token handed out last."""
        return self._last_logprobs

    def close(self) -> None:
        """Nothing to do: the caches hold what was handed out."""

    def restrict(self, allowed: mx.array) -> None:
        """Draws the next token again, among `allowed`, booleans [V]."""
        self._sample.take_back()
        self._draw(allowed)

    def force(self, ids: Sequence[int]) -> None:
        """Goes on after `ids`, which the model did not draw. They are not handed out."""
        self._sample.take_back(ids)
        self._logits = prefill(self._model, ids, self._cache)
        self._draw()

    def _draw(self, allowed: mx.array | None = None) -> None:
        self._following = self._sample(self._logits, allowed)
        # Together with the draw: after the next step is queued, they would have to wait for it.
        self._logprobs = top_logprobs(self._logits, self._following, self._top)
        mx.async_eval(self._following, self._logprobs)
