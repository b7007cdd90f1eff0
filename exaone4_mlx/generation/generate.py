"""Messages -> events: `stream_generate`, and `generate`, which collects them.

What is peculiar here:
- Everything that a caller can get wrong is refused before the first token is computed.
- Whether the reply begins inside a thought is read from the prompt itself, not from a flag.
- Stop strings end the answer; inside a thought and inside a tool call they mean nothing.
- A reply can be made in another thread than the one that asked for it: no array is made before it begins.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.events import Answer, Done, Event, Logprobs, ReplyEvent, Thinking, TokenLogprob
from ..text.reply import ReplyParser
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from ..tools.describe import Tool, schemas
from ..tools.schema import shortened
from .constrain import ToolConstraint
from .decode import TokenStream
from .memory import metal_memory
from .options import Options, ReplyOptions, Sampling, check
from .prompt_cache import CheckpointPool, PromptCache
from .request import Prompt, Request
from .sampling import Sampler
from .speculate import LOOKUP_DRAFTS, MODEL_DRAFTS, DraftModel, PromptLookup, SpeculativeStream
from .stopping import WRAP_UP, LoopDetector, StopStrings, thought_limit

if TYPE_CHECKING:
    from typing_extensions import Unpack

GENERATE_OPTIONS = ("tools", "prompt_cache", "kv", "max_kv_size", "draft_model")


class GenerateOptions(ReplyOptions, total=False):
    """The keyword arguments of `stream_generate`."""

    tools: Sequence[Tool] | None
    prompt_cache: PromptCache | None
    kv: KVQuantization | int | None
    max_kv_size: int | None
    draft_model: Exaone4ForCausalLM | None


Stream = TokenStream | SpeculativeStream


@dataclass(frozen=True)
class Reply:
    """A whole reply: the answer in `text`, the thought apart, what `Done` says, and `logprobs` if they were wanted."""

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    thinking_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float
    thinking_seconds: float
    peak_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: tuple[Logprobs, ...] = ()

    @classmethod
    def from_events(cls, events: Iterable[ReplyEvent]) -> Reply:
        """Collects the events of one reply, `Done` among them."""
        collected = list(events)
        done = next(event for event in collected if isinstance(event, Done))
        text = "".join(event.text for event in collected if isinstance(event, Answer))
        calls = tuple(event for event in collected if isinstance(event, ToolCall))
        return cls(
            text=text.strip() if calls else text,  # between calls stand line ends
            thinking="".join(event.text for event in collected if isinstance(event, Thinking)),
            logprobs=tuple(event for event in collected if isinstance(event, Logprobs)),
            tool_calls=calls,
            **vars(done),
        )

    def __repr__(self) -> str:
        calls = f", {len(self.tool_calls)} tool calls" if self.tool_calls else ""
        tokens = self.thinking_tokens + self.answer_tokens
        return f"Reply({shortened(self.text, 60)!r}{calls}, {tokens} tokens, {self.finish_reason!r})"


def stream_generate(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    tools: Sequence[Tool] | None = None,
    prompt_cache: PromptCache | None = None,
    kv: KVQuantization | int | None = None,
    max_kv_size: int | None = None,
    draft_model: Exaone4ForCausalLM | None = None,
    **options: Unpack[ReplyOptions],
) -> Generation:
    """Streams the reply to `prompt` as events: `Thinking`, `Answer`, `ToolCall`, and `Done` at the end.

    `prompt` is text (one user turn), a list of OpenAI-style messages, or token ids, which are used unchanged.
    `options` are the fields of `Options`: `thinking`, `max_tokens`, `temperature`, `stop` and so on.
    `tools` are Python functions or their JSON schemas; calls are reported, not run.

    `prompt_cache` keeps what was processed for the next prompt that begins alike. `kv` 8 or 4 stores the caches in
    that number of bits. `max_kv_size` limits the tokens in the caches, prompt and reply together: a longer prompt is
    refused. `draft_model`, a small model of the same vocabulary, proposes tokens that this model verifies: the reply
    is the same, in fewer steps. With `logprobs` there are events of `Logprobs`, too.

    Raises ValueError, before anything is computed, for an empty prompt, one longer than the context, a token
    id that does not exist, malformed messages, or an invalid option, and TypeError for an unknown option.
    """
    known = Options.read(options, also=GENERATE_OPTIONS)
    draft = make_draft(draft_model)
    request = Request.render(
        model.config,
        tokenizer,
        prompt,
        known,
        tools=tools,
        max_kv_size=max_kv_size,
        kv=kv,
        draft=draft.model.config if draft else None,
    )
    constraint = tool_constraint(model.config, tokenizer, tools) if known.constrain_tools else None
    return Generation(model, request, prompt_cache=prompt_cache, draft=draft, constraint=constraint)


def generate(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, prompt: Prompt, **options: Unpack[GenerateOptions]
) -> Reply:
    """The whole reply to `prompt`. Options and errors are those of `stream_generate`."""
    return Reply.from_events(stream_generate(model, tokenizer, prompt, **options))


def tool_constraint(config: Exaone4Config, tokenizer: Tokenizer, tools: Sequence[Tool] | None) -> ToolConstraint | None:
    """The constraint that makes calls follow the schemas of `tools`; None without tools."""
    offered = schemas(tools)
    return ToolConstraint(tokenizer, offered, config.vocab_size) if offered else None


def make_draft(model: Exaone4ForCausalLM | None) -> DraftModel | None:
    """A drafter that uses `model`. Raises ValueError for what is no model."""
    is_model = isinstance(model, (Exaone4ForCausalLM, type(None)))
    check("draft_model", model, is_model, "a model, as load() returns it with its tokenizer")
    return None if model is None else DraftModel(model)


class Generation:
    """One reply in the making: iterate it once for its events. `cancel()` may be called from any thread."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        request: Request,
        *,
        prompt_cache: PromptCache | None = None,
        constraint: ToolConstraint | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        cache = prompt_cache or PromptCache(model, request.tokenizer, CheckpointPool(max_count=0), request.kv)
        cache.check_model(model, request.kv)
        self._making = _Making(model, request, cache, constraint, draft)
        self._events = self._making.run()  # which knows nothing of this object: dropped, both are gone at once

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn, LG's advice filled in."""
        return self._making.sampling

    @property
    def so_far(self) -> Done:
        """The counts and times of what was made until now, from any thread; its `finish_reason` is "unfinished"."""
        return self._making.so_far

    def __iter__(self) -> Iterator[ReplyEvent]:
        return self._events

    def __next__(self) -> ReplyEvent:
        return next(self._events)

    def cancel(self) -> None:
        """Ends the reply at the next token, or at the next chunk of the prompt; `Done` says "cancelled"."""
        self._making.cancelled = True

    def close(self) -> None:
        """Ends the reply at once and without `Done`."""
        self._events.close()


class _Making:
    """How a reply is made, step by step."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        request: Request,
        cache: PromptCache,
        constraint: ToolConstraint | None,
        draft: DraftModel | None,
    ) -> None:
        self._model, self._tokenizer = model, request.tokenizer
        self._ids, self._options = list(request.ids), request.options
        self._cache, self._constraint, self._draft = cache, constraint, draft
        self._parser = ReplyParser(request.inside_thought)
        self.sampling = request.options.resolved(thinking=request.inside_thought)
        self._max_tokens, self._wrap_up = request.max_tokens, request.wrap_up
        if request.options.thinking_budget is not None:
            limit = thought_limit(request.options.thinking_budget, self._max_tokens, len(self._wrap_up))
            self._thought_limit = max(0, limit)  # negative where the context is nearly full
        self._stop = StopStrings(request.options.stops)
        self._loops = LoopDetector()
        self._stop_ids = model.config.stop_token_ids | self._tokenizer.stop_token_ids
        self._counts = _Counts(prompt_tokens=len(request.ids))
        self.cancelled = False

    def run(self) -> Generator[ReplyEvent, None, None]:
        mx.reset_peak_memory()
        with metal_memory():
            try:
                finish_reason = yield from self._reply(self._prefilled())
            except _Cancelled:
                finish_reason = "cancelled"
            except Exception:
                self._cache.clear()  # what a failed step left behind fails again
                if self._draft is not None:
                    self._draft.clear()
                raise
            finally:
                self._cache.finish()
                del self._cache, self._draft  # who keeps the reply need not keep them
        yield self._counts.done(finish_reason)

    @property
    def so_far(self) -> Done:
        return self._counts.done("unfinished")

    def _prefilled(self) -> Stream:
        def report(done: int, total: int) -> None:
            if self._options.progress:
                self._options.progress(done, total)
            if self.cancelled:
                raise _Cancelled

        started = time.perf_counter()
        try:
            logits, self._counts.cached_tokens = self._cache.prefill(self._ids, self._options.prefill_step_size, report)
        finally:
            self._counts.prefill_seconds = time.perf_counter() - started
        sampler = Sampler(self.sampling, self._ids, self._model.config.vocab_size)
        given = self._cache.fused, logits, self._cache.layers, sampler
        if self._draft is None and not self._options.prompt_lookup:
            return TokenStream(*given)
        drafter, most = (self._draft, MODEL_DRAFTS) if self._draft else (PromptLookup(), LOOKUP_DRAFTS)
        limit = len(self._ids) + self._max_tokens
        return SpeculativeStream(*given, drafter, self._ids, self._options.num_draft_tokens or most, limit)

    def _reply(self, stream: Stream) -> Generator[Event | Logprobs, None, str]:
        """Yields the events of the reply; its value is the finish reason."""
        decoder = self._tokenizer.stream_decoder()
        called = False
        finish_reason = "length"
        self._counts.start()
        work = self._cache.work
        if self._constraint is not None:
            self._constraint.reset()  # of a call that was cut off
        if self._thought_is_over(half_a_character=False):
            yield from self._end_thought(stream)
        for token in stream:
            if self._cache.work is not work:
                raise RuntimeError("other work on the same prompt cache came between the tokens of this reply")
            self._cache.append(token)
            if self.cancelled:
                finish_reason = "cancelled"
                break
            if token in self._stop_ids:
                finish_reason = "stop"
                break
            self._counts.add(1, self._parser.inside_thought)
            self._counts.drafted_tokens, self._counts.accepted_tokens = stream.drafted, stream.accepted
            if self._options.logprobs is not None:
                yield logprobs(stream.drawn_from, token, self._options.logprobs, self._tokenizer)
            for event in self._stop.filter(self._parser.feed(decoder.feed(token))):
                called = called or isinstance(event, ToolCall)
                yield event
            if self._stop.found or self._counts.generated >= self._max_tokens:
                break
            if self._options.stop_on_repetition and self._loops.add(token):
                finish_reason = "repetition"
                break
            if self._thought_is_over(decoder.pending):
                yield from self._end_thought(stream)
            elif self._constraint is not None:
                self._hold_call(self._constraint, stream, token)
        self._counts.stop(self._parser.inside_thought)
        if self._cache.work is work:
            stream.close()  # what was guessed too far goes; not of other work that has come meanwhile
        if not self._stop.found:
            rest = [*self._parser.feed(decoder.close()), *self._parser.close()]
            for event in (*self._stop.filter(rest), *self._stop.close()):
                called = called or isinstance(event, ToolCall)
                yield event
        if self._stop.found:
            finish_reason = "stop"
        return "tool_calls" if called and finish_reason == "stop" else finish_reason

    def _thought_is_over(self, half_a_character: bool) -> bool:
        """Whether the budget is used up; a character is completed first, if three tokens can do it."""
        if not self._wrap_up or not self._parser.inside_thought:
            return False
        room = self._counts.generated + len(self._wrap_up) < self._max_tokens
        over = self._counts.thinking_tokens - self._thought_limit
        return room and over >= (3 if half_a_character else 0)

    def _end_thought(self, stream: Stream) -> Iterator[Event]:
        """Ends the thought in the model's place."""
        stream.force(self._wrap_up)
        for token in self._wrap_up:
            self._cache.append(token)
        self._counts.add(len(self._wrap_up), inside_thought=True)
        yield from self._parser.feed(WRAP_UP)

    def _hold_call(self, constraint: ToolConstraint, stream: Stream, token: int) -> None:
        """Restricts the next token where a tool call is being written."""
        if constraint.active:
            constraint.advance(token)
        elif self._parser.opens_call:
            constraint.begin()
        if constraint.active:
            stream.restrict(constraint.allowed())


@dataclass
class _Counts:
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
        """Decoding begins."""
        self._now = time.perf_counter()

    def add(self, tokens: int, inside_thought: bool) -> None:
        if inside_thought:
            self.thinking_tokens += tokens
        else:
            self.answer_tokens += tokens
        self.stop(inside_thought)

    def stop(self, inside_thought: bool) -> None:
        """Counts the time since the last token."""
        seconds = -self._now
        self._now = time.perf_counter()
        seconds += self._now
        self.decode_seconds += seconds
        if inside_thought:
            self.thinking_seconds += seconds

    def done(self, finish_reason: str) -> Done:
        counted = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Done(finish_reason, **counted, peak_bytes=mx.get_peak_memory())


class _Cancelled(Exception):
    """cancel() was called during the prefill."""


def logprobs(logits: mx.array, token: int, count: int, tokenizer: Tokenizer) -> Logprobs:
    """The log-probability of a token drawn from logits [1, V], and those of the `count` most probable ones."""
    values = logits[0].astype(mx.float32)
    values = values - mx.logsumexp(values)
    best = (
        mx.argpartition(-values, count - 1)[:count] if 0 < count < values.size else mx.arange(min(count, values.size))
    )
    ids: Any = best[mx.argsort(-values[best])].tolist()
    found: Any = values[mx.array([token, *ids])].tolist()
    told = [TokenLogprob(id, tokenizer.decode([id]), value) for id, value in zip((token, *ids), found, strict=True)]
    return Logprobs(**vars(told[0]), top=tuple(told[1:]))
