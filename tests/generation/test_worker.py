"""One thread does a model's work: in order, one at a time, idle work in between."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from conftest import tiny_model

from exaone4_mlx.generation.worker import Owner


@pytest.fixture
def owner() -> Iterator[Owner]:
    model = tiny_model()
    yield Owner.of(model)
    del model


def hold(owner: Owner) -> threading.Event:
    """Keeps the thread busy until the event is set."""
    go, begun = threading.Event(), threading.Event()

    def work() -> Iterator[None]:
        begun.set()
        go.wait(10)
        yield

    owner.submit(work())
    begun.wait(10)
    return go


def test_a_model_has_one_owner_and_its_work_one_thread() -> None:
    model, other = tiny_model(), tiny_model()
    assert Owner.of(model) is Owner.of(model) is not Owner.of(other)
    threads = {Owner.of(model).call(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_arrays_that_one_thread_began_are_finished_by_it(owner: Owner) -> None:
    """An array that is not computed yet fails in any other thread."""
    kept: list[mx.array] = []

    def begin() -> None:
        kept.append(mx.random.normal((3, 3)) @ mx.ones((3, 3)))

    owner.call(begin)
    assert owner.call(lambda: kept[0].shape) == (3, 3)
    assert isinstance(owner.call(lambda: kept[0].sum().item()), float)


def test_jobs_are_done_one_at_a_time_in_the_order_of_asking(owner: Owner) -> None:
    log: list[str] = []

    def work(name: str) -> Iterator[str]:
        for i in range(3):
            log.append(f"{name}{i}")
            yield name

    go = hold(owner)
    jobs = [owner.submit(work(name)) for name in "abc"]
    assert [job.place for job in jobs] == [1, 2, 3]
    go.set()
    assert [list(job) for job in reversed(jobs)] == [["c"] * 3, ["b"] * 3, ["a"] * 3]
    assert log == [f"{name}{i}" for name in "abc" for i in range(3)]
    assert [job.place for job in jobs] == [0, 0, 0]


def test_error_is_raised_where_the_results_are_taken(owner: Owner) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the other thread")

    job = owner.submit(work())
    assert next(job) == 1
    with pytest.raises(ZeroDivisionError, match="in the other thread"):
        next(job)
    with pytest.raises(StopIteration):
        next(job)
    assert owner.call(lambda: "goes on") == "goes on"


def test_closed_job_ends_its_work_in_its_own_thread(owner: Owner) -> None:
    ended: list[int] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.append(threading.get_ident())

    job = owner.submit(endless())
    next(job)
    job.close()
    assert ended == [owner.call(threading.get_ident)]


def test_job_that_waits_can_be_withdrawn(owner: Owner) -> None:
    begun: list[bool] = []

    def work() -> Iterator[int]:
        begun.append(True)
        yield 0

    go = hold(owner)
    job = owner.submit(work())
    job.close()
    assert list(job) == []
    go.set()
    owner.call(lambda: None)
    assert begun == []


def test_idle_work_waits_for_jobs_after_every_piece(owner: Owner) -> None:
    log: list[Any] = []
    piece_begun, piece_goes = threading.Event(), threading.Event()

    def pieces() -> Iterator[None]:
        for i in range(3):
            log.append(i)
            if i == 0:
                piece_begun.set()
                piece_goes.wait(10)
            yield

    idle = owner.when_idle(pieces())
    piece_begun.wait(10)
    job = owner.submit(_logged(log, "job"))
    piece_goes.set()
    list(job)
    idle.wait()
    assert log == [0, "job", 1, 2]


def _logged(log: list[Any], entry: Any) -> Iterator[None]:
    log.append(entry)
    yield


def test_dropped_idle_work_ends_and_nobody_waits_for_ever(owner: Owner) -> None:
    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.001)
            yield 0

    idle = owner.when_idle(endless())
    idle.drop()
    idle.wait()


def test_failing_idle_work_warns_and_does_not_stop_the_thread(owner: Owner) -> None:
    def failing() -> Iterator[int]:
        raise RuntimeError("out of memory")
        yield 0

    with pytest.warns(UserWarning, match="preparing the next turn failed: out of memory"):
        owner.when_idle(failing()).wait()
    assert owner.call(lambda: 1) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as with python -W error
        owner.when_idle(failing()).wait()
    assert owner.call(lambda: 1) == 1


def test_dropped_idle_work_is_freed_though_the_thread_is_busy(owner: Owner) -> None:
    ended: list[bool] = []

    def work() -> Iterator[int]:
        try:
            yield 0
            yield 1
        finally:
            ended.append(True)

    idle_work = work()
    next(idle_work)
    go = hold(owner)
    idle = owner.when_idle(idle_work)
    idle.drop()
    assert ended == [True]
    idle.wait()
    go.set()


def test_owner_does_not_wait_for_itself(owner: Owner) -> None:
    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.001)
            yield 0

    job = owner.submit(iter([1]))
    owner.call(job.close)
    idle = owner.when_idle(endless())
    with pytest.raises(RuntimeError, match="cannot wait for it"):
        owner.call(idle.wait)
    idle.drop()


def test_end_of_the_process_ends_the_work_under_way() -> None:
    """A reply that yields nothing for long (a call being written) would be killed inside MLX otherwise."""
    model = tiny_model()
    owner = Owner.of(model)

    class Endless:
        cancelled = False

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> None:
            while not self.cancelled:
                time.sleep(0.001)
            raise StopIteration

        def cancel(self) -> None:
            self.cancelled = True

    job: Any = owner.submit(Endless())
    while owner._line._running is None:
        time.sleep(0.001)
    owner._line.stop()
    assert list(job) == []
    owner._thread.join(5)
    assert not owner._thread.is_alive()


def test_thread_ends_with_its_model() -> None:
    model = tiny_model()
    owner = Owner.of(model)
    owner.call(lambda: mx.eval(mx.ones(3) + 1))
    thread = owner._thread
    assert thread.is_alive()
    del model
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert owner.submit(iter([1])).place == 0
    assert list(owner.submit(iter([1]))) == [], "asked too late, the work is not done, and nobody waits"
