"""Messages as a file can hold them: their fields have any values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FIELDS = "files text tool_calls stats reasoning_content finish_reason failed seconds tool_call_id metadata".split()
ODD: list[Any] = [
    None,
    True,
    -1,
    1e308,
    "",
    "x",
    "\ud800",
    [],
    {},
    [1],
    [None],
    [{"name": 1}],
    [{"name": "n", "tokens": "x", "text": 5}],
]
ODD += [[{"function": 3}], [{"function": {"name": None}}], {"a": 1}]


def odd_messages() -> Iterator[list[dict[str, Any]]]:
    """Conversations of three messages. In each, one field has an odd value."""
    for field in FIELDS:
        for value in ODD:
            yield [
                {"role": "user", "content": " ", field: value},
                {"role": "assistant", "content": "b", field: value},
                {"role": "tool", "content": {}, field: value},
            ]
