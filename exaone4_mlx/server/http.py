"""The HTTP server: uvicorn with a limit for the head of a request, and an end that clients learn of."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .access import AccessGuard
from .engine import ModelServer

HEAD_SECONDS = 20.0  # in which the head of a request must be there
LOOK_SECONDS = 0.1  # between two looks at the replies in progress at the end
END_SECONDS = 5  # for the last words of replies that are ended
LAST_SECONDS = 1.0  # for the same after a second Ctrl-C


class HttpProtocol(H11Protocol):
    """Closes a connection that sends no whole head of a request within HEAD_SECONDS."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)
        elif not waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Beside:
    """A page beside the API on one port. It has every path that is not the API's."""

    def __init__(self, api: AccessGuard, page: Any) -> None:
        self._api, self.page = api, page
        self._paths = {route.path for route in api.app.routes}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        is_api = scope["type"] != "lifespan" and (path in self._paths or path.startswith("/v1/"))
        await (self._api if is_api else self.page)(scope, receive, send)


class HttpServer(uvicorn.Server):
    """Serves `app`. At the end, replies in progress have `seconds`; then `engine` ends them with an error.

    A second Ctrl-C ends them at once.
    """

    def __init__(self, app: Any, engine: ModelServer, seconds: int, ready: Callable[[], None], **settings: Any) -> None:
        """`ready` is called when connections are accepted."""
        self._page = app.page if isinstance(app, Beside) else None
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off" if self._page is None else "on",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=seconds + END_SECONDS,
            **settings,
        )
        super().__init__(config)
        self._engine, self._seconds, self._ready = engine, seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            self._end_all()
            deadline = time.monotonic() + LAST_SECONDS  # for the last words, which a second Ctrl-C leaves
            while self.server_state.tasks and time.monotonic() < deadline:
                await asyncio.sleep(LOOK_SECONDS)
            if self.force_exit:
                await self.lifespan.shutdown()

    async def _end(self) -> None:
        """Waits for the replies in progress, and ends what is left then."""
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline and not self.force_exit:
            if self._engine.queue.is_empty and not (self._page and self._page.is_busy):
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._end_all()

    def _end_all(self) -> None:
        self._engine.end()
        if self._page is not None:
            self._page.end()
