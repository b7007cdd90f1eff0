"""The unit converter: known ratios, names in three languages, and clear refusals."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from exaone4_mlx.tools import units
from exaone4_mlx.tools.units import convert_units

RATIOS = [
    (1, "mile", "km", 1.609344),
    (1, "miles", "Kilometers", 1.609344),
    (3, "m", "ft", 9.84251968504),
    (1, "inches", "cm", 2.54),
    (2, "pies", "cm", 60.96),
    (1, "light years", "km", 9460730472580),
    (5, "kg", "lb", 11.0231131092),
    (1, "libra", "gramos", 453.59237),
    (100, "C", "F", 212),
    (-40, "°F", "celsius", -40),
    (0, "K", "섭씨", -273.15),
    (0.1, "degrees Celsius", "K", 273.25),
    (1, "acre", "m²", 4046.8564224),
    (1, "hectárea", "m^2", 10000),
    (1, "gallon", "L", 3.785411784),
    (60, "mph", "km/h", 96.56064),
    (1, "노트", "km/h", 1.852),
    (1, "week", "hours", 168),
    (1, "kWh", "kJ", 3600),
    (1, "calorie", "J", 4.184),
    (1, "atm", "torr", 760),
    (1, "atm", "psi", 14.6959487755),
    (1, "GiB", "MB", 1073.741824),
    (1, "Gb", "MB", 125),
    (0.1, "m", "cm", 10),
    (30, "평", "제곱미터", 99.173553719),
    (1, "근", "그램", 600),
    (10, "리", "km", 3.92727272727),
    (1e300, "km", "nm", "1e+312"),
    (1e-9, "eV", "J", 1.602176634e-28),
]


def test_known_ratios() -> None:
    for value, source, target, expected in RATIOS:
        result = convert_units(value, source, target)["value"]
        assert result == expected, f"{value} {source} is {result} {target}"


REFUSED = [
    (1, "foo", "m", "unknown unit 'foo'; known are units of length, mass"),
    (1, "", "m", "unknown unit ''"),
    (1, "x" * 999, "m", "unknown unit 'x{40}'"),
    (1, "kg", "m", "kg is a unit of mass, m is a unit of length"),
    (1, "ton", "kg", "'ton' is ambiguous; say tonne, short ton or long ton"),
    (1, "mPa", "Pa", "'mPa' is ambiguous; say Pa or MPa"),
    (1, "mb", "kB", "'mb' is ambiguous; say MB or Mbit"),
    (-1, "K", "C", "below absolute zero"),
    (math.inf, "m", "cm", "must be a finite number"),
    (math.nan, "m", "cm", "must be a finite number"),
]


def test_an_error_names_the_problem() -> None:
    for value, source, target, message in REFUSED:
        with pytest.raises(ValueError) as caught:
            convert_units(value, source, target)
        assert re.search(message, str(caught.value)), f"{source} to {target}: {caught.value}"


def test_every_unit_converts_to_its_base_unit_and_back() -> None:
    for name, unit in units.units().exact.items():
        base = next(other for other in units.units().exact.values() if other.kind == unit.kind).name
        there = convert_units(300, name, base)["value"]
        back = convert_units(float(there), base, name)
        assert math.isclose(float(back["value"]), 300, rel_tol=1e-9) and back["unit"] == unit.name, name


def test_every_name_in_the_table_belongs_to_one_unit() -> None:
    table = json.loads(Path(units.__file__).with_name("units.json").read_text(encoding="utf-8"))
    names = [name for rows in table["units"].values() for row in rows for name in row["names"]]
    assert not {name for name in names if names.count(name) > 1}
    assert {unit.kind for unit in units.units().exact.values()} == set(table["units"])
