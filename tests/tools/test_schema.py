"""JSON schemas: type names of Python, validation, and no download."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from typing import Any

import pytest
from referencing.exceptions import Unresolvable

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.check import argument_errors
from exaone4_mlx.tools.schema import normalized
from exaone4_mlx.tools.toolbox import Toolbox, ToolError


def ready(parameters: Any, name: str = "f") -> dict[str, Any]:
    """A ready schema, as a caller gives it."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_type_names_of_python_are_aliases_at_every_depth_and_nowhere_else() -> None:
    schema = {
        "type": "dict",
        "properties": {
            "type": {"type": "str", "enum": ["int", "str"], "default": "int"},
            "point": {
                "type": "tuple",
                "prefixItems": [{"type": "float"}],
                "items": {"type": ["int", "integer", "None"]},
            },
            "one": {"anyOf": [{"type": "bool"}, {"$ref": "#/$defs/int"}], "examples": [{"type": "int"}]},
            "fixed": {"const": {"type": "int"}},
        },
        "$defs": {"int": {"type": "list", "items": {"not": {"type": "NoneType"}}}},
        "additionalProperties": {"type": "float"},
    }
    before = json.dumps(schema)
    assert normalized(schema) == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["int", "str"], "default": "int"},
            "point": {"type": "array", "prefixItems": [{"type": "number"}], "items": {"type": ["integer", "null"]}},
            "one": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/int"}], "examples": [{"type": "int"}]},
            "fixed": {"const": {"type": "int"}},
        },
        "$defs": {"int": {"type": "array", "items": {"not": {"type": "null"}}}},
        "additionalProperties": {"type": "number"},
    }
    assert json.dumps(schema) == before, "the schema that is rendered must not change"


REFUSED = [
    ({"type": "function", "function": {"description": "nameless"}}, "tool 1 has no name"),
    ({"name": ""}, "tool 1 has no name"),
    (ready("str"), "the parameters of tool 'f' must be a JSON schema"),
    (ready({"type": "string"}), "the parameters of tool 'f' must be of type object, not 'string'"),
    (ready({"properties": {"x": {"type": "text"}}}), "the parameters of tool 'f' are not a valid JSON schema: 'text' is not valid"),
    (ready({"properties": {"x": {"type": [{}]}}}), "the parameters of tool 'f' are not a valid JSON schema"),
    (ready({"properties": {"x": {"$ref": "#/$defs/lost"}}}), "'#/[$]defs/lost' is not in the schema"),
    (ready({"properties": {"x": {"items": {"$ref": "https://example.com/x"}}}}), "nothing is downloaded"),
]  # fmt: skip


def test_invalid_ready_schemas_are_refused() -> None:
    for tool, message in REFUSED:
        with pytest.raises(ValueError) as caught:
            Toolbox([tool])
        assert re.search(message, str(caught.value)), f"{tool}: {caught.value}"


def test_references_are_followed_inside_the_schema_and_never_into_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        asked.append(where)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    local = Toolbox([ready({"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "int"}}})])
    assert local.arguments(ToolCall("f", {"x": 1})) == {"x": 1}
    with pytest.raises(ToolError, match='must be an integer, not "one"'):
        local.arguments(ToolCall("f", {"x": "one"}))
    with pytest.raises(ValueError, match="nothing is downloaded"):
        Toolbox([ready({"properties": {"x": {"$ref": "http://127.0.0.1:9/x.json"}}})])
    with pytest.raises(Unresolvable):
        argument_errors({"$ref": "http://127.0.0.1:9/x.json"}, {})
    hidden = {"x": {"$id": "http://127.0.0.1:9/a", "$ref": "#/$defs/n"}}
    with pytest.raises(ToolError, match="refers to something outside it"):
        Toolbox([ready({"properties": hidden, "$defs": {"n": {}}})]).arguments(ToolCall("f", {"x": "one"}))
    assert not asked, "the network was asked"


def test_deep_and_endless_schemas_are_errors() -> None:
    endless = Toolbox([ready({"properties": {"x": {"$ref": "#/properties/x"}}})])
    assert endless.run(ToolCall("f", {"x": 1})).failed
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="not a valid JSON schema"):
        Toolbox([ready({"properties": {"x": deep}})])


def test_a_schema_may_compose_its_properties() -> None:
    composed: Mapping[str, Any] = {"allOf": [{"properties": {"x": {"type": "int"}}, "required": ["x"]}]}
    toolbox = Toolbox([ready(composed)])
    assert toolbox.arguments(ToolCall("f", {"x": 1})) == {"x": 1}
    with pytest.raises(ToolError, match="argument 'x' is missing"):
        toolbox.arguments(ToolCall("f", {}))
