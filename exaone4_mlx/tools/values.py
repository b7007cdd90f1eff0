"""JSON values -> what a Python function takes; what it returns -> JSON values."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence, Set, ValuesView
from typing import Annotated, Any, Literal, Union

from ..files.text import check_depth
from .schema import format_value


def parse_number(text: str) -> int | float | None:
    """The finite JSON number that `text` is, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        number = json.loads(text)
        if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
            return number
    return None


def coerce(value: Any, hint: Any) -> Any:
    """A validated JSON value as its type hint asks. Raises TypeError for a value of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return coerce(value, arguments[0])
    if origin is Literal:
        return next((choice for choice in arguments if _json_equal(choice, value)), value)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments)
    if origin is list and arguments and isinstance(value, list):
        return [coerce(one, arguments[0]) for one in value]
    if origin is dict and arguments and isinstance(value, dict):
        return {key: coerce(one, arguments[1]) for key, one in value.items()}
    kind = origin or hint
    if issubclass(kind, enum.Enum):
        for member in kind:
            if _json_equal(member.value, value):
                return member
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (kind is float or (kind is int and value == int(value))):
        return kind(value)
    if type(value) is kind:
        return value
    raise TypeError(f"{format_value(value)} is not {hint}")


def _coerce_union(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first type of the union that it fits. An Enum comes first, then the exact type of a number."""
    exact = [hint for hint in hints if type(value) is hint and hint in (int, float)]
    enums = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, enum.Enum)]
    for hint in (*enums, *exact, *hints):
        with contextlib.suppress(TypeError):
            return coerce(value, hint)
    raise TypeError(f"{format_value(value)} is none of {hints}")


def _json_equal(one: Any, other: Any) -> bool:
    """In JSON, 1 equals 1.0 and does not equal true."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def result_to_json(value: Any) -> Any:
    """What a tool returned, as a JSON value. Raises ValueError if there is no such value."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise ValueError("the tool is asynchronous, which is not supported")
    try:
        content = _to_json(value)
        json.dumps(content)  # Python refuses to write very long integers
        check_depth(content)
    except RecursionError as error:
        raise ValueError("the result is nested too deeply, or contains itself") from error
    return content


def _to_json(value: Any) -> Any:
    """Objects without a JSON form become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _to_json(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return "NaN" if math.isnan(value) else names.get(value, float(value))
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _to_json(value._asdict())
    if isinstance(value, Mapping):
        return {_key_to_json(key): _to_json(one) for key, one in value.items()}
    if isinstance(value, Set):
        items = list(map(_to_json, value))
        try:
            return sorted(items)
        except TypeError:  # the items are of several types
            return sorted(items, key=format_value)
    if isinstance(value, (Sequence, ValuesView)):
        return [_to_json(one) for one in value]
    if callable(getattr(value, "tolist", None)):  # arrays and their scalars
        return _to_json(value.tolist())
    return valid_text(str(value))


def _key_to_json(key: Any) -> str:
    key = _to_json(key)
    return key if isinstance(key, str) else json.dumps(key, ensure_ascii=False)


def valid_text(text: str) -> str:
    """The text without half characters: pairs of surrogates are joined, lone ones become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
