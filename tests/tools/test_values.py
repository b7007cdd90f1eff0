"""JSON values become arguments of Python functions; results become JSON values."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import json
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pytest

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.toolbox import Toolbox
from exaone4_mlx.tools.values import result_to_json


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def test_a_function_gets_the_types_of_its_hints_and_only_the_given_arguments() -> None:
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


RESULTS = [
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
]


def test_every_result_becomes_a_json_value() -> None:
    for value, content in RESULTS:
        result = result_to_json(value)
        assert result == content and type(result) is type(content), f"{value!r} became {result!r}"
        assert json.loads(json.dumps(result, allow_nan=False)) == content, value


def test_results_without_a_json_form_are_errors() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="the result is nested too deeply"):
        result_to_json(endless)
    with pytest.raises(ValueError, match="Exceeds the limit"):
        result_to_json(10**5000)
    with pytest.raises(ValueError, match="the tool is asynchronous, which is not supported"):
        result_to_json(asyncio.sleep(0))
