"""The limits of one render of a chat template (CPU time, and bytes that it makes), and operations that charge them.

Notes:
- Operations are charged before they run. What is charged is never returned: a template that frees its values is
  charged for them too.
- Sizes are estimates: a value can take a few times the bytes that it is charged.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from .input_messages import MARKS

FREE_BYTES = 32_000_000  # that any render may make
BYTES_PER_BYTE = 100  # that it may make in addition for each byte of its variables, as `size_of` counts them
MAX_BITS = 16_384  # of an integer; Python prints 4300 digits

READING = set("count endswith find index isalnum isalpha isdigit isspace rfind startswith".split())
#: The bytes of text that a filter or method makes for one byte, at most. Others make one at most.
GROWTH = {"title": 16, "tojson": 6, "e": 6, "escape": 6, "forceescape": 6} | dict.fromkeys(READING, 0)
GROWTH |= dict.fromkeys(["capitalize", "lower", "string", "upper"], 3) | dict.fromkeys(["float", "int", "trim"], 1)
SCANNING = set("lstrip rfind rpartition rsplit rstrip strip trim".split())  # time: text * argument
LIST_ITERATOR: type = type(iter([]))


class Overdue(BaseException):
    """The deadline has passed. It is not an Exception, so that nothing inside a template can catch it."""


class Meter:
    """The CPU time of this thread and the bytes that are left to one render."""

    def __init__(self, seconds: float, size: int) -> None:
        self._end = time.thread_time() + seconds
        self._left = self._allowed = FREE_BYTES + BYTES_PER_BYTE * size
        self.readable = FREE_BYTES + 8 * size  # by one operation
        self._unchecked = 0  # what was done since the clock was last read

    def charge(self, made: int, read: int = 0) -> None:
        """Called before an operation that makes and reads this many bytes. Raises SecurityError and Overdue."""
        self._left -= made
        if self._left < 0:
            raise SecurityError(f"it makes more than {self._allowed // 1_000_000} MB of text and values")
        if read > self.readable:
            raise SecurityError(f"a comparison or search of more than {self.readable // 1_000_000} MB is not allowed")
        self._unchecked += 1000 + made + read
        if self._unchecked > 30_000:
            self._unchecked = 0
            if time.thread_time() > self._end:
                raise Overdue

    def read(self, *values: Any) -> None:
        """Called before an operation that compares, hashes or searches the values, at any depth."""
        self.charge(0, sum(size_of(value) for value in values))


METER: ContextVar[Meter] = ContextVar("meter")


def charge_text(name: str, size: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """For a filter or method that reads `size` bytes of text."""
    longest = max((len(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, str)), default=0)
    made = 300 + GROWTH.get(name, 1) * size + 16 * size_of([args, kwargs])
    METER.get().charge(made, size * longest if name in SCANNING else 0)


def size_of(value: Any, limit: int | None = None) -> int:
    """The bytes of the value and of everything in it, about; `sys.maxsize` for more than `limit`.

    What is in it twice counts twice, as in its text. Raises SecurityError for an integer that no text can show.
    """
    if isinstance(value, str):
        return 64 + 4 * len(value)
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise SecurityError("an integer this large is not allowed")
        return 64 + value.bit_length() // 8
    if isinstance(value, (list, tuple, KeysView, ValuesView, ItemsView)):
        items: Iterable[Any] = value
    elif isinstance(value, dict):
        items = itertools.chain(value, value.values())
    elif isinstance(value, Namespace):
        items = (getattr(value, "_Namespace__attrs"),)  # noqa: B009
    elif isinstance(value, LIST_ITERATOR):
        items = value.__reduce__()[1][0]  # the list
    else:
        return 64
    total, limit = 64, METER.get().readable + 1 if limit is None else limit
    for item in items:
        total += size_of(item, limit - total)
        if total > limit:
            return sys.maxsize
    return total


def steps(context: Any, values: Iterable[Any], each: int = 8) -> Iterator[Any]:
    for value in values:
        METER.get().charge(each)
        yield value


def text_of(context: Any, value: Any) -> str:
    """What jinja2 prints for the value."""
    METER.get().charge(16 if type(value) is str else GROWTH["string"] * size_of(value))
    return str(value)


def listed(values: Iterable[Any]) -> list[Any]:
    """The items: references to those of a list, or new values."""
    return list(steps(None, values, 8 if isinstance(values, (list, tuple, dict)) else 96))


def replaced(value: Any, old: str, new: str, count: int = -1) -> str:
    text = text_of(None, value)
    METER.get().charge(4 * (len(text) + text.count(old) * len(new)))
    return text.replace(old, new, count)


def joined(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    values = values if isinstance(values, list) else listed(values)
    texts = [text_of(None, value if attribute is None else value[attribute]) for value in values]
    METER.get().charge(4 * (len(texts) * len(separator) + sum(map(len, texts))))
    return separator.join(texts)


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError(f"an indent of {indent} is not allowed")
    text = json.dumps(value, ensure_ascii=False) if indent is None else ""
    if indent is not None:
        text = joined(json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(value))
    if ensure_ascii:  # except the marks: the tokenizer removes them later
        text = re.sub(rf"[^\x00-\x7f{MARKS}]+", lambda match: json.dumps(match[0])[1:-1], text)
    return text
