"""The items and tools of OpenAI's responses -> messages and functions.

Notes:
- Codex groups the tools of an MCP server in a namespace, and routes a call by its name and its namespace. The model
  gets one function for each, whose name is both (`joined_name`); a call has the two apart again.
- Codex may add tools by an item of the input (`additional_tools`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contract import Object

PARTS = ("input_text", "output_text", "text")
#: Items without text for this model: calls of tools that only OpenAI's servers run, and what only they can read.
LEFT_OUT = (
    "additional_tools",
    "compaction",
    "ghost_snapshot",
    "image_generation_call",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)


def read_tools(tools: Sequence[Object], items: Sequence[Object]) -> tuple[list[Object], dict[str, tuple[str, str]]]:
    """The functions among the tools of a request, and (namespace, name) of each that is in a namespace, by its name.

    Tools of other types (a web search) are left out.
    """
    found: list[Object] = []
    names: dict[str, tuple[str, str]] = {}
    added = [_objects(item.get("tools")) for item in items if item.get("type") == "additional_tools"]
    for tool in [*tools, *(tool for group in added for tool in group)]:
        if tool.get("type") == "function":
            found.append(tool)
        elif tool.get("type") == "namespace":
            space = str(tool.get("name") or "")
            for inner in _objects(tool.get("tools")):
                if inner.get("type") == "function" and (own := inner.get("name")):
                    names[joined_name(space, str(own))] = space, str(own)
                    found.append({**inner, "name": joined_name(space, str(own))})
    return found, names


def _objects(value: Any) -> list[Object]:
    if isinstance(value, (list, type(None))) and all(isinstance(one, dict) for one in value or ()):
        return value or []
    raise ValueError("tools must be a list of objects, also in a namespace and in additional_tools")


def joined_name(space: str | None, name: str) -> str:
    """The name of a function in a namespace, as the model sees it."""
    return name if not space else f"{space.removesuffix('__')}__{name}"


def read_items(items: Sequence[Object]) -> list[Object]:
    """Items of a response as messages. Raises ValueError, naming the item."""
    messages: list[Object] = []
    for number, item in enumerate(items):
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _text(item.get("content"), number)})
        elif kind == "reasoning":
            lists = [item.get("content") or [], item.get("summary") or []]
            if not all(isinstance(one, list) for one in lists):
                raise ValueError(f"input.{number}: content and summary of a thought must be lists")
            parts = [part for one in lists for part in one]
            thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
            if thought:
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        elif kind in ("function_call", "custom_tool_call"):
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if kind == "custom_tool_call":
                function["arguments"] = {"input": item.get("input")}
            elif isinstance(item.get("name"), str):
                function["name"] = joined_name(item.get("namespace"), item["name"])
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = item.get("output")
            content = _text(output, number) if isinstance(output, list) else output
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind not in LEFT_OUT:
            raise ValueError(f"input.{number} has the unknown type {kind!r}")
    return _joined(messages)


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in PARTS or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"input.{number}: content may have text parts only, not {kind!r}")
        return "".join(part["text"] for part in content)
    raise ValueError(f"input.{number}: content must be a text or a list of text parts")


def _joined(messages: Sequence[Object]) -> list[Object]:
    """One message of the assistant for the thought, the answer and the calls of one reply."""
    joined: list[Object] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if message["role"] == "assistant" and last.get("role") == "assistant":
            last["content"] = last["content"] + message["content"]
            for key in ("reasoning_content", "tool_calls"):
                if key in message:
                    last[key] = last[key] + message[key] if key in last else message[key]
        else:
            joined.append(dict(message))
    return joined


def with_system(text: str, messages: list[Object]) -> list[Object]:
    """The messages with `text` before their system prompt."""
    if messages and messages[0]["role"] in ("system", "developer"):
        return [{"role": "system", "content": f"{text}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
