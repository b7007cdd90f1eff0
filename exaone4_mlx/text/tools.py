"""Python functions -> the JSON schemas that a prompt offers to the model.

What is peculiar here:
- A schema is read from what a function says of itself: its signature, type hints and docstring. What they
  leave open is refused by name, since the model could only guess it.
- Ready schemas pass through unchanged, the documentation's own `"type": "int"` among them.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

Tool = Callable[..., Any] | Mapping[str, Any]

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def schemas(tools: Sequence[Tool] | None) -> list[Mapping[str, Any]]:
    """The JSON schemas of functions and ready schemas, in order.

    Raises ValueError for anything else, for two tools of one name, and for a function that cannot be described.
    """
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise ValueError(f"tools must be a list of functions or JSON schemas, not {type(tools).__name__}")
    made: list[Mapping[str, Any]] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            made.append(tool)
        elif callable(tool):
            made.append(function_schema(tool))
        else:
            raise ValueError(f"a tool must be a function or a JSON schema, not {type(tool).__name__}")
    names = [name for name in map(_name, made) if name is not None]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two tools are called {doubled[0]!r}")
    return made


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function in OpenAI's format: its name, the first paragraph of its docstring, its parameters.

    Type hints may be str, int, float, bool, list, dict, Optional, Literal, Enum and combinations of them;
    parameters are described by the docstring's `Args:` section or its `:param name:` lines. Raises ValueError,
    naming function and parameter, for what cannot be described.
    """
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ValueError(
            f"a tool needs a name of its own, and {name or function!r} is none; use a function made with def"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ValueError(f"tool {name} must be a plain function, not a coroutine or a generator")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ValueError(f"the type hints of tool {name} cannot be read: {error}") from error
    description, told = read_docstring(inspect.getdoc(function) or "")
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        properties[parameter.name] = _describe_parameter(name, parameter, hints, told.get(parameter.name))
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, on one line, and what it says of each parameter.

    Both usual forms are read: an `Args:` (or `Arguments:`, `Parameters:`) section of `name: …` or
    `name (type): …` lines, and `:param name: …` lines.
    """
    summary = " ".join(re.split(r"\n\s*\n|\n\s*(?::param|Args:|Arguments:|Parameters:)", text, maxsplit=1)[0].split())
    told: dict[str, str] = {}
    for match in re.finditer(r"^\s*:param(?:\s+[^:]+)?\s+(\w+):\s*(.+(?:\n(?!\s*:)\s+.+)*)", text, re.MULTILINE):
        told[match[1]] = " ".join(match[2].split())
    section = re.search(r"^(Args|Arguments|Parameters):\s*\n((?:[ \t]+.*\n?|\s*\n)+)", text, re.MULTILINE)
    for match in re.finditer(
        r"^(\s+)(\w+)(?: ?\([^)]*\))?:\s*(.*(?:\n\1\s+.+)*)", section[2] if section else "", re.MULTILINE
    ):
        told.setdefault(match[2], " ".join(match[3].split()))
    return summary, told


def _describe_parameter(
    tool: str, parameter: inspect.Parameter, hints: Mapping[str, Any], description: str | None
) -> dict[str, Any]:
    where = f"parameter {parameter.name!r} of tool {tool}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise ValueError(f"{where} cannot be given by name, as a model gives it")
    if parameter.name not in hints:
        raise ValueError(f"{where} needs a type hint")
    schema = _describe_type(hints[parameter.name], where)
    if description:
        schema["description"] = description
    if parameter.default is not parameter.empty and parameter.default is not None:
        default = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
        try:
            json.dumps(default)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} has a default that is no JSON value: {default!r}") from error
        schema["default"] = default
    return schema


def _describe_type(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in JSON_TYPES:
        return {"type": JSON_TYPES[hint]}
    if origin is Literal:
        return _choices(list(arguments), where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint], where)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) == 1:
            return _describe_type(kinds[0], where)
        return {"anyOf": [_describe_type(kind, where) for kind in kinds]}
    if origin is list:
        return {"type": "array", "items": _describe_type(arguments[0], where)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _describe_type(arguments[1], where)}
    raise ValueError(f"{where} has the type {hint!r}, which has no JSON form")


def _choices(values: list[Any], where: str) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {str, int, float, bool}:
        raise ValueError(f"{where} must be a choice among texts or among numbers, not {values!r}")
    return {"type": JSON_TYPES[kinds.pop()], "enum": values}


def _name(schema: Mapping[str, Any]) -> Any:
    function = schema.get("function", schema)
    return function.get("name") if isinstance(function, Mapping) else None
