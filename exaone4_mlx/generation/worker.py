"""One thread per model for all of its work: replies in order, and idle work between them.

Notes:
- An array that is not evaluated yet belongs to the thread that created it, as do MLX's streams. So all work on a model
  runs in one thread. Callers in any thread submit iterators, and receive Python values.
- Replies have priority over idle work. Idle work runs piece by piece, so that a reply waits for one piece at most.
- The thread holds the queue of jobs and no reference to the model. It ends with the model. Its last call clears its
  streams, because MLX's CPU backend (0.32) may abort the process otherwise.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from .prompt_cache import CheckpointPool

T = TypeVar("T")

EXIT_SECONDS = 2.0  # the longest wait for the thread at the end of a model or of the process
#: Waits end after this time and begin again. A signal that arrives just before a wait of Python does not end the wait.
WAIT_SECONDS = 0.2


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

    @abstractmethod
    def cancel(self) -> None:
        """Ends the reply regularly. Any thread may call it."""


class Job(Generic[T]):
    """Work for the worker thread. Any thread may iterate the job for its results; errors are raised there.

    Idle work (`idle`) has no results. Its pieces run while no other job waits.
    """

    def __init__(self, work: Iterator[T], queue: JobQueue, idle: bool, cancel: Callable[[], None] | None) -> None:
        self._work, self._queue, self._cancel, self.idle = work, queue, cancel, idle
        self._results: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._ended = threading.Event()
        self._closed = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._ended.is_set() and self._results.empty():
            raise StopIteration
        self._queue.refuse_worker()
        while True:
            with contextlib.suppress(Empty):
                kind, value = self._results.get(timeout=WAIT_SECONDS)
                break
        if kind == "result":
            return value
        try:
            raise value if kind == "error" else StopIteration
        finally:
            del value  # its traceback holds this frame

    @property
    def place(self) -> int:
        """The number of jobs before this one; 0 once it runs."""
        return self._queue.place(self)

    def withdraw(self) -> bool:
        """Ends a job that waits in the queue; returns whether it did."""
        if not self._queue.remove(self):
            return False
        try:
            _close(self._work)
        finally:
            self.end()
        return True

    def close(self, wait: bool = True) -> None:
        """Ends the work after the piece in progress, or before the work starts, and waits for the end.

        It does not wait in the worker thread, where the garbage collector may call it.
        """
        self._closed = True
        self.withdraw()
        while wait and not self._queue.is_worker and not self._ended.wait(1.0) and not sys.is_finalizing():
            pass

    def wait(self) -> None:
        """Returns when the work has ended. Raises RuntimeError in the worker thread."""
        self._queue.refuse_worker()
        while not self._ended.wait(WAIT_SECONDS):
            pass

    def cancel(self) -> None:
        """Cancels the work, if it can be cancelled."""
        if self._cancel is not None:
            self._cancel()

    def run(self) -> bool:
        """Runs the work, or one piece of idle work, in the worker thread. Returns whether it has ended."""
        try:
            if not self._closed:
                for result in self._work:
                    if self._closed or self._queue.stopped:
                        break
                    if self.idle:
                        return False
                    self._results.put(("result", result))
            _close(self._work)
        except BaseException as error:
            if self.idle:  # no caller waits for its result, and the next job does not depend on it
                with contextlib.suppress(Exception):  # warnings may be errors
                    warnings.warn(f"preparing the next turn failed: {error}", stacklevel=1)
            self._results.put(("error", error))
        self.end()
        return True

    def end(self) -> None:
        self._ended.set()
        self._results.put(("end", None))


class JobQueue:
    """The jobs that wait for the worker thread, replies before idle work, each in the order of submission."""

    def __init__(self) -> None:
        self._waiting: list[Job[Any]] = []
        self._changed = threading.Condition()
        self._running: Job[Any] | None = None  # a reply, not idle work
        self._thread = 0
        self.stopped = False

    @property
    def is_worker(self) -> bool:
        """Whether this is the worker thread."""
        return threading.get_ident() == self._thread

    def refuse_worker(self) -> None:
        if self.is_worker:
            raise RuntimeError("the thread that does the model's work cannot wait for it")

    def add(self, job: Job[Any]) -> None:
        with self._changed:
            if self.stopped:
                job.end()
            else:
                self._waiting.append(job)
                self._waiting.sort(key=lambda job: job.idle)  # stable
            self._changed.notify()

    def place(self, job: Job[Any]) -> int:
        with self._changed:
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def remove(self, job: Job[Any]) -> bool:
        """Removes a job that does not run; returns whether it was in the queue."""
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            if self._running is not None:
                self._running.cancel()
            self._changed.notify()

    def serve(self) -> None:
        """The loop of the worker thread."""
        self._thread = threading.get_ident()
        while (job := self._next()) is not None:
            if not job.run():
                self.add(job)
            with self._changed:
                self._running = None
            del job  # it may hold the last reference to the model
        for left in self._waiting:
            left.end()
        mx.clear_streams()

    def _next(self) -> Job[Any] | None:
        with self._changed:
            while not self._waiting and not self.stopped:
                self._changed.wait()
            if self.stopped:
                return None
            job = self._waiting.pop(0)
            self._running = None if job.idle else job
            return job


class Worker:
    """The thread of a model, and the checkpoint pool of all its conversations. Use `Worker.of(model)`."""

    _all: dict[int, Worker] = {}  # by the id of the model, as long as the model lives  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.checkpoints = CheckpointPool()
        self._queue = JobQueue()
        self._thread = threading.Thread(target=self._queue.serve, name="exaone4_mlx", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, model: Exaone4ForCausalLM) -> Worker:
        """The one worker of a model. It lives as long as the model."""
        with cls._lock:
            worker = cls._all.get(id(model))
            if worker is None:
                worker = cls._all[id(model)] = cls()
                weakref.finalize(model, cls._retire, id(model), worker._queue, worker._thread)
            return worker

    @classmethod
    def _retire(cls, model_id: int, queue: JobQueue, thread: threading.Thread) -> None:
        cls._all.pop(model_id, None)
        queue.stop()
        if thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)

    def submit(self, work: Iterator[T], *, idle: bool = False, cancel: Callable[[], None] | None = None) -> Job[T]:
        """Adds `work` to the queue. `cancel` is called if the model ends first."""
        job = Job(work, self._queue, idle, cancel)
        self._queue.add(job)
        return job

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the worker thread and returns its result."""

        def work() -> Iterator[T]:
            yield function()

        return next(self.submit(work()))


def _close(work: Iterator[Any]) -> None:
    if (close := getattr(work, "close", None)) is not None:
        close()
