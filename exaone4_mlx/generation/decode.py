"""Prompt ids -> an endless stream of ids.

Notes:
- The stream never ends by itself. The caller handles stop tokens, limits and text.
- The prompt is processed in chunks, which limits memory and lets the caller report progress.
- The stream runs one step ahead: the next token is sampled on the device while the caller handles the last one. The
  caches hold only tokens that were handed out, so a caller can stop, restrict or force after any token.
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

CLEAR_EVERY = 256  # tokens between two releases of freed buffers

TopLogprobs = tuple[mx.array, ...]


class Sample(Protocol):
    """Samples the next token [1] from logits [1, V], among the tokens `allowed` [V] if they are given."""

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array: ...

    def replace_last(self, forced: Sequence[int] = ()) -> None:
        """Forgets the last sampled token, and counts the tokens `forced` in its place."""

    state: Any  # assign an earlier value to go back to it


def prefill_chunks(
    model: Model,
    ids: Sequence[int],
    cache: list[Cache],
    step_size: int = PREFILL_STEP_SIZE,
) -> Iterator[tuple[int, mx.array]]:
    """Processes `ids` into `cache`, `step_size` tokens at a time.

    After each chunk it yields the number of processed tokens and the hidden state of the last one, [1, 1, E]. Each
    chunk is evaluated before the next one starts. The caller evaluates the last chunk.
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
    """Processes `ids` into `cache`. Returns the logits after the last token, [1, V]."""
    for _, last in prefill_chunks(model, ids, cache, step_size):
        hidden = last
    logits = model.logits(hidden)[:, -1]
    mx.eval(logits)
    return logits


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix of two sequences."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def to_ints(tokens: list[mx.array]) -> list[int]:
    """The values of arrays [1]."""
    return mx.concatenate(tokens).tolist() if tokens else []  # type: ignore[return-value]


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


class TokenStream:
    """The endless tokens after a prefill: `next()` hands out one int.

    `restrict` and `force` change the token after the one handed out last. `drafted` and `accepted` are the counts of
    `SpeculativeStream`; here they are 0.
    """

    drafted = accepted = 0

    def __init__(
        self, model: Model, logits: mx.array, cache: list[Cache], sample: Sample, logprobs: int | None = None
    ) -> None:
        """`logits` [1, V] are those after the prompt, which `cache` holds. `logprobs` is as for `top_logprobs`."""
        self._model, self._cache, self._sample, self._top = model, cache, sample, logprobs
        self._logits = logits
        self._count = 0
        self._sample_next()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> int:
        token, self._last_logprobs = self._next, self._next_logprobs
        self._logits = self._model(token[None], self._cache)[:, -1]
        self._sample_next()
        self._count += 1
        if self._count % CLEAR_EVERY == 0:
            mx.clear_cache()
        return int(token.item())  # type: ignore[arg-type]

    @property
    def logprobs(self) -> TopLogprobs:
        """The log-probabilities of the token handed out last."""
        return self._last_logprobs

    def close(self) -> None:
        """Does nothing: the caches hold only tokens that were handed out."""

    def restrict(self, allowed: mx.array) -> None:
        """Samples the next token again, from the tokens `allowed`, booleans [V]."""
        self._sample.replace_last()
        self._sample_next(allowed)

    def force(self, ids: Sequence[int]) -> None:
        """Continues after `ids` in place of the next token. They are not handed out."""
        self._sample.replace_last(ids)
        self._logits = prefill(self._model, ids, self._cache)
        self._sample_next()

    def _sample_next(self, allowed: mx.array | None = None) -> None:
        self._next = self._sample(self._logits, allowed)
        # In the same evaluation: after the next step is queued, they would have to wait for it.
        self._next_logprobs = top_logprobs(self._logits, self._next, self._top)
        mx.async_eval(self._next, self._next_logprobs)
