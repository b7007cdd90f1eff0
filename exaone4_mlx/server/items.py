"""The items of OpenAI's responses -> messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contract import Object

PARTS = ("input_text", "output_text", "text")


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
        elif kind == "function_call":
            call = {
                "id": item.get("call_id"),
                "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments")},
            }
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            content = _text(output, number) if isinstance(output, list) else output
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
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
