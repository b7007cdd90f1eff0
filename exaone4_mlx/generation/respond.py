"""Messages -> events: `stream_generate`, and `generate`, which collects them.

What is peculiar here:
- Everything that a caller can get wrong is refused before the first token is computed.
- Whether the reply begins inside a thought is read from the prompt itself, not from a flag.
- Stop strings end the answer; inside a thought and inside a tool call they mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from ..text.reply import Answer, Event, ReplyParser, Thinking, ToolCall, open_end
from ..text.tokenizer import Message, Tokenizer
from ..text.tools import Tool
from .decode import PREFILL_STEP_SIZE, PrefillProgress, decode, prefill
from .sampling import Sampler, Sampling

MAX_TOKENS = 8192  # of a reply, thought included: enough for a long thought, an end for a loop

Prompt = str | Sequence[Message] | Sequence[int] | mx.array


@dataclass(frozen=True)
class Done:
    """The last event of every reply. Times are in seconds; tokens do not count the one that ends the turn.

    `finish_reason` is "stop" (the model ended its turn, or a stop string came), "length" (`max_tokens` or the
    context is used up), "tool_calls" or "cancelled".
    """

    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    thinking_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Reply:
    """A whole reply: the answer in `text`, the thought apart, and what `Done` says."""

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
    peak_bytes: int

    @classmethod
    def from_events(cls, events: Iterable[Event | Done]) -> Reply:
        """Collects the events of one reply, `Done` among them."""
        collected = list(events)
        done = next(event for event in collected if isinstance(event, Done))
        text = "".join(event.text for event in collected if isinstance(event, Answer))
        calls = tuple(event for event in collected if isinstance(event, ToolCall))
        return cls(
            text=text.strip() if calls else text,  # between calls stand line ends
            thinking="".join(event.text for event in collected if isinstance(event, Thinking)),
            tool_calls=calls,
            **vars(done),
        )


def stream_generate(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    thinking: bool = False,
    tools: Sequence[Tool] | None = None,
    sampling: Sampling | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    prefill_step_size: int = PREFILL_STEP_SIZE,
    progress: PrefillProgress | None = None,
) -> Generation:
    """Streams the reply to `prompt` as events: `Thinking`, `Answer`, `ToolCall`, and `Done` at the end.

    `prompt` is text (one user turn), a list of OpenAI-style messages, or token ids, which are taken as they
    are. `thinking` lets the model think first. `tools` are Python functions or their JSON schemas; calls are
    reported, not run. `sampling` defaults to LG's advice for the mode. `max_tokens` bounds thought and answer together
    (8,192 unless given; the context bounds them too). `progress(done, total)` is told of the prefill.

    Replies can be made in any thread. On MLX's CPU backend (0.32) a thread of your own should call
    `mx.clear_streams()` as its last act: the process may be aborted otherwise.

    Raises ValueError, before anything is computed, for an empty prompt, one longer than the context, a token
    id that does not exist, malformed messages, or an option without meaning.
    """
    return Generation(
        model,
        tokenizer,
        prompt_ids(tokenizer, prompt, thinking=thinking, tools=tools),
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop,
        prefill_step_size=prefill_step_size,
        progress=progress,
    )


def generate(model: Exaone4ForCausalLM, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> Reply:
    """The whole reply to `prompt`. Options and errors are those of `stream_generate`."""
    return Reply.from_events(stream_generate(model, tokenizer, prompt, **options))


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
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        prefill_step_size: int = PREFILL_STEP_SIZE,
        progress: PrefillProgress | None = None,
    ) -> None:
        context = model.config.max_position_embeddings
        check_ids(ids, model.config.vocab_size, context)
        stops = check_limits(max_tokens, stop, prefill_step_size)

        self._model, self._tokenizer, self._ids = model, tokenizer, list(ids)
        self._parser = ReplyParser(_ends_inside_thought(self._ids, tokenizer))
        if not isinstance(sampling, (Sampling, type(None))):
            raise ValueError(f"sampling must be a Sampling, not {type(sampling).__name__}")
        self.sampling = (sampling or Sampling()).resolved(thinking=self._parser.inside_thought)
        self._sampler = Sampler(self.sampling, self._ids, model.config.vocab_size)
        self._max_tokens = min(MAX_TOKENS if max_tokens is None else max_tokens, context - len(self._ids))
        self._stop = StopStrings(stops)
        self._step_size, self._progress = prefill_step_size, progress
        self._stop_ids = model.config.stop_token_ids | tokenizer.stop_token_ids
        self._counts = _Counts(prompt_tokens=len(self._ids))
        self._cancelled = False
        self._events = self._run()

    def __iter__(self) -> Iterator[Event | Done]:
        return self._events

    def __next__(self) -> Event | Done:
        return next(self._events)

    def cancel(self) -> None:
        """Ends the reply at the next token, or at the next chunk of the prompt; `Done` says "cancelled"."""
        self._cancelled = True

    def close(self) -> None:
        """Ends the reply at once and without `Done`."""
        self._events.close()

    def _run(self) -> Generator[Event | Done, None, None]:
        mx.reset_peak_memory()
        with _wired_memory():
            finish_reason = "cancelled"
            try:
                tokens = self._prefilled()
            except _Cancelled:
                tokens = None
            if tokens is not None:
                finish_reason = yield from self._reply(tokens)
        yield self._counts.done(finish_reason)

    def _prefilled(self) -> Iterator[int]:
        def report(done: int, total: int) -> None:
            if self._progress:
                self._progress(done, total)
            if self._cancelled:
                raise _Cancelled

        started = time.perf_counter()
        cache = self._model.make_cache()
        try:
            logits = prefill(self._model, self._ids, cache, self._step_size, report)
        finally:
            self._counts.prefill_seconds = time.perf_counter() - started
        return decode(self._model, logits, cache, self._sampler)

    def _reply(self, tokens: Iterator[int]) -> Generator[Event, None, str]:
        """Yields the events of the reply; its value is the finish reason."""
        decoder = self._tokenizer.stream_decoder()
        called = False
        finish_reason = "length"
        started = time.perf_counter()
        for token in tokens:
            if self._cancelled:
                finish_reason = "cancelled"
                break
            if token in self._stop_ids:
                finish_reason = "stop"
                break
            self._counts.add(inside_thought=self._parser.inside_thought)
            self._counts.decode_seconds = time.perf_counter() - started
            for event in self._stop.filter(self._parser.feed(decoder.feed(token))):
                called = called or isinstance(event, ToolCall)
                yield event
            if self._stop.found or self._counts.generated >= self._max_tokens:
                break
        self._counts.decode_seconds = time.perf_counter() - started
        if not self._stop.found:
            rest = [*self._parser.feed(decoder.close()), *self._parser.close()]
            for event in (*self._stop.filter(rest), *self._stop.close()):
                called = called or isinstance(event, ToolCall)
                yield event
        if self._stop.found:
            return "stop"
        return "tool_calls" if called and finish_reason == "stop" else finish_reason


class StopStrings:
    """Holds back of an answer what could be the beginning of a stop string, and cuts it off before one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def filter(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if self.found:
                return
            if not self._stops or not isinstance(event, Answer) or event.problem:
                yield from self.close()
                yield event
            elif text := self._cut(event.text):
                yield Answer(text)

    def close(self) -> Iterator[Event]:
        """What was held back, once it is clear that no stop string follows."""
        held, self._held = self._held, ""
        if held and not self.found:
            yield Answer(held)

    def _cut(self, text: str) -> str:
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:  # the one that is complete first, whatever pieces the text came in
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        kept = open_end(text, *self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


@dataclass
class _Counts:
    prompt_tokens: int
    cached_tokens: int = 0
    thinking_tokens: int = 0
    answer_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def generated(self) -> int:
        return self.thinking_tokens + self.answer_tokens

    def add(self, inside_thought: bool) -> None:
        if inside_thought:
            self.thinking_tokens += 1
        else:
            self.answer_tokens += 1

    def done(self, finish_reason: str) -> Done:
        return Done(finish_reason, **vars(self), peak_bytes=mx.get_peak_memory())


class _Cancelled(Exception):
    """cancel() was called during the prefill."""


def check_ids(ids: Sequence[int], vocab_size: int, context: int) -> None:
    """Raises ValueError for a prompt that is empty, longer than `context` tokens, or of another vocabulary."""
    if not ids:
        raise ValueError("the prompt is empty")
    if wrong := [id for id in ids if not 0 <= id < vocab_size]:
        raise ValueError(f"the prompt holds token id {wrong[0]}; this model has ids 0 to {vocab_size - 1}")
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model's context of {context} must hold it and a reply"
        )


def check_limits(max_tokens: int | None, stop: str | Sequence[str] | None, prefill_step_size: int) -> tuple[str, ...]:
    """The stop strings as a tuple. Raises ValueError for a limit or a stop string without meaning."""
    for name, limit in (("max_tokens", max_tokens), ("prefill_step_size", prefill_step_size)):
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {limit!r}")
    if stop is None:
        stop = ()
    stops = tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(text, str) and text for text in stops):
        raise ValueError(f"stop strings must be texts of at least one character, not {list(stops)!r}")
    return stops


def _ends_inside_thought(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the last think mark in the prompt opens a thought."""
    marks = {tokenizer.think_start_id, tokenizer.think_end_id} - {None}
    last = next((id for id in reversed(ids) if id in marks), None)
    return last is not None and last == tokenizer.think_start_id


@contextmanager
def _wired_memory() -> Iterator[None]:
    """On Metal, keeps the model's memory from being paged out while a reply is made."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
