"""Functions describe themselves to the model; what they leave open is refused by name."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal, Optional

import pytest

from exaone4_mlx.text.tools import function_schema, read_docstring, schemas


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def roll_dice(max_num: int) -> int:
    """Roll a dice with the number 1 to N. User can select the number N.

    Args:
        max_num: Max number of the dice
    """
    return max_num


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
