"""A file of tools: its public functions become tools, and an error is one line with the place."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from exaone4_mlx.tools.load import load_tools


def tools_of(tmp_path: Path, source: str) -> list[str]:
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    return [tool.__name__ for tool in load_tools(file)]


def test_the_public_functions_of_the_file_are_the_tools(tmp_path: Path) -> None:
    (tmp_path / "exaone4_mlx_test_helper.py").write_text("def helper(x: int) -> int:\n    return x\n")
    source = (
        "from __future__ import annotations\nimport dataclasses\nfrom exaone4_mlx_test_helper import helper\n"
        "@dataclasses.dataclass\nclass Thing:\n    x: int = 1\n"
        "def one(x: int) -> int:\n    '''Add.'''\n    return helper(x)\ndef _hidden(x): pass\ndef two() -> str: return ''\n"
    )
    try:
        assert tools_of(tmp_path, source) == ["one", "two"]
        assert tools_of(tmp_path, source + "tools = [two]\n") == ["two"]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("exaone4_mlx_test_helper", None)


BROKEN = [
    ("x = 1\ndef f(:\n", r"mine\.py:2: invalid syntax"),
    ("import math\n\nmath.sqrt(-1)\n", r"mine\.py:3: ValueError: math domain error|mine\.py:3: ValueError: expected a"),
    ("def g():\n    raise KeyError('x')\ng()\n", r"mine\.py:2: KeyError: 'x'"),
    ("raise SystemExit(3)\n", r"mine\.py:1: SystemExit: 3"),
    ("x = 1\n", r"mine\.py: there is no tool in it"),
    ("tools = [1]\n", r"mine\.py: its `tools` must be a list of functions"),
    ("\n\ndef f(x):\n    pass\n", r"mine\.py:3: parameter 'x' of tool f needs a type hint"),
]


def test_the_error_of_a_broken_file_is_one_line_with_the_place(tmp_path: Path) -> None:
    for source, message in BROKEN:
        with pytest.raises(ValueError) as caught:
            tools_of(tmp_path, source)
        assert re.search(message, str(caught.value)) and "\n" not in str(caught.value), f"{source}: {caught.value}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file of tools .*none\.py"):
        load_tools(tmp_path / "none.py")
