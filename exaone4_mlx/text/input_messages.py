"""Messages as a caller gives them -> checked messages, as a chat template takes them.

Notes:
- Arguments of a tool call that are a JSON string (OpenAI's form) are parsed. As a string they would be quoted twice.
- The content of a tool message may be any JSON value. All other content is text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, with joined text parts and parsed arguments of tool calls.

    Raises ValueError, naming the message, for an unknown role and for content that no template can render.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
    checked = [_check_message(message, f"message {index}") for index, message in enumerate(messages)]
    if not checked:
        raise ValueError("there are no messages")
    return checked


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where} has the unknown role {role!r}; roles are {', '.join(ROLES)}")
    checked = dict(message)
    if role != "tool":
        checked["content"] = _check_text(message.get("content"), role, where)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, (list, tuple)):
            raise ValueError(f"{where}: tool_calls must be a list, not {type(calls).__name__}")
        checked["tool_calls"] = [_check_call(call, where) for call in calls]
    return checked


def _check_text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, (list, tuple)):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise ValueError(f"{where}: content may have text parts only; this model reads no images or files")
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise ValueError(f"{where}: {role} content must be a string or a list of text parts, not {type(content).__name__}")


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function", call), Mapping):
        raise ValueError(f"{where}: a tool call must be an object with name and arguments")
    function = dict(call.get("function", call))
    key = "arguments" if "arguments" in function else "parameters"
    if not isinstance(function.get("name"), str) or key not in function:
        raise ValueError(
            f"{where}: a tool call needs a name and arguments, not {json.dumps(function, default=str)[:200]}"
        )
    if isinstance(function[key], str):
        with contextlib.suppress(ValueError, RecursionError):  # a string that is not JSON is a value of its own
            function[key] = json.loads(function[key] or "{}")
    return {**call, "function": function} if "function" in call else function
