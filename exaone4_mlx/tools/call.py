"""A tool call, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. `arguments` is an object by name; a bare value is kept as it is."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class ToolResult:
    """The result of one call. `content` is the JSON value that the model reads; {"error": "..."} if `failed`."""

    call: ToolCall
    content: Any
    failed: bool
    seconds: float
