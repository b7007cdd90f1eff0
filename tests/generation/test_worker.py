"""One thread does all work of a model: one job at a time, in order, idle work between jobs."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from conftest import hold, tiny_model

from exaone4_mlx.generation.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    model = tiny_model()
    yield Worker.of(model)
    del model


def test_a_model_has_one_worker_with_one_thread() -> None:
    model, other = tiny_model(), tiny_model()
    assert Worker.of(model) is Worker.of(model) is not Worker.of(other)
    threads = {Worker.of(model).call(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_all_work_runs_in_the_thread_that_created_its_arrays(worker: Worker) -> None:
    """An array that is not evaluated yet fails in other threads."""
    kept: list[mx.array] = []

    def begin() -> None:
        kept.append(mx.random.normal((3, 3)) @ mx.ones((3, 3)))

    worker.call(begin)
    assert worker.call(lambda: kept[0].shape) == (3, 3)
    assert isinstance(worker.call(lambda: kept[0].sum().item()), float)


def test_jobs_run_one_at_a_time_in_the_order_of_submission(worker: Worker) -> None:
    log: list[str] = []

    def work(name: str) -> Iterator[str]:
        for i in range(3):
            log.append(f"{name}{i}")
            yield name

    go = hold(worker)
    jobs = [worker.submit(work(name)) for name in "abc"]
    assert [job.place for job in jobs] == [1, 2, 3]
    go.set()
    assert [list(job) for job in reversed(jobs)] == [["c"] * 3, ["b"] * 3, ["a"] * 3]
    assert log == [f"{name}{i}" for name in "abc" for i in range(3)]
    assert [job.place for job in jobs] == [0, 0, 0]


def test_an_error_is_raised_to_the_consumer_of_the_results(worker: Worker) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the other thread")

    job = worker.submit(work())
    assert next(job) == 1
    with pytest.raises(ZeroDivisionError, match="in the other thread"):
        next(job)
    with pytest.raises(StopIteration):
        next(job)
    assert worker.call(lambda: "continues") == "continues"


class Panic(BaseException):
    """As pyo3's: no Exception, and its text may fail."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_no_error_ends_the_worker_or_leaves_a_job_waiting(worker: Worker) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise Panic

    class Unclosable:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            raise Panic

    worker.submit(work(), idle=True).wait()
    job = worker.submit(work())
    assert next(job) == 1
    with pytest.raises(Panic):
        next(job)
    go = hold(worker)
    waiting: Any = worker.submit(Unclosable())
    with pytest.raises(Panic):
        waiting.withdraw()
    waiting.wait()
    go.set()
    assert worker.call(lambda: "continues") == "continues"


def test_a_closed_job_ends_in_the_worker_thread(worker: Worker) -> None:
    ended: list[int] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.append(threading.get_ident())

    job = worker.submit(endless())
    next(job)
    job.close()
    assert ended == [worker.call(threading.get_ident)]


def test_a_waiting_job_can_be_withdrawn(worker: Worker) -> None:
    begun: list[bool] = []

    def work() -> Iterator[int]:
        begun.append(True)
        yield 0

    go = hold(worker)
    job = worker.submit(work())
    job.close()
    assert list(job) == []
    go.set()
    worker.call(lambda: None)
    assert begun == []


def test_idle_work_waits_for_jobs_after_every_piece(worker: Worker) -> None:
    log: list[Any] = []
    piece_begun, piece_goes = threading.Event(), threading.Event()

    def pieces() -> Iterator[None]:
        for i in range(3):
            log.append(i)
            if i == 0:
                piece_begun.set()
                piece_goes.wait(10)
            yield

    idle = worker.submit(pieces(), idle=True)
    piece_begun.wait(10)
    job = worker.submit(_logged(log, "job"))
    piece_goes.set()
    list(job)
    idle.wait()
    assert log == [0, "job", 1, 2]


def _logged(log: list[Any], entry: Any) -> Iterator[None]:
    log.append(entry)
    yield


def test_closed_idle_work_ends(worker: Worker) -> None:
    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.001)
            yield 0

    idle = worker.submit(endless(), idle=True)
    idle.close(wait=False)
    idle.wait()


def test_failing_idle_work_warns_and_does_not_stop_the_thread(worker: Worker) -> None:
    def failing() -> Iterator[int]:
        raise RuntimeError("out of memory")
        yield 0

    with pytest.warns(UserWarning, match="preparing the next turn failed: out of memory"):
        worker.submit(failing(), idle=True).wait()
    assert worker.call(lambda: 1) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as with python -W error
        worker.submit(failing(), idle=True).wait()
    assert worker.call(lambda: 1) == 1


def test_closed_idle_work_is_freed_while_the_thread_is_busy(worker: Worker) -> None:
    ended: list[bool] = []

    def work() -> Iterator[int]:
        try:
            yield 0
            yield 1
        finally:
            ended.append(True)

    idle_work = work()
    next(idle_work)
    go = hold(worker)
    idle = worker.submit(idle_work, idle=True)
    idle.close(wait=False)
    assert ended == [True]
    idle.wait()
    go.set()


def test_the_worker_does_not_wait_for_itself(worker: Worker) -> None:
    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.001)
            yield 0

    job = worker.submit(iter([1]))
    worker.call(job.close)
    idle = worker.submit(endless(), idle=True)
    with pytest.raises(RuntimeError, match="cannot wait for it"):
        worker.call(idle.wait)
    idle.close(wait=False)


def test_the_end_of_a_model_cancels_the_job_in_progress() -> None:
    """Otherwise a reply that yields nothing for a long time (inside a tool call) would be killed inside MLX."""
    model = tiny_model()
    worker, begun, cancelled = Worker.of(model), threading.Event(), threading.Event()

    def endless() -> Iterator[None]:
        begun.set()
        cancelled.wait(20)
        yield

    job = worker.submit(endless(), cancel=cancelled.set)
    begun.wait(10)
    started = time.perf_counter()
    del model
    gc.collect()
    assert list(job) in ([], [None])
    assert time.perf_counter() - started < 15, "it waited for its end"


def test_the_thread_ends_with_its_model() -> None:
    model = tiny_model()
    worker = Worker.of(model)
    worker.call(lambda: mx.eval(mx.ones(3) + 1))
    thread = next(thread for thread in threading.enumerate() if thread.ident == worker.call(threading.get_ident))
    del model
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert worker.submit(iter([1])).place == 0
    assert list(worker.submit(iter([1]))) == [], "a job submitted after the end does not run, and does not block"
