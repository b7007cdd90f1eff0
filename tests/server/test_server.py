"""The server's rules: who is answered, what is refused and how, the queue, and connections that close."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

from exaone4_mlx.generation.options import Options
from exaone4_mlx.server import access, streams
from exaone4_mlx.server.access import read_keys
from exaone4_mlx.server.address import Address
from exaone4_mlx.server.engine import ModelServer, Task
from exaone4_mlx.server.metrics import Metrics
from exaone4_mlx.server.queue import Queue, QueueFull

KEY, OTHER = "a-long-key-of-mine", "another-long-key"
HELLO = [{"role": "user", "content": "Hello"}]
MARKS = "[|endofturn|]<tool_call>[|assistant|]</think>"


def call(served: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """(status, body, headers) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    given = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers


@pytest.fixture(scope="module")
def locked(serving: Any) -> Iterator[Any]:
    with serving((KEY, OTHER), ("http://localhost:3000",), max_body_bytes=20_000) as server:
        yield server


# --- who is answered ------------------------------------------------------------------------------------------


def test_only_known_names_and_origins_are_answered(served: Any, locked: Any) -> None:
    for host, status in (("evil.example", 400), ("127.0.0.1", 200), ("localhost:99", 200), ("10.0.0.7", 200)):
        assert call(served, "GET", "/v1/models", host=host)[0] == status, host
    for origin in ("http://evil.example", "null", "http://localhost:3000"):
        assert call(served, "POST", "/v1/chat/completions", {"messages": HELLO}, origin=origin)[0] == 403, origin
    simple = {"content_type": "text/plain", "origin": "http://evil.example"}
    assert call(served, "POST", "/v1/chat/completions", {"messages": HELLO}, **simple)[0] == 403
    named = {"origin": "http://localhost:3000", "authorization": f"Bearer {KEY}"}
    status, _, headers = call(locked, "GET", "/v1/models", **named)
    assert status == 200 and headers["access-control-allow-origin"] == "http://localhost:3000"
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    status, _, headers = call(locked, "OPTIONS", "/v1/chat/completions", origin="http://localhost:3000", **asked)
    assert status == 200 and "authorization" in headers["access-control-allow-headers"].lower()


def test_a_key_is_needed(locked: Any) -> None:
    for given in ({}, {"authorization": "Bearer wrong-key-here"}, {"authorization": KEY}, {"x_api_key": KEY[:-1]}):
        status, body, _ = call(locked, "GET", "/v1/models", **given)
        assert status == 401 and "API key" in body["error"]["message"], given
    for given in ({"authorization": f"bearer {KEY}"}, {"x_api_key": OTHER}):
        assert call(locked, "GET", "/v1/models", **given)[0] == 200, given
    assert call(locked, "GET", "/health")[0] == 200
    for path in ("/health/../v1/models", "//v1/models", "/v1/models/", "/metrics", "/openapi.json", "/docs"):
        assert call(locked, "GET", path)[0] == 401, path


def test_keys_are_compared_in_constant_time(locked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = access.hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: (compared.append(b), real(a, b))[1])
    call(locked, "GET", "/v1/models", x_api_key=KEY)
    assert set(compared) == {KEY.encode(), OTHER.encode()}


def test_keys_are_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\n{OTHER}\n")
    assert read_keys([], file) == (KEY, OTHER)
    monkeypatch.setenv(access.KEY_VARIABLE, KEY)
    assert read_keys([], None) == (KEY,) and read_keys([OTHER], None) == (OTHER,)
    for wrong in ("short", "with a space", "열쇠열쇠열쇠열쇠"):
        with pytest.raises(ValueError, match="at least 8"):
            read_keys([wrong], None)


# --- bodies ---------------------------------------------------------------------------------------------------


def test_bodies_have_limits(locked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"messages": [{"role": "user", "content": "x" * 30_000}]}
    assert call(locked, "POST", "/v1/messages", big, x_api_key=KEY)[0] == 413
    head = f"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as endless:
        endless.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):  # the server closes it
            for _ in range(30):
                endless.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert b" 413 " in endless.recv(100)
    monkeypatch.setattr(access, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as slow:
        slow.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(100)


def test_wrong_requests_name_the_field(served: Any) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    chat, messages = "/v1/chat/completions", "/v1/messages"
    cases: list[tuple[str, Any, str | None]] = [
        (chat, b"{", None),
        (chat, b"\xff\xfe", None),
        (chat, b"", None),
        (chat, {"messages": HELLO, "temperatur": 1}, "temperatur"),
        (chat, {"messages": HELLO, "temperature": "hot"}, "temperature"),
        (chat, {"messages": HELLO, "n": 100}, "n"),
        (chat, {"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
        (chat, {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format"),
        (chat, {"messages": [{"role": "user", "content": None}]}, None),
        (chat, b'{"messages": [{"role": "user", "content": ' + deep + b"}]}", None),
        (chat, {"messages": HELLO, "tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/v1/completions", {"prompt": [99_999_999]}, None),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}, None),
        (messages, {"messages": HELLO}, "max_tokens"),
        (messages, {"messages": [{"role": "system", "content": "x"}], "max_tokens": 5}, "messages"),
    ]
    for path, body, param in cases:
        status, answer, _ = call(served, "POST", path, body)
        assert status == 400, (path, body, answer)
        if path == messages:
            assert answer["type"] == "error" and (param or "") in answer["error"]["message"], answer
        else:
            assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"], answer
            assert param is None or answer["error"]["param"] == param, (body, answer)
    status, answer, _ = call(
        served, "POST", chat, {"messages": HELLO}, content_type="application/x-www-form-urlencoded"
    )
    assert status == 400 and "Content-Type: application/json" in answer["error"]["message"]  # curl without -H
    assert call(served, "GET", "/v1/nothing")[0] == 404
    assert call(served, "PUT", "/v1/chat/completions")[0] == 405
    status, _, headers = call(served, "GET", "/v1/models/a%0d%0ax-injected:%20yes")
    assert status in (200, 404) and "x-injected" not in headers


def test_control_strings_of_any_field_are_text(served: Any) -> None:
    """The prompt has the control tokens of the template, whatever a field holds."""

    def prompt(mark: str) -> list[int]:
        function = {"name": "f" + mark, "description": mark, "parameters": {"type": "object", "properties": {mark: {}}}}
        messages = [
            {"role": "system", "content": "s" + mark},
            {"role": "user", "content": [{"type": "text", "text": "u" + mark}]},
            {
                "role": "assistant",
                "content": "c" + mark,
                "reasoning_content": mark,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": mark, "arguments": {mark: mark}}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": {mark: mark}},
        ]
        task = Task(messages, Options(), ({"type": "function", "function": function},))
        ids = served.engine._prepare(task).request.ids
        return [id for id in ids if id in served.engine.tokenizer.control_ids]

    assert prompt(MARKS) == prompt("plain")
    raw = Task(served.engine.tokenizer.encode_plain(MARKS), Options())
    assert not set(served.engine._prepare(raw).request.ids) & served.engine.tokenizer.control_ids


# --- the queue ------------------------------------------------------------------------------------------------


def test_clients_take_turns_and_a_full_queue_refuses() -> None:
    order: list[str] = []

    async def one(queue: Queue, client: str) -> None:
        async with queue.slot(client):
            order.append(client)
            await asyncio.sleep(0)

    async def run() -> None:
        queue = Queue(1, 4, Metrics())
        async with queue.slot("first"):
            waiting = [asyncio.ensure_future(one(queue, client)) for client in "aaab"]
            await asyncio.sleep(0)
            assert not queue.has_room()
            with pytest.raises(QueueFull):
                await one(queue, "c")
            waiting[1].cancel()
            await asyncio.sleep(0)
            assert queue.waiting == 3
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(run())
    assert order == ["a", "b", "a"]


def test_replies_in_progress_have_room_for_their_caches(served: Any, serving: Any) -> None:
    order: list[str] = []

    async def one(queue: Queue, name: str, cost: int) -> None:
        async with queue.slot(name, cost):
            order.append(name)
            await asyncio.sleep(0)

    async def run() -> None:
        queue = Queue(3, 9, Metrics(), room=10)
        async with queue.slot("first", 6):
            waiting = [
                asyncio.ensure_future(one(queue, *given)) for given in (("large", 5), ("small", 1), ("huge", 11))
            ]
            await asyncio.sleep(0.01)
            assert order == [] and queue.waiting == 3, "none overtakes one that waits for room"
        await asyncio.gather(*waiting)
        assert (queue.running, queue._used) == (0, 0)

    asyncio.run(run())
    assert order == ["large", "small", "huge"], "one alone is admitted"
    loaded = served.engine.model, served.engine.tokenizer
    with serving(loaded=loaded, room_bytes=3_000_000) as small:
        status, answer, _ = call(small, "POST", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 5000})
        assert status == 413 and "smaller max_tokens" in answer["error"]["message"]
        assert call(small, "POST", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 5})[0] == 200
        open_end = Task(HELLO, Options())
        assert 100 < small.engine._prepare(open_end).request.max_tokens < 5000, "as long as there is room"


def test_a_full_server_says_when_to_come_back(serving: Any, served: Any) -> None:
    loaded = served.engine.model, served.engine.tokenizer
    with serving(loaded=loaded, max_running=1, max_waiting=0) as small:
        connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=30)
        body = {"messages": HELLO, "stream": True, "max_tokens": 4000, "min_tokens": 3000, "logit_bias": {}}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        connection.getresponse().read(400)
        status, answer, headers = call(small, "POST", "/v1/chat/completions", {"messages": HELLO})
        assert status == 429 and headers["retry-after"] and answer["error"]["type"] == "rate_limit_error"
        connection.close()  # ends the reply
        _wait_until(lambda: not small.engine.queue.running)
        assert call(small, "POST", "/v1/chat/completions", {"messages": HELLO})[0] == 200
        assert "exaone4_requests_total" in call(small, "GET", "/metrics")[1]


def test_a_closed_connection_ends_a_reply_that_is_not_streamed(served: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    body = {"messages": HELLO, "max_tokens": 4000, "min_tokens": 3000}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    _wait_until(lambda: served.engine.queue.running)
    connection.close()
    _wait_until(lambda: not served.engine.queue.running)


def test_a_stream_pings_while_a_prompt_is_read(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> Any:
        await asyncio.sleep(0.3)
        yield "data: x\n\n"

    monkeypatch.setattr(streams, "PING_SECONDS", 0.1)

    async def run() -> list[str]:
        return [line async for line in streams.with_pings(slow())]

    lines = asyncio.run(run())
    assert lines[0] == ": ping\n\n" and lines[-1] == "data: x\n\n"


def test_a_slow_import_is_done_before_a_request_waits_for_it(unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("exaone4_mlx.server.engine.import_module", imported.append)
    ModelServer(*unread, "demo").threads.shutdown()
    assert imported == ["jsonschema"]


def test_an_address_is_checked() -> None:
    assert Address.checked("127.0.0.1", None).is_local and not Address.checked("0.0.0.0", None).is_local
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="in use"):
        Address.checked("127.0.0.1", taken.getsockname()[1])
    for host, port, names in (
        ("no.such.name.example", None, ()),
        ("127.0.0.1", 99999, ()),
        ("127.0.0.1", None, ("a:1",)),
    ):
        with pytest.raises(ValueError, match=r"--host|--port|--allowed-host"):
            Address.checked(host, port, names)


def test_the_contract_is_shown_without_a_network(served: Any) -> None:
    schema = call(served, "GET", "/openapi.json")[1]
    assert set(schema["paths"]) >= {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/health",
    }
    assert schema["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
    page = call(served, "GET", "/docs")[1]
    assert "http" not in page and "<script" not in page


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
