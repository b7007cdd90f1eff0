"""Replies of one model for many clients.

Notes:
- At most `max_running` replies are in progress. Others wait, at most `max_waiting`; clients take turns.
- What the model read for a client is in the prefix store, with a salt of the client, `salt_of`: how long a prompt
  takes tells whether its beginning was read before. Clients with the same salt share prefixes.
- A reply whose iteration ends early is cancelled, and its slot is free.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ..generation.checkpoints import CheckpointPool
from ..generation.constrain import ToolConstraint
from ..generation.forced_call import ForcedCall
from ..generation.generate import Generation
from ..generation.options import Options
from ..generation.prefix_store import PrefixStore
from ..generation.prompt_cache import PromptCache
from ..generation.request import Prompt, Request, prompt_ids
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.events import Done, ReplyEvent
from ..text.tokenizer import Tokenizer
from ..tools.call import ToolCall
from .metrics import Metrics


class TooLong(ValueError):
    """The prompt does not fit into the context."""


class QueueFull(RuntimeError):
    """All places in the queue are taken."""


class ServerEnds(RuntimeError):
    """The server ends, and ends its replies."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request again later")


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
    ) -> None:
        self.model, self.tokenizer, self.name, self.created = model, tokenizer, name, int(time.time())
        self.max_kv_size, self.kv = max_kv_size, kv
        self.metrics = Metrics()
        self.queue = Queue(max_running, max_waiting, self.metrics)
        self.threads = ThreadPoolExecutor(2 * max_running + 4, thread_name_prefix="server")
        self._made: set[Generation] = set()  # replies in progress
        self._ends = False
        self.prefix_store = prefix_store or PrefixStore()
        self._salt_of = salt_of

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
        tools = task.tools if options.response_format is not None else ()
        request = Request(config, self.tokenizer, tuple(ids), options, self.max_kv_size, self.kv, None, begun, tools)
        constraint: ToolConstraint | None = None
        if task.forced:
            constraint = ForcedCall(self.tokenizer, task.forced, config.vocab_size)
        elif task.strict and task.tools and request.answer_constraint is None:
            constraint = ToolConstraint(self.tokenizer, task.tools, config.vocab_size)
        return Prepared(task, request, constraint)

    async def events(self, prepared: Prepared, client: str) -> AsyncIterator[EngineEvent]:
        """The events of a reply. It waits in the queue first. Raises QueueFull, and ServerEnds after `end`."""
        async with self.queue.slot(client):
            cache = self._prompt_cache(client)
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

    def _prompt_cache(self, client: str) -> PromptCache:
        pool, salt = CheckpointPool(max_count=0), self._salt_of(client)
        return PromptCache(self.model, self.tokenizer, pool, self.kv, self.prefix_store, salt)

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


class Queue:
    """Slots for replies in progress, given to clients in turn."""

    def __init__(self, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self.running = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._metrics = metrics

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def is_empty(self) -> bool:
        return self.running + self.waiting == 0

    def has_room(self, count: int = 1) -> bool:
        """Whether `count` more replies are taken."""
        return self.running + self.waiting + count <= self.max_running + self.max_waiting

    def end(self) -> None:
        """Refuses all that wait."""
        waiting = [future for futures in self._waiting.values() for future in futures]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ServerEnds())

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        if self.running < self.max_running and not self._waiting:
            self.running += 1
        else:
            if self.waiting >= self.max_waiting:
                raise QueueFull(f"{self.waiting} requests wait already; try again later")
            await self._turn(client)
        self._metrics.queue(self.running, self.waiting)
        try:
            yield
        finally:
            self.running -= 1
            self._next()
            self._metrics.queue(self.running, self.waiting)

    async def _turn(self, client: str) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(mine)
        self._metrics.queue(self.running, self.waiting)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had the slot already
                self.running -= 1
                self._next()
            elif client in self._waiting:
                self._waiting[client] = deque(one for one in self._waiting[client] if one is not mine)
                if not self._waiting[client]:
                    del self._waiting[client]
            raise

    def _next(self) -> None:
        while self._waiting and self.running < self.max_running:
            client, futures = self._waiting.popitem(last=False)
            future = futures.popleft()
            if futures:
                self._waiting[client] = futures  # behind the others
            if not future.done():
                self.running += 1
                future.set_result(None)
