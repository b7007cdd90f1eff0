"""The tools that any chat can offer: calculator, clock, dice, unit converter. They read no user file and no network."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from .calculator import calculator
from .clock import current_time
from .units import convert_units

MAX_SIDES = 1_000_000_000


def roll_dice(max_num: int) -> int:
    """Roll a dice with the number 1 to N. User can select the number N.

    Args:
        max_num: Max number of the dice
    """
    if not 1 <= max_num <= MAX_SIDES:
        raise ValueError(f"a dice has 1 to {MAX_SIDES} sides, not {max_num}")
    return 1 + secrets.randbelow(max_num)


BUILTIN_TOOLS: tuple[Callable[..., Any], ...] = (calculator, current_time, roll_dice, convert_units)
