"""Arguments are checked within a limit of time, and as jsonschema checks them."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import jsonschema
import pytest

from exaone4_mlx.tools import check
from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.check import argument_errors
from exaone4_mlx.tools.toolbox import Toolbox


def test_the_errors_are_those_of_jsonschema() -> None:
    values: list[Any] = [
        0,
        1,
        1.0,
        True,
        "a",
        "ab-1",
        [],
        [1, 1.0],
        [1, True],
        [[1], [1.0]],
        [{"a": 1}, {"a": 1.0}],
        [{"a": 1}, {"a": True}],
    ]
    values += [{}, {"x1": 1}, {"y": "a"}, {"x1": "b", "z": 0}, ["a", "b"], [None, None], {"xx": {"x": [2, 2]}}]
    schemas: list[Any] = [
        {"uniqueItems": True},
        {"pattern": "^[a-z]+-?[0-9]*$"},
        {"pattern": "b"},
        {"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
        {"patternProperties": {"^x+[0-9]*": {"minimum": 1}, "y": True}, "additionalProperties": {"type": "string"}},
        {"properties": {"y": {}}, "additionalProperties": False},
        {"additionalProperties": {"patternProperties": {"^x": {"uniqueItems": True}}}},
        {"anyOf": [{"type": "string", "pattern": "a"}, {"items": {"type": "integer"}}]},
    ]
    rng = random.Random(1)
    schemas += [{kind: rng.sample(schemas, 2)} for kind in ("allOf", "anyOf", "oneOf") for _ in range(4)]
    for schema in schemas:
        for value in values:
            ours = argument_errors(schema, value, seconds=60)
            theirs = list(jsonschema.Draft202012Validator(schema).iter_errors(value))
            assert [(one.validator, list(one.path)) for one in ours] == [
                (one.validator, list(one.path)) for one in theirs
            ], (schema, value)


#: Each of 40 parts requires the one before twice.
PARTS: dict[str, Any] = {"a0": {"type": "object"}}
PARTS |= {f"a{i + 1}": {"allOf": [{"$ref": f"#/$defs/a{i}"}] * 2} for i in range(40)}
NESTED = {"$defs": PARTS, "$ref": "#/$defs/a40"}
SLOW: list[tuple[Any, Any]] = [
    ({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": "a" * 60 + "b"}),
    ({"patternProperties": {"^(a|a)*b": {}}, "additionalProperties": False}, {"a" * 60: 1}),
    ({"properties": {"x": {"uniqueItems": True}}}, {"x": [{"n": i} for i in range(20_000)]}),
    (NESTED, {}),
]


@pytest.mark.heavy
def test_no_schema_takes_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECK_SECONDS", 0.3)
    monkeypatch.setattr(argument_errors, "__defaults__", (0.3,))
    longest, last, stop = 0.0, time.monotonic(), threading.Event()

    def watch() -> None:
        nonlocal longest, last
        while not stop.wait(0.01):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    threading.Thread(target=watch, daemon=True).start()
    for parameters, arguments in SLOW:
        toolbox = Toolbox([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
        began = time.thread_time()
        result = toolbox.run(ToolCall("f", arguments))
        assert time.thread_time() - began < 10, parameters
        assert "to check" in result.content["error"] or "only its description" in result.content["error"], result
    stop.set()
    assert longest < 5, "the other threads stood still"


def test_a_dialect_inside_a_schema_cannot_escape_the_limit() -> None:
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
    slow = {"pattern": "^(a+)+$", **draft}
    toolbox = Toolbox([{"name": "f", "parameters": {"properties": {"x": slow}, **draft}}])
    assert toolbox.arguments(ToolCall("f", {"x": "aa"})) == {"x": "aa"}
    with pytest.raises(ValueError, match="at the top of the schema only"):
        Toolbox([{"name": "f", "parameters": {"properties": {"x": {"$ref": "#/elsewhere"}}, "elsewhere": slow}}])
