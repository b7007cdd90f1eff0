"""Requests as agents and editors send them, in Korean too: Codex, Claude Code, and clients of chat completions.

The shapes are those of issues about these clients: openai/codex#23186 and #6945, codex-relay#6, token_proxy#307 (Codex);
claude-code#21612 and #31033, copilot-api#11 (Claude Code).
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

SHELL = {
    "type": "function",
    "name": "shell_command",
    "description": "Runs a shell command.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}
MCP = {
    "type": "namespace",
    "name": "mcp__문서__",
    "description": "",
    "tools": [{"type": "function", "name": "search", "parameters": {"type": "object", "properties": {}}}],
}
CODEX = {
    "model": "gpt-5.3-codex",
    "instructions": "You are a coding agent.",
    "tools": [
        SHELL,
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "web_search", "external_web_access": True},
        MCP,
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "none", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "019a",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "1"},
}


def said(role: str, text: str) -> Any:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def post(served: Any, path: str, body: Any) -> tuple[int, Any]:
    """The status, and the answer or the events of a stream."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    headers = {"content-type": "application/json", "anthropic-beta": "claude-code-20250219"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if text.startswith("{"):
        return answer.status, json.loads(text)
    return answer.status, [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def get(served: Any, path: str) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


def test_codex_reads_and_runs(saying: Callable[..., Any]) -> None:
    first: list[Any] = [
        {
            "type": "additional_tools",
            "role": "developer",
            "tools": [{"type": "namespace", "name": "functions", "tools": []}],
        },
        said("developer", "<permissions>read only</permissions>"),
        said("user", "<environment_context><cwd>/home/나</cwd></environment_context>"),
        said("user", "이 저장소를 요약해 줘."),
    ]
    status, events = post(
        saying(called("shell_command", command="ls -la 문서")), "/v1/responses", {**CODEX, "input": first}
    )
    assert status == 200 and [e["sequence_number"] for e in events] == list(range(len(events)))
    (call,) = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert (call["name"], json.loads(call["arguments"])) == ("shell_command", {"command": "ls -la 문서"})
    assert "namespace" not in call
    second = [*first, call, {"type": "function_call_output", "call_id": call["call_id"], "output": "README.md"}]
    status, events = post(saying(called("mcp__문서__search", q="요약")), "/v1/responses", {**CODEX, "input": second})
    (call,) = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert (call["namespace"], call["name"]) == ("mcp__문서__", "search"), "Codex routes a call by both"
    third = [
        *second,
        call,
        {
            "type": "function_call_output",
            "call_id": call["call_id"],
            "output": [{"type": "input_text", "text": "없음"}],
        },
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        {
            "type": "custom_tool_call",
            "call_id": "c3",
            "name": "apply_patch",
            "input": "*** Begin Patch",
            "status": "completed",
        },
        {"type": "custom_tool_call_output", "call_id": "c3", "output": "Done"},
        said("user", "고마워"),
    ]
    status, events = post(saying("천만에요."), "/v1/responses", {**CODEX, "input": third})
    assert status == 200 and events[-1]["response"]["output"][0]["content"][0]["text"] == "천만에요."
    assert events[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] > 100, "only what is new is read"


def test_codex_finds_the_list_of_models(served: Any) -> None:
    listed = json.loads(get(served, "/v1/models?client_version=0.153.4"))
    assert listed["models"] == [] and listed["data"][0]["id"] == "demo"


def test_claude_code(saying: Callable[..., Any]) -> None:
    bash = {
        "name": "Bash",
        "description": "Runs a command.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
            "required": ["command"],
            "additionalProperties": False,
        },
        "eager_input_streaming": True,
    }
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body: dict[str, Any] = {
        "model": "claude-opus-4-6",
        "max_tokens": 4000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.116; cch=a1b2;"},
            {"type": "text", "text": "You are a coding agent.", **cached},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>오늘은 월요일</system-reminder>"},
                    {"type": "text", "text": "파일을 보여 줘", **cached},
                ],
            }
        ],
        "tools": [bash, {**bash, "name": "Read", "defer_loading": True}],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "temperature": 1,
        "stream": True,
    }
    served = saying(f"파일을 봅니다.\n</think>\n\n잠시만요.\n{called('Bash', command='ls 문서')}")
    status, events = post(served, "/v1/messages?beta=true", body)
    assert status == 200, events
    kinds = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"] and events[-2]["delta"]["stop_reason"] == "tool_use"
    (call,) = [e["content_block"] for e in events if e.get("content_block", {}).get("type") == "tool_use"]
    body["system"][0]["text"] = "x-anthropic-billing-header: cc_version=2.1.116; cch=ffff;"
    body["messages"] += [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "파일을 봅니다.", "signature": ""},
                {"type": "text", "text": "잠시만요."},
                {**call, "input": {"command": "ls 문서"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "가.md"}]},
                {"type": "text", "text": "<system-reminder>x</system-reminder>", **cached},
            ],
        },
    ]
    count = {name: body[name] for name in ("model", "system", "messages", "tools", "thinking", "context_management")}
    counted = post(served, "/v1/messages/count_tokens?beta=true", count)[1]["input_tokens"]
    _, events = post(saying("됨\n</think>\n\n가.md 하나입니다."), "/v1/messages?beta=true", body)
    used = events[-2]["usage"]
    assert used["input_tokens"] + used["cache_read_input_tokens"] == counted
    assert used["cache_read_input_tokens"] > 100, "the billing line does not end the common prefix"


def test_editors(saying: Callable[..., Any]) -> None:
    """Continue and Zed: stream_options, a null content beside calls, a tool that streams, and extra system messages."""
    tool = {"type": "function", "function": {"name": "edit_file", "description": "", "parameters": {"type": "object"}}}
    body: dict[str, Any] = {
        "model": "exaone",
        "messages": [
            {"role": "system", "content": "You edit files."},
            {"role": "user", "content": [{"type": "text", "text": "고쳐 줘"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "edit_file", "arguments": '{"경로": "가"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "ok"}]},
        ],
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 200,
        "stop": [],
        "temperature": 0.3,
    }
    status, chunks = post(saying(called("edit_file", 경로="나", 내용="한글\n둘째 줄")), "/v1/chat/completions", body)
    pieces = [call for c in chunks if c["choices"] for call in c["choices"][0]["delta"].get("tool_calls", ())]
    assert status == 200 and len(pieces) > 3
    assert json.loads("".join(one["function"]["arguments"] for one in pieces)) == {
        "경로": "나",
        "내용": "한글\n둘째 줄",
    }
    assert chunks[-1]["usage"]["completion_tokens"] > 10 and not chunks[-1]["choices"]


def test_errors_are_counted(saying: Callable[..., Any]) -> None:
    served = saying("x")
    assert post(served, "/v1/messages", {})[0] == 400
    assert post(served, "/v1/responses", {"input": [{"type": "additional_tools", "tools": [1]}]})[0] == 400
    text = [get(served, path) for path in ("/v1/models/x", "/nothing", "/metrics")][-1]
    for line in (
        'requests_total{path="/v1/messages",status="400"} 1.0',
        'requests_total{path="/v1/responses",status="400"} 1.0',
        'requests_total{path="other",status="404"} 1.0',
        'errors_total{kind="invalid_request_error"} 2.0',
        'errors_total{kind="not_found_error"} 1.0',
    ):
        assert f"exaone4_{line}" in text, text
