"""A guard against forged control strings: a prompt has the control tokens of its template and no more.

Notes:
- A control string inside a message could end a turn or open another. `Guard.protect` puts a mark inside each one before
  the template is rendered. After rendering, the tokenizer removes the mark and encodes the string as ordinary text.
- A past reply is the model's own text. It keeps the strings that the model writes (think, tool call), but no role.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: The control strings that the model itself writes in a reply.
REPLY_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
#: Unicode noncharacters: no text has a use for them. `ChatTemplate` keeps them as they are.
MARKS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF)))


@dataclass(frozen=True)
class Guard:
    """Protects the values of one prompt, with a mark that they do not contain."""

    pattern: re.Pattern[str]  # of the control strings
    mark: str

    @classmethod
    def of(cls, pattern: re.Pattern[str], content: Any) -> Guard:
        """Raises ValueError for content that is not JSON."""
        try:
            text = json.dumps(content, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"messages and tools must be JSON values: {error}") from error
        free = next((mark for mark in MARKS if mark not in text), None)
        if free is None:
            raise ValueError("the messages contain every Unicode noncharacter; at least one must be free")
        return cls(pattern, free)

    def protect_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        kept = {"content": REPLY_MARKS, "reasoning_content": REPLY_MARKS} if message["role"] == "assistant" else {}
        return {
            key: value if key == "role" else self.protect(value, kept.get(key, ())) for key, value in message.items()
        }

    def protect(self, value: Any, kept: Iterable[str] = ()) -> Any:
        """`value` with the mark inside each control string in it, at any depth, except those in `kept`."""
        if isinstance(value, str):
            return self.pattern.sub(
                lambda match: match[0] if match[0] in kept else match[0][0] + self.mark + match[0][1:], value
            )
        if isinstance(value, Mapping):
            return {self.protect(key, kept): self.protect(item, kept) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.protect(item, kept) for item in value]
        return value
