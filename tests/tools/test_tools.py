"""Functions describe themselves to the model; its calls are checked before anything runs, and always answered."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, List, Literal, NamedTuple, Optional  # noqa: UP035 (one of the spellings to be read)

import pytest
from conftest import roll_dice
from referencing.exceptions import Unresolvable

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.describe import function_schema, read_docstring, schemas
from exaone4_mlx.tools.schema import normalized, validator
from exaone4_mlx.tools.toolbox import Toolbox, ToolError


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def everything(
    text: str,
    ratio: float,
    tags: list[str],
    table: dict[str, int],
    unit: Unit,
    mood: Literal["glad", "sad"],
    either: int | str,
    maybe: Optional[bool] = None,  # noqa: UP045 (one of the spellings to be read)
    count: int = 3,
    kind: Unit = Unit.FOOT,
) -> None:
    """One line
    and its end.

    More about it, which the model need not read.

    :param text: what is
        written
    :param int count: how often
    """


def test_schema_is_the_documented_one() -> None:
    assert function_schema(roll_dice) == {
        "type": "function",
        "function": {
            "name": "roll_dice",
            "description": "Roll a dice with the number 1 to N. User can select the number N.",
            "parameters": {
                "type": "object",
                "properties": {"max_num": {"type": "integer", "description": "Max number of the dice"}},
                "required": ["max_num"],
            },
        },
    }


def test_every_kind_of_parameter() -> None:
    function = function_schema(everything)["function"]
    assert function["description"] == "One line and its end."
    assert function["parameters"]["required"] == ["text", "ratio", "tags", "table", "unit", "mood", "either"]
    assert function["parameters"]["properties"] == {
        "text": {"type": "string", "description": "what is written"},
        "ratio": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "table": {"type": "object", "additionalProperties": {"type": "integer"}},
        "unit": {"type": "string", "enum": ["m", "ft"]},
        "mood": {"type": "string", "enum": ["glad", "sad"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "maybe": {"type": "boolean"},
        "count": {"type": "integer", "description": "how often", "default": 3},
        "kind": {"type": "string", "enum": ["m", "ft"], "default": "ft"},
    }


def test_parameters_are_described_in_either_form() -> None:
    google = (
        "Sum.\n\nArgs:\n    a (int): the first\n        of two\n    b: the second\n\nReturns:\n    c: no parameter\n"
    )
    assert read_docstring(google) == ("Sum.", {"a": "the first of two", "b": "the second"})
    assert read_docstring("Sum.\n:param a: the first\n:returns: nothing") == ("Sum.", {"a": "the first"})
    assert read_docstring("") == ("", {})


def test_ready_schemas_pass_unchanged() -> None:
    ready = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "int"}}}}}
    assert schemas([ready, roll_dice]) == [ready, function_schema(roll_dice)]
    assert schemas(None) == []


def untyped(x): ...  # type: ignore[no-untyped-def]
def variadic(*xs: int) -> None: ...
def positional(x: int, /) -> None: ...
def typed_oddly(x: bytes) -> None: ...
def mixed(x: Literal[1, "a"]) -> None: ...
def defaulted(x: str = b"") -> None: ...  # type: ignore[assignment]
async def coroutine(x: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "parameter 'x' of tool untyped needs a type hint"),
        (variadic, "parameter 'xs' of tool variadic cannot be given by name"),
        (positional, "parameter 'x' of tool positional cannot be given by name"),
        (typed_oddly, "parameter 'x' of tool typed_oddly has the type <class 'bytes'>, which has no JSON form"),
        (mixed, "parameter 'x' of tool mixed must be a choice among texts or among numbers"),
        (defaulted, "parameter 'x' of tool defaulted has a default that is no JSON value"),
        (coroutine, "tool coroutine must be a plain function"),
        (lambda x: x, "use a function made with def"),
        (5, "a tool must be a function or a JSON schema, not int"),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_refused_by_name(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schemas([function])


def test_lists_that_are_none_and_names_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="tools must be a list of functions or JSON schemas, not function"):
        schemas(roll_dice)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two tools are called 'roll_dice'"):
        schemas([roll_dice, roll_dice])


def annotated(
    city: Annotated[str, "Where to look"],
    days: Annotated[int, {"no": "text"}] = 1,
    names: List = [],  # noqa: B006, UP006 (never called)
) -> None: ...


def test_annotated_texts_describe_and_bare_lists_are_lists() -> None:
    assert function_schema(annotated)["function"]["parameters"]["properties"] == {
        "city": {"type": "string", "description": "Where to look"},
        "days": {"type": "integer", "default": 1},
        "names": {"type": "array", "default": []},
    }


class Thermometer:
    """Read a thermometer."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, room: str) -> str:
        return f"{self.__name__} of {room}"

    def read(self, room: str) -> str:
        """Read one room."""
        return f"read {room}"


@functools.wraps(roll_dice)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return roll_dice(*args, **kwargs) * 10


@pytest.mark.parametrize(
    ("tool", "arguments", "content"),
    [
        (wrapped, {"max_num": 6}, 40),
        (Thermometer("kitchen_scale").read, {"room": "bath"}, "read bath"),
        (Thermometer("thermometer"), {"room": "bath"}, "thermometer of bath"),
        (functools.lru_cache(roll_dice), {"max_num": 6}, 4),
    ],
)
def test_whatever_python_calls_a_function_is_a_tool(tool: Any, arguments: Any, content: Any) -> None:
    result = Toolbox([tool]).run(ToolCall(tool.__name__, arguments))
    assert (result.content, result.failed) == (content, False)


def test_an_object_whose_call_is_a_coroutine_is_refused() -> None:
    class Later:
        __name__ = "later"

        async def __call__(self) -> None: ...

    with pytest.raises(ValueError, match="tool later must be a plain function"):
        Toolbox([Later()])


# Toolbox: what is offered


READY = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "str"}, "days": {"type": "int"}}},
    },
}


def test_a_toolbox_offers_what_it_was_given_in_order() -> None:
    toolbox = Toolbox([READY, roll_dice])
    assert toolbox.schemas == [READY, function_schema(roll_dice)]
    assert READY["function"]["parameters"]["properties"]["city"] == {"type": "str"}, "rendered as it is"  # type: ignore[index]
    assert toolbox.names == ("weather", "roll_dice") and len(toolbox) == 2 and toolbox
    assert [toolbox.runnable(name) for name in ("roll_dice", "weather", "eval")] == [True, False, False]
    assert not Toolbox() and not Toolbox(None)


def test_python_names_of_types_are_aliases_at_every_depth_and_nowhere_else() -> None:
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


def ready(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"type": "function", "function": {"description": "nameless"}}, "tool 1 has no name"),
        ({"name": ""}, "tool 1 has no name"),
        (ready("str"), "the parameters of tool 'f' must be a JSON schema"),
        (ready({"type": "string"}), "the parameters of tool 'f' must be of type object, not 'string'"),
        (ready({"properties": {"x": {"type": "text"}}}), "the parameters of tool 'f' are no valid JSON schema: 'text' is not valid"),
        (ready({"properties": {"x": {"$ref": "#/$defs/lost"}}}), "'#/[$]defs/lost' is not in it"),
        (ready({"properties": {"x": {"items": {"$ref": "https://example.com/x"}}}}), "nothing is fetched from elsewhere"),
    ],
)  # fmt: skip
def test_ready_schemas_that_no_call_could_be_checked_against_are_refused(tool: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toolbox([tool])


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
    with pytest.raises(ValueError, match="nothing is fetched"):
        Toolbox([ready({"properties": {"x": {"$ref": "http://127.0.0.1:9/x.json"}}})])
    with pytest.raises(Unresolvable):
        list(validator({"$ref": "http://127.0.0.1:9/x.json"}).iter_errors({}))
    hidden = {"x": {"$id": "http://127.0.0.1:9/a", "$ref": "#/$defs/n"}}
    with pytest.raises(ToolError, match="refers to what is not in it"):
        Toolbox([ready({"properties": hidden, "$defs": {"n": {}}})]).arguments(ToolCall("f", {"x": "one"}))
    assert not asked, "the network was asked"


# Toolbox: what a call says


def forecast(city: str, unit: Unit, days: int = 1, ratio: float = 0.5, notes: Optional[list[str]] = None) -> str:  # noqa: UP045
    return f"{city} {unit} {days!r} {ratio!r} {notes!r}"


def shout(text: str) -> str:
    return text.upper()


def store(table: dict[str, int]) -> dict[str, int]:
    return table


def switch(on: bool) -> bool:
    return on


def nothing() -> None: ...


TOOLS = Toolbox(
    [
        forecast,
        roll_dice,
        shout,
        store,
        switch,
        nothing,
        READY,
        ready({"additionalProperties": {"type": "int"}}, "open"),
    ]
)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("__import__", {}, "there is no tool '__import__'; the tools are forecast, roll_dice, shout"),
        ("os.system", "ls", "there is no tool 'os.system'"),
        ("roll_dice", {}, "roll_dice: argument 'max_num' is missing (an integer)"),
        ("roll_dice", {"max_num": "6"}, "argument 'max_num' must be an integer, not \"6\""),
        ("roll_dice", {"max_num": True}, "argument 'max_num' must be an integer, not true"),
        ("roll_dice", {"max_num": 6.5}, "argument 'max_num' must be an integer, not 6.5"),
        ("roll_dice", {"max_num": None}, "argument 'max_num' must be an integer, not null"),
        ("roll_dice", {"max_num": 6, "sides": 6}, "there is no argument 'sides'; the arguments are max_num"),
        ("roll_dice", {"max_num": float("inf")}, "the arguments of roll_dice must be JSON values"),
        ("roll_dice", "six", "argument 'max_num' must be an integer, not \"six\""),
        ("roll_dice", " ", "argument 'max_num' must be an integer"),
        ("roll_dice", "true", "argument 'max_num' must be an integer"),
        ("roll_dice", [6], "argument 'max_num' must be an integer, not [6]"),
        ("forecast", {"city": "Seoul", "unit": "mile"}, "argument 'unit' must be one of \"m\", \"ft\", not \"mile\""),
        ("forecast", {"city": "Seoul", "unit": "m", "notes": ["a", 2]}, "argument 'notes[1]' must be a string, not 2"),
        ("forecast", {"city": "Seoul", "unit": "m", "notes": 3}, "argument 'notes' must be a list or null, not 3"),
        ("forecast", {"city": "Seoul", "unit": "m", "ratio": False}, "argument 'ratio' must be a number, not false"),
        ("forecast", {}, "argument 'city' is missing (a string); argument 'unit' is missing (one of \"m\", \"ft\")"),
        ("forecast", "Seoul", "forecast takes the arguments by name (city, unit, days, ratio, notes), not the bare value \"Seoul\""),
        ("shout", 5, "argument 'text' must be a string, not 5"),
        ("store", {}, "argument 'table' is missing (an object)"),
        ("switch", "true", "argument 'on' must be true or false, not \"true\""),
        ("weather", {"town": "Seoul"}, "there is no argument 'town'; the arguments are city, days"),
        ("nothing", "now", "nothing takes no arguments, not the bare value \"now\""),
        ("nothing", {"when": "now"}, "there is no argument 'when'; there are none"),
        ("weather", {"days": "3"}, "argument 'days' must be an integer"),
        ("open", {"a": "3"}, "argument 'a' must be an integer"),
        ("store", {"table": {"a": "b"}}, "argument 'table.a' must be an integer, not \"b\""),
    ],
)  # fmt: skip
def test_a_bad_call_is_told_what_is_wrong(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(ToolError) as caught:
        TOOLS.arguments(ToolCall(name, arguments))
    assert message in str(caught.value)
    result = TOOLS.run(ToolCall(name, arguments))
    assert result.failed and result.content == {"error": str(caught.value)}, "the model is told the same"


def test_messages_stay_short_whatever_the_model_wrote() -> None:
    for call in (ToolCall("x" * 9999, {}), ToolCall("roll_dice", "x" * 9999), ToolCall("roll_dice", {"x" * 9999: 1})):
        assert len(TOOLS.run(call).content["error"]) < 400


@pytest.mark.parametrize(
    ("name", "bare", "named"),
    [
        ("roll_dice", 6, {"max_num": 6}),
        ("roll_dice", "6", {"max_num": 6}),
        ("shout", "6", {"text": "6"}),
        ("shout", "hello", {"text": "hello"}),
        ("store", {"a": 1}, {"table": {"a": 1}}),
        ("store", {"table": {"a": 1}}, {"table": {"a": 1}}),
        ("nothing", None, {}),
        ("nothing", "", {}),
        ("open", {"a": 1}, {"a": 1}),
    ],
)
def test_a_bare_value_belongs_to_the_only_parameter(name: str, bare: Any, named: Any) -> None:
    assert TOOLS.arguments(ToolCall(name, bare)) == named


def test_a_bare_value_belongs_to_the_only_required_parameter() -> None:
    def search(query: str, most: int = 5) -> list[Any]:
        return [query, most]

    assert Toolbox([search]).run(ToolCall("search", "cats")).content == ["cats", 5]


def test_a_function_gets_what_its_hints_say_and_only_what_was_given() -> None:
    seen: list[Any] = []

    def take(
        count: int = 0,
        ratio: float = 0.0,
        unit: Optional[Unit] = None,  # noqa: UP045
        units: list[Unit] = [],  # noqa: B006
        table: dict[str, Unit | None] | None = None,
        either: str | Unit = "",
        number: int | float = 0,
        mood: Literal["glad", "sad"] = "sad",
        rest: Annotated[float, "of it"] = 0.0,
    ) -> None:
        seen.append({name: value for name, value in locals().items() if name != "seen"})

    toolbox = Toolbox([take])
    given = {
        **{"count": 6.0, "ratio": 2, "unit": "m", "units": ["m", "ft"], "table": {"a": "ft", "b": None}},
        **{"either": "m", "number": 6.0, "mood": "glad", "rest": 3},
    }
    assert not toolbox.run(ToolCall("take", given)).failed
    expected = {
        **{"count": 6, "ratio": 2.0, "unit": Unit.METRE, "units": [Unit.METRE, Unit.FOOT]},
        **{"table": {"a": Unit.FOOT, "b": None}, "either": Unit.METRE, "number": 6.0, "mood": "glad", "rest": 3.0},
    }
    assert seen[0] == expected
    assert [type(seen[0][name]) for name in ("count", "ratio", "number", "rest")] == [int, float, float, float]
    assert not toolbox.run(ToolCall("take", {"unit": None, "either": "yard"})).failed
    assert seen[1] == {**dict.fromkeys(expected), "count": 0, "ratio": 0.0, "units": [], "either": "yard", "number": 0, "mood": "sad", "rest": 0.0}  # fmt: skip


# Toolbox: what became of it


def test_a_result_holds_call_content_and_seconds() -> None:
    call = ToolCall("shout", {"text": "ho"})
    result = TOOLS.run(call)
    assert (result.call, result.content, result.failed) == (call, "HO", False)
    assert 0 < result.seconds < 5


def test_a_ready_schema_is_checked_but_cannot_be_run() -> None:
    assert TOOLS.arguments(ToolCall("weather", {"city": "Seoul"})) == {"city": "Seoul"}
    assert "only its description is known" in TOOLS.run(ToolCall("weather", {"city": "Seoul"})).content["error"]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such city"), "no such city"),
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (Unspeakable(), "Unspeakable"),
        (ValueError("half \ud800"), "half \ufffd"),
    ],
)
def test_an_error_inside_a_tool_is_its_result(error: BaseException, message: str) -> None:
    def fail() -> None:
        raise error

    result = Toolbox([fail]).run(ToolCall("fail", {}))
    assert result.failed and result.content == {"error": message}


def test_the_caller_waits_no_longer_than_the_timeout() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait(60)

    result = Toolbox([hang]).run(ToolCall("hang", {}), timeout=0.05)
    left = [thread for thread in threading.enumerate() if thread.name == "tool hang"]
    released.set()
    assert result.failed and result.content == {"error": "hang was given up after 0.05 seconds"}
    assert result.seconds < 2
    assert left and all(thread.daemon for thread in left), "what is left behind must not keep Python from ending"


def test_a_cancelled_call_is_not_waited_for() -> None:
    released, cancelled = threading.Event(), threading.Event()
    threading.Timer(0.05, cancelled.set).start()

    def hang() -> None:
        released.wait(60)

    result = Toolbox([hang]).run(ToolCall("hang", {}), cancelled=cancelled)
    assert result.content == {"error": "hang was cancelled"} and result.failed and result.seconds < 2
    ran: list[int] = []

    def note() -> None:
        ran.append(1)

    assert Toolbox([note]).run(ToolCall("note", {}), cancelled=cancelled).failed
    time.sleep(0.02)
    released.set()
    assert not ran, "a call that was cancelled beforehand must not start"


@dataclasses.dataclass
class Place:
    name: str
    unit: Unit


class Pair(NamedTuple):
    left: int
    right: Any


class Scalar:
    def tolist(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, {"a": [1, 2.5, None, True, "é"]}),
        (None, None),
        (Place("here", Unit.FOOT), {"name": "here", "unit": "ft"}),
        (Pair(1, (2,)), {"left": 1, "right": [2]}),
        ({3, 10, 2}, [2, 3, 10]),
        (frozenset({None}), [None]),
        ({1: "a", None: "b", Unit.METRE: "c", 2.5: "d"}, {"1": "a", "null": "b", "m": "c", "2.5": "d"}),
        ([float("nan"), float("inf"), -float("inf")], ["NaN", "Infinity", "-Infinity"]),
        ("half \ud83d", "half \ufffd"),
        ("\ud83d\ude00", "😀"),
        ({"\udc00": 1}, {"\ufffd": 1}),
        (datetime.datetime(2025, 7, 15, 9, 30), "2025-07-15T09:30:00"),
        (datetime.date(2025, 7, 15), "2025-07-15"),
        (datetime.timedelta(minutes=1), "0:01:00"),
        (Path("a") / "b", str(Path("a/b"))),
        (Decimal("0.10"), "0.10"),
        (b"ab\xff", "ab\ufffd"),
        (deque([1]), [1]),
        ({"a": 1}.values(), [1]),
        (range(3), [0, 1, 2]),
        (Scalar(), 0.5),
        (object, "<class 'object'>"),
    ],
)
def test_every_result_becomes_a_json_value(value: Any, content: Any) -> None:
    def give() -> Any:
        return value

    result = Toolbox([give]).run(ToolCall("give", {}))
    assert not result.failed and result.content == content
    assert json.loads(json.dumps(result.content, allow_nan=False)) == content


def test_results_that_no_json_holds_are_failures() -> None:
    endless: list[Any] = []
    endless.append(endless)

    def give(which: str) -> Any:
        return {"endless": endless, "digits": 10**5000}[which]

    toolbox = Toolbox([give])
    assert toolbox.run(ToolCall("give", "endless")).content["error"].startswith("the result is nested too deeply")
    assert toolbox.run(ToolCall("give", "digits")).failed


def test_a_plain_function_that_gives_a_coroutine_is_told_so() -> None:
    def give() -> Any:
        return asyncio.sleep(0)

    assert Toolbox([give]).run(ToolCall("give", {})).content == {"error": "the tool is asynchronous, which is not supported"}  # fmt: skip


def test_deep_and_endless_schemas_are_answered() -> None:
    endless = Toolbox([ready({"properties": {"x": {"$ref": "#/properties/x"}}})])
    assert endless.run(ToolCall("f", {"x": 1})).failed
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="no valid JSON schema"):
        Toolbox([ready({"properties": {"x": deep}})])
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    assert TOOLS.run(ToolCall("roll_dice", nested)).failed


def test_a_schema_may_compose_its_properties() -> None:
    composed: Mapping[str, Any] = {"allOf": [{"properties": {"x": {"type": "int"}}, "required": ["x"]}]}
    toolbox = Toolbox([ready(composed)])
    assert toolbox.arguments(ToolCall("f", {"x": 1})) == {"x": 1}
    with pytest.raises(ToolError, match="argument 'x' is missing"):
        toolbox.arguments(ToolCall("f", {}))
