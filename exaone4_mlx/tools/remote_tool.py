"""A tool that runs in another process: the schema that its server gives, and a function that begins a call.

Notes:
- Name, description and schema come from the server. `text_safe` cleans the texts that people read and refuses the rest,
  because a changed name would not be the server's.
- Two tools of one name get their server's name in front: `github_search`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..files.text import UNSAFE, clean

MAX_NAME = 64  # characters, as in OpenAI's format
MAX_DESCRIPTION = 4_000
MAX_PARAMETERS = 20_000  # characters of JSON


@dataclass(frozen=True, eq=False)
class RemoteTool:
    """A callable with a ready schema. `begin(arguments)` starts a call; cancelling its future cancels the call.

    `origin` is the name of the server, and `server_name` the name of the tool there.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    origin: str
    server_name: str
    begin: Callable[[Mapping[str, Any]], Future[Any]]

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def schema(self) -> dict[str, Any]:
        """The schema in OpenAI's format."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def __call__(self, **arguments: Any) -> Any:
        """Runs the tool and returns its result, a JSON value. Raises ValueError for a call that fails."""
        return self.begin(arguments).result()


def plain_name(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:MAX_NAME]


def plain_description(text: str) -> str:
    """A description without control characters, of bounded length."""
    text = clean(text).strip()
    return text if len(text) <= MAX_DESCRIPTION else text[: MAX_DESCRIPTION - 1] + "…"


def plain_parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the parameters with clean descriptions.

    Raises ValueError for one that is too long, and for control characters in its other texts.
    """
    plain: dict[str, Any] = _cleaned({key: value for key, value in schema.items() if key not in ("$schema", "title")})
    if (length := len(json.dumps(plain, ensure_ascii=False))) > MAX_PARAMETERS:
        raise ValueError(f"its parameters have {length:,} characters, and may have {MAX_PARAMETERS:,}")
    if any(UNSAFE.search(text) for text in _texts(plain)):
        raise ValueError("the names of its parameters have control characters")
    return plain


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: clean(one) if key in ("description", "title") and isinstance(one, str) else _cleaned(one)
            for key, one in value.items()
        }
    return [_cleaned(one) for one in value] if isinstance(value, list) else value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)


def named_apart(tools: Sequence[RemoteTool], taken: Iterable[str] = ()) -> list[RemoteTool]:
    """The tools with names that differ from each other and from those `taken`."""
    plain = [plain_name(tool.server_name) for tool in tools]
    taken, counts, named = set(taken), Counter(plain), []
    for tool, name in zip(tools, plain, strict=True):
        if counts[name] > 1 or name in taken:
            name = plain_name(f"{tool.origin}_{name}")
        tries = (f"{name[: MAX_NAME - 4]}_{number}" for number in range(2, 1000))
        while name in taken:
            name = next(tries)
        taken.add(name)
        named.append(dataclasses.replace(tool, name=name))
    return named
