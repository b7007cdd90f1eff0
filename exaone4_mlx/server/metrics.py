"""The figures of a server, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..text.events import Done

FIRST_TOKEN = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"exaone4_{name}", text, labels, registry=self.registry)

        self._requests = counter("requests", "Requests, by path and status", ("path", "status"))
        self._errors = counter("errors", "Errors that clients were told of, by kind", ("kind",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("cached_tokens", "Tokens of prompts that were not processed again")
        self._generated = counter("generated_tokens", "Tokens of replies")
        self._running = Gauge("exaone4_running", "Replies in progress", registry=self.registry)
        self._waiting = Gauge("exaone4_waiting", "Requests that wait", registry=self.registry)
        self._first = Histogram(
            "exaone4_first_token_seconds", "Until the first event", buckets=FIRST_TOKEN, registry=self.registry
        )
        self._token = Histogram(
            "exaone4_token_seconds", "Mean time of a token of a reply", buckets=TOKEN, registry=self.registry
        )

    def request(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def error(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def queue(self, running: int, waiting: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)

    def count(self, done: Done, first_seconds: float) -> None:
        tokens = done.thinking_tokens + done.answer_tokens
        self._prompt.inc(done.prompt_tokens)
        self._cached.inc(done.cached_tokens)
        self._generated.inc(tokens)
        self._first.observe(first_seconds)
        if tokens:
            self._token.observe(done.decode_seconds / tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
