"""The text inside `<tool_call>` tags: the calls in a whole one, and the arguments of one that is being written.

Notes:
- `CallReader` writes arguments as `json.dumps` writes the parsed ones, so that its pieces are the beginning of the text
  that a server sends for the whole call.
- It keeps the last brace of the arguments back. The arguments are complete only if the whole text is a valid call.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..files.text import HALF, parse_json
from ..tools.call import ToolCall

#: The problem of a tag with a value instead of a call. EXAONE's prompt allows that for tools without names.
VALUE_ONLY = "a value only, which names no tool"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
#: The whole characters of a string: half of a surrogate pair waits for the other one.
CHARACTERS = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?!d[89a-f])[0-9a-f]{4}|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})*', re.I
)
#: A mark, the beginning of a string, or a number or word that the next character ends.
TOKEN = re.compile(r'\s*(?:([{}\[\],:"])|([^\s{}\[\],:"]+)(?=[\s{}\[\],:"]))')
SPACED = {",": ", ", ":": ": "}


def read_calls(body: str) -> tuple[list[ToolCall], str | None]:
    """The calls in the body of one tag (an object, or an array of objects), or no call and the reason."""
    try:
        value = parse_json(body, strict=False, parse_constant=_finite, parse_float=_finite)
        if HALF.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("it is not JSON: it holds half a character")
    except ValueError as error:
        return [], str(error).removeprefix("it is ")
    items = value if isinstance(value, list) else [value]
    calls = []
    for item in items:
        if not isinstance(item, dict):
            return [], VALUE_ONLY
        if isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item.get("name"), str) or not item["name"]:
            return [], "a call needs a name"
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parse_object(arguments)
        calls.append(ToolCall(item["name"], {} if arguments is None else arguments))
    return calls, None if calls else "an empty list of calls"


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text[:40]} is not a JSON value")


def _parse_object(arguments: str) -> Any:
    """The object in a JSON string (OpenAI's form). Any other string is itself the value."""
    try:
        value = parse_json(arguments, strict=False)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def arguments_text(call: ToolCall) -> str:
    """The arguments of a call as JSON."""
    return json.dumps(call.arguments, ensure_ascii=False)


class CallReader:
    """Reads valid JSON in pieces. `name` is None until a call with this name and an object of arguments has begun.

    Other forms of calls (a list, arguments as a string, arguments before the name) have no pieces.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._text = ""  # that is not written yet
        self._depth = 0
        self._in_string = self._has_ended = False

    def feed(self, text: str) -> str:
        """Further text of the arguments, as json.dumps writes it."""
        if self._has_ended:
            return ""
        self._text += text
        if self.name is None:
            if (head := HEAD.match(self._text)) is None:
                return ""
            name = json.loads(head[1], strict=False)
            if HALF.search(name):
                return ""
            self.name, self._text = name, self._text[head.end() :]
        return "".join(iter(self._next, ""))

    def _next(self) -> str:
        """The next part; "" where more text is needed."""
        if self._in_string:
            return self._characters()
        found = None if self._has_ended else TOKEN.match(self._text)
        if found is None:
            return ""
        mark, literal = found.groups()
        self._depth += (mark in ("{", "[")) - (mark in ("}", "]"))
        if self._depth == 0:
            self._has_ended = True
            return ""
        self._text = self._text[found.end() :]
        self._in_string = mark == '"'
        if mark:
            return SPACED.get(mark, mark)
        try:
            return json.dumps(json.loads(literal, parse_float=_finite))
        except ValueError:  # a number that is too large
            self._has_ended = True
            return ""

    def _characters(self) -> str:
        found = CHARACTERS.match(self._text)
        assert found is not None
        whole, self._text = found[0], self._text[found.end() :]
        text = json.dumps(json.loads(f'"{whole}"', strict=False), ensure_ascii=False)[1:-1]
        if self._text.startswith('"'):
            self._in_string, self._text = False, self._text[1:]
            return text + '"'
        return text
