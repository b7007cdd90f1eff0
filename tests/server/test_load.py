"""Many clients at once, and requests made at random from the contract: every reply is its own, and nothing is a 500."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx.generation.prefill import Piece
from exaone4_mlx.generation.worker import Job

pytestmark = pytest.mark.heavy

CLIENTS, SECONDS = 64, 60
QUESTIONS = {
    "What is the capital of South Korea?": "The capital of South Korea is Seoul.",
    "3 + 4?": "3 + 4 = 7.",
    "Which one is bigger, 3.12 vs 3.9?": "3.9 is bigger than 3.12.",
}


def test_sixty_four_clients(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of them close half way; some send 100 kB, some nonsense. A decoding reply waits for one chunk at most."""
    ran: list[tuple[Any, Piece, float]] = []  # the pieces of the model's thread, with their jobs and ends
    original = Job.run

    def run(job: Any) -> bool:
        piece = job.next_piece
        ended = original(job)
        ran.append((None if job.idle else job, piece, time.perf_counter()))
        return ended

    monkeypatch.setattr(Job, "run", run)
    wrong: list[str] = []
    counts = {"answered": 0, "closed": 0, "refused": 0, "busy": 0}
    lock, end = threading.Lock(), time.monotonic() + SECONDS
    alone = {question: _ask(served.port, question)[1] for question in QUESTIONS}
    mx.clear_cache()
    before = mx.get_active_memory()

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            kind = rng.random()
            try:
                if kind < 0.05:
                    status, _ = _post(served.port, b"{" * rng.randrange(1, 50))
                    expected, name = {400}, "refused"
                elif kind < 0.1:
                    status, _ = _post(served.port, _body("word " * 20_000))
                    expected, name = {413}, "refused"
                elif number % 4 == 0:
                    _close_half_way(served.port, rng)
                    status, expected, name = 200, {200}, "closed"
                else:
                    question = rng.choice(list(QUESTIONS))
                    status, text = _ask(served.port, question)
                    expected, name = {200, 429}, "answered" if status == 200 else "busy"
                    if status == 200 and text != alone[question]:
                        wrong.append(f"{question}: {text!r}")
                if status not in expected:
                    wrong.append(f"{name}: {status}")
            except OSError as error:
                wrong.append(repr(error))
            with lock:
                counts[name] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    deadline = time.monotonic() + 20
    while served.engine.queue.running and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (served.engine.queue.running, served.engine.queue.waiting) == (0, 0)
    chunks, waits = waits_of(ran)
    print(f"\nchunks between two steps of a reply: {max(chunks)}; its longest wait {max(waits):.2f} s", end="")
    assert len(chunks) > 1000 and max(chunks) <= 1, "a decoding reply waits for one chunk at most"
    print(f"\n{counts}; memory {before / 1e6:.0f} and {mx.get_active_memory() / 1e6:.0f} MB", end="")
    assert counts["answered"] > CLIENTS and counts["closed"]
    served.engine.prefix_store.clear()
    mx.clear_cache()
    assert mx.get_active_memory() <= before + 5e6


def waits_of(ran: list[tuple[Any, Piece, float]]) -> tuple[list[int], list[float]]:
    """For each two steps of a reply one after the other: chunks of other replies between them, and the seconds."""
    last: dict[int, tuple[int, float]] = {}  # the chunks and the time at the last step, by job
    chunks, waits, count = [0], [0.0], 0
    for job, piece, ended in ran:
        if piece is Piece.LONG:
            count += 1
            last.pop(id(job), None)
        elif job is not None:
            if id(job) in last:
                before, then = last[id(job)]
                chunks.append(count - before)
                waits.append(ended - then)
            last[id(job)] = count, ended
    return chunks, waits


def _body(text: str, **more: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "temperature": 0, **more}).encode()


def _post(port: int, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _ask(port: int, question: str) -> tuple[int, str]:
    status, answer = _post(port, _body(question))
    return status, answer["choices"][0]["message"]["content"].strip() if status == 200 else ""


def _close_half_way(port: int, rng: random.Random) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST",
        "/v1/chat/completions",
        _body("Hello", stream=True, min_tokens=200),
        {"content-type": "application/json"},
    )
    connection.getresponse().read(rng.randrange(1, 2000))
    connection.close()


def test_requests_at_random_from_the_contract(served: Any) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    posts = [result.ok() for result in schema.get_all_operations() if result.ok().method == "post"]
    assert len(posts) == 5
    seen: dict[int, int] = {}
    for operation in posts:

        @settings(
            max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
        )
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            if isinstance(case.body, dict):
                for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "min_tokens"):
                    if isinstance(case.body.get(name), int):
                        case.body[name] = min(case.body[name], 4)
                if "max_tokens" not in case.body and "messages" in case.body:
                    case.body["max_tokens"] = 4
            answer = case.call()
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (case.body, answer.text)

        run()
    print(f"\n{seen}", end="")
