"""Drafters: they propose the next tokens, which the model then verifies in one step (`speculate.py`).

Notes:
- A draft model samples with the same random keys as the model. Two distributions that share their noise give the same
  token far more often than two independent samples: nearly as often as any method can reach, the sum of min(p, q).
- `DraftScheduler` chooses the number of draft tokens for each step, from the measured acceptance and step times. If
  drafting does not pay, it stops, and tries again after longer and longer pauses. A draft model keeps its scheduler
  from one reply to the next.

Source of shared noise in place of rejection: https://arxiv.org/abs/2408.07978 (coupling without communication).
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from ..files.safetensors import is_finite
from ..model.cache import Cache, make_caches
from ..model.fused import FusedModel
from ..model.network import Exaone4ForCausalLM
from ..model.nonfinite import explain
from .prefill import Batch, common_prefix, prefill_chunks
from .truncation import Sample

DRAFT_WINDOW = 4096  # tokens that a draft model attends to, in every layer
DRAFT_STEP_SIZE = 512  # tokens of one prefill chunk of a draft model
MODEL_DRAFTS, LOOKUP_DRAFTS = 4, 8  # default limits of the draft tokens in one step
LONGEST_MATCH, SHORTEST_MATCH = 6, 2  # tokens that prompt lookup compares
READER = "draft model"  # its name in a `Batch`
TAIL = 64  # tokens at the end of a history that may have changed since the last draft


class Drafter(Protocol):
    """Proposes the next tokens of a text."""

    def begin(self, history: Sequence[int]) -> None:
        """Starts a reply after `history`."""

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        """At most `count` draft tokens, [1] each, that may follow `history`. It restores the state of `sample`."""

    is_free: bool  # whether a draft costs almost no time
    reads_next: bool  # whether the next draft reads a chunk of the prompt
    scheduler: DraftScheduler
    processed_tokens: int  # before the last draft


class PromptLookup:
    """Proposes the tokens that followed the same few tokens earlier in the text, as in edits, quotations and code."""

    is_free = True
    reads_next = False
    processed_tokens = 0

    def __init__(self) -> None:
        self.scheduler = DraftScheduler()

    def begin(self, history: Sequence[int]) -> None:
        self._ids = array("i", history)

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        del self._ids[max(0, len(self._ids) - TAIL) :]
        self._ids.extend(history[len(self._ids) :])
        return [mx.array([token]) for token in self.find(count)]

    def find(self, count: int) -> list[int]:
        """The tokens after the longest match of the last tokens. Of several such matches it takes the latest."""
        ids, size = self._ids, self._ids.itemsize
        text = ids.tobytes()
        for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
            tail, end = text[-length * size :], len(text) - size
            while (start := text.rfind(tail, 0, end)) >= 0:
                if start % size == 0:
                    after = start // size + length
                    return list(ids[after : after + count])
                end = start + len(tail) - 1
        return []


class DraftModel:
    """A smaller model. It sees the last `window` tokens, and keeps its caches from one reply to the next.

    With a `batch` it reads a prompt in chunks, one for every other draft, and proposes nothing meanwhile. `reads_next`
    says so before such a draft.
    """

    is_free = False
    batch: Batch | None = None

    def __init__(self, model: Exaone4ForCausalLM, window: int = DRAFT_WINDOW) -> None:
        self.model, self._window, self.scheduler = model, window, DraftScheduler()
        self._fused: FusedModel | None = None
        self.processed_tokens, self._is_checked = 0, False  # the logits, once in a reply
        self.reads_next = False
        self._ids: list[int] = []  # the tokens of the history, from _start on, in the caches
        self._drafted: list[mx.array] = []  # the draft tokens after them in the caches
        self.clear(0)

    def begin(self, history: Sequence[int]) -> None:
        fused = self.model.fused()
        if fused is not self._fused:
            self.clear()  # the weights have changed
        self._fused, self._is_checked, self.reads_next = fused, False, False
        self._align(history, whole=True)

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        self.processed_tokens = 0
        if count == 0:
            self.reads_next = False
            return []
        self._align(history)
        fused = self._fused = self._fused or self.model.fused()
        missing = list(history[self._start + len(self._ids) :])
        if self.batch is not None and len(missing) > (size := self.batch.chunk_size(len(missing), READER)):
            if self.reads_next:
                self._read(missing[:size])
            self.reads_next = not self.reads_next
            return []
        self.reads_next = False
        for _, last in prefill_chunks(fused, missing, self._layers, DRAFT_STEP_SIZE):
            hidden = last
        self._ids += missing
        self.processed_tokens = len(missing)
        before, logits = sample.state, fused.logits(hidden)[:, -1]
        if not self._is_checked and not is_finite(logits):  # the model would reject every draft
            raise FloatingPointError(f"the draft model computes no drafts: {explain(self.model, history, fused)}")
        self._is_checked = True
        drafts = [sample(logits)]
        while len(drafts) < count:
            self._drafted.append(drafts[-1])
            drafts.append(sample(fused(drafts[-1][None], self._layers)[:, -1]))
        sample.state = before
        return drafts

    def _read(self, ids: Sequence[int]) -> None:
        """Reads a chunk of a prompt."""
        assert self._fused is not None and self.batch is not None
        started = time.perf_counter()
        for _ in prefill_chunks(self._fused, ids, self._layers, DRAFT_STEP_SIZE):
            mx.eval([layer.buffers for layer in self._layers])
        self.batch.measured(len(ids), time.perf_counter() - started, READER)
        self._ids += ids
        self.processed_tokens = len(ids)

    def _align(self, history: Sequence[int], whole: bool = False) -> None:
        """Rewinds the caches to the prefix that they share with `history`, or clears them if that is impossible.

        It compares the last TAIL tokens, and all tokens if `whole`. The last token of `history` stays unprocessed.
        """
        if {layer.offset for layer in self._layers} != {len(self._ids) + len(self._drafted)}:
            self.clear(max(0, len(history) - self._window))  # after an error in the middle of a step
        self._ids += to_ints(self._drafted)
        self._drafted = []
        first = 0 if whole else max(0, len(self._ids) - TAIL)
        shared = first + common_prefix(self._ids[first:], history[self._start + first : self._start + len(self._ids)])
        shared = min(shared, len(history) - self._start - 1)
        surplus = len(self._ids) - shared
        if (
            shared < 0
            or surplus > min(layer.rewindable for layer in self._layers)
            or len(history) - self._start - shared > self._window
        ):
            self.clear(max(0, len(history) - self._window))
            return
        for layer in self._layers:
            layer.rewind(surplus)
        del self._ids[shared:]

    def clear(self, start: int = 0) -> None:
        """Removes all tokens. The next token that is processed has position `start` in the history."""
        windows = [min(layer.window or self._window, self._window) for layer in self.model.config.layers]
        self._layers: list[Cache] = make_caches(windows)
        self._start, self._ids, self._drafted = start, [], []


class DraftScheduler:
    """Chooses the number of draft tokens that gives the most tokens per second, from the measurements so far.

    The time of a step is the minimum of the last few steps of its kind: a slow consumer makes some steps longer.
    """

    REMEMBERED = 8  # steps of a kind
    DECAY = 0.95  # of the acceptance counts, per step
    FIRST_PAUSE, LONGEST_PAUSE = 32, 512  # steps without drafts before the next try

    def __init__(self, max_drafts: int = MODEL_DRAFTS) -> None:
        self.max_drafts = max_drafts
        self._seconds: dict[int, deque[float]] = {}  # by the number of draft tokens
        self._verified, self._accepted = 2.0, 1.5  # an optimistic start
        self._pause, self._waited = self.FIRST_PAUSE, 0

    def choose(self) -> int:
        """The number of draft tokens for the next step. The first steps have none, to measure a plain step."""
        if len(self._seconds.get(0, ())) < 2:
            return 0
        tried = max(self._seconds)
        best = max(range(min(self.max_drafts, max(2, tried + 1)) + 1), key=self._speed)
        if best:
            self._pause, self._waited = self.FIRST_PAUSE, 0
            return best
        self._waited += 1
        if self._waited < self._pause:
            return 0
        self._pause, self._waited = min(2 * self._pause, self.LONGEST_PAUSE), 0
        return min(2, self.max_drafts)

    def record_step(self, drafts: int, seconds: float) -> None:
        """Records the time of a step with `drafts` draft tokens."""
        self._seconds.setdefault(drafts, deque(maxlen=self.REMEMBERED)).append(seconds)

    def record_acceptance(self, drafts: int, accepted: int) -> None:
        """Records that the first `accepted` of `drafts` draft tokens were right. The rest is ignored."""
        if drafts:
            self._verified = self.DECAY * self._verified + min(drafts, accepted + 1)
            self._accepted = self.DECAY * self._accepted + accepted

    def _speed(self, drafts: int) -> float:
        """The expected tokens per second."""
        chance = min(self._accepted / self._verified, 0.999)
        tokens = (1 - chance ** (drafts + 1)) / (1 - chance)
        return tokens / self._step_seconds(drafts)

    def _step_seconds(self, drafts: int) -> float:
        """The seconds of a step. Numbers that were not measured are interpolated linearly."""
        known = {number: max(min(seconds), 1e-9) for number, seconds in self._seconds.items()}
        if drafts in known:
            return known[drafts]
        nearest = min((number for number in known if number), key=lambda number: abs(number - drafts), default=0)
        if not nearest:
            return known[0]
        return max(known[0], known[0] + (known[nearest] - known[0]) * drafts / nearest)


def to_ints(tokens: list[mx.array]) -> list[int]:
    """The values of arrays [1]."""
    return mx.concatenate(tokens).tolist() if tokens else []  # type: ignore[return-value]
