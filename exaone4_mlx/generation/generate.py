"""`generate`, `stream_generate`, and `Generation`, which is one reply in progress.

Notes:
- The model's worker thread generates a reply. Any thread can iterate its events, also with `async for`.
- All arguments are checked before the first token is computed.
- The worker does not wait for a slow consumer of the events.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.events import Done, ReplyEvent
from ..text.message import Reply
from ..text.tokenizer import Tokenizer
from ..tools.describe import Tool, schemas
from .constrain import GrammarConstraint, ToolConstraint
from .draft import DraftModel
from .options import Options, Sampling, check
from .prefill import CheckpointPool
from .prompt_cache import PromptCache
from .reply_loop import ReplyLoop
from .reply_options import ReplyOptions
from .request import Prompt, Request
from .worker import Job, Worker

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

GENERATE_OPTIONS = ("tools", "prompt_cache", "kv", "max_kv_size", "draft_model")


class GenerateOptions(ReplyOptions, total=False):
    """The keyword arguments of `stream_generate`."""

    tools: Sequence[Tool] | None
    prompt_cache: PromptCache | None
    kv: KVQuantization | int | None
    max_kv_size: int | None
    draft_model: Exaone4ForCausalLM | None


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
    `tools` are Python functions or their JSON schemas. Tool calls are reported, not run.

    `prompt_cache` keeps the processed tokens for the next prompt with the same beginning. `kv` 8 or 4 stores the caches
    in that number of bits. `max_kv_size` limits the tokens in the caches, prompt and reply together; a longer prompt is
    refused. `draft_model` is a small model with the same vocabulary. It proposes tokens that this model verifies: the
    reply is the same, in fewer steps. With `logprobs` there are also `Logprobs` events.

    Raises ValueError, before anything is computed, for an empty prompt, one longer than the context, a token
    id that does not exist, malformed messages, or an invalid option, and TypeError for an unknown option. The iteration
    raises FloatingPointError if the model computes NaN or infinity.
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
    """The complete reply to `prompt`. Options and errors are those of `stream_generate`."""
    return stream_generate(model, tokenizer, prompt, **options).whole()


def tool_constraint(config: Exaone4Config, tokenizer: Tokenizer, tools: Sequence[Tool] | None) -> ToolConstraint | None:
    """The constraint that restricts calls to the schemas of `tools`; None without tools."""
    offered = schemas(tools)
    return ToolConstraint(tokenizer, offered, config.vocab_size) if offered else None


def make_draft(model: Exaone4ForCausalLM | None) -> DraftModel | None:
    """A drafter that uses `model`. Raises ValueError if it is not a model."""
    is_model = isinstance(model, (Exaone4ForCausalLM, type(None)))
    check("draft_model", model, is_model, "a model, as load() returns it with its tokenizer")
    return None if model is None else DraftModel(model)


class EventStream(Iterator[T], ABC):
    """Events that are iterated once. `async for` waits for them in a thread, and a cancelled task cancels the reply."""

    def __iter__(self) -> EventStream[T]:
        return self

    def __aiter__(self) -> EventStream[T]:
        return self

    async def __anext__(self) -> T:
        import asyncio

        try:
            event = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    def whole(self) -> Reply:
        """The complete reply. It consumes the events."""
        events: list[Any] = list(self)
        return Reply.from_events(events, self.token_ids)

    @property
    @abstractmethod
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of thought and answer so far."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends the reply regularly. Any thread may call it."""


class Generation(EventStream[ReplyEvent]):
    """One reply. Iterate it once for its events. It starts with the iteration, and ends if it is dropped."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        request: Request,
        *,
        prompt_cache: PromptCache | None = None,
        constraint: GrammarConstraint | None = None,
        draft: DraftModel | None = None,
        call_parts: bool = False,
    ) -> None:
        """With `call_parts` the arguments of a call are events while they are written (`CallPart`)."""
        given: object = prompt_cache
        if not isinstance(given, PromptCache | None):
            kind = "a list of caches" if isinstance(given, list) else type(given).__name__
            raise ValueError(f"prompt_cache must be a PromptCache, not {kind}")
        cache = prompt_cache or PromptCache(model, request.tokenizer, CheckpointPool(max_count=0), request.kv)
        cache.check_model(model, request.kv)
        evaluate_weights(model, draft)
        self._worker, self._uses = Worker.of(model), id(cache)
        constraint = constraint or request.answer_constraint
        self._loop = ReplyLoop(model, request, cache, constraint, draft, self._worker.batch, call_parts)
        self._job: Job[ReplyEvent] | None = None
        self._finish_reason: str | None = None

    def __next__(self) -> ReplyEvent:
        if self._finish_reason is not None:
            raise StopIteration
        if self._job is None and not self._loop.cancelled:
            self._job = self._worker.submit(self._loop.run(), cancel=self._loop.cancel, uses=self._uses)
        late = False
        try:
            event = next(self._job or iter(()))
            while self._loop.cancelled and not isinstance(event, Done):  # events that were not consumed yet
                event, late = next(self._job or iter(())), True
        except StopIteration:
            if not self._loop.cancelled:
                raise
            event = self._loop.counts.done("cancelled")  # cancelled before it started
        except BaseException:
            self.close()
            raise
        if isinstance(event, Done):
            event = dataclasses.replace(event, finish_reason="cancelled") if late else event
            self._finish_reason = event.finish_reason
        return event

    def __del__(self) -> None:
        if (job := getattr(self, "_job", None)) is not None:
            self._loop.cancel()
            job.close(wait=False)

    def __repr__(self) -> str:
        counts = self._loop.counts
        state = self._finish_reason or ("not begun" if self._job is None else "in progress")
        return f"Generation({counts.prompt_tokens} prompt tokens, {counts.generated} tokens, {state})"

    @property
    def sampling(self) -> Sampling:
        """The sampling options, with LG's recommended values in place of None."""
        return self._loop.sampling

    @property
    def so_far(self) -> Done:
        """Counts and times so far. Any thread may read them. `finish_reason` is "unfinished"."""
        return self._loop.counts.done("unfinished")

    @property
    def prompt_progress(self) -> tuple[int, int] | None:
        """Processed tokens of the prompt and all of them, from any thread; None before and after the prefill."""
        return self._loop.prompt_progress

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of thought and answer so far."""
        return tuple(self._loop.token_ids)

    @property
    def stop_text(self) -> str:
        """The text of `stop` that ended the reply; "" if none did."""
        return self._loop.stop.found

    @property
    def place(self) -> int:
        """The number of replies of this model that are before this one in the queue."""
        return 0 if self._job is None else self._job.place

    def cancel(self) -> None:
        """Ends the reply at the next token, or at the next chunk of the prompt. `Done` has the reason "cancelled".

        The next event is `Done`; events that were not consumed are dropped.
        """
        self._loop.cancel()
        if self._job is not None:
            self._job.withdraw()

    def close(self) -> None:
        """Ends the reply immediately, without `Done`, and waits for the end."""
        self._finish_reason = self._finish_reason or "closed"
        if self._job is not None:
            self._loop.cancel()
            self._job.close()


def evaluate_weights(model: Exaone4ForCausalLM, draft: DraftModel | None = None) -> None:
    """Evaluates weights that this thread has changed, because the worker thread cannot do it."""
    mx.eval(model.parameters())
    if draft is not None:
        mx.eval(draft.model.parameters())
