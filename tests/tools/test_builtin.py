"""The built-in tools together: what the model is offered, and calls as the model writes them."""

from __future__ import annotations

import pytest
from conftest import ROOT, roll_dice as documented_roll_dice

from exaone4_mlx.tools.builtin import BUILTIN_TOOLS, roll_dice
from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.describe import function_schema
from exaone4_mlx.tools.toolbox import Toolbox

TOOLBOX = Toolbox(BUILTIN_TOOLS)


def test_the_model_is_offered_all_of_them() -> None:
    assert TOOLBOX.names == ("calculator", "current_time", "roll_dice", "convert_units")
    for schema in TOOLBOX.schemas:
        function = schema["function"]
        assert function["description"].endswith("."), function["name"]
        assert all("description" in one for one in function["parameters"]["properties"].values()), function["name"]


def test_roll_dice_is_described_as_in_the_documentation() -> None:
    assert function_schema(roll_dice) == function_schema(documented_roll_dice)


def test_every_side_comes_up_and_no_other() -> None:
    rolled = [roll_dice(6) for _ in range(600)]
    assert set(rolled) == {1, 2, 3, 4, 5, 6}, "a fair dice misses a side once in 10**46 times"
    assert roll_dice(1) == 1


def test_the_number_of_sides_is_limited() -> None:
    for sides in (0, -6, 10**9 + 1):
        with pytest.raises(ValueError, match="a dice has 1 to 1000000000 sides"):
            roll_dice(sides)


def test_calls_are_answered() -> None:
    for call, content in [
        (ToolCall("calculator", {"expression": "10 / 4"}), 2.5),
        (ToolCall("calculator", "1234 * 56"), 69104),
        (ToolCall("roll_dice", {"max_num": 1.0}), 1),
        (ToolCall("convert_units", {"value": 5, "from_unit": "km", "to_unit": "m"}), {"value": 5000, "unit": "m"}),
        (ToolCall("calculator", {"expression": "1/0"}), {"error": "division by zero"}),
    ]:
        assert TOOLBOX.run(call).content == content, call


def test_the_data_files_are_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert patterns["exaone4_mlx.tools"] == ["*.json"]
