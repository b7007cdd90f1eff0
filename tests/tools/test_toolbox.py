"""Calls are checked before anything runs, and every call has a result."""

from __future__ import annotations

import enum
import threading
import time
from typing import Any, Optional

import pytest
from conftest import roll_dice

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.describe import function_schema
from exaone4_mlx.tools.toolbox import Toolbox, ToolError

READY = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "str"}, "days": {"type": "int"}}},
    },
}


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def forecast(city: str, unit: Unit, days: int = 1, ratio: float = 0.5, notes: Optional[list[str]] = None) -> str:  # noqa: UP045
    return f"{city} {unit} {days!r} {ratio!r} {notes!r}"


def shout(text: str) -> str:
    return text.upper()


def store(table: dict[str, int]) -> dict[str, int]:
    return table


def switch(on: bool) -> bool:
    return on


def nothing() -> None: ...


OPEN = {"name": "open", "parameters": {"additionalProperties": {"type": "int"}}}
TOOLS = Toolbox([forecast, roll_dice, shout, store, switch, nothing, READY, OPEN])


def test_a_toolbox_offers_its_tools_in_order() -> None:
    toolbox = Toolbox([READY, roll_dice])
    assert toolbox.schemas == [READY, function_schema(roll_dice)]
    assert READY["function"]["parameters"]["properties"]["city"] == {"type": "str"}, "rendered unchanged"  # type: ignore[index]
    assert toolbox.names == ("weather", "roll_dice") and len(toolbox) == 2 and toolbox
    assert [toolbox.runnable(name) for name in ("roll_dice", "weather", "eval")] == [True, False, False]
    assert not Toolbox() and not Toolbox(None)


BAD_CALLS = [
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
]  # fmt: skip


def test_the_error_of_a_bad_call_names_the_problem() -> None:
    for name, arguments, message in BAD_CALLS:
        with pytest.raises(ToolError) as caught:
            TOOLS.arguments(ToolCall(name, arguments))
        assert message in str(caught.value), (name, arguments)
        result = TOOLS.run(ToolCall(name, arguments))
        assert result.failed and result.content == {"error": str(caught.value)}, "the model reads the same"


def test_errors_stay_short_for_long_calls() -> None:
    for call in (ToolCall("x" * 9999, {}), ToolCall("roll_dice", "x" * 9999), ToolCall("roll_dice", {"x" * 9999: 1})):
        assert len(TOOLS.run(call).content["error"]) < 400


def test_deeply_nested_arguments_are_an_error() -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    assert TOOLS.run(ToolCall("roll_dice", nested)).failed


def test_a_bare_value_belongs_to_the_only_parameter() -> None:
    for name, bare, named in [
        ("roll_dice", 6, {"max_num": 6}),
        ("roll_dice", "6", {"max_num": 6}),
        ("shout", "6", {"text": "6"}),
        ("shout", "hello", {"text": "hello"}),
        ("store", {"a": 1}, {"table": {"a": 1}}),
        ("store", {"table": {"a": 1}}, {"table": {"a": 1}}),
        ("nothing", None, {}),
        ("nothing", "", {}),
        ("open", {"a": 1}, {"a": 1}),
    ]:
        assert TOOLS.arguments(ToolCall(name, bare)) == named, (name, bare)


def test_a_bare_value_belongs_to_the_only_required_parameter() -> None:
    def search(query: str, most: int = 5) -> list[Any]:
        return [query, most]

    assert Toolbox([search]).run(ToolCall("search", "cats")).content == ["cats", 5]


def test_a_result_has_call_content_and_seconds() -> None:
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


def test_an_error_inside_a_tool_is_its_result() -> None:
    def fail() -> None:
        raise error

    for error, message in [
        (ValueError("no such city"), "no such city"),
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (Unspeakable(), "Unspeakable"),
        (ValueError("half \ud800"), "half \ufffd"),
    ]:
        result = Toolbox([fail]).run(ToolCall("fail", {}))
        assert result.failed and result.content == {"error": message}, repr(type(error))


def test_a_tool_cannot_change_the_call() -> None:
    def empty(table: dict) -> None:  # type: ignore[type-arg]
        table.clear()

    call = ToolCall("empty", {"table": {"a": 1}})
    assert not Toolbox([empty]).run(call).failed and call.arguments == {"table": {"a": 1}}


def test_a_result_without_a_json_form_is_a_failure() -> None:
    def give() -> int:
        return 10**5000

    assert Toolbox([give]).run(ToolCall("give", {})).failed


def test_the_caller_waits_no_longer_than_the_timeout() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait(60)

    result = Toolbox([hang]).run(ToolCall("hang", {}), timeout=0.05)
    left = [thread for thread in threading.enumerate() if thread.name == "tool hang"]
    released.set()
    assert result.failed and result.content == {"error": "hang did not end within 0.05 seconds"}
    assert result.seconds < 2
    assert left and all(thread.daemon for thread in left), "a tool that still runs must not keep Python from ending"


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
    assert not ran, "a call that is already cancelled must not start"
