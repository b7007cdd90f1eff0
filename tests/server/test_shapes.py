"""The streams of each dialect, byte for byte but for texts and numbers, as goldens/server_streams.txt records them.

The file was written by this server and compared with OpenAI's and Anthropic's references by hand. A change of it is a
change of the contract.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

RECORDED = ROOT / "tests" / "goldens" / "server_streams.txt"
REPLY = (
    'Let me see.\n</think>\n\nOne moment. <tool_call>{"name": "weather", "arguments": {"city": "Seoul"}}</tool_call>'
)
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {}}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": HELLO,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
        "reasoning_effort": "high",
        "stream_options": {"include_usage": True},
    },
    "/v1/completions": {"prompt": "Hello", "logprobs": 1, "max_tokens": 3},
    "/v1/responses": {
        "input": "Hello",
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
        "reasoning": {"effort": "high"},
    },
    "/v1/messages": {
        "messages": HELLO,
        "max_tokens": 500,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "thinking": {"type": "enabled", "budget_tokens": 100},
    },
}
#: Keys whose texts belong to the contract.
WORDS = {"type", "object", "role", "status", "finish_reason", "stop_reason", "name", "event"}


def shape(value: Any, key: str = "") -> Any:
    """A value with its keys in their order, and with texts and numbers that say nothing about the form."""
    if isinstance(value, dict):
        return {name: shape(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    if isinstance(value, str):
        return value if key in WORDS else "…"
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def lines(stream: str) -> list[str]:
    """The lines of a stream in their form; equal events after each other are one."""
    found: list[str] = []
    for event in stream.replace("\r\n", "\n").split("\n\n"):
        head, _, data = event.partition("data: ")
        form = head + "data: " + (json.dumps(shape(json.loads(data)), ensure_ascii=False) if data[:1] == "{" else data)
        if event and not event.startswith(":") and form not in found[-1:]:
            found.append(form)
    return found


def streams(saying: Callable[..., Any]) -> str:
    parts = []
    for path, body in REQUESTS.items():
        connection = http.client.HTTPConnection("127.0.0.1", saying(REPLY).port, timeout=30)
        head = {"content-type": "application/json"}
        connection.request("POST", path, json.dumps({**body, "model": "demo", "stream": True}), head)
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        parts.append("\n\n".join([f"POST {path}", *lines(answer.read().decode())]))
        connection.close()
    return "\n\n\n".join(parts) + "\n"


def test_streams_have_the_recorded_form(saying: Callable[..., Any]) -> None:
    assert streams(saying) == RECORDED.read_text(encoding="utf-8")
