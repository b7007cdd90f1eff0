"""The loop that makes one reply: prefill, then token by token, until something ends it. It runs in the worker thread.

Notes:
- Stop strings end the answer. Inside a thought and inside a tool call they have no effect.
- Forced tokens end a thought whose budget is used up, so that an answer always follows.
- An error clears the caches, because they may hold a part of the failed step.
- On Metal, memory in use stays wired, up to the size that Metal recommends. MLX keeps no more freed buffers than the
  next chunk of a prompt can use. None of this was measured on Apple silicon.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from ..model.nonfinite import explain
from ..text.events import Done, Event, Logprobs, ReplyEvent
from ..text.reply import LoopDetector, StopStrings
from ..tools.call import ToolCall
from .constrain import GrammarConstraint
from .decode import NonFiniteLogits, Sampler, TokenStream
from .draft import LOOKUP_DRAFTS, MODEL_DRAFTS, DraftModel, PromptLookup
from .prefill import Batch, Piece
from .prompt_cache import PromptCache
from .request import WRAP_UP, Request, thought_limit
from .speculate import SpeculativeStream
from .truncation import logprobs

Stream = TokenStream | SpeculativeStream

KEPT_BYTES = 2 << 30  # of freed buffers; a chunk of 2,048 tokens of the 32B takes about this much


class ReplyLoop:
    """One reply: `run()` yields its events. Any thread may call `cancel`; the reply then ends at the next token."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        request: Request,
        cache: PromptCache,
        constraint: GrammarConstraint | None = None,
        draft: DraftModel | None = None,
        batch: Batch | None = None,
        call_parts: bool = False,
    ) -> None:
        self._model, self._tokenizer = model, request.tokenizer
        self._ids, self._options = list(request.ids), request.options
        self._cache, self._constraint, self._draft, self._batch = cache, constraint, draft, batch or Batch()
        self._begun, self._thinks = request.begun, request.inside_thought
        self._parser, self._begun_answer, begun_answer = request.begun_reply()
        self._parser.call_parts = call_parts
        self.sampling = request.options.resolved(thinking=request.inside_thought)
        self._max_tokens, self._wrap_up = request.max_tokens, request.wrap_up
        if request.options.thinking_budget is not None:
            budget = request.options.thinking_budget - request.begun_thought
            limit = thought_limit(budget, self._max_tokens, len(self._wrap_up))
            self._thought_limit = max(0, limit)  # negative where the context is nearly full
        self.stop = StopStrings(request.options.stops, begun_answer)
        self._loops = LoopDetector(request.begun_ids)
        self._stop_ids = request.stop_ids
        self.counts = Counts(prompt_tokens=len(request.ids))
        self.prompt_progress: tuple[int, int] | None = None  # (done, total) in the prefill
        self.token_ids: list[int] = []  # of thought and answer
        self.cancelled = False

    def run(self) -> Generator[ReplyEvent | Piece, None, None]:
        """Yields the events of the reply, and a `Piece` where other replies may run."""
        if not self._batch.has_others:
            mx.reset_peak_memory()
        stream = None
        with metal_memory():
            try:
                stream = yield from self._prefilled()
                finish_reason = yield from self._reply(stream)
            except Cancelled:
                finish_reason = "cancelled"
            except Exception as error:
                self._cache.clear()
                if self._draft is not None:
                    self._draft.clear()
                if isinstance(error, NonFiniteLogits):
                    ids = [*self._ids, *self.token_ids]
                    raise FloatingPointError(explain(self._model, ids, self._cache.fused)) from error
                raise
            finally:
                self._batch.streams[:] = [other for other in self._batch.streams if other is not stream]
                self._cache.finish(keeps=not self._thinks)  # the next prompt will not have a thought
                del self._cache, self._draft  # a reference to the reply does not keep the caches
        yield self.counts.done(finish_reason)

    def cancel(self) -> None:
        self.cancelled = True

    def _prefilled(self) -> Generator[Piece, None, Stream]:
        def report(done: int, total: int) -> None:
            self.prompt_progress = done, total
            if self._options.progress:
                self._options.progress(done, total)
            if self.cancelled:
                raise Cancelled

        started = time.perf_counter()
        limit = self._options.prefill_step_size
        steps = self._cache.prefill_steps(self._ids, lambda: self._batch.chunk_size(limit), report)
        try:
            logits, self.counts.cached_tokens = yield from self._batch.timed(steps)
        finally:
            self.counts.prefill_seconds = time.perf_counter() - started
            self.prompt_progress = None
        sampler = Sampler(
            self.sampling,
            self._ids,
            self._model.config.vocab_size,
            min_tokens=self._options.min_tokens,
            stop_ids=self._stop_ids,
            line_end_ids=self._tokenizer.encode("\n"),
            processors=self._options.logits_processors,
            begun=self._begun,
        )
        given = self._cache.fused, logits, self._cache.layers, sampler
        if self._draft is None and not self._options.prompt_lookup:
            return TokenStream(*given, self._options.logprobs, self._batch.streams)
        if self._draft is not None:
            self._draft.batch = self._batch
        drafter, most = (self._draft, MODEL_DRAFTS) if self._draft else (PromptLookup(), LOOKUP_DRAFTS)
        limit = len(self._ids) + self._max_tokens
        most = self._options.num_draft_tokens or most
        return SpeculativeStream(*given, drafter, self._ids, most, limit, self._options.logprobs)

    def _reply(self, stream: Stream) -> Generator[Event | Logprobs | Piece, None, str]:
        """Yields the events of the reply, and returns the finish reason."""
        decoder = self._tokenizer.stream_decoder()
        called = False  # whether there was a tool call
        finish_reason = "length"
        self.counts.start()
        work = self._cache.work
        if self._constraint is not None:
            self._constraint.reset()  # after a call that was cut off
            self._constraint.resume(self._parser, self._begun_answer)
        if self._thought_is_over(is_character_incomplete=False):
            yield from self._end_thought(stream)
        self._constrain(stream)
        while True:
            yield Piece.LONG if stream.reads_next else Piece.SHORT
            token = next(stream)
            if self._cache.work is not work:
                raise RuntimeError("other work used the prompt cache of this reply before it ended")
            self._cache.ids.append(token)
            if self.cancelled:
                finish_reason = "cancelled"
                break
            if token in self._stop_ids:
                finish_reason = "stop"
                break
            self.token_ids.append(token)
            self.counts.add(1, self._parser.inside_thought)
            self.counts.drafted_tokens, self.counts.accepted_tokens = stream.drafted, stream.accepted
            if self._options.logprobs is not None:
                yield logprobs(stream.logprobs, token, self._tokenizer)
            self.stop.is_active = self.counts.generated >= self._options.min_tokens
            for event in self.stop.filter(self._parser.feed(decoder.feed(token))):
                called = called or isinstance(event, ToolCall)
                yield event
            if self.stop.found or self.counts.generated >= self._max_tokens:
                break
            if self._options.stop_on_repetition and self._loops.add(token):
                finish_reason = "repetition"
                break
            if self._thought_is_over(decoder.pending):
                yield from self._end_thought(stream)
                self._constrain(stream)
            else:
                self._constrain(stream, token)
        self.counts.stop(self._parser.inside_thought)
        if self._cache.work is work:
            stream.close()  # removes drafts from the caches, unless other work has replaced them
        if not self.stop.found:
            rest = [*self._parser.feed(decoder.close()), *self._parser.close()]
            for event in (*self.stop.filter(rest), *self.stop.close()):
                called = called or isinstance(event, ToolCall)
                yield event
        if self.stop.found:
            finish_reason = "stop"
        return "tool_calls" if called and finish_reason == "stop" else finish_reason

    def _thought_is_over(self, is_character_incomplete: bool) -> bool:
        """Whether the budget of the thought is used up. An incomplete character may take three more tokens."""
        if not self._wrap_up or not self._parser.inside_thought:
            return False
        room = self.counts.generated + len(self._wrap_up) < self._max_tokens
        over = self.counts.thinking_tokens - self._thought_limit
        return room and over >= (3 if is_character_incomplete else 0)

    def _end_thought(self, stream: Stream) -> Iterator[Event]:
        """Forces the tokens that end the thought."""
        stream.force(self._wrap_up)
        for token in self._wrap_up:
            self._cache.ids.append(token)
        self.token_ids += self._wrap_up
        self.counts.add(len(self._wrap_up), inside_thought=True)
        yield from self._parser.feed(WRAP_UP)

    def _constrain(self, stream: Stream, token: int | None = None) -> None:
        """Restricts the token after `token`, if it is inside a tool call or an answer that has a format."""
        if (constraint := self._constraint) is None:
            return
        if constraint.active:
            if token is not None:
                constraint.advance(token)
        elif constraint.begins(self._parser):
            constraint.begin()
        if constraint.active:
            stream.restrict(constraint.allowed())


@dataclass
class Counts:
    """Tokens and seconds of a reply so far."""

    prompt_tokens: int
    cached_tokens: int = 0
    thinking_tokens: int = 0
    answer_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    thinking_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def generated(self) -> int:
        return self.thinking_tokens + self.answer_tokens

    def start(self) -> None:
        """Starts the clock of decoding."""
        self._now = time.perf_counter()

    def add(self, tokens: int, inside_thought: bool) -> None:
        if inside_thought:
            self.thinking_tokens += tokens
        else:
            self.answer_tokens += tokens
        self.stop(inside_thought)

    def stop(self, inside_thought: bool) -> None:
        """Adds the time since the last token."""
        seconds = -self._now
        self._now = time.perf_counter()
        seconds += self._now
        self.decode_seconds += seconds
        if inside_thought:
            self.thinking_seconds += seconds

    def done(self, finish_reason: str) -> Done:
        counted = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Done(finish_reason, **counted, peak_bytes=mx.get_peak_memory())


class Cancelled(Exception):
    """The reply was cancelled during the prefill."""


_metal_lock = threading.Lock()
_metal_users = 0  # replies that are being made
_limits_before = (0, 0)  # wired limit, cache limit


@contextmanager
def metal_memory() -> Iterator[None]:
    """Sets MLX's memory limits for Metal while the block runs. Without Metal it does nothing.

    The limits are global in the process: the first of several concurrent replies sets them, and the last one restores
    them.
    """
    global _metal_users, _limits_before
    if not mx.metal.is_available():
        yield
        return
    with _metal_lock:
        if not _metal_users:
            wired = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
            _limits_before = wired, mx.set_cache_limit(KEPT_BYTES)
        _metal_users += 1
    try:
        yield
    finally:
        mx.synchronize()
        with _metal_lock:
            _metal_users -= 1
            if not _metal_users:
                mx.set_wired_limit(_limits_before[0])
                mx.set_cache_limit(_limits_before[1])
