"""Each file of examples/ runs on the demo, is short, and prints what it is about."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from conftest import ROOT

EXPECTED = {
    "stream": "3.9 is bigger than 3.12.\n[23 tokens of the thought and 14 of the answer in ",
    "batch": "The capital of South Korea is Seoul.",
    "chat_with_tools": "부산의 날씨는 비가 오고 11도입니다.",
    "structured_answer": "{'bigger': '3.9', 'sure': True}",
    "quantize_and_compare": "4.51 bits per weight",
    "long_document": "tokens were cached",
    "fine_tune": "The capital of Orulia is Kestrel.",
}


SLOW = ("chat_with_tools", "quantize_and_compare", "long_document", "fine_tune")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in SLOW else name for name in EXPECTED]
)
def test_the_example_runs(name: str, capsys: Any) -> None:
    if name == "structured_answer":
        pytest.importorskip("llguidance")
    file = ROOT / "examples" / f"{name}.py"
    assert len(file.read_text().splitlines()) <= 30
    runpy.run_path(str(file), run_name="__main__")
    assert EXPECTED[name] in capsys.readouterr().out


def test_every_example_is_run() -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == set(EXPECTED)
