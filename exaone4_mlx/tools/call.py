"""A tool call, as the model writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. `arguments` is an object by name; a bare value is kept as it is."""

    name: str
    arguments: Any
