"""JSON values -> what a Python function takes; what it gives back -> JSON values."""

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

from .schema import shown


def number_in(text: str) -> int | float | None:
    """The number that a text is, if it is one, exactly as JSON writes it."""
    with contextlib.suppress(ValueError, RecursionError):
        number = json.loads(text)
        if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
            return number
    return None


def fitted(value: Any, hint: Any) -> Any:
    """A checked JSON value as a type hint wants it. Raises TypeError if the value is of another kind."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fitted(value, arguments[0])
    if origin is Literal:
        return next((choice for choice in arguments if _same(choice, value)), value)
    if origin in (Union, types.UnionType):
        return _fitted_to_one(value, arguments)
    if origin is list and arguments and isinstance(value, list):
        return [fitted(one, arguments[0]) for one in value]
    if origin is dict and arguments and isinstance(value, dict):
        return {key: fitted(one, arguments[1]) for key, one in value.items()}
    kind = origin or hint
    if issubclass(kind, enum.Enum):
        for member in kind:
            if _same(member.value, value):
                return member
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (kind is float or (kind is int and value == int(value))):
        return kind(value)
    if type(value) is kind:
        return value
    raise TypeError(f"{shown(value)} is not {hint}")


def _fitted_to_one(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first of the union's types that it fits: an Enum if it can, no number turned if it need not."""
    exact = [hint for hint in hints if type(value) is hint and hint in (int, float)]
    enums = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, enum.Enum)]
    for hint in (*enums, *exact, *hints):
        with contextlib.suppress(TypeError):
            return fitted(value, hint)
    raise TypeError(f"{shown(value)} is none of {hints}")


def _same(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0, and is not true."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def plain_result(value: Any) -> Any:
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise ValueError("the tool is asynchronous, which is not supported")
    try:
        content = _plain(value)
        json.dumps(content)  # a number may have more digits than Python writes
    except RecursionError as error:
        raise ValueError("the result is nested too deeply, or holds itself") from error
    return content


def _plain(value: Any) -> Any:
    """Any result as a JSON value; what JSON has no form for becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return "NaN" if math.isnan(value) else names.get(value, float(value))
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return _plain_collection(value)


def _plain_collection(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Set):
        items = list(map(_plain, value))
        try:
            return sorted(items)
        except TypeError:  # of several kinds
            return sorted(items, key=shown)
    if isinstance(value, (Sequence, ValuesView)):
        return [_plain(one) for one in value]
    if callable(getattr(value, "tolist", None)):  # arrays and their scalars
        return _plain(value.tolist())
    return plain_text(str(value))


def _plain_key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def plain_text(text: str) -> str:
    """The text without halves of characters: pairs of surrogates are joined, lone ones replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
