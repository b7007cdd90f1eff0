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
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.reply import Answer, Event, ReplyParser, Thinking, ToolCall
from ..text.tokenizer import Message, Tokenizer
from ..tools.describe import Tool, schemas
from ..tools.schema import shortened
from .constrain import ToolConstraint
from .decode import PREFILL_STEP_SIZE, PrefillProgress, TokenStream
from .memory import metal_memory
from .prompt_cache import CheckpointPool, PromptCache
from .sampling import Sampler, Sampling, check, check_bias
from .speculate import LOOKUP_DRAFTS, MODEL_DRAFTS, DraftModel, PromptLookup, SpeculativeStream
from .stopping import MAX_TOKENS, WRAP_UP, LoopDetector, Options, StopStrings, thought_limit

Stream = TokenStream | SpeculativeStream
Prompt = str | Sequence[Message] | Sequence[int] | mx.array


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and the natural logarithm of its probability. A part of a character has the text "\ufffd"."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Logprobs(TokenLogprob):
    """The token that was drawn, before the text that it completes; and the most probable ones in its place.

    Probabilities are the model's own: before penalties, temperature and what cuts off.
    """

    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Done:
    """The last event of every reply. Times are in seconds; tokens do not count the one that ends the turn.

    `finish_reason` is "stop" (the model ended its turn, or a stop string came), "length" (`max_tokens` or the
    context is used up), "tool_calls", "cancelled" or "repetition" (it went round in a loop; LG advises a
    presence_penalty of 1.5 against that). Of the prompt's tokens `cached_tokens` were not processed again, and of
    `decode_seconds` `thinking_seconds` went into the thought. `drafted_tokens` were guessed by a draft model or prompt
    lookup, and `accepted_tokens` of them were right: so many steps were saved.
    """

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
    def from_events(cls, events: Iterable[Event | Logprobs | Done]) -> Reply:
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
    thinking: bool = False,
    thinking_budget: int | None = None,
    tools: Sequence[Tool] | None = None,
    constrain_tools: bool = False,
    sampling: Sampling | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    stop_on_repetition: bool = True,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    progress: PrefillProgress | None = None,
    prompt_cache: PromptCache | None = None,
    kv_bits: int | None = None,
    kv_bits_keys: int | None = None,
    kv_bits_values: int | None = None,
    kv_group_size: int | None = None,
    kv_layers: Literal["all", "global"] | None = None,
    max_kv_size: int | None = None,
    draft_model: Exaone4ForCausalLM | None = None,
    prompt_lookup: bool = False,
    num_draft_tokens: int | None = None,
    logprobs: int | None = None,
) -> Generation:
    """Streams the reply to `prompt` as events: `Thinking`, `Answer`, `ToolCall`, and `Done` at the end.

    `prompt` is text (one user turn), a list of OpenAI-style messages, or token ids, which are taken as they
    are. `thinking` lets the model think first, `thinking_budget` tokens at most. `tools` are Python functions or
    their JSON schemas; calls are reported, not run; `constrain_tools` holds them to the schemas while they are
    written. `sampling` defaults to LG's advice for the mode. `max_tokens` bounds thought and answer together
    (8,192 unless given; the context bounds them too). `progress(done, total)` is told of the prefill.
    `prompt_cache` keeps what was processed for the next prompt that begins alike. More on each: `Options`.

    `kv_bits` (8 or 4) holds the caches in so many bits; `kv_bits_keys` and `kv_bits_values` say it for one of both, in
    groups of `kv_group_size` (the larger of 64 and 32 that divides head_dim), on "global" `kv_layers` unless on "all".
    `max_kv_size` is how many tokens they hold at most, prompt and reply together: a longer prompt is refused.
    A `draft_model`, a small one of the same vocabulary, or `prompt_lookup` guess tokens, which this model checks: the
    reply is the same, in fewer steps. With `logprobs` there are events of `Logprobs`, too.

    Replies can be made in any thread. On MLX's CPU backend (0.32) a thread of your own should call
    `mx.clear_streams()` as its last act: the process may be aborted otherwise.

    Raises ValueError, before anything is computed, for an empty prompt, one longer than the context, a token
    id that does not exist, malformed messages, or an option without meaning.
    """
    return Generation(
        model,
        tokenizer,
        prompt_ids(tokenizer, prompt, thinking=thinking, tools=tools),
        Options(
            sampling,
            max_tokens,
            thinking_budget,
            stop,
            stop_on_repetition,
            prefill_step_size,
            progress,
            prompt_lookup,
            num_draft_tokens,
            logprobs,
        ),
        prompt_cache=prompt_cache,
        kv=KVQuantization.read(model.config, kv_bits, kv_bits_keys, kv_bits_values, kv_group_size, kv_layers),
        context_limit=max_kv_size,
        draft=make_draft(draft_model),
        constraint=tool_constraint(model, tokenizer, tools) if constrain_tools else None,
    )


def generate(model: Exaone4ForCausalLM, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> Reply:
    """The whole reply to `prompt`. Options and errors are those of `stream_generate`."""
    return Reply.from_events(stream_generate(model, tokenizer, prompt, **options))


def tool_constraint(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, tools: Sequence[Tool] | None
) -> ToolConstraint | None:
    """What holds calls to the schemas of `tools`; None without any."""
    offered = schemas(tools)
    return ToolConstraint(tokenizer, offered, model.config.vocab_size) if offered else None


def prompt_ids(
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    thinking: bool = False,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """The ids of a prompt in any of its three forms. Raises ValueError for an empty or malformed one."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(thinking, bool):
        raise ValueError(f"thinking must be true or false, not {thinking!r}")
    if isinstance(prompt, Mapping):
        raise ValueError("a message goes into a list of messages: [{'role': …, 'content': …}]")
    if not isinstance(prompt, (Sequence, mx.array)):
        raise ValueError(f"the prompt must be text, a list of messages or token ids, not {type(prompt).__name__}")
    items: Any = prompt.tolist() if isinstance(prompt, mx.array) else list(prompt)
    if not items:
        raise ValueError("the prompt is empty")
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return tokenizer.apply_chat_template(items, tools=tools, enable_thinking=thinking)
    if thinking or tools:
        raise ValueError("thinking and tools belong to the chat template; a prompt of token ids is taken as it is")
    return items


class Generation:
    """One reply in the making: iterate it once for its events. `cancel()` may be called from any thread."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        options: Options | None = None,
        *,
        prompt_cache: PromptCache | None = None,
        kv: KVQuantization | None = None,
        constraint: ToolConstraint | None = None,
        context_limit: int | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        options = options or Options()
        check_request(ids, options, model.config, tokenizer)
        check_drafting(model.config, options, draft.model.config if draft else None)
        room = check_limit(context_limit, model.config, ids) - len(ids)
        cache = prompt_cache or PromptCache(model, tokenizer, CheckpointPool(max_count=0), kv)
        cache.check_model(model, kv)
        self._making = _Making(model, tokenizer, list(ids), options, cache, constraint, room, draft)
        self._events = self._making.run()  # which knows nothing of this object: dropped, both are gone at once

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn, LG's advice filled in."""
        return self._making.sampling

    @property
    def so_far(self) -> Done:
        """The counts and times of what was made until now, from any thread; its `finish_reason` is "unfinished"."""
        return self._making.so_far

    def __iter__(self) -> Iterator[Event | Logprobs | Done]:
        return self._events

    def __next__(self) -> Event | Logprobs | Done:
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
        tokenizer: Tokenizer,
        ids: list[int],
        options: Options,
        cache: PromptCache,
        constraint: ToolConstraint | None,
        room: int,
        draft: DraftModel | None,
    ) -> None:
        self._model, self._tokenizer, self._ids, self._options = model, tokenizer, ids, options
        self._cache, self._constraint, self._draft = cache, constraint, draft
        self._parser = ReplyParser(_ends_inside_thought(ids, tokenizer))
        self.sampling = (options.sampling or Sampling()).resolved(thinking=self._parser.inside_thought)
        self._max_tokens = min(_wanted_tokens(options), room)
        self._wrap_up: list[int] = []
        if options.thinking_budget is not None:
            self._wrap_up = tokenizer.encode(WRAP_UP)
            limit = thought_limit(options.thinking_budget, self._max_tokens, len(self._wrap_up))
            self._thought_limit = max(0, limit)  # negative where the context is nearly full
        self._stop = StopStrings(options.stops)
        self._loops = LoopDetector()
        self._stop_ids = model.config.stop_token_ids | tokenizer.stop_token_ids
        self._counts = _Counts(prompt_tokens=len(ids))
        self.cancelled = False

    def run(self) -> Generator[Event | Logprobs | Done, None, None]:
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
        given = self._model, logits, self._cache.layers, sampler
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


def check_request(ids: Sequence[int], options: Options, config: Exaone4Config, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a prompt, or options beside it, that no reply can be made to."""
    context = config.max_position_embeddings
    if not ids:
        raise ValueError("the prompt is empty")
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise ValueError(f"the prompt holds token id {wrong[0]}; this model has ids 0 to {config.vocab_size - 1}")
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model's context of {context} must hold it and a reply: "
            "make it shorter, or ask about it in parts"
        )
    check_bias(options.sampling.logit_bias if options.sampling else None, config.vocab_size)
    if options.thinking_budget is None:
        return
    if not _ends_inside_thought(ids, tokenizer):
        raise ValueError("thinking_budget bounds a thought, and this prompt opens none; set thinking=True")
    wanted, wrap_up = _wanted_tokens(options), len(tokenizer.encode(WRAP_UP))
    if thought_limit(options.thinking_budget, wanted, wrap_up) < 0:
        raise ValueError(
            f"max_tokens {wanted} is too small for a thinking budget: ending the thought takes {wrap_up} tokens, "
            "and the answer needs some"
        )


def check_limit(limit: int | None, config: Exaone4Config, ids: Sequence[int]) -> int:
    """How many tokens a prompt and its reply may have. Raises ValueError for a limit that does not hold the prompt."""
    longest = config.max_position_embeddings
    if limit is None:
        return longest
    check("max_kv_size", limit, type(limit) is int and 1 < limit <= longest, f"a number of tokens from 2 to {longest}")
    if len(ids) >= limit:
        raise ValueError(f"the prompt has {len(ids)} tokens, and max_kv_size {limit} must hold it and a reply")
    return limit


def make_draft(model: Exaone4ForCausalLM | None) -> DraftModel | None:
    """What guesses with a model. Raises ValueError for what is none."""
    is_model = isinstance(model, (Exaone4ForCausalLM, type(None)))
    check("draft_model", model, is_model, "a model, as load() gives it with its tokenizer")
    return None if model is None else DraftModel(model)


def check_drafting(config: Exaone4Config, options: Options, draft: Exaone4Config | None) -> None:
    """Raises ValueError for guesses that cannot be made, or not be checked."""
    if draft is None and not options.prompt_lookup:
        if options.num_draft_tokens is not None:
            raise ValueError(
                "num_draft_tokens bounds what is guessed, and there is neither a draft model nor prompt_lookup"
            )
        return
    if draft is not None and options.prompt_lookup:
        raise ValueError("there are a draft model and prompt_lookup; one of them guesses")
    if draft is not None and draft.vocab_size != config.vocab_size:
        raise ValueError(
            f"the draft model has a vocabulary of {draft.vocab_size} tokens, and the model one of {config.vocab_size}"
        )
    if config.rope_parameters.depends_on_length:
        raise ValueError(
            f"RoPE of type {config.rope_parameters.rope_type!r} goes by the length of what is read at once: several "
            "guesses cannot be checked so; leave the draft model and prompt_lookup out"
        )


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


def _wanted_tokens(options: Options) -> int:
    return MAX_TOKENS if options.max_tokens is None else options.max_tokens


def _ends_inside_thought(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the last think mark in the prompt opens a thought."""
    marks = {tokenizer.think_start_id, tokenizer.think_end_id} - {None}
    last = next((id for id in reversed(ids) if id in marks), None)
    return last is not None and last == tokenizer.think_start_id
