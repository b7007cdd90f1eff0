"""Streams of server-sent events: several replies as one stream, pings, errors in the middle, and closed connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from .contract import Collected, Object, log, sse
from .engine import EngineEvent
from .errors import Refused
from .metrics import Metrics
from .queue import QueueFull, ServerEnds

PING_SECONDS = 5.0


class Writer(Protocol):
    """Writes replies in one dialect."""

    def whole(self, replies: Sequence[Collected]) -> Object: ...

    def stream(self, events: AsyncIterator[tuple[int, EngineEvent]], count: int) -> AsyncIterator[str]: ...


class Stream(StreamingResponse):
    """A stream whose lines are closed at its end, also where sending them fails."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


async def all_of(works: Sequence[Coroutine[Any, Any, Collected]]) -> list[Collected]:
    """The results of all works. An error of one, or a cancellation, ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(sources: Sequence[AsyncIterator[EngineEvent]]) -> AsyncIterator[tuple[int, EngineEvent]]:
    """The events of several replies, with the number of each, as they come."""
    waiting = {asyncio.ensure_future(anext(source)): index for index, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                try:
                    yield index, task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(sources[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()  # type: ignore[attr-defined]


#: Errors that end a stream -> their kind in the metrics. All others are faults, which are logged.
KINDS = {QueueFull: "queue_full", ServerEnds: "shutting_down", FloatingPointError: "nonfinite"}


async def guarded(
    writer: Writer, events: AsyncIterator[tuple[int, EngineEvent]], count: int, metrics: Metrics
) -> AsyncIterator[str]:
    """The lines of a stream. An error in the middle is an event of the dialect."""
    lines = writer.stream(events, count)
    try:
        async for line in lines:
            yield line
    except Exception as problem:
        if type(problem) not in KINDS:
            log.exception("a reply failed")
        metrics.error(KINDS.get(type(problem), "fault"))
        error = {
            "message": str(problem) or type(problem).__name__,
            "type": "server_error",
            "param": None,
            "code": "server_error",
        }
        failed = getattr(writer, "failed", None)
        yield failed(error) if failed else sse({"error": error})
        if failed is None:
            yield sse("[DONE]")
    finally:
        await lines.aclose()  # type: ignore[attr-defined]
        await events.aclose()  # type: ignore[attr-defined]


async def with_pings(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The lines, and a comment whenever none came for some seconds."""
    coming: asyncio.Future[str] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(lines))
            done, _ = await asyncio.wait({coming}, timeout=PING_SECONDS)
            if not done:
                yield ": ping\n\n"
                continue
            try:
                line = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield line
    finally:
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        await lines.aclose()  # type: ignore[attr-defined]


async def unless_closed(request: HttpRequest, work: Awaitable[list[Collected]]) -> list[Collected]:
    """The result of `work`, which is cancelled when the client closes the connection."""
    task = asyncio.ensure_future(work)

    is_closed = False

    async def watch() -> None:
        nonlocal is_closed
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_closed = True
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await task
    except asyncio.CancelledError as error:
        if not is_closed:
            raise
        raise Refused(499, "the client closed the connection") from error
    finally:
        watching.cancel()
