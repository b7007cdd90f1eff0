"""The built-in tools: right where others have the answer, short and clear where there is none, never hung."""

from __future__ import annotations

import datetime
import json
import math
import random
import re
import time
import zoneinfo
from typing import Any

import pytest
from conftest import roll_dice as documented_roll_dice

from exaone4_mlx.text.reply import ToolCall
from exaone4_mlx.tools import clock, units
from exaone4_mlx.tools.builtin import BUILTIN_TOOLS, calculator, convert_units, current_time, roll_dice
from exaone4_mlx.tools.calculator import FUNCTIONS
from exaone4_mlx.tools.describe import function_schema
from exaone4_mlx.tools.toolbox import Toolbox

TOOLBOX = Toolbox(BUILTIN_TOOLS)


def test_the_model_is_offered_all_of_them_by_name() -> None:
    assert TOOLBOX.names == ("calculator", "current_time", "roll_dice", "convert_units")
    for schema in TOOLBOX.schemas:
        function = schema["function"]
        assert function["description"].endswith("."), function["name"]
        assert all("description" in one for one in function["parameters"]["properties"].values()), function["name"]


# The calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1234 * 56", 69104),
        ("0.1+0.2", 0.3),
        ("3.12 - 3.9", -0.78),
        ("10 / 4", 2.5),
        ("2/3", 0.666666666666667),
        ("1/7*7", 1),
        ("9999 ** 5", 99950009999000049999),
        ("-2 ** 2", -4),
        ("2 ^ 3 ^ 2", 512),
        ("2**-1", 0.5),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("10 % (-3)", -2),
        ("1 - 2 - 3", -4),
        ("100 / 10 / 2", 5),
        ("2 + 3 * (4 - 1)", 11),
        ("1,234.5 + 1", 1235.5),
        ("1,234,567 x 2", 2469134),
        ("12×7÷2−1", 41),
        ("３＋４", 7),
        ("√16 + √2", 5.41421356237309),
        ("3² + 2³", 17),
        ("5!", 120),
        ("factorial(20)", 2432902008176640000),
        ("15% of 200", 30),
        ("15% de 200", 30),
        ("200의 15%", 30),
        ("200 * 15%", 30),
        ("100% - 20%", 0.8),
        ("pi", 3.14159265358979),
        ("e", 2.71828182845905),
        ("sin(pi) + cos(pi/2)", 0),
        ("sin(30°)", 0.5),
        ("tan(pi/4)", 1),
        ("atan(1) * 4 - pi + asin(1) - acos(0)", 0),
        ("log(1000)", 3),
        ("log(8, 2) + log2(8) + log10(0.01) + ln(e)", 5),
        ("exp(1)", 2.71828182845905),
        ("sqrt(1,234)", 35.1283361405006),
        ("8 ** (1/3)", 2),
        ("4 ** 0.5", 2),
        ("round(2.5) + round(2.675, 2)", 5.68),
        ("round(-2.5)", -3),
        ("round(pi, 3)", 3.142),
        ("floor(-1.5) + ceil(-1.5)", -3),
        ("max(1, 234, abs(-5)) - min(3)", 231),
        ("max((1,234), 5)", 1234),
        ("1.5e3", 1500),
        ("12 * 7 = ?", 84),
        ("1 ** 999999999999 + (-1) ** 999999999999", 0),
        ("10 ** 400 / 3", "3.33333333333333e+399"),
        ("123456789.123 * 987654321.987", "121932631355968601.347401"),
    ],
)
def test_calculator_has_the_known_value(expression: str, value: Any) -> None:
    result = calculator(expression)
    assert result == value and type(result) is type(value), f"{expression} is {result!r}"


def test_calculator_agrees_with_python_where_both_are_exact() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = str(rng.randrange(100))
        for _ in range(rng.randrange(1, 6)):
            text = f"({text})" if rng.random() < 0.3 else text
            text += f" {rng.choice(['+', '-', '*', '//', '%'])} {rng.randrange(1, 100)}"
        assert calculator(text) == eval(text), text


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the expression is empty"),
        ("1/0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("sqrt(2) / (1/7)**900", "division by zero"),
        ("(1 + 2", "the parenthesis at position 1 is not closed"),
        ("max(1, (2)", "the parenthesis at position 4 is not closed"),
        ("1 + 2)", "the parenthesis at position 6 closes nothing"),
        ("1 +", "the expression ends where a number should follow"),
        ("1 + * 2", r"unexpected '\*' at position 5"),
        ("2 3", "unexpected '3' at position 3"),
        ("3,5 + 1", "decimals are written with a point"),
        ("1,2345", "decimals are written with a point"),
        ("max(1,234, 5)", "1,234 can be read in two ways"),
        ("50 + 10%", "adding a percentage can be read in two ways"),
        ("0x10", "hexadecimal"),
        ("foo + 1", "unknown name 'foo'; known are sqrt, abs"),
        ("sqrt 4", "sqrt needs its argument in parentheses"),
        ("sqrt(1, 2)", "sqrt takes 1 arguments"),
        ("sqrt(-1)", "no real square root"),
        ("(-8) ** (1/3)", "no real power"),
        ("log(0)", "a logarithm needs a positive number"),
        ("log(5, 1)", "a logarithm needs a positive number"),
        ("asin(2)", "asin is not defined there"),
        ("tan(pi/2)", "tan is not defined there"),
        ("2.5!", "a factorial needs a whole number"),
        ("exp(1000)", "too large"),
        ("1e308 * 10.5 + pi", "too large"),
        ("[1] * 9", r"unexpected '\['"),
        ("'a' * 9", 'unexpected "\'"'),
    ],
)
def test_calculator_says_what_is_wrong(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculator(expression)


HOSTILE = {
    "__import__('os').system('true')": "unknown name '__import__'",
    "().__class__.__bases__": "unexpected '[)]'|closes nothing",
    "eval('1')": "unknown name 'eval'",
    "lambda: 0": "unknown name 'lambda'",
    "9**9**9": "too many digits",
    "9**9**9**9**9": "too many digits",
    "(1/9)**-9999999": "too many digits",
    "9**-99999999": "too many digits",
    "1e999999999999": "too large or too small",
    "1e-999999999999": "too large or too small",
    "factorial(1001)": "up to 1000",
    "999999999999!": "up to 1000",
    "9!!!!": "up to 1000",
    "factorial(1000) * factorial(1000)": "too many digits",
    "(" * 999: "nested more than",
    "-" * 999 + "1": "nested more than",
    "√" * 999 + "1": "nested more than",
    "2**" * 300 + "2": "nested more than",
    "abs(" * 200: "nested more than",
    "1" * 1001: "longer than 1000 characters",
    "round(1, 1e9)": "up to 100",
    "max(" + "1, " * 200 + "1)": "takes 1 to 100",
}


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: text[:20])
def test_hostile_expressions_are_refused_at_once(expression: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=HOSTILE[expression]) as caught:
        calculator(expression)
    assert time.perf_counter() - started < 0.5
    assert len(str(caught.value)) < 250


def test_whatever_is_written_ends_in_a_json_number_or_a_clear_error() -> None:
    rng = random.Random(1)
    numbers = "1 2 0 0.1 1e300 1e-300 1,234 9**3000 (1/7)**900 2**0.5 pi 5! 3² 30° 15% √2 factorial(999)".split()
    signs = "+ - * / // % ^ ( ) ! , of x 의".split() * 5 + [f"* {name}(" for name in FUNCTIONS]
    outcomes = {"value": 0, "error": 0}
    for _ in range(3000):
        words = [rng.choice(numbers) for _ in range(rng.choice((2, 3, 5, 20)))]
        text = "".join(f"{word} {rng.choice(signs)} " for word in words) + ("1" if rng.random() < 0.9 else "")
        try:
            json.dumps(calculator(text), allow_nan=False)
            outcomes["value"] += 1
        except ValueError as error:
            if re.search("Exceeds|invalid literal|math domain|JSON", str(error)):
                pytest.fail(f"{text} ends in one of Python's own errors: {error}")
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100, outcomes


# The clock


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noon in Greenwich, on the first of July 2025."""
    moment = datetime.datetime(2025, 7, 1, 12, 0, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(clock, "_now", lambda zone: moment.astimezone(zone))


@pytest.mark.usefixtures("noon")
@pytest.mark.parametrize(
    ("city", "clock", "zone"),
    [
        ("Seoul", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("부산", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("서울특별시", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("부산은", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("서울시의", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("대구", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("Seoul, South Korea", "21:00", "Asia/Seoul (UTC+09:00)"),
        ("París", "14:00", "Europe/Paris (UTC+02:00)"),
        ("la habana", "08:00", "America/Havana (UTC-04:00)"),
        ("NEW YORK", "08:00", "America/New_York (UTC-04:00)"),
        ("Washington, D.C.", "08:00", "America/New_York (UTC-04:00)"),
        ("São Paulo", "09:00", "America/Sao_Paulo (UTC-03:00)"),
        ("뉴델리", "17:30", "Asia/Kolkata (UTC+05:30)"),
        ("Kathmandu", "17:45", "Asia/Kathmandu (UTC+05:45)"),
        ("빈", "14:00", "Europe/Vienna (UTC+02:00)"),
        ("Pacific/Auckland", "00:00", "Pacific/Auckland (UTC+12:00)"),
        ("asia/tokyo", "21:00", "Asia/Tokyo (UTC+09:00)"),
        ("UTC", "12:00", "UTC (UTC+00:00)"),
        ("UTC-3:30", "08:30", "UTC-03:30 (UTC-03:30)"),
    ],
)
def test_the_clock_knows_a_city_in_three_languages(city: str, clock: str, zone: str) -> None:
    result = current_time(city)
    assert (result["time"], result["zone"]) == (clock, zone)
    assert (result["date"], result["weekday"]) == (
        ("2 July 2025", "Wednesday") if clock == "00:00" else ("1 July 2025", "Tuesday")
    )


@pytest.mark.usefixtures("noon")
def test_a_city_is_named_without_what_korean_adds_to_it() -> None:
    assert current_time("부산은")["city"] == "부산"
    assert current_time("대구")["city"] == "대구", "though it ends like another name with its particle"


def test_without_a_city_it_is_this_computers_clock() -> None:
    for city in ("", " local "):
        before = datetime.datetime.now()
        result = current_time(city)
        shown = datetime.datetime.strptime(f"{result['date']} {result['time']}", "%d %B %Y %H:%M")
        assert datetime.timedelta(minutes=-1) <= shown - before <= datetime.timedelta(minutes=1)
        assert result["city"] == "local"


@pytest.mark.parametrize("city", ["Atlantis", "../../etc/passwd", "/etc/localtime", "UTC+99", "x" * 5000, "\0", "시"])
def test_a_place_without_a_clock_is_an_error(city: str) -> None:
    with pytest.raises(ValueError, match="unknown city") as caught:
        current_time(city)
    assert len(str(caught.value)) < 200


def test_every_zone_of_the_table_exists_and_every_name_means_one() -> None:
    meant: dict[str, str] = {}
    for line in clock.CITIES.replace("\n  ", " ").strip().splitlines():
        zone, _, names = line.partition(": ")
        assert zoneinfo.ZoneInfo(zone).key == zone
        for name in names.replace(",", " ").split():
            assert meant.setdefault(clock._simple(name), zone) == zone, name


def test_a_computer_without_zones_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    clock._zones.cache_clear()
    with pytest.raises(ValueError, match="tzdata"):
        current_time("Seoul")
    assert current_time("UTC")["zone"] == "UTC (UTC+00:00)", "needs no data"


# Dice


def test_roll_dice_is_offered_as_the_documentation_has_it() -> None:
    assert function_schema(roll_dice) == function_schema(documented_roll_dice)


def test_every_side_comes_up_and_no_other() -> None:
    rolled = [roll_dice(6) for _ in range(600)]
    assert set(rolled) == {1, 2, 3, 4, 5, 6}, "a fair dice misses a side once in 10**46 times"
    assert roll_dice(1) == 1


@pytest.mark.parametrize("sides", [0, -6, 10**9 + 1])
def test_a_dice_has_a_sensible_number_of_sides(sides: int) -> None:
    with pytest.raises(ValueError, match="a dice has 1 to 1000000000 sides"):
        roll_dice(sides)


# Units


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "expected"),
    [
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
    ],
)
def test_units_have_their_known_ratios(value: float, from_unit: str, to_unit: str, expected: Any) -> None:
    assert convert_units(value, from_unit, to_unit)["value"] == expected


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "message"),
    [
        (1, "foo", "m", "unknown unit 'foo'; known are units of length, mass"),
        (1, "", "m", "unknown unit ''"),
        (1, "x" * 999, "m", "unknown unit 'x{40}'"),
        (1, "kg", "m", "kg is a unit of mass, m is one of length"),
        (1, "ton", "kg", "'ton' is not clear; say tonne, short ton or long ton"),
        (1, "mPa", "Pa", "'mPa' is not clear; say Pa or MPa"),
        (1, "mb", "kB", "'mb' can be MB or Mbit"),
        (-1, "K", "C", "below absolute zero"),
        (math.inf, "m", "cm", "must be a finite number"),
        (math.nan, "m", "cm", "must be a finite number"),
    ],
)
def test_units_that_do_not_fit_are_refused(value: float, from_unit: str, to_unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_units(value, from_unit, to_unit)


def test_there_and_back_is_where_one_was() -> None:
    exact, _ = units._units()
    assert {kind for kind, _ in exact.values()} == {*units.UNITS, "temperature"}
    for name, (kind, unit) in exact.items():
        base = next(other for other in exact.values() if other[0] == kind)[1].name
        there = convert_units(300, name, base)["value"]
        back = convert_units(float(there), base, name)
        assert math.isclose(float(back["value"]), 300, rel_tol=1e-9) and back["unit"] == unit.name, name


def test_no_name_is_two_units() -> None:
    names = [name for table in units.UNITS.values() for line in table.splitlines() for name in line.split()[1:]]
    assert not {name for name in names if names.count(name) > 1}


# As a model calls them


@pytest.mark.parametrize(
    ("call", "content"),
    [
        (ToolCall("calculator", {"expression": "10 / 4"}), 2.5),
        (ToolCall("calculator", "1234 * 56"), 69104),
        (ToolCall("roll_dice", {"max_num": 1.0}), 1),
        (ToolCall("convert_units", {"value": 5, "from_unit": "km", "to_unit": "m"}), {"value": 5000, "unit": "m"}),
        (ToolCall("calculator", {"expression": "1/0"}), {"error": "division by zero"}),
    ],
)
def test_calls_are_answered(call: ToolCall, content: Any) -> None:
    assert TOOLBOX.run(call).content == content
