"""Arithmetic of the calculator: exact fractions where possible, each step bounded before it is computed.

Notes:
- A value is a Fraction, or a float where no exact result exists: a root, a sine.
- Every refusal is a ValueError with a message for the model.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

Number = int | float | str
Value = Fraction | float

MAX_BITS = 10_000  # of numerator and denominator: about 3,000 digits
MAX_FACTORIAL = 1000
CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e}


def number(text: str) -> Value:
    """The exact value of a decimal number such as 1.5e3."""
    plain, _, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > MAX_BITS // 4:
        raise ValueError(f"the number {text} is too large or too small")
    return bounded(Fraction(plain) * Fraction(10) ** int(exponent or 0))


def call(name: str, function: Callable[..., Value], *arguments: Value) -> Value:
    """The function's value. Python's own errors are replaced by clear ones."""
    try:
        return bounded(function(*arguments))
    except OverflowError as error:
        raise ValueError(f"{name}: the number is too large") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except ValueError as error:
        if "math domain" in str(error) or "expected a" in str(error):  # the words differ between versions of Python
            raise ValueError(f"{name} is not defined there") from error
        raise


def bounded(value: Value) -> Value:
    if not isinstance(value, Fraction):
        if not math.isfinite(value):
            raise ValueError("the result is too large")
    elif max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("the result has too many digits")
    return value


def power(base: Value, exponent: Value) -> Value:
    if base == 0 and exponent < 0:
        raise ValueError("division by zero")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(abs(base.numerator), base.denominator).bit_length() - 1  # 0 for a base of 0, 1 or -1
        if bits * abs(exponent) > MAX_BITS:
            raise ValueError("the result has too many digits")
        return bounded(base ** (int(exponent) if bits or not base else int(exponent) % 2))
    if base < 0 and exponent != int(exponent):
        raise ValueError("a negative number has no real power of a fraction")
    if exponent == Fraction(1, 2):
        return square_root(base)
    return call("power", operator.pow, float(base), float(exponent))


def square_root(value: Value) -> Value:
    if value < 0:
        raise ValueError("a negative number has no real square root")
    if isinstance(value, Fraction):
        above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if above**2 == value.numerator and below**2 == value.denominator:
            return Fraction(above, below)
    return call("sqrt", math.sqrt, value)


def _factorial(value: Value) -> Fraction:
    if value != int(value) or value < 0:
        raise ValueError("a factorial needs a whole number that is not negative")
    if value > MAX_FACTORIAL:
        raise ValueError(f"factorials are computed up to {MAX_FACTORIAL}")
    return Fraction(math.factorial(int(value)))


def _round(value: Value, places: Value = Fraction(0)) -> Fraction:
    """Rounds halves away from zero, as taught in school; Python rounds them to even."""
    if int(places) != places or not -100 <= places <= 100:
        raise ValueError("round takes a whole number of places, up to 100")
    scale = Fraction(10) ** int(places)
    scaled = Fraction(value if isinstance(value, Fraction) else repr(value)) * scale
    whole = math.floor(abs(scaled) + Fraction(1, 2))
    return Fraction(whole if scaled >= 0 else -whole) / scale


def _log(value: Value, base: Value = Fraction(10)) -> Value:
    """The logarithm to base 10, unless another is given, as on a calculator; `ln` is the natural one."""
    if value <= 0 or base <= 0 or base == 1:
        raise ValueError("a logarithm needs a positive number, and a positive base that is not 1")

    def of(number: Value, log: Callable[[float], float]) -> float:
        # Of numerator and denominator, which may be larger than any float.
        return log(number.numerator) - log(number.denominator) if isinstance(number, Fraction) else log(number)

    if base == 2 or base == 10:
        return of(value, math.log2 if base == 2 else math.log10)
    return of(value, math.log) / of(base, math.log)


def _tangent(angle: Value) -> float:
    if abs(math.cos(float(angle))) < 1e-15:
        raise ValueError("tan is not defined there")
    return math.tan(float(angle))


FUNCTIONS: dict[str, Callable[..., Value]] = {
    **{"sqrt": square_root, "abs": abs, "round": _round, "factorial": _factorial},
    **{"min": lambda *values: min(values), "max": lambda *values: max(values)},
    **{"floor": lambda x: Fraction(math.floor(x)), "ceil": lambda x: Fraction(math.ceil(x))},
    **{
        "log": _log,
        "log10": lambda x: _log(x),
        "log2": lambda x: _log(x, Fraction(2)),
        "ln": lambda x: _log(x, math.e),
    },
    # To 15 digits, since pi is rounded too: sin(pi) is 0.
    **{"sin": lambda x: float(round(math.sin(x), 15)), "cos": lambda x: float(round(math.cos(x), 15)), "tan": _tangent},
    **{"asin": math.asin, "acos": math.acos, "atan": math.atan, "exp": math.exp},
}
#: The fewest and the most arguments, where a function does not take exactly one.
ARGUMENTS = {"round": (1, 2), "log": (1, 2), "min": (1, 100), "max": (1, 100)}
POSTFIX_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    **{"factorial": _factorial, "degrees": lambda x: float(x) * math.pi / 180},
    **{"square": lambda x: power(x, Fraction(2)), "cube": lambda x: power(x, Fraction(3))},
}
OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.FloorDiv: lambda x, y: Fraction(x // y), ast.Mod: operator.mod},
}


def plain_number(value: Value, digits: int = 15) -> Number:
    """A number in the best form for JSON: exact if short, else rounded to `digits`; a string if no float holds it."""
    if not isinstance(value, Fraction):
        value = Fraction(f"{value:.{digits}g}")
    if value.denominator == 1 and (digits == 15 or abs(value) < 10**15):
        return int(value)
    with localcontext() as context:
        context.prec = 30
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        if Fraction(exact) != value or digits < 15:
            context.prec = digits
            exact = +exact
    exact = exact.normalize()
    if Decimal(repr(float(exact))) == exact:
        return int(exact) if exact == exact.to_integral_value() and abs(exact) < 10**15 else float(exact)
    return f"{exact:f}" if -20 < exact.adjusted() < 40 else str(exact).lower()
