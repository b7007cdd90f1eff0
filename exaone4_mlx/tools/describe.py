"""Python functions -> the JSON schemas that a prompt offers to the model.

Notes:
- A schema comes from the signature, type hints and docstring of a function. A parameter that they do not describe
  is refused by name, because the model could only guess it.
- Ready schemas stay unchanged, for example `"type": "int"` from EXAONE's documentation.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from .remote_tool import RemoteTool

Tool = Callable[..., Any] | Mapping[str, Any]

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def schemas(tools: Sequence[Tool] | None) -> list[Mapping[str, Any]]:
    """The JSON schemas of functions and ready schemas, in order.

    Raises ValueError for anything else, for two tools with one name, and for a function without a valid description.
    """
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise ValueError(f"tools must be a list of functions or JSON schemas, not {type(tools).__name__}")
    found: list[Mapping[str, Any]] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            found.append(tool)
        elif callable(tool):
            found.append(function_schema(tool))
        else:
            raise ValueError(f"a tool must be a function or a JSON schema, not {type(tool).__name__}")
    names = [name for name in map(name_of, found) if name is not None]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two tools have the name {doubled[0]!r}")
    return found


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function in OpenAI's format: its name, the first paragraph of its docstring, its parameters.

    Type hints may be str, int, float, bool, list, dict, Optional, Literal, Enum and combinations of them. The
    description of a parameter comes from `Annotated[T, "description"]` or from the docstring (`read_docstring`). Raises
    ValueError, naming function and parameter, where that is not possible.
    """
    if isinstance(function, RemoteTool):
        return function.schema
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ValueError(
            f"a tool needs a valid name, and {name or function!r} is not one; use a function made with def"
        )
    source = _source(function)
    if any(kind(source) for kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)) or (
        inspect.isgeneratorfunction(source)
    ):
        raise ValueError(f"tool {name} must be a plain function, not a coroutine or a generator")
    description, _ = read_docstring(_documentation(function))
    parameters = parameters_of(function)
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _source(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the type hints: for an object, its `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def _documentation(function: Callable[..., Any]) -> str:
    return inspect.getdoc(_source(function)) or inspect.getdoc(function) or ""


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(_source(function), include_extras=True)
    except (NameError, TypeError) as error:
        raise ValueError(f"the type hints of tool {function.__name__} cannot be read: {error}") from error


def parameters_of(function: Callable[..., Any], exact: bool = False) -> dict[str, Any]:
    """The schema of a function's parameters. An `exact` one, for validation, includes the null of optional ones."""
    hints, (_, descriptions) = type_hints(function), read_docstring(_documentation(function))
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        description = descriptions.get(parameter.name)
        properties[parameter.name] = _describe_parameter(function.__name__, parameter, hints, description, exact)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required}


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, on one line, and the description of each parameter.

    The descriptions are those of Google's style (a section `Args:`, `Arguments:` or `Parameters:` with lines `name: …`
    or `name (type): …`), of NumPy's (a section that is underlined, with lines `name : type` above indented text), or of
    lines `:param name: …`.
    """
    before, *numpy = re.split(r"^(\w[\w ]*?) *\n-{3,} *$", text, flags=re.MULTILINE)
    summary = re.split(r"\n\s*\n|\n\s*(?::param|Args:|Arguments:|Parameters:)", before, maxsplit=1)[0]
    found = re.findall(r"^\s*:param(?:\s+[^:]+)?\s+(\w+):\s*(.+(?:\n(?!\s*:)\s+.+)*)", text, re.MULTILINE)
    if section := re.search(r"^(Args|Arguments|Parameters):\s*\n((?:[ \t]+.*\n?|\s*\n)+)", text, re.MULTILINE):
        lines = re.findall(r"^(\s+)(\w+)(?: ?\([^)]*\))?:\s*(.*(?:\n\1\s+.+)*)", section[2], re.MULTILINE)
        found += [(name, description) for _, name, description in lines]
    for heading, body in zip(numpy[::2], numpy[1::2], strict=True):
        if heading in ("Parameters", "Other Parameters"):
            found += re.findall(r"^(\w[\w, ]*?) *(?::.*)?$((?:\n[ \t]*$|\n[ \t]+.*)*)", body, re.MULTILINE)
    descriptions: dict[str, str] = {}
    for names, description in found:
        for name in names.split(","):  # NumPy: "x, y : float"
            descriptions.setdefault(name.strip(), " ".join(description.split()))
    return " ".join(summary.split()), descriptions


def _describe_parameter(
    tool: str, parameter: inspect.Parameter, hints: Mapping[str, Any], description: str | None, exact: bool
) -> dict[str, Any]:
    where = f"parameter {parameter.name!r} of tool {tool}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise ValueError(f"{where} cannot be passed by name, as a model passes it")
    if parameter.name not in hints:
        raise ValueError(f"{where} needs a type hint")
    schema = _describe_type(hints[parameter.name], where, exact)
    if description:
        schema["description"] = description
    if parameter.default is not parameter.empty and parameter.default is not None:
        default = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
        try:
            json.dumps(default)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} has a default that is not a JSON value: {default!r}") from error
        schema["default"] = default
    return schema


def _describe_type(hint: Any, where: str, exact: bool) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        described = _describe_type(arguments[0], where, exact)
        texts = [text for text in arguments[1:] if isinstance(text, str)]
        return {**described, "description": texts[0]} if texts else described
    if origin is Literal:
        return _choices(list(arguments), where)
    if origin in (Union, types.UnionType):
        kinds = [_describe_type(kind, where, exact) for kind in arguments if kind is not type(None)]
        if exact and type(None) in arguments:
            kinds.append({"type": "null"})
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is list and arguments:
        return {"type": "array", "items": _describe_type(arguments[0], where, exact)}
    if origin is dict and arguments and arguments[0] is str:
        return {"type": "object", "additionalProperties": _describe_type(arguments[1], where, exact)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint], where)
    kind = hint if origin is None or arguments else origin  # typing.List without arguments is a bare list
    if isinstance(kind, type) and kind in JSON_TYPES:
        return {"type": JSON_TYPES[kind]}
    raise ValueError(f"{where} has the type {hint!r}, which has no JSON form")


def _choices(values: list[Any], where: str) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {str, int, float, bool}:
        raise ValueError(f"{where} must be a choice among strings or among numbers, not {values!r}")
    return {"type": JSON_TYPES[kinds.pop()], "enum": values}


def name_of(schema: Mapping[str, Any]) -> Any:
    function = schema.get("function", schema)
    return function.get("name") if isinstance(function, Mapping) else None
