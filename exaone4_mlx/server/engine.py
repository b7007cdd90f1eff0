"""Replies of one model for many clients.

Notes:
- At most `max_running` replies are in progress, whose caches have room at their longest. Others wait, at most
  `max_waiting`; clients take turns.
- What the model read for a client is in the prefix store, with a salt of the client, `salt_of`: how long a prompt
  takes tells whether its beginning was read before. Clients with the same salt share prefixes.
- A reply whose iteration ends early is cancelled, and its slot is free.
- Each adapter is a model of its own for clients. Its inference form shares the weights of the others. Replies with
  different adapters are in progress together, and take their steps one after the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..generation.answer import ForcedCall
from ..generation.constrain import ToolConstraint
from ..generation.generate import Generation
from ..generation.options import Options
from ..generation.prefill import CheckpointPool
from ..generation.prefix_store import PrefixStore
from ..generation.prompt_cache import PromptCache
from ..generation.request import Prompt, Request, prompt_ids
from ..measure.sizes import cache_bytes
from ..model.adapter import Adapter
from ..model.fused import FusedModel
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.events import Done, ReplyEvent
from ..text.format import size_text
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from .metrics import Metrics
from .queue import Queue, ServerEnds


class TooLong(ValueError):
    """The prompt does not fit into the context."""


@dataclass(frozen=True)
class StopFound:
    """The reply was ended by this stop text. It comes before `Done`."""

    text: str


#: What a reply of the engine consists of.
EngineEvent = ReplyEvent | StopFound


@dataclass(frozen=True)
class Task:
    """A reply that a client asks for, read from any dialect.

    `forced` are the tools of which one must be called: none by default. With `one_call` the reply ends after a call.
    """

    prompt: Prompt
    options: Options
    tools: tuple[dict[str, Any], ...] = ()
    forced: tuple[dict[str, Any], ...] = ()
    strict: bool = False
    one_call: bool = False


@dataclass(frozen=True)
class Prepared:
    """A task that was checked: nothing of it can be refused any more."""

    task: Task
    request: Request
    constraint: ToolConstraint | None


def adapted_forms(model: Exaone4ForCausalLM, adapters: Mapping[str, Adapter]) -> dict[str, FusedModel]:
    """The inference form of the model with each of the adapters, by its name. The model stays as it is.

    Raises ValueError for an adapter that the model cannot have.
    """
    before, found = model.adapters, {}
    try:
        for name, adapter in adapters.items():
            model.set_adapters(adapter)
            found[name] = model.fused()
    finally:
        if adapters:
            model.set_adapters([adapter for adapter, _ in before], [scale for _, scale in before])
    return found


class ModelServer:
    """A model with its queue, its prefix store and its metrics. Its methods run in the thread of the event loop."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        name: str,
        *,
        max_running: int = 8,
        max_waiting: int = 64,
        max_kv_size: int | None = None,
        kv: KVQuantization | None = None,
        salt_of: Callable[[str], str] = str,
        prefix_store: PrefixStore | None = None,
        room_bytes: int | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        """`room_bytes` bounds the caches of all replies in progress. `adapters` have the names that clients use."""
        self.model, self.tokenizer, self.name, self.created = model, tokenizer, name, int(time.time())
        self.max_kv_size, self.kv = max_kv_size, kv
        self.metrics = Metrics()
        self.queue = Queue(max_running, max_waiting, self.metrics, room_bytes)
        self.threads = ThreadPoolExecutor(2 * max_running + 4, thread_name_prefix="server")
        self.threads.submit(import_module, "jsonschema")  # it takes 0.4 s, beside Jupyter seconds: no request waits
        self._made: set[Generation] = set()  # replies in progress
        self._ends = False
        self.prefix_store = prefix_store or PrefixStore()
        self._salt_of = salt_of
        self._forms = adapted_forms(model, adapters or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the models: that without the named adapters, and one for each of these."""
        return (self.name, *self._forms)

    def id_of(self, name: str) -> str:
        """The id of the model that answers to a name: any name without named adapters. Raises KeyError."""
        if self._forms and name not in ("", *self.names):
            raise KeyError(name)
        return name if name in self._forms else self.name

    @property
    def context(self) -> int:
        """Tokens of a prompt and its reply."""
        return self.max_kv_size or self.model.config.max_position_embeddings

    async def prepare(self, task: Task) -> Prepared:
        """Checks a task. Raises TooLong, and ValueError for everything else that a client can get wrong."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._prepare, task)

    def _prepare(self, task: Task) -> Prepared:
        options = dataclasses.replace(task.options, response_format=None) if task.forced else task.options
        ids, begun = prompt_ids(self.tokenizer, task.prompt, options, task.tools or None)
        if len(ids) >= self.context:
            raise TooLong(f"the prompt has {len(ids)} tokens, and the context of {self.context} must hold a reply, too")
        config = self.model.config
        options = self._with_room(len(ids), options)
        tools = task.tools if options.response_format is not None else ()
        request = Request(config, self.tokenizer, tuple(ids), options, self.max_kv_size, self.kv, None, begun, tools)
        constraint: ToolConstraint | None = None
        if task.forced:
            constraint = ForcedCall(self.tokenizer, task.forced, config.vocab_size)
        elif task.strict and task.tools and request.answer_constraint is None:
            constraint = ToolConstraint(self.tokenizer, task.tools, config.vocab_size)
        return Prepared(task, request, constraint)

    def _needed(self, prompt_tokens: int, options: Options) -> int:
        """Bytes of the caches of a reply at its longest."""
        return self._caches_of(min(prompt_tokens + options.reply_limit, self.context))

    def _caches_of(self, tokens: int) -> int:
        return sum(cache_bytes(self.model.config, tokens, self.model.model.norm.weight.dtype.size, self.kv))

    def _with_room(self, prompt_tokens: int, options: Options) -> Options:
        """The options, with the longest reply that has room where `max_tokens` was left open. Raises TooLong."""
        needed, room = self._needed(prompt_tokens, options), self.queue.room
        if room is None or needed <= room:
            return options
        longest = bisect_right(range(1, self.context + 1), room, key=self._caches_of)
        if options.max_tokens is None and longest > prompt_tokens:
            return dataclasses.replace(options, max_tokens=longest - prompt_tokens)
        raise TooLong(
            f"the prompt of {prompt_tokens} tokens and its reply need {size_text(needed)} of caches, and there are "
            f"{size_text(room)}, for {longest} tokens: ask for a smaller max_tokens"
        )

    async def events(self, prepared: Prepared, client: str, model: str = "") -> AsyncIterator[EngineEvent]:
        """The events of a reply of a model of `names`. It waits in the queue first.

        Raises QueueFull, and ServerEnds after `end`.
        """
        request = prepared.request
        async with self.queue.slot(client, self._needed(len(request.ids), request.options)):
            cache = self._prompt_cache(client, model)
            generation = Generation(
                self.model, prepared.request, prompt_cache=cache, constraint=prepared.constraint, call_parts=True
            )
            del cache
            started, loop = time.perf_counter(), asyncio.get_running_loop()
            first = None
            self._made.add(generation)
            try:
                while (event := await loop.run_in_executor(self.threads, next, generation, None)) is not None:
                    first = first or time.perf_counter()
                    if self._ends:
                        raise ServerEnds
                    if isinstance(event, ToolCall) and prepared.task.one_call:
                        yield event
                        yield dataclasses.replace(generation.so_far, finish_reason="tool_calls")
                        return
                    if isinstance(event, Done) and generation.stop_text:
                        yield StopFound(generation.stop_text)
                    yield event
            finally:
                self._made.discard(generation)
                await _closed(generation, loop, self.threads)
                counts = generation.so_far
                self.metrics.count(counts, (first or time.perf_counter()) - started)

    def _prompt_cache(self, client: str, model: str) -> PromptCache:
        given = CheckpointPool(max_count=0), self.kv, self.prefix_store, self._salt_of(client), self._forms.get(model)
        return PromptCache(self.model, self.tokenizer, *given)

    def end(self) -> None:
        """Ends all replies, in progress and waiting, with ServerEnds."""
        self._ends = True
        self.queue.end()
        for generation in self._made:
            generation.cancel()

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.prefix_store.flush()


async def _closed(generation: Generation, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor) -> None:
    """Ends a reply in a thread, also where the task of the client is cancelled meanwhile."""
    generation.cancel()
    ending = loop.run_in_executor(threads, generation.close)
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            continue
