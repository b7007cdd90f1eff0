"""One thread per model for all of its work: replies together, step by step, and idle work while there are none.

Notes:
- An array that is not evaluated yet belongs to the thread that created it, as do MLX's streams. So all work on a model
  runs in one thread. Callers in any thread submit iterators, and receive Python values.
- Up to MOST_TOGETHER jobs are in progress at once. Each runs until it yields a `Piece`, which says how long its next
  piece takes. In a round, each job with a short piece runs it, and one job runs a long piece: the oldest. So those that
  decode wait for one chunk of a prompt at most. A job that yields no `Piece` runs as a whole.
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
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import mlx.core as mx

from ..model.network import Exaone4ForCausalLM
from .prefill import Batch, CheckpointPool, Piece

T = TypeVar("T")
Cancel = Callable[[], None]

EXIT_SECONDS = 2.0  # the longest wait for the thread at the end of a model or of the process
#: Waits end after this time and begin again. A signal that arrives just before a wait of Python does not end the wait.
WAIT_SECONDS = 0.2
MOST_TOGETHER = 8  # jobs


class Job(Generic[T]):
    """Work for the worker thread. Any thread may iterate the job for its results; errors are raised there.

    Idle work (`idle`) has no results. Its pieces run while there is no other job. A job waits for other jobs with
    the same `uses`, the id of a prompt cache.
    """

    def __init__(
        self, work: Iterator[T | Piece], queue: JobQueue, idle: bool, cancel: Cancel | None, uses: int | None
    ) -> None:
        self._work, self._queue, self._cancel, self.idle, self.uses = work, queue, cancel, idle, uses
        self.next_piece = Piece.LONG
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
        """Runs the next piece of the work in the worker thread. Returns whether the work has ended."""
        try:
            if not self._closed:
                for result in self._work:
                    if self._closed or self._queue.stopped:
                        break
                    if isinstance(result, Piece):
                        self.next_piece = result
                        return False
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
    """The jobs of the worker thread: those in progress, and those that wait, replies before idle work."""

    def __init__(self) -> None:
        self._waiting: list[Job[Any]] = []  # in the order of submission
        self._running: list[Job[Any]] = []  # the oldest first
        self._changed = threading.Condition()
        self._thread = 0
        self.stopped = False
        self.batch = Batch()

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
            running = [job for job in self._running if not job.idle]
            return self._waiting.index(job) + len(running) if job in self._waiting else 0

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
            for job in self._running:
                job.cancel()
            self._changed.notify()

    def serve(self) -> None:
        """The loop of the worker thread."""
        self._thread = threading.get_ident()
        while self._start_jobs():
            self._run_round()
        for left in self._waiting:
            left.end()
        mx.clear_streams()

    def _start_jobs(self) -> bool:
        """Waits for a job if there is none, and starts those that can run. Returns whether any is in progress."""
        with self._changed:
            while not self._waiting and not self._running and not self.stopped:
                self._changed.wait()
            for job in () if self.stopped else list(self._waiting):
                if len(self._running) == MOST_TOGETHER or (job.idle and self._running):
                    break
                if job.uses not in {other.uses for other in self._running} - {None}:
                    self._waiting.remove(job)
                    self._running.append(job)
            self.batch.has_others = sum(not job.idle for job in (*self._running, *self._waiting)) > 1
            return bool(self._running)

    def _run_round(self) -> None:
        """Runs a piece of each job with a short piece, then the oldest long piece: one between two steps of a job."""
        kinds = {kind: [job for job in self._running if job.next_piece is kind] for kind in Piece}
        for job in (*kinds[Piece.SHORT], *kinds[Piece.LONG][:1]):
            has_ended = job.run()
            if has_ended or job.idle:
                with self._changed:
                    self._running.remove(job)
            if not has_ended and job.idle:
                self.add(job)


class Worker:
    """The thread of a model, and the checkpoint pool of all its conversations. Use `Worker.of(model)`."""

    _all: dict[int, Worker] = {}  # by the id of the model, as long as the model lives  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.checkpoints, self._queue = CheckpointPool(), JobQueue()
        self.batch = self._queue.batch
        self._thread = threading.Thread(target=self._queue.serve, name="exaone4_mlx", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, model: Exaone4ForCausalLM) -> Worker:
        """The one worker of a model. It lives as long as the model."""
        with cls._lock:
            worker = cls._all.get(id(model))
            if worker is None:
                worker = cls._all[id(model)] = cls()
                end = weakref.finalize(model, cls._retire, id(model), worker._queue, worker._thread)
                if model.ranks is not None:
                    model.ranks.before_leaving.append(end)
            return worker

    @classmethod
    def _retire(cls, model_id: int, queue: JobQueue, thread: threading.Thread) -> None:
        cls._all.pop(model_id, None)
        queue.stop()
        if thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)

    def submit(
        self, work: Iterator[T | Piece], *, idle: bool = False, cancel: Cancel | None = None, uses: int | None = None
    ) -> Job[T]:
        """Adds `work` to the queue. `cancel` is called if the model ends first; `uses` is as for `Job`."""
        job = Job(work, self._queue, idle, cancel, uses)
        self._queue.add(job)
        return job

    def call(self, function: Callable[[], T], uses: int | None = None) -> T:
        """Runs `function` in the worker thread and returns its result."""
        return next(self.submit((function() for _ in range(1)), uses=uses))


def _close(work: Iterator[Any]) -> None:
    if (close := getattr(work, "close", None)) is not None:
        close()
