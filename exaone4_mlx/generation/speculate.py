"""The same stream of ids, in fewer steps: guess a few tokens, and check them all at once.

What is peculiar here:
- It loses nothing. At each guessed position the model's own token is drawn, as it would be without guesses: from
  logits that saw the same tokens, with penalties that counted them, by the same random key. Guesses that equal it
  stand; the first that does not, and what follows it, goes back out of the caches. So a seed gives the same reply with
  and without, but for the last bits in which products of one row and of several may differ.
- A draft model draws its guesses by the same keys. Two distributions with the same noise agree far more often than two
  draws of their own: nearly as often as any method could have them, the sum of min(p, q).
- How many tokens to guess is decided anew each time, by what was accepted and by what steps took. Where guessing does
  not pay it stops, and looks again later, less and less often. A draft model remembers it from one reply to the next.
- Local layers go back as far as their reserve, so that windows that have wrapped are no obstacle.

Source of shared noise in place of rejection: https://arxiv.org/abs/2408.07978 (coupling without communication).
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx

from ..model.cache import Cache, RotatingKVCache, make_caches
from ..model.fused import FusedModel
from ..model.network import Exaone4ForCausalLM
from .decode import CLEAR_EVERY, Model, Sample, TopLogprobs, common_prefix, prefill, prefill_chunks, top_logprobs

DRAFT_WINDOW = 4096  # tokens that a draft model attends to, in every layer
DRAFT_STEP_SIZE = 512  # tokens that it processes at a time
MODEL_DRAFTS, LOOKUP_DRAFTS = 4, 8  # tokens guessed at once, at most, unless the caller says otherwise
LONGEST_MATCH, SHORTEST_MATCH = 6, 2  # tokens by which prompt lookup finds a place
TAIL = 64  # tokens at the end of a history that may have changed since the last guess


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def begin(self, history: Sequence[int]) -> None:
        """A reply begins behind `history`."""

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        """At most `count` guesses, [1] each, of what follows `history`; `sample` is left as it was."""

    is_free: bool  # whether a guess costs next to nothing
    pace: DraftScheduler
    read_tokens: int  # how many it had to read for its last guesses


class PromptLookup:
    """Guesses that what followed the same few tokens before follows again: as in edits, quotations and code."""

    is_free = True
    read_tokens = 0

    def __init__(self) -> None:
        self.pace = DraftScheduler()

    def begin(self, history: Sequence[int]) -> None:
        self._ids = array("i", history)

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        del self._ids[max(0, len(self._ids) - TAIL) :]
        self._ids.extend(history[len(self._ids) :])
        return [mx.array([token]) for token in self.find(count)]

    def find(self, count: int) -> list[int]:
        """What followed the longest match of the last tokens; of several as long the latest."""
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
    """A smaller model that guesses. It sees the last `window` tokens, and keeps them from one reply to the next."""

    is_free = False

    def __init__(self, model: Exaone4ForCausalLM, window: int = DRAFT_WINDOW) -> None:
        self.model, self._window, self.pace = model, window, DraftScheduler()
        self._fused: FusedModel | None = None
        self.read_tokens = 0
        self._ids: list[int] = []  # of the history, from _start on, that the caches hold
        self._guessed: list[mx.array] = []  # what they hold beyond that
        self.clear(0)

    def begin(self, history: Sequence[int]) -> None:
        fused = self.model.fused()
        if fused is not self._fused:
            self.clear()  # the weights are others
        self._fused = fused
        self._align(history, whole=True)

    def draft(self, history: Sequence[int], count: int, sample: Sample) -> list[mx.array]:
        if count == 0:
            return []
        self._align(history)
        fused = self._fused = self._fused or self.model.fused()
        unread = list(history[self._start + len(self._ids) :])
        for _, last in prefill_chunks(fused, unread, self._layers, DRAFT_STEP_SIZE):
            hidden = last
        self._ids += unread
        self.read_tokens = len(unread)
        before = sample.state
        guesses = [sample(fused.logits(hidden)[:, -1])]
        while len(guesses) < count:
            self._guessed.append(guesses[-1])
            guesses.append(sample(fused(guesses[-1][None], self._layers)[:, -1]))
        sample.state = before
        return guesses

    def _align(self, history: Sequence[int], whole: bool = False) -> None:
        """Takes the caches back to what they share with `history`, or begins anew, a window before its end.

        Unless `whole` it is known that all but the last TAIL tokens are the same. The last one of all is left to read.
        """
        if {layer.offset for layer in self._layers} != {len(self._ids) + len(self._guessed)}:
            self.clear(max(0, len(history) - self._window))  # an error came in the middle of a step
        self._ids += _ints(self._guessed)
        self._guessed = []
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
        """Forgets everything; what is read next stands at `start` of the history."""
        windows = [min(layer.window or self._window, self._window) for layer in self.model.config.layers]
        self._layers: list[Cache] = make_caches(windows)
        self._start, self._ids, self._guessed = start, [], []


class DraftScheduler:
    """How many tokens to guess: as many as bring the most tokens in a second, by what was measured so far.

    What steps took is the least of the last few of their kind: a slow reader of the stream makes some longer.
    """

    REMEMBERED = 8  # steps of a kind
    FADING = 0.95  # of what was accepted, for each step
    FIRST_PAUSE, LONGEST_PAUSE = 32, 512  # steps without guesses, until it is tried again

    def __init__(self, most: int = MODEL_DRAFTS) -> None:
        self.most = most
        self._seconds: dict[int, deque[float]] = {}  # by the number of guesses
        self._tested, self._right = 2.0, 1.5  # a hopeful beginning
        self._pause, self._waited = self.FIRST_PAUSE, 0

    def choose(self) -> int:
        """How many to guess next. The first steps have none, to know what a step takes."""
        if len(self._seconds.get(0, ())) < 2:
            return 0
        tried = max(self._seconds)
        best = max(range(min(self.most, max(2, tried + 1)) + 1), key=self._speed)
        if best:
            self._pause, self._waited = self.FIRST_PAUSE, 0
            return best
        self._waited += 1
        if self._waited < self._pause:
            return 0
        self._pause, self._waited = min(2 * self._pause, self.LONGEST_PAUSE), 0
        return min(2, self.most)

    def note(self, guesses: int, seconds: float) -> None:
        """A step with so many guesses took so long."""
        self._seconds.setdefault(guesses, deque(maxlen=self.REMEMBERED)).append(seconds)

    def judge(self, guesses: int, right: int) -> None:
        """Of so many guesses in a row so many were right; those behind a wrong one say nothing."""
        if guesses:
            self._tested = self.FADING * self._tested + min(guesses, right + 1)
            self._right = self.FADING * self._right + right

    def _speed(self, guesses: int) -> float:
        """Tokens per second to be expected."""
        chance = min(self._right / self._tested, 0.999)
        tokens = (1 - chance ** (guesses + 1)) / (1 - chance)
        return tokens / self._cost(guesses)

    def _cost(self, guesses: int) -> float:
        """Seconds of a step; between and beyond what was measured on a straight line."""
        known = {number: max(min(seconds), 1e-9) for number, seconds in self._seconds.items()}
        if guesses in known:
            return known[guesses]
        nearest = min((number for number in known if number), key=lambda number: abs(number - guesses), default=0)
        if not nearest:
            return known[0]
        return max(known[0], known[0] + (known[nearest] - known[0]) * guesses / nearest)


@dataclass
class _Step:
    """What the model made of one token and the guesses behind it."""

    guesses: list[mx.array]  # [1] each
    logits: mx.array  # [1, 1 + guesses, V]
    drawn: list[mx.array] = field(default_factory=list)  # the model's own token at each position, [1] each
    states: list[Any] = field(default_factory=list)  # of the sampler, after each
    logprobs: list[TopLogprobs] = field(default_factory=list)  # of each
    launched: float | None = None


class SpeculativeStream:
    """What `TokenStream` is, in fewer steps. The caches hold more than was handed out until `close`."""

    def __init__(
        self,
        model: Model,
        logits: mx.array,
        cache: list[Cache],
        sample: Sample,
        drafter: Drafter,
        history: Sequence[int],
        most: int,
        limit: int | None = None,
        logprobs: int | None = None,
    ) -> None:
        """`logits` [1, V] are those after `history`, which `cache` holds. `logprobs` is as for `top_logprobs`.

        At most `most` tokens are guessed at once, and none beyond `limit` tokens, the history included.
        """
        self._model, self._cache, self._sample, self._drafter = model, cache, sample, drafter
        self._top = logprobs
        reserves = [layer.rewind_capacity for layer in cache if isinstance(layer, RotatingKVCache)]
        self._pace, self._limit = drafter.pace, limit
        # Two steps may have to go back, and a window that has just been compacted has less in reserve.
        self._pace.most = min([most, TAIL // 4, *(reserve // 4 for reserve in reserves)])
        self.drafted = self.accepted = 0
        self._history = list(history)  # and what was drawn since
        self._handed_out = len(self._history)
        self._ready: deque[tuple[int, _Step, int]] = deque()  # tokens, and where they were drawn
        self._steered = True  # by the caller: what comes next is not to be guessed
        self._shadow: list[mx.array] = []  # guesses that are compared with the drawn tokens, but not processed
        self._token_at: float | None = None  # when a step without guesses gave its token
        self._count = 0
        drafter.begin(self._history)
        self._last = self._draw(logits), 0

    def __iter__(self) -> SpeculativeStream:
        return self

    def __next__(self) -> int:
        if not self._ready:
            self._collect()
        if len(self._ready) == 1 and not self._under_way:
            self._launch()  # what is handed out has been read
        token, step, place = self._ready.popleft()
        self._last = step, place
        self._handed_out += 1
        self._count += 1
        if self._count % CLEAR_EVERY == 0:
            mx.clear_cache()
        return token

    @property
    def logprobs(self) -> TopLogprobs:
        """The log-probabilities of the token handed out last."""
        step, place = self._last
        return step.logprobs[place]

    def restrict(self, allowed: mx.array) -> None:
        """Draws the next token again, among `allowed`, booleans [V]."""
        logits = self._take_back()
        self._sample.take_back()
        self._draw(logits, allowed)

    def force(self, ids: Sequence[int]) -> None:
        """Goes on after `ids`, which the model did not draw. They are not handed out."""
        self._take_back()
        self._sample.take_back(ids)
        self._history += ids
        self._handed_out += len(ids)
        self._draw(prefill(self._model, ids, self._cache))

    def close(self) -> None:
        """Leaves in the caches what was handed out, and no more."""
        self._rewind_to(self._handed_out)

    def _take_back(self) -> mx.array:
        """Forgets what was not handed out: the logits [1, V] of the next token, of which it can be drawn again."""
        if self._ready:
            _, step, place = self._ready[0]
        else:
            step, place = self._step, 0
        self._sample.state = step.states[place]
        self._ready.clear()
        self._rewind_to(self._handed_out)
        del self._history[self._handed_out :]
        self._steered = True
        return step.logits[:, place]

    def _draw(self, logits: mx.array, allowed: mx.array | None = None) -> _Step:
        """Draws the next token of logits [1, V]."""
        step = self._step = _Step([], logits[:, None])
        self._under_way = True
        self._draw_at_each_position(step, allowed)
        return step

    def _draw_at_each_position(self, step: _Step, allowed: mx.array | None = None) -> None:
        # One after the other: penalties count what was drawn before, which is what was guessed while that is right.
        for place in range(1 + len(step.guesses)):
            step.drawn.append(self._sample(step.logits[:, place], allowed))
            step.states.append(self._sample.state)
            step.logprobs.append(top_logprobs(step.logits[:, place], step.drawn[-1], self._top))
        mx.async_eval(step.drawn, step.logprobs)

    def _collect(self) -> None:
        """Reads the tokens of the step under way, and starts the next step."""
        step, wanted = self._step, None
        if not step.guesses:
            wanted = self._count_to_guess(len(self._history) + 1)
            if wanted == 0 and (self._limit is None or len(self._history) < self._limit):
                self._run_ahead()
                return
        self._token_at = None
        guesses, drawn = _ints(step.guesses), _ints(step.drawn)
        right = common_prefix(guesses, drawn)
        for layer in self._cache:
            layer.rewind(len(guesses) - right)
        if step.launched is not None:
            self._pace.note(len(guesses), time.perf_counter() - step.launched)
        self._pace.judge(len(guesses), right)
        self._pace.judge(len(self._shadow), common_prefix(_ints(self._shadow), drawn))
        self.drafted += len(guesses)
        self.accepted += right
        self._ready.extend((token, step, place) for place, token in enumerate(drawn[: right + 1]))
        self._history += drawn[: right + 1]
        self._sample.state = step.states[right]
        self._under_way = False
        if self._limit is None or len(self._history) <= self._limit:
            self._launch(wanted)

    def _count_to_guess(self, length: int) -> int:
        """The number of tokens to guess after a history of `length` tokens."""
        if self._steered:
            return 0
        wanted = self._pace.choose()
        return wanted if self._limit is None else min(wanted, max(0, self._limit - length))

    def _run_ahead(self) -> None:
        """Starts a step without guesses before the token of the step under way is known, and reads that token."""
        step, looks = self._step, self._drafter.is_free and not self._steered
        self._step = _Step([], self._model(step.drawn[0][None], self._cache))
        self._draw_at_each_position(self._step)
        token = _ints(step.drawn)
        now = time.perf_counter()
        if self._token_at is not None:
            self._pace.note(0, now - self._token_at)
        self._token_at = now
        self._pace.judge(len(self._shadow), common_prefix(_ints(self._shadow), token))
        self._ready.append((token[0], step, 0))
        self._history += token
        self._shadow = self._drafter.draft(self._history, 1, self._sample) if looks else []
        self._steered, self._under_way = False, True

    def _launch(self, wanted: int | None = None) -> None:
        """Starts a step on the newest token and guesses of the next ones; `wanted` None chooses their number."""
        launched = time.perf_counter()
        if wanted is None:
            wanted = self._count_to_guess(len(self._history))
        looks = wanted == 0 and self._drafter.is_free and not self._steered
        guesses = self._drafter.draft(self._history, 1 if looks else wanted, self._sample)
        self._shadow, guesses = (guesses, []) if looks else ([], guesses)
        self._steered = False
        ids = mx.concatenate([mx.array(self._history[-1:]), *guesses])
        self._step = _Step(guesses, self._model(ids[None], self._cache))
        if not guesses or self._drafter.read_tokens <= len(guesses) + 1:  # and not what the draft had to catch up with
            self._step.launched = launched
        self._under_way = True
        self._draw_at_each_position(self._step)

    def _rewind_to(self, length: int) -> None:
        for layer in self._cache:
            layer.rewind(layer.offset - length)


def _ints(tokens: list[mx.array]) -> list[int]:
    return mx.concatenate(tokens).tolist() if tokens else []  # type: ignore[return-value]
