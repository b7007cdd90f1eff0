"""JSON schemas that calls are checked against, and what is wrong with a call in words that a model can act upon.

What is peculiar here:
- Python's names of types ("int", "dict", …), which EXAONE's own documentation uses, are read as JSON's.
- Nothing is ever fetched: a schema refers to what it holds itself, or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALIASES = {
    **{"int": "integer", "float": "number", "str": "string", "bool": "boolean"},
    **{"list": "array", "tuple": "array", "dict": "object", "None": "null", "NoneType": "null"},
}
#: Where JSON Schema has sub-schemas: one, a list of them, and a table of them by name.
ONE_SCHEMA = {
    *("items", "contains", "additionalItems", "additionalProperties", "propertyNames", "unevaluatedItems"),
    *("unevaluatedProperties", "not", "if", "then", "else", "contentSchema"),
}
SCHEMA_LISTS = {"prefixItems", "allOf", "anyOf", "oneOf", "items"}
SCHEMA_TABLES = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
#: With one of these, `properties` need not list every argument.
COMPOSING = {
    *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then", "else"),
    *("patternProperties", "dependentSchemas", "unevaluatedProperties"),
}


def normalized(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a JSON schema in which Python's names of types ("int", "dict", ...) are JSON's, at every depth.

    Only names of types change: values (`enum`, `default`, ...) and a property that is called "type" stay.
    """
    return {key: _normalized_value(key, value) for key, value in schema.items()}


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


def validator(schema: Mapping[str, Any]) -> Any:
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from referencing import Registry

    # An empty registry: without one, jsonschema would fetch what a `$ref` names from the network.
    return Draft202012Validator(schema, registry=Registry())


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for a schema that is none, or that refers to what it does not hold."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "".join(f" of {key!r}" for key in reversed(error.path))
        raise ValueError(f"{shortened(error.message)}{where}") from error
    resolver = Registry[Any]().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"{reference!r} is not in it, and nothing is fetched from elsewhere") from error


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


KINDS = {
    **{"integer": "an integer", "number": "a number", "string": "a string", "boolean": "true or false"},
    **{"array": "a list", "object": "an object", "null": "null"},
}


def worded(error: Any) -> list[str]:
    """One of jsonschema's errors as a model can act upon it: which argument, what was expected, what was given."""
    where = _path(error.absolute_path)
    argument = f"argument {where!r}" if where else "the call"
    if error.validator == "required":
        inside = f"{where}." if where else ""
        properties = error.schema.get("properties", {})
        missing = [name for name in error.validator_value if name not in error.instance]
        return [f"argument {inside + name!r} is missing ({expected(properties.get(name))})" for name in missing]
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = error.schema.get("properties", {})
        unknown = ", ".join(repr(shortened(str(name))) for name in error.instance if name not in known)
        rest = f"{'its' if where else 'the'} arguments are {', '.join(known)}" if known else "there are none"
        return [f"{argument + ' has' if where else 'there is'} no argument {shortened(unknown)}; {rest}"]
    if error.validator in ("anyOf", "oneOf") and error.context and isinstance(error.instance, (dict, list)):
        deepest = max(error.context, key=lambda one: len(one.absolute_path))
        if len(deepest.absolute_path) > len(error.absolute_path):
            return worded(deepest)
    if error.validator in ("type", "enum", "const", "anyOf", "oneOf"):
        return [f"{argument} must be {expected(error.schema)}, not {shown(error.instance)}"]
    return [f"{argument}: {shortened(error.message)}"]


def _path(steps: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def expected(schema: Any) -> str:
    """What a schema asks for, in a few words."""
    if not isinstance(schema, dict):
        return "a value"
    if "enum" in schema:
        return "one of " + ", ".join(map(shown, schema["enum"]))
    if "const" in schema:
        return shown(schema["const"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(map(expected, schema[key])))
    kinds = schema.get("type", [])
    return " or ".join(KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)) or "a value"


def shown(value: Any) -> str:
    """A JSON value as a message shows it."""
    try:
        return shortened(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return shortened(repr(value))


def shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
