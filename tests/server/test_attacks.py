"""Clients that are hostile, slow or unlucky: odd values, no room, stalled connections, the end of the server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

from exaone4_mlx.server import access, http
from exaone4_mlx.server.access import Access, AccessGuard
from exaone4_mlx.server.address import Address
from exaone4_mlx.server.contract import Collected
from exaone4_mlx.server.streams import Stream, all_of

HELLO = [{"role": "user", "content": "Hello"}]
LONG = {"max_tokens": 7000, "min_tokens": 6000}


def opened(served: Any, path: str = "", body: Any = None, head: str = "") -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    if path:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{head}"
        connection.sendall(f"{lines}content-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answer(served: Any, path: str, body: Any, head: str = "") -> tuple[int, Any]:
    found = rest(opened(served, path, body, f"connection: close\r\n{head}"))
    return int(found.split(b" ", 2)[1]), json.loads(found.partition(b"\r\n\r\n")[2])


def test_values_that_are_no_json_are_refused_and_half_characters_are_not_a_fault(served: Any) -> None:
    for value in ("NaN", "-Infinity", "1e999"):
        for place in ('"metadata": {"a": %s}', '"tools": [{"type": "function", "name": "f", "parameters": {"a": %s}}]'):
            body = f'{{"input": "Hello", "max_output_tokens": 2, {place % value}}}'.encode()
            status, found = answer(served, "/v1/responses", body)
            assert status == 400 and value in found["error"]["message"], (body, found)
    body = rb'{"input": "Hello", "max_output_tokens": 2, "user": "\ud800", "metadata": {"\ud800": "\ud800"}}'
    status, found = answer(served, "/v1/responses", body)
    assert status == 200 and found["user"] == "?" and found["metadata"] == {"?": "?"}


def test_replies_that_find_no_room_leave_none_behind(serving: Any, served: Any) -> None:
    loaded = served.engine.model, served.engine.tokenizer
    path = "/v1/chat/completions"
    with serving(loaded=loaded, max_running=1, max_waiting=1) as small:
        status, found = answer(small, path, {"messages": HELLO, "n": 3})
        assert status == 400 and found["error"]["param"] == "n"
        with opened(small, path, {"messages": HELLO, "stream": True, **LONG}):
            until(lambda: small.engine.queue.running)
            for stream in (False, True):
                assert answer(small, path, {"messages": HELLO, "n": 2, "stream": stream})[0] == 429
            assert (small.engine.queue.running, small.engine.queue.waiting) == (1, 0)
        until(lambda: not small.engine.queue.running)


def test_an_error_of_one_reply_ends_the_others() -> None:
    ended: list[bool] = []

    async def long() -> Collected:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)
        return Collected()

    async def wrong() -> Collected:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        asyncio.run(all_of([long(), wrong()]))
    assert ended == [True]

    async def run() -> None:
        work = asyncio.ensure_future(all_of([long(), long()]))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert len(ended) == 3

    asyncio.run(run())


def test_a_client_that_reads_nothing_loses_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SEND_SECONDS", 0.1)
    closed: list[bool] = []

    async def lines() -> Any:
        try:
            while True:
                yield "data: x\n\n"
        finally:
            closed.append(True)

    async def receive() -> Any:
        if asked.pop() is None:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(30)

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")], "asgi": {}}
        await AccessGuard(Stream(lines()), Access(Address()))(scope, receive, send)
        assert closed == [True]

    asked: list[Any] = [None, 1]
    asyncio.run(run())


@pytest.mark.heavy
def test_a_head_that_does_not_come_is_not_waited_for(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.2)
    chat = {"messages": HELLO, "max_tokens": 300, "min_tokens": 250, "stream": True}
    with opened(served, "/v1/chat/completions", chat, "connection: close\r\n") as long:
        assert rest(opened(served)) == b""
        half = opened(served)
        half.sendall(b"GET /health HTTP/1.1\r\nhost: lo")
        assert rest(half) == b""
        twice = opened(served)
        twice.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):
            found += twice.recv(1000)
        twice.sendall(b"GET /health HTTP/1.1\r\nhost: lo")
        assert rest(twice) == b""
        assert b"[DONE]" in rest(long)  # a request that is there has its time


def test_an_upgrade_is_no_fault(served: Any) -> None:
    with opened(served) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert b" 200 " in connection.recv(100)


def test_refusals_have_the_form_of_the_dialect(served: Any) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        status, found = answer(served, path, {}, "origin: http://evil.example\r\n")
        assert status == 403 and found["type"] == "error" and found["error"]["type"] == "permission_error"
    assert answer(served, "/v1/responses", {}, "origin: http://evil.example\r\n")[1]["error"]["param"] is None


def test_errors_name_the_field_of_the_request(served: Any) -> None:
    chat, responses = "/v1/chat/completions", "/v1/responses"
    for path, body, words in (
        (chat, {"messages": HELLO, "tool_choice": {"type": "allowed_tools"}}, "tool_choice: "),
        (responses, {"input": "x", "tools": [{"type": "function"}]}, "name: Field required"),
        (responses, {"input": [{"type": "reasoning", "content": 5}]}, "input.0: content"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 5, "output_config": {"format": {}}}, "output_config.format"),
    ):
        status, found = answer(served, path, body)
        assert status == 400 and found["error"]["message"].startswith(words), found
        assert path != chat or found["error"]["param"] == "tool_choice"


def test_messages_name_their_prompt_and_keep_to_a_schema(served: Any) -> None:
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 40, "temperature": 0}
    counted = answer(served, "/v1/messages/count_tokens", {"messages": HELLO})[1]["input_tokens"]
    start = rest(opened(served, "/v1/messages", body | {"stream": True}, "connection: close\r\n"))
    assert f'"usage": {{"input_tokens": {counted},'.encode() in start
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
    form = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    assert json.loads(answer(served, "/v1/messages", body | form)[1]["content"][0]["text"]) == {"a": 7}


def test_clients_learn_that_the_server_ends(serving: Any, served: Any) -> None:
    loaded = served.engine.model, served.engine.tokenizer
    chat, claude = {"messages": HELLO, **LONG}, {"messages": HELLO, "max_tokens": 7000}
    with serving(loaded=loaded, seconds=0, max_running=2) as ending:
        running = [opened(ending, "/v1/chat/completions", chat | {"stream": stream}) for stream in (True, False)]
        until(lambda: ending.engine.queue.running == 2)
        waiting = [
            opened(ending, "/v1/messages", claude | {"stream": True}),
            opened(ending, "/v1/responses", {"input": "Hello", "stream": True}),
            opened(ending, "/v1/messages", claude),
        ]
        until(lambda: ending.engine.queue.waiting == 3)
        ending.server.should_exit = True
        stream, whole, messages, responses, waited = (rest(one) for one in (*running, *waiting))
    assert b"shutting down" in stream and b"[DONE]" in stream
    assert b" 503 " in whole[:20] and b'"code":"shutting_down"' in whole
    assert b"event: error" in messages and b"shutting down" in messages
    assert b"event: response.failed" in responses and b"shutting down" in responses
    assert b" 503 " in waited[:20] and b'"type":"error"' in waited
    assert (ending.engine.queue.running, ending.engine.queue.waiting) == (0, 0)
