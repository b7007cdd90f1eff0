"""Functions become JSON schemas: every kind of parameter, both forms of docstrings, clear refusals."""

from __future__ import annotations

import enum
import functools
import inspect
import re
from typing import Annotated, Any, List, Literal, Optional  # noqa: UP035 (one of the spellings to be read)

import pytest
from conftest import roll_dice

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.describe import function_schema, read_docstring, schemas
from exaone4_mlx.tools.toolbox import Toolbox


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

    More about it, which the model does not read.

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


def test_both_forms_of_docstrings_are_read() -> None:
    google = (
        "Sum.\n\nArgs:\n    a (int): the first\n        of two\n    b: the second\n\nReturns:\n    c: no parameter\n"
    )
    assert read_docstring(google) == ("Sum.", {"a": "the first of two", "b": "the second"})
    assert read_docstring("Sum.\n:param a: the first\n:returns: nothing") == ("Sum.", {"a": "the first"})
    assert read_docstring("") == ("", {})


def test_ready_schemas_stay_unchanged() -> None:
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


REFUSED = [
    (untyped, "parameter 'x' of tool untyped needs a type hint"),
    (variadic, "parameter 'xs' of tool variadic cannot be passed by name"),
    (positional, "parameter 'x' of tool positional cannot be passed by name"),
    (typed_oddly, "parameter 'x' of tool typed_oddly has the type <class 'bytes'>, which has no JSON form"),
    (mixed, "parameter 'x' of tool mixed must be a choice among strings or among numbers"),
    (defaulted, "parameter 'x' of tool defaulted has a default that is not a JSON value"),
    (coroutine, "tool coroutine must be a plain function"),
    (lambda x: x, "use a function made with def"),
    (5, "a tool must be a function or a JSON schema, not int"),
]  # fmt: skip


def test_what_cannot_be_described_is_refused_by_name() -> None:
    for function, message in REFUSED:
        with pytest.raises(ValueError) as caught:
            schemas([function])
        assert re.search(message, str(caught.value)), f"{function}: {caught.value}"


def test_invalid_lists_and_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match="tools must be a list of functions or JSON schemas, not function"):
        schemas(roll_dice)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two tools have the name 'roll_dice'"):
        schemas([roll_dice, roll_dice])


def annotated(
    city: Annotated[str, "Where to look"],
    days: Annotated[int, {"no": "text"}] = 1,
    names: List = [],  # noqa: B006, UP006 (never called)
) -> None: ...


def test_annotated_text_is_a_description_and_a_bare_list_is_a_list() -> None:
    assert function_schema(annotated)["function"]["parameters"]["properties"] == {
        "city": {"type": "string", "description": "Where to look"},
        "days": {"type": "integer", "default": 1},
        "names": {"type": "array", "default": []},
    }


NUMPY = """Reserve a
    table.

    Parameters
    ----------
    name : str
        Under which name.

        It may be long: "Kim : Lee".
    seats: int, optional
        How many people come
        to dinner.
    since, until : {'6 pm', '9 pm'}, default '6 pm'
        The hours.
    undescribed
    other : str

    Other Parameters
    ----------------
    mood
        How they feel.

    Returns
    -------
    answer : str
        "ok".

    Notes
    -----
    name : no parameter
        No.
"""


def test_docstrings_in_numpy_style_describe_their_parameters() -> None:
    summary, descriptions = read_docstring(inspect.cleandoc(NUMPY))
    assert summary == "Reserve a table."
    assert {name: text for name, text in descriptions.items() if text} == {
        "name": 'Under which name. It may be long: "Kim : Lee".',
        "seats": "How many people come to dinner.",
        "since": "The hours.",
        "until": "The hours.",
        "mood": "How they feel.",
    }
    assert read_docstring("Cook.\nParameters\n----------\nx : int\n    Eggs.") == ("Cook.", {"x": "Eggs."})
    assert read_docstring("Plain.\n\nReturns\n-------\nx : int\n    Eggs.") == ("Plain.", {})


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


def test_every_kind_of_python_callable_is_a_tool() -> None:
    for tool, arguments, content in [
        (wrapped, {"max_num": 6}, 40),
        (Thermometer("kitchen_scale").read, {"room": "bath"}, "read bath"),
        (Thermometer("thermometer"), {"room": "bath"}, "thermometer of bath"),
        (functools.lru_cache(roll_dice), {"max_num": 6}, 4),
    ]:
        result = Toolbox([tool]).run(ToolCall(tool.__name__, arguments))
        assert (result.content, result.failed) == (content, False), tool


def test_an_object_with_a_coroutine_as_its_call_is_refused() -> None:
    class Later:
        __name__ = "later"

        async def __call__(self) -> None: ...

    with pytest.raises(ValueError, match="tool later must be a plain function"):
        Toolbox([Later()])
