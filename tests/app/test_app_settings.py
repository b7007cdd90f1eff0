"""What the widgets say -> options of a chat."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from app.settings import SAMPLING, Settings, recommended
from exaone4_mlx import Sampling


def test_widgets_become_options() -> None:
    values = {
        "system": "Be brief.",
        "thinking": True,
        "thinking_budget": 64.0,
        "top_k": 5.0,
        "seed": 7,
        "max_tokens": 100.0,
    }
    settings = Settings().updated(values)
    assert settings.system == "Be brief."
    assert settings.options() == {
        "thinking": True,
        "thinking_budget": 64,
        "max_tokens": 100,
        "sampling": Sampling(top_k=5, seed=7),
    }


def test_budget_of_zero_and_one_without_a_thought_set_no_bound() -> None:
    assert "thinking_budget" not in Settings(thinking=True).options()
    assert "thinking_budget" not in Settings(thinking_budget=50).options()


def test_recommendation_follows_the_mode_as_long_as_nothing_else_is_set() -> None:
    assert recommended(True) == (0.6, 0.95) and recommended(False) == (0.1, 1.0)
    assert Settings().sampling.temperature is None
    assert Settings(thinking=True).values()["temperature"] == 0.6
    assert Settings().values()["temperature"] == 0.1
    assert Settings().updated({"temperature": 0.0}).values()["temperature"] == 0.0, "0 is a temperature"


def test_what_the_widgets_show_changes_nothing() -> None:
    """Numbers in place of the recommendation mean the same."""
    settings = Settings(system="x", thinking=True, tools=("a",), sampling=Sampling(top_k=3, seed=None))
    shown = {name: value for name, value in settings.values().items() if name != "sampling"}
    assert shown["temperature"] == 0.6 and shown["seed"] is None
    same = settings.updated(shown)
    assert same.values() == {**settings.values(), "sampling": same.sampling}
    assert same.sampling.resolved(thinking=True) == settings.sampling.resolved(thinking=True)


def test_refused_value_changes_nothing() -> None:
    settings = Settings(system="x")
    with pytest.raises(ValueError):
        settings.updated({"system": "y", "max_tokens": 0})
    assert settings == Settings(system="x")


def test_tools_are_allowed_by_name_and_all_unless_named() -> None:
    assert not Settings().allows("calculator")
    assert Settings(use_tools=True).allows("calculator")
    assert not Settings(use_tools=True, tools=("roll_dice",)).allows("calculator")
    assert not Settings(use_tools=True, tools=()).allows("calculator")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"thinking_budget": -1}, "thinking_budget at least 0"),
        ({"thinking": "yes"}, "thinking must be true or false"),
        ({"ask": 1}, "ask must be true or false"),
        ({"system": 3}, "system prompt must be a text"),
        ({"tools": "calculator"}, "tools must be a list of names"),
        ({"seed": float("nan")}, "seed must be a whole number"),
        ({"seed": float("inf")}, "seed must be a whole number"),
        ({"top_k": 2**70}, "top_k must be a whole number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"max_tokens": "many"}, "max_tokens must be a whole number"),
        ({"max_tokens": None}, "max_tokens must be a whole number, not None"),
        ({"thinking_budget": None}, "thinking_budget must be a whole number, not None"),
        ({"top_k": None}, "top_k must be a whole number, not None"),
        ({"top_k": True}, "top_k must be a whole number, not True"),
        ({"min_p": None}, "min_p must be a number"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be a finite number"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"tools": [1]}, "tools must be a list of names"),
        ({"tools": "x" * 10_000}, r"tools must be a list of names, not 'x+\.\.\.x+'$"),
        ({"wisdom": 1}, "there is no setting 'wisdom'"),
    ],
)
def test_an_invalid_value_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Settings().updated(values)


def test_settings_survive_a_file() -> None:
    settings = Settings().updated({"thinking": True, "tools": ["a"], "temperature": 0.3, "seed": 1, "system": "안녕"})
    assert Settings().restored(json.loads(json.dumps(settings.as_dict()))) == settings


def test_of_a_broken_file_what_has_a_meaning_is_kept() -> None:
    broken = {"thinking": True, "max_tokens": "x", "sampling": {"temperature": -3, "top_k": 4}, "unknown": 1}
    assert Settings().restored(broken) == Settings(thinking=True, sampling=Sampling(top_k=4))


def test_no_file_makes_restoring_fail() -> None:
    rng = random.Random(4)
    junk: list[Any] = [
        None,
        True,
        -1,
        2**70,
        10**400,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "x" * 9,
        [],
        [1],
        ["a"],
        {},
        {"a": 1},
    ]
    names = ["system", "thinking", "thinking_budget", "use_tools", "tools", "ask", "max_tokens", "sampling", *SAMPLING]
    for _ in range(2000):
        values = {name: rng.choice(junk) for name in rng.sample(names, 4)}
        values["sampling"] = rng.choice([*junk, {name: rng.choice(junk) for name in rng.sample(SAMPLING, 3)}])
        settings = Settings().restored(values)
        settings.options()
        json.dumps(settings.as_dict())


def test_a_browser_remembers_all_settings_but_the_permissions():
    used = Settings(system="Be brief.", thinking=True, use_tools=True, tools=("x",), ask=False, max_tokens=99)
    kept = json.loads(json.dumps(used.lasting()))
    assert Settings().resumed(kept) == Settings(system="Be brief.", thinking=True, max_tokens=99)
    assert Settings(ask=True).resumed({**kept, "ask": False, "use_tools": True, "tools": ["x"]}).ask is True
    commanded = Settings(system="Of the command line.", ask=True)
    assert commanded.resumed(kept) == Settings(system="Of the command line.", thinking=True, ask=True, max_tokens=99)
    for broken in (None, [], "x", {"max_tokens": "many", "sampling": {"temperature": "hot"}, "y": 1}):
        assert Settings().resumed(broken) == Settings()
