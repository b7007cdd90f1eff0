"""The HTTP server: uvicorn with a limit for the head of a request, and an end that clients learn of."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .engine import ModelServer

HEAD_SECONDS = 20.0  # in which the head of a request must be there
END_SECONDS = 5  # for the last words of replies that are ended


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


class HttpServer(uvicorn.Server):
    """Serves `app`. At the end, replies in progress have `seconds`; then `engine` ends them with an error."""

    def __init__(self, app: Any, engine: ModelServer, seconds: int, **settings: Any) -> None:
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=seconds + END_SECONDS,
            **settings,
        )
        super().__init__(config)
        self._engine, self._seconds = engine, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._seconds, self._engine.end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
