"""JSON schemas that tool calls are validated against, and error messages that a model can act upon.

Notes:
- Python's type names ("int", "dict", …), which EXAONE's own documentation uses, are read as JSON's.
- Nothing is downloaded. A schema may refer to its own parts only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

ALIASES = {
    **{"int": "integer", "float": "number", "str": "string", "bool": "boolean"},
    **{"list": "array", "tuple": "array", "dict": "object", "None": "null", "NoneType": "null"},
}
#: The keys whose value is a sub-schema, a list of sub-schemas, or a table of them by name.
ONE_SCHEMA = {
    *("items", "contains", "additionalItems", "additionalProperties", "propertyNames", "unevaluatedItems"),
    *("unevaluatedProperties", "not", "if", "then", "else", "contentSchema"),
}
SCHEMA_LISTS = {"prefixItems", "allOf", "anyOf", "oneOf", "items"}
SCHEMA_TABLES = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
#: With one of these keys, `properties` need not list every argument.
COMPOSING = {
    *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then", "else"),
    *("patternProperties", "dependentSchemas", "unevaluatedProperties"),
}
TYPE_TEXTS = {
    **{"integer": "an integer", "number": "a number", "string": "a string", "boolean": "true or false"},
    **{"array": "a list", "object": "an object", "null": "null"},
}


def normalized(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a JSON schema with JSON's type names in place of Python's ("int", "dict", ...), at every depth.

    Only type names change. Values (`enum`, `default`, ...) and a property with the name "type" do not.
    """
    return {key: _normalized_value(key, value) for key, value in schema.items() if key != "$schema"}


def _normalized_value(key: str, value: Any) -> Any:
    if key == "type":
        if isinstance(value, (list, tuple)):
            kinds = [_normalized_value(key, kind) for kind in value]
            return [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
        return ALIASES.get(value, value) if isinstance(value, str) else value
    if key in SCHEMA_TABLES and isinstance(value, Mapping):
        return {name: normalized(one) if isinstance(one, Mapping) else one for name, one in value.items()}
    if key in SCHEMA_LISTS and isinstance(value, (list, tuple)):
        return [normalized(one) if isinstance(one, Mapping) else one for one in value]
    if key in ONE_SCHEMA and isinstance(value, Mapping):
        return normalized(value)
    return list(value) if isinstance(value, tuple) else value


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for an invalid schema, and for one that refers to something outside it."""
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "".join(f" of {key!r}" for key in reversed(error.path))
        raise ValueError(f"{shortened(error.message)}{where}") from error
    text = json.dumps(schema, default=repr)
    if '"$schema"' in text:  # jsonschema would check that part by other rules, without a limit of time
        raise ValueError("'$schema' may be at the top of the schema only")
    if '"unevaluatedProperties"' in text and '"patternProperties"' in text:
        raise ValueError("'unevaluatedProperties' together with 'patternProperties' is not supported")
    resolver = Registry[Any]().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"{reference!r} is not in the schema, and nothing is downloaded") from error


def _references(schema: Mapping[str, Any]) -> Iterator[str]:
    """Every `$ref` in a valid schema."""
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            yield value
        if key in SCHEMA_TABLES:
            below = list(value.values())
        else:
            below = value if key in SCHEMA_LISTS and isinstance(value, list) else [value] * (key in ONE_SCHEMA)
        for one in below:
            if isinstance(one, dict):
                yield from _references(one)


def format_error(error: Any) -> list[str]:
    """An error of jsonschema, for a model: the argument, the expected type, the given value."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    where = path.removeprefix(".")
    argument = f"argument {where!r}" if where else "the call"
    if error.validator == "required":
        inside = f"{where}." if where else ""
        properties = error.schema.get("properties", {})
        missing = [name for name in error.validator_value if name not in error.instance]
        return [f"argument {inside + name!r} is missing ({format_type(properties.get(name))})" for name in missing]
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = error.schema.get("properties", {})
        unknown = ", ".join(repr(shortened(str(name))) for name in error.instance if name not in known)
        rest = f"{'its' if where else 'the'} arguments are {', '.join(known)}" if known else "there are none"
        return [f"{argument + ' has' if where else 'there is'} no argument {shortened(unknown)}; {rest}"]
    if error.validator in ("anyOf", "oneOf") and error.context and isinstance(error.instance, (dict, list)):
        deepest = max(error.context, key=lambda one: len(one.absolute_path))
        if len(deepest.absolute_path) > len(error.absolute_path):
            return format_error(deepest)
    if error.validator in ("type", "enum", "const", "anyOf", "oneOf"):
        return [f"{argument} must be {format_type(error.schema)}, not {format_value(error.instance)}"]
    return [f"{argument}: {shortened(error.message)}"]


def format_type(schema: Any) -> str:
    """What a schema accepts, in a few words."""
    if not isinstance(schema, dict):
        return "a value"
    if "enum" in schema:
        return "one of " + ", ".join(map(format_value, schema["enum"]))
    if "const" in schema:
        return format_value(schema["const"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(map(format_type, schema[key])))
    kinds = schema.get("type", [])
    return " or ".join(TYPE_TEXTS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)) or "a value"


def format_value(value: Any) -> str:
    """A JSON value in a message."""
    try:
        return shortened(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return shortened(repr(value))


def shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
