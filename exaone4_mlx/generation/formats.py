"""`response_format`: the format of a whole answer, as OpenAI writes it, and a grammar or a regular expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("text", "json_object", "json_schema", "grammar", "regex")


def read_format(given: Any) -> tuple[str, Any] | None:
    """("json_schema", schema), ("grammar", text) or ("regex", text); None for plain text. Raises ValueError.

    `given` is {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": …}},
    {"type": "grammar", "grammar": …}, {"type": "regex", "regex": …}, or a pydantic model.
    """
    if hasattr(given, "model_json_schema"):
        return "json_schema", given.model_json_schema()
    if not isinstance(given, Mapping) or given.get("type") not in KINDS:
        kind = repr(given.get("type")) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(
            f"response_format must be an object with a type of {', '.join(KINDS)}, not {kind}; a schema goes into "
            '{"type": "json_schema", "json_schema": {"schema": …}}'
        )
    kind = given["type"]
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", {"type": "object"}
    content = given.get(kind)
    if kind == "json_schema":
        content = content.get("schema") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping if kind == "json_schema" else str) or not content:
        where = "json_schema.schema, an object" if kind == "json_schema" else f"{kind}, a text"
        raise ValueError(f"response_format of the type {kind} needs {where}")
    return kind, content
