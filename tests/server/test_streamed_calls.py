"""Arguments of a call are streamed while the model writes them, in each dialect, and read by the clients' own parsers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

ARGUMENTS = {
    "도시": "서울특별시 강남구",
    "days": [1, 2, 3.5],
    "note": 'a "quoted"\nline, and a long text after it',
    "deep": {"x": None},
}
CALL = f'<tool_call>{{"name": "weather", "arguments": {json.dumps(ARGUMENTS)}}}</tool_call>'  # with escapes
BROKEN = '<tool_call>{"name": "weather", "arguments": {"note": "a long text, and then </tool_call> and more'
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"messages": HELLO, "tools": [{"type": "function", "function": TOOL}]}
RESPONSES = {"input": "Hello", "tools": [{"type": "function", **TOOL}]}
MESSAGES = {"messages": HELLO, "max_tokens": 500, "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}]}


def events(served: Any, path: str, body: Any) -> list[Any]:
    """The data of a stream."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def deltas(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def test_chat_completions(saying: Callable[..., Any]) -> None:
    found = deltas(events(saying(f"Let me see. {CALL}\n{CALL}"), "/v1/chat/completions", CHAT))
    calls = [call for delta in found for call in delta.get("tool_calls", ())]
    for number in (0, 1):
        pieces = [call["function"]["arguments"] for call in calls if call["index"] == number]
        assert len(pieces) > 10 and json.loads("".join(pieces)) == ARGUMENTS
        assert "".join(pieces) == json.dumps(ARGUMENTS, ensure_ascii=False)
    assert [call["function"]["name"] for call in calls if "id" in call] == ["weather", "weather"]
    assert "".join(delta.get("content") or "" for delta in found) == "Let me see. "


def test_responses(saying: Callable[..., Any]) -> None:
    found = events(saying(CALL), "/v1/responses", RESPONSES)
    pieces = [event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta"]
    (done,) = [event for event in found if event["type"] == "response.function_call_arguments.done"]
    assert len(pieces) > 10 and "".join(pieces) == done["arguments"] == json.dumps(ARGUMENTS, ensure_ascii=False)
    (item,) = found[-1]["response"]["output"]
    assert (item["status"], item["arguments"]) == ("completed", done["arguments"])


def test_messages(saying: Callable[..., Any]) -> None:
    found = events(saying(CALL), "/v1/messages", MESSAGES)
    pieces = [e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
    assert len(pieces) > 10 and json.loads("".join(pieces)) == ARGUMENTS
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_turns_out_to_be_none_stays_incomplete_and_its_text_is_the_answer(
    saying: Callable[..., Any],
) -> None:
    found = events(saying(BROKEN), "/v1/chat/completions", CHAT)
    calls = [call for delta in deltas(found) for call in delta.get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == '{"note": "a long text, and then '
    assert "".join(delta.get("content") or "" for delta in deltas(found)) == BROKEN
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    output = events(saying(BROKEN), "/v1/responses", RESPONSES)[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("function_call", "incomplete"),
        ("message", "completed"),
    ]
    blocks = [e for e in events(saying(BROKEN), "/v1/messages", MESSAGES) if e["type"] == "message_delta"]
    assert blocks[0]["delta"]["stop_reason"] == "end_turn"


@pytest.mark.heavy
def test_clients_read_the_stream(saying: Callable[..., Any]) -> None:
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    served = saying(CALL)
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with client.chat.completions.stream(model="x", **CHAT) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == ARGUMENTS
    saying(CALL)
    with client.responses.stream(model="x", **RESPONSES) as stream:
        (item,) = stream.get_final_response().output
    assert json.loads(item.arguments) == ARGUMENTS
    saying(CALL)
    claude = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    with claude.messages.stream(model="x", **MESSAGES) as stream:
        assert stream.get_final_message().content[0].input == ARGUMENTS
