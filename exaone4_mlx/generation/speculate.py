"""Speculative decoding: the same stream of ids in fewer steps. Each step verifies a few draft tokens at once.

Notes:
- The output is exact. At each draft position the model's own token is sampled as in plain decoding: from logits of the
  same tokens, with penalties that count them, with the same random key. Draft tokens that are equal to it are accepted.
  The first different one and all after it are removed from the caches. So a seed gives the same reply with and without
  drafts, except for the last bits in which matrix products of one row and of several rows may differ.
- Local layers can rewind as far as their reserve, also after their window has moved.
- While nothing is drafted, the stream runs one step ahead, as `TokenStream` does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..model.cache import Cache, RotatingKVCache
from .decode import CLEAR_EVERY, LogitsCheck, Model
from .draft import TAIL, Drafter, to_ints
from .prefill import common_prefix, prefill
from .truncation import Sample, TopLogprobs, top_logprobs


@dataclass
class _Step:
    """The results of one step: the model processes one token and the draft tokens after it."""

    drafts: list[mx.array]  # [1] each
    logits: mx.array  # [1, 1 + drafts, V]
    sampled: list[mx.array] = field(default_factory=list)  # the model's own token at each position, [1] each
    states: list[Any] = field(default_factory=list)  # of the sampler, after each position
    logprobs: list[TopLogprobs] = field(default_factory=list)  # of each position
    started: float | None = None  # the time, if the duration of the step counts


class SpeculativeStream:
    """A `TokenStream` with fewer steps. Until `close`, the caches may hold tokens that were not handed out."""

    def __init__(
        self,
        model: Model,
        logits: mx.array,
        cache: list[Cache],
        sample: Sample,
        drafter: Drafter,
        history: Sequence[int],
        max_drafts: int,
        limit: int | None = None,
        logprobs: int | None = None,
    ) -> None:
        """`logits` [1, V] are those after `history`, which `cache` holds. `logprobs` is as for `top_logprobs`.

        A step has at most `max_drafts` draft tokens, and none beyond `limit` tokens, history included.
        """
        self._model, self._cache, self._sample, self._drafter = model, cache, sample, drafter
        self._top = logprobs
        reserves = [layer.rewind_capacity for layer in cache if isinstance(layer, RotatingKVCache)]
        self._scheduler, self._limit = drafter.scheduler, limit
        # Two steps may be rewound, and a window has less reserve directly after it was compacted.
        self._scheduler.max_drafts = min([max_drafts, TAIL // 4, *(reserve // 4 for reserve in reserves)])
        self.drafted = self.accepted = 0
        self._history = list(history)  # and the tokens sampled since
        self._handed_out = len(self._history)
        self._ready: deque[tuple[int, _Step, int]] = deque()  # tokens, each with its step and position
        self._was_steered = True  # the caller set the last token: the next one is not drafted
        self._shadow: list[mx.array] = []  # draft tokens that are only compared with the sampled ones
        self._token_at: float | None = None  # the time of the last token of a step without drafts
        self._count, self._check = 0, LogitsCheck()
        drafter.begin(self._history)
        self._last = self._sample_first(logits), 0

    def __iter__(self) -> SpeculativeStream:
        return self

    def __next__(self) -> int:
        if not self._ready:
            self._collect()
        if len(self._ready) == 1 and not self._is_running:
            self._start()  # before the token is handed out
        token, step, position = self._ready.popleft()
        self._last = step, position
        self._handed_out += 1
        self._count += 1
        if self._count % CLEAR_EVERY == 0:
            mx.clear_cache()
        return token

    @property
    def reads_next(self) -> bool:
        """Whether the next step reads a chunk of the prompt for the drafts."""
        return self._drafter.reads_next

    @property
    def logprobs(self) -> TopLogprobs:
        """The log-probabilities of the token handed out last."""
        step, position = self._last
        return step.logprobs[position]

    def restrict(self, allowed: mx.array) -> None:
        """Samples the next token again, from the tokens `allowed`, booleans [V]."""
        logits = self._discard()
        self._sample.replace_last()
        self._sample_first(logits, allowed)

    def force(self, ids: Sequence[int]) -> None:
        """Continues after `ids` in place of the next token. They are not handed out."""
        self._discard()
        self._sample.replace_last(ids)
        self._history += ids
        self._handed_out += len(ids)
        self._sample_first(prefill(self._model, ids, self._cache))

    def close(self) -> None:
        """Removes the tokens that were not handed out from the caches. Checks the logits as `TokenStream` does."""
        self._rewind_to(self._handed_out)
        self._check.finish()

    def _discard(self) -> mx.array:
        """Removes the tokens that were not handed out. Returns the logits [1, V] of the next token."""
        if self._ready:
            _, step, position = self._ready[0]
        else:
            step, position = self._step, 0
        self._sample.state = step.states[position]
        self._ready.clear()
        self._rewind_to(self._handed_out)
        del self._history[self._handed_out :]
        self._was_steered = True
        return step.logits[:, position]

    def _sample_first(self, logits: mx.array, allowed: mx.array | None = None) -> _Step:
        """Samples the next token from logits [1, V]."""
        step = self._step = _Step([], logits[:, None])
        self._is_running = True
        self._sample_each(step, allowed)
        return step

    def _sample_each(self, step: _Step, allowed: mx.array | None = None) -> None:
        # In order: the penalties at a position count the tokens before it, which the drafts equal while they are right.
        for position in range(1 + len(step.drafts)):
            step.sampled.append(self._sample(step.logits[:, position], allowed))
            step.states.append(self._sample.state)
            step.logprobs.append(top_logprobs(step.logits[:, position], step.sampled[-1], self._top))
        mx.async_eval(step.sampled, step.logprobs)

    def _collect(self) -> None:
        """Reads the tokens of the running step, and starts the next step."""
        step, wanted = self._step, None
        if not step.drafts:
            wanted = self._number_of_drafts(len(self._history) + 1)
            if wanted == 0 and (self._limit is None or len(self._history) < self._limit):
                self._run_ahead()
                return
        self._token_at = None
        drafts, sampled = to_ints(step.drafts), to_ints(step.sampled)
        accepted = common_prefix(drafts, sampled)
        for layer in self._cache:
            layer.rewind(len(drafts) - accepted)
        if step.started is not None:
            self._scheduler.record_step(len(drafts), time.perf_counter() - step.started)
        self._scheduler.record_acceptance(len(drafts), accepted)
        self._scheduler.record_acceptance(len(self._shadow), common_prefix(to_ints(self._shadow), sampled))
        self.drafted += len(drafts)
        self.accepted += accepted
        self._check.add(step.logits[0, : accepted + 1])
        self._check.read()
        self._ready.extend((token, step, position) for position, token in enumerate(sampled[: accepted + 1]))
        self._history += sampled[: accepted + 1]
        self._sample.state = step.states[accepted]
        self._is_running = False
        if self._limit is None or len(self._history) <= self._limit:
            self._start(wanted)

    def _number_of_drafts(self, length: int) -> int:
        """The number of draft tokens after a history of `length` tokens."""
        if self._was_steered:
            return 0
        wanted = self._scheduler.choose()
        return wanted if self._limit is None else min(wanted, max(0, self._limit - length))

    def _run_ahead(self) -> None:
        """Starts a step without drafts before the token of the running step is known, and then reads that token."""
        step, has_shadow = self._step, self._drafter.is_free and not self._was_steered
        self._check.add(step.logits[0])
        self._step = _Step([], self._model(step.sampled[0][None], self._cache))
        self._sample_each(self._step)
        token = to_ints(step.sampled)
        self._check.read()
        now = time.perf_counter()
        if self._token_at is not None:
            self._scheduler.record_step(0, now - self._token_at)
        self._token_at = now
        self._scheduler.record_acceptance(len(self._shadow), common_prefix(to_ints(self._shadow), token))
        self._ready.append((token[0], step, 0))
        self._history += token
        self._shadow = self._drafter.draft(self._history, 1, self._sample) if has_shadow else []
        self._was_steered, self._is_running = False, True

    def _start(self, wanted: int | None = None) -> None:
        """Starts a step with the newest token and `wanted` draft tokens; None lets the scheduler choose."""
        started = time.perf_counter()
        if wanted is None:
            wanted = self._number_of_drafts(len(self._history))
        has_shadow = wanted == 0 and self._drafter.is_free and not self._was_steered
        drafts = self._drafter.draft(self._history, 1 if has_shadow else wanted, self._sample)
        self._shadow, drafts = (drafts, []) if has_shadow else ([], drafts)
        self._was_steered = False
        ids = mx.concatenate([mx.array(self._history[-1:]), *drafts])
        self._step = _Step(drafts, self._model(ids[None], self._cache))
        if self._drafter.processed_tokens <= len(drafts) + 1:  # a prefill of the drafter does not count
            self._step.started = started
        self._is_running = True
        self._sample_each(self._step)

    def _rewind_to(self, length: int) -> None:
        for layer in self._cache:
            layer.rewind(layer.offset - length)
