"""The result of an MCP tool -> the JSON value that the model reads.

Notes:
- The model reads text only. An image or a sound is named as what it is.
- A result of structured data usually repeats it as text, for older clients. Then the data is used.
- Long results are cut, because they would fill the context.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ..files.text import parse_json
from .toolbox import ToolError

MAX_RESULT = 40_000  # characters of JSON


def content_of(result: Any) -> Any:
    """The content of a `CallToolResult`. Raises ToolError for a result that is an error."""
    parts = [_part(block) for block in result.content]
    if result.is_error:
        raise ToolError(" ".join(map(str, parts)).strip() or "the tool failed and did not say why")
    if result.structured_content is not None:
        others = [part for part, block in zip(parts, result.content, strict=True) if block.type != "text"]
        return _bounded([result.structured_content, *others] if others else result.structured_content)
    return _bounded(parts[0] if len(parts) == 1 else parts)


def _part(block: Any) -> Any:
    if block.type == "text":
        return _json_or_text(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, {len(block.data) * 3 // 4:,} bytes, not shown]"
    if block.type == "resource_link":
        return f"[link to a resource: {block.name}, {block.uri}]"
    resource = block.resource
    if (text := getattr(resource, "text", None)) is not None:
        return {"uri": str(resource.uri), "text": text}
    return (
        f"[resource {resource.uri}, {resource.mime_type or 'binary'}, {len(resource.blob) * 3 // 4:,} bytes, not shown]"
    )


def _json_or_text(text: str) -> Any:
    """The text, or the JSON object or list that it holds."""
    if text[:1] in ("{", "["):
        with suppress(ValueError):
            return parse_json(text)
    return text


def _bounded(value: Any) -> Any:
    """The value, or the begin of its text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_RESULT:
        return value
    return f"{text[:MAX_RESULT]}… [cut: the result has {len(text):,} characters]"
