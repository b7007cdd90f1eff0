"""The one thread that does a model's MLX work: a job at a time, in the order in which they were asked for.

What is peculiar here:
- An array that is not computed yet belongs to the thread that made it, and so do MLX's streams. All chats of a
  model share this thread; callers in any thread give it iterators and get Python values back.
- Idle work goes on between jobs, one piece at a time, so that a job waits for one piece at most.
- The thread ends with its model. Its last act is to clear its streams: MLX's CPU backend (0.32) may abort the
  process otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from .prompt_cache import CheckpointPool

T = TypeVar("T")

EXIT_SECONDS = 2.0  # that the end of the process waits for the thread


class Job(Generic[T]):
    """Work that was asked for: iterate it, in any thread, for what the work yields. Its errors are raised there."""

    def __init__(self, work: Iterator[T], line: _Line) -> None:
        self._work, self._line = work, line
        self._results: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._ended = threading.Event()
        self._closed = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._ended.is_set() and self._results.empty():
            raise StopIteration
        kind, value = self._results.get()
        if kind == "result":
            return value
        try:
            raise value if kind == "error" else StopIteration
        finally:
            del value  # its traceback holds this frame

    @property
    def place(self) -> int:
        """How many jobs come before this one; 0 once it is being done."""
        return self._line.place(self)

    def withdraw(self) -> None:
        """Takes the job out of the line, if it has not begun."""
        self._line.withdraw(self)

    def close(self) -> None:
        """Ends the work after the result in hand, or before it has begun, and waits for that.

        In the thread of the owner itself, where the garbage collector may call it, there is no waiting.
        """
        self._closed = True
        self._line.withdraw(self)
        while not self._line.is_here() and not self._ended.wait(1.0) and not sys.is_finalizing():
            pass

    def cancel(self) -> None:
        """Asks work that can be cancelled to end."""
        if (cancel := getattr(self._work, "cancel", None)) is not None:
            cancel()

    def run(self) -> None:
        """All of the work, in the thread of the owner."""
        try:
            for result in self._work:
                self._results.put(("result", result))
                if self._closed or self._line.stopped:
                    break
            _close(self._work)
        except BaseException as error:
            self._results.put(("error", error))
        self.end()

    def end(self) -> None:
        self._ended.set()
        self._results.put(("end", None))


class IdleWork:
    """Work for when nothing else is to be done. `drop()` ends it between two pieces."""

    def __init__(self, work: Iterator[Any], line: _Line) -> None:
        self._work, self._line = work, line
        self._ended = threading.Event()
        self.dropped = False

    def drop(self) -> None:
        """Ends the work after the piece in hand, and frees what it holds."""
        self.dropped = True
        if self._line.withdraw(self):
            _close(self._work)

    def wait(self) -> None:
        """Returns when the work is done or dropped. Raises RuntimeError in the thread that has to do it."""
        if self._line.is_here():
            raise RuntimeError("the thread that does the model's work cannot wait for it")
        self._ended.wait()

    def step(self) -> bool:
        """One piece, in the thread of the owner; False when it was the last."""
        try:
            if not self.dropped:
                next(self._work)
                return True
        except StopIteration:
            pass
        except Exception as error:  # nobody waits for it, and the next job begins afresh
            with contextlib.suppress(Warning):  # raised where warnings are errors
                warnings.warn(f"preparing the next turn failed: {error}", stacklevel=1)
        _close(self._work)
        self.end()
        return False

    def end(self) -> None:
        self._ended.set()


class _Line:
    """Who waits for the thread. The thread holds this and nothing of the model, which can end before it."""

    def __init__(self) -> None:
        self._jobs: collections.deque[Job[Any]] = collections.deque()
        self._idle: collections.deque[IdleWork] = collections.deque()
        self._changed = threading.Condition()
        self._running: Job[Any] | None = None
        self._thread = 0
        self.stopped = False

    def is_here(self) -> bool:
        """Whether this is the thread that does the work."""
        return threading.get_ident() == self._thread

    def add(self, work: Job[Any] | IdleWork) -> None:
        with self._changed:
            if self.stopped:
                work.end()
            elif isinstance(work, Job):
                self._jobs.append(work)
            else:
                self._idle.append(work)
            self._changed.notify()

    def place(self, job: Job[Any]) -> int:
        with self._changed:
            return self._jobs.index(job) + (self._running is not None) if job in self._jobs else 0

    def withdraw(self, work: Job[Any] | IdleWork) -> bool:
        """Takes work that is not being done out of the line; whether it was there."""
        line: collections.deque[Any] = self._jobs if isinstance(work, Job) else self._idle
        with self._changed:
            if work not in line:
                return False
            line.remove(work)
        work.end()
        return True

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            if self._running is not None:
                self._running.cancel()
            self._changed.notify()

    def serve(self) -> None:
        """The life of the thread."""
        self._thread = threading.get_ident()
        while (work := self._next()) is not None:
            if isinstance(work, Job):
                work.run()
            elif work.step():
                self.add(work)
            with self._changed:
                self._running = None
            del work  # it may hold the last reference to the model
        waiting: list[Job[Any] | IdleWork] = [*self._jobs, *self._idle]
        for left in waiting:
            left.end()
        mx.clear_streams()

    def _next(self) -> Job[Any] | IdleWork | None:
        with self._changed:
            while not self._jobs and not self._idle and not self.stopped:
                self._changed.wait()
            if self.stopped:
                return None
            if not self._jobs:
                return self._idle.popleft()
            self._running = self._jobs.popleft()
            return self._running


class Owner:
    """A model's thread, and what its chats share: get it with `Owner.of(model)`."""

    _all: dict[int, Owner] = {}  # by the id of the model, as long as the model lives  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.checkpoints = CheckpointPool()
        self._line = _Line()
        self._thread = threading.Thread(target=self._line.serve, name="exaone4_mlx", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, model: Exaone4ForCausalLM) -> Owner:
        """The owner of a model: one, as long as the model lives."""
        with cls._lock:
            owner = cls._all.get(id(model))
            if owner is None:
                owner = cls._all[id(model)] = cls()
                weakref.finalize(model, cls._retire, id(model), owner._line, owner._thread)
            return owner

    @classmethod
    def _retire(cls, model_id: int, line: _Line, thread: threading.Thread) -> None:
        cls._all.pop(model_id, None)
        line.stop()
        if thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)

    def submit(self, work: Iterator[T]) -> Job[T]:
        """Has `work` done after all that was asked for before."""
        job = Job(work, self._line)
        self._line.add(job)
        return job

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns in the thread of the owner."""
        return next(self.submit(_once(function)))

    def when_idle(self, work: Iterator[Any]) -> IdleWork:
        """Has `work` done, a piece for each `next`, while no job waits."""
        idle = IdleWork(work, self._line)
        self._line.add(idle)
        return idle


def _once(function: Callable[[], T]) -> Iterator[T]:
    yield function()


def _close(work: Iterator[Any]) -> None:
    if (close := getattr(work, "close", None)) is not None:
        close()
