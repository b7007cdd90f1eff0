"""A unit converter for a model.

Notes:
- units.json lists the units: kind -> factor to the base unit of the kind, and names in English, Korean and Spanish.
  Plurals with -s need no entry. Korean customary units are included.
- An ambiguous unit ("ton", "mb") is refused, and the error asks for a clear one.
- The model reads the docstring of `convert_units`. The demo was trained with these words.
"""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from .arithmetic import Number, plain_number


def convert_units(value: float, from_unit: str, to_unit: str) -> dict[str, Number]:
    """Convert a value from one unit of measurement to another.

    Args:
        value: The number to convert
        from_unit: Unit of the value, for example km
        to_unit: Unit to convert to, for example mile
    """
    if not math.isfinite(value):
        raise ValueError("the value must be a finite number")
    table = units()
    source, target = table.find(from_unit), table.find(to_unit)
    if source.kind != target.kind:
        raise ValueError(
            f"{from_unit.strip()} is a unit of {source.kind}, {to_unit.strip()} is a unit of {target.kind}"
        )
    base = (Fraction(str(value)) + source.zero) * source.factor
    if source.kind == "temperature" and base < 0:
        raise ValueError("that is below absolute zero")
    return {"value": plain_number(base / target.factor - target.zero, digits=12), "unit": target.name}


@dataclass(frozen=True)
class Unit:
    """(value + zero) · factor is the value in the base unit of its kind."""

    kind: str
    name: str
    factor: Fraction
    zero: Fraction


@dataclass(frozen=True)
class UnitTable:
    """Every unit by its names. The case of letters counts only where two units differ in it (MB, Mb)."""

    exact: dict[str, Unit]  # by name as written
    folded: dict[str, list[Unit]]  # by name without case and accents
    ambiguous: dict[str, str]  # a name that is refused -> the clear names

    def find(self, name: str) -> Unit:
        """Raises ValueError for a unit that is unknown or ambiguous."""
        plain = re.sub(r"[\s_]+", " ", name.strip().strip("."))
        if clear := self.ambiguous.get(plain) or self.ambiguous.get(plain.casefold()):
            raise ValueError(f"the unit {plain!r} is ambiguous; say {clear}")
        for key in (plain, plain.removesuffix("s") if len(plain) > 3 else plain):
            found = [self.exact[key]] if key in self.exact else self.folded.get(_fold(key), [])
            if len(names := sorted({unit.name for unit in found})) > 1:
                raise ValueError(f"the unit {plain!r} is ambiguous; say {' or '.join(names)}")
            if found:
                return found[0]
        kinds = dict.fromkeys(unit.kind for unit in self.exact.values())
        raise ValueError(f"unknown unit {plain[:40]!r}; known are units of {', '.join(kinds)}")


@functools.cache
def units() -> UnitTable:
    data = json.loads(Path(__file__).with_name("units.json").read_text(encoding="utf-8"))
    exact: dict[str, Unit] = {}
    for kind, rows in data["units"].items():
        for row in rows:
            unit = Unit(kind, row["names"][0], Fraction(row["factor"]), Fraction(row.get("zero", 0)))
            exact |= dict.fromkeys(row["names"], unit)
    folded: dict[str, list[Unit]] = {}
    for name, unit in exact.items():
        folded.setdefault(_fold(name), []).append(unit)
    return UnitTable(exact, folded, data["ambiguous"])


def _fold(name: str) -> str:
    decomposed = unicodedata.normalize("NFD", name.casefold())
    return unicodedata.normalize("NFC", "".join(part for part in decomposed if not unicodedata.combining(part)))
