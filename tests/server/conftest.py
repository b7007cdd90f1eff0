"""A server of the demo model on loopback, in a thread of the test process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from exaone4_mlx import load
from exaone4_mlx.server.access import Access
from exaone4_mlx.server.address import Address


@dataclass
class Served:
    url: str
    engine: Any
    server: Any

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def serving(keys: tuple[str, ...] = (), origins: tuple[str, ...] = (), **options: Any) -> Iterator[Served]:
    """`options` are those of ModelServer, `max_body_bytes` of Access, and `seconds` of HttpServer.

    `page(model, tokenizer, port)` makes the page beside the API.
    """
    pytest.importorskip("uvicorn", reason="the server needs the extra `server`")
    from exaone4_mlx.server.app import make_app
    from exaone4_mlx.server.engine import ModelServer
    from exaone4_mlx.server.http import Beside, HttpServer

    body = {"max_body_bytes": options.pop("max_body_bytes")} if "max_body_bytes" in options else {}
    seconds, page = options.pop("seconds", 5), options.pop("page", None)
    model, tokenizer = options.pop("loaded", None) or load("demo", dtype="float32")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    access = Access(Address(port=port), keys, frozenset(origins), **body)
    engine = ModelServer(model, tokenizer, "demo", **{"salt_of": access.salt, **options})
    app = make_app(engine, access)
    if page is not None:
        app = Beside(app, page(model, tokenizer, port))
    is_ready = threading.Event()
    server = HttpServer(app, engine, seconds, is_ready.set, log_level="error")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert is_ready.wait(30)
    try:
        yield Served(f"http://127.0.0.1:{port}", engine, server)
    finally:
        server.should_exit = True
        thread.join(10)
        engine.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest.fixture(name="serving", scope="session")
def serving_fixture() -> Callable[..., Any]:
    return serving


@pytest.fixture
def saying(scripted: Callable[..., Any], serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """saying(*replies) sets what the model of a server says next; the server is returned."""
    with serving(loaded=scripted("x")) as server:

        def say(*replies: str) -> Any:
            scripted(*replies)
            return server

        yield say
