"""The queue of a server: slots for replies in progress, which clients get in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .metrics import Metrics


class QueueFull(RuntimeError):
    """All places in the queue are taken."""


class ServerEnds(RuntimeError):
    """The server ends, and ends its replies."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request again later")


class Queue:
    """Slots for replies in progress, given to clients in turn."""

    def __init__(self, max_running: int, max_waiting: int, metrics: Metrics, room: int | None = None) -> None:
        """`room` bounds the costs of the replies in progress together; one reply alone is always admitted."""
        self.max_running, self.max_waiting, self.room = max_running, max_waiting, room
        self.running = self._used = 0
        self._waiting: OrderedDict[str, deque[tuple[asyncio.Future[None], int]]] = OrderedDict()
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
        waiting = [future for futures in self._waiting.values() for future, _ in futures]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ServerEnds())

    @asynccontextmanager
    async def slot(self, client: str, cost: int = 0) -> AsyncIterator[None]:
        if not self._waiting and self._admits(cost):
            self._begin(cost)
        else:
            if self.waiting >= self.max_waiting:
                raise QueueFull(f"{self.waiting} requests wait already; try again later")
            await self._turn(client, cost)
        self._metrics.queue(self.running, self.waiting)
        try:
            yield
        finally:
            self._end(cost)
            self._metrics.queue(self.running, self.waiting)

    def _admits(self, cost: int) -> bool:
        fits = self.room is None or not self.running or self._used + cost <= self.room
        return fits and self.running < self.max_running

    def _begin(self, cost: int) -> None:
        self.running, self._used = self.running + 1, self._used + cost

    def _end(self, cost: int) -> None:
        self.running, self._used = self.running - 1, self._used - cost
        self._next()

    async def _turn(self, client: str, cost: int) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((mine, cost))
        self._metrics.queue(self.running, self.waiting)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had the slot already
                self._end(cost)
            elif client in self._waiting:
                self._waiting[client] = deque(one for one in self._waiting[client] if one[0] is not mine)
                if not self._waiting[client]:
                    del self._waiting[client]
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            client, futures = next(iter(self._waiting.items()))
            future, cost = futures[0]
            if not self._admits(cost):
                return
            futures.popleft()
            del self._waiting[client]
            if futures:
                self._waiting[client] = futures  # behind the others
            if not future.done():
                self._begin(cost)
                future.set_result(None)
