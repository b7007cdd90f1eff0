"""A calculator for a model: an expression -> its value.

What is peculiar here:
- It has a grammar of its own and evaluates nothing but that.
- Numbers are exact fractions as long as they can be, so that 0.1 + 0.2 is 0.3; every step is bounded before it
  is computed.
- What can be read in two ways is refused with a question back, not guessed: 3,5 or 50 + 10%.
- The docstring of `calculator` is what the model reads; its words are those that the demo was trained with.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

Number = int | float | str


def calculator(expression: str) -> Number:
    """Evaluate an arithmetic expression.

    Args:
        expression: The expression to evaluate
    """
    return plain_number(_Calculation(expression).result())


MOST_CHARACTERS = 1000
MOST_DEPTH = 40
MOST_BITS = 10_000  # of numerator and denominator: about 3,000 digits
MOST_FACTORIAL = 1000

Value = Fraction | float

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<sign>\*\*|//|[-+*/%^()!,²³°√]|x(?=\s*\d))|(?P<name>[^\W\d²³][^\W²³]*))"
)
#: Other ways to write the same sign; full-width forms are folded besides.
SIGNS = str.maketrans("×✕⋅·∙÷∕⁄−–", "*****///--")
WORDS = {"x": "*", "of": "*", "de": "*", "의": "*", "mod": "mod"}
CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e}


class _Calculation:
    """One expression, read from left to right: a method for each level of precedence, loosest first."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MOST_CHARACTERS:
            raise ValueError(f"the expression is longer than {MOST_CHARACTERS} characters")
        self.text = "".join(map(_folded, expression)).translate(SIGNS).rstrip(" \t\n=?")
        if re.search(r"(?<![\d.])0x", self.text):
            raise ValueError("hexadecimal numbers are not read")
        self.place, self.depth = 0, 0
        self.token, self.kind, self.start = "", "", 0
        self.listing = False  # inside the arguments of a function that takes several
        self._next()

    def result(self) -> Value:
        if self.kind == "end":
            raise ValueError("the expression is empty")
        try:
            value, _ = self._sum()
        except OverflowError as error:  # an exact number met an inexact one
            raise ValueError("the result is too large") from error
        except ZeroDivisionError as error:  # an exact number so small that it is 0 among inexact ones
            raise ValueError("division by zero") from error
        if self.kind != "end":
            raise self._unexpected()
        return value

    def _next(self) -> None:
        match = TOKEN.match(self.text, self.place)
        if match is None:
            rest = self.text[self.place :].lstrip()
            self.kind, self.token, self.start = ("other" if rest else "end"), rest[:1], len(self.text) - len(rest)
            return
        self.kind = match.lastgroup or ""
        self.token, self.start, self.place = match[self.kind], match.start(self.kind), match.end()
        if self.token in WORDS:
            self.kind, self.token = "sign", WORDS[self.token]

    def _take(self, *signs: str) -> str:
        """The sign that comes next, if it is one of these."""
        if self.kind != "sign" or self.token not in signs:
            return ""
        sign = self.token
        self._next()
        return sign

    def _close(self, opened: int) -> None:
        if not self._take(")"):
            if self.kind == "end":
                raise ValueError(f"the parenthesis at position {opened + 1} is not closed")
            raise self._unexpected()

    def _unexpected(self) -> ValueError:
        if self.kind == "end":
            return ValueError("the expression ends where a number should follow")
        if self.token == ",":
            return ValueError(
                f"unexpected comma at position {self.start + 1}: decimals are written with a point, as in 3.5"
            )
        if self.token == ")":
            return ValueError(f"the parenthesis at position {self.start + 1} closes nothing")
        return ValueError(f"unexpected {self.token!r} at position {self.start + 1}")

    # Each level returns its value; the two loosest also whether it was a bare percentage.

    def _sum(self) -> tuple[Value, bool]:
        value, percentage = self._product()
        while sign := self._take("+", "-"):
            right, right_percentage = self._product()
            if right_percentage and not percentage:
                raise ValueError("adding a percentage can be read in two ways; write 50 * 1.1 or 50 + 0.1")
            value = _bounded(_apply(sign, value, right))
        return value, percentage

    def _product(self) -> tuple[Value, bool]:
        value = self._signed()
        percentage = self.kind == "sign" and self.token == "%" and self._is_percent()
        value, single = self._percent(value), True
        while sign := self._take("*", "/", "//", "%", "mod"):
            value, single = _bounded(_apply(sign, value, self._percent(self._signed()))), False
        return value, percentage and single

    def _percent(self, value: Value) -> Value:
        while self.kind == "sign" and self.token == "%" and self._is_percent():
            self._next()
            value = value / 100
        return value

    def _is_percent(self) -> bool:
        """Whether this % is a percentage, as before an operator or the end; before a number it is the remainder."""
        match = TOKEN.match(self.text, self.place)
        if match is None:
            return True
        return match["name"] in WORDS if match["sign"] is None else match["sign"] not in ("(", "√")

    def _signed(self) -> Value:
        """-2 ** 2 is -(2 ** 2), as in Python and on paper."""
        self._deeper()
        if sign := self._take("-", "+"):
            value = self._signed()
            value = -value if sign == "-" else value
        else:
            value = self._power()
        self.depth -= 1
        return value

    def _power(self) -> Value:
        value = self._postfix()
        if self._take("**", "^"):
            value = _power(value, self._signed())
        return value

    def _postfix(self) -> Value:
        value = self._atom()
        while sign := self._take("!", "²", "³", "°"):
            if sign == "!":
                value = _factorial(value)
            elif sign == "°":
                value = float(value) * math.pi / 180
            else:
                value = _power(value, Fraction(2 if sign == "²" else 3))
        return value

    def _atom(self) -> Value:
        token, kind, start = self.token, self.kind, self.start
        if kind == "number":
            self._next()
            return self._literal(token)
        if kind == "name":
            self._next()
            return self._named(token)
        if self._take("√"):
            self._deeper()
            value = _square_root(self._postfix())
            self.depth -= 1
            return value
        if self._take("("):
            self.listing, outside = False, self.listing
            value, _ = self._sum()
            self.listing = outside
            self._close(start)
            return value
        raise self._unexpected()

    def _literal(self, token: str) -> Fraction:
        if "," in token and self.listing:
            raise ValueError(f"{token} can be read in two ways here; write {token.replace(',', '')} or a space after ,")
        plain, _, exponent = token.replace(",", "").lower().partition("e")
        if abs(int(exponent or 0)) > MOST_BITS // 4:
            raise ValueError(f"the number {token} is too large or too small")
        return _exact(Fraction(plain) * Fraction(10) ** int(exponent or 0))

    def _named(self, name: str) -> Value:
        lower = name.lower()
        if lower in CONSTANTS:
            return CONSTANTS[lower]
        if lower not in FUNCTIONS:
            raise ValueError(f"unknown name {name[:40]!r}; known are {', '.join([*FUNCTIONS, 'pi', 'e'])}")
        function, least, most = FUNCTIONS[lower]
        opened = self.start
        if not self._take("("):
            raise ValueError(f"{lower} needs its argument in parentheses")
        self.listing, outside = most > 1, self.listing
        values = [self._sum()[0]]
        while self._take(","):
            values.append(self._sum()[0])
        self.listing = outside
        self._close(opened)
        if not least <= len(values) <= most:
            raise ValueError(f"{lower} takes {least if least == most else f'{least} to {most}'} arguments")
        return _guarded(lower, function, values)

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError(f"the expression is nested more than {MOST_DEPTH} deep")


def _folded(character: str) -> str:
    """A full-width character as the usual one; never more than one character, so that positions stay."""
    folded = unicodedata.normalize("NFKC", character) if character not in "²³·" else character
    return folded if len(folded) == 1 else character


def _apply(sign: str, left: Value, right: Value) -> Value:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    if right == 0:
        raise ValueError("division by zero")
    if sign == "/":
        return left / right
    if sign == "//":
        return Fraction(left // right)
    return left % right


def _bounded(value: Value) -> Value:
    return _exact(value) if isinstance(value, Fraction) else _finite(value)


def _exact(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ValueError("the result has too many digits")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the result is too large")
    return value


def _power(base: Value, exponent: Value) -> Value:
    if base == 0 and exponent < 0:
        raise ValueError("division by zero")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(abs(base.numerator), base.denominator).bit_length() - 1  # 0 for a base of 0, 1 or -1
        if bits * abs(exponent) > MOST_BITS:
            raise ValueError("the result has too many digits")
        return _exact(base ** (int(exponent) if bits or not base else int(exponent) % 2))
    if base < 0 and exponent != int(exponent):
        raise ValueError("a negative number has no real power of a fraction")
    if exponent == Fraction(1, 2):
        return _square_root(base)
    return _guarded("power", lambda x, y: float(x) ** float(y), [base, exponent])


def _guarded(name: str, function: Callable[..., Value], values: list[Value]) -> Value:
    """The function's value, with Python's own complaints in the words of ours."""
    try:
        return _bounded(function(*values))
    except OverflowError as error:
        raise ValueError(f"{name}: the number is too large") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except ValueError as error:
        if "math domain" in str(error) or "expected a" in str(error):  # the two wordings of Python's versions
            raise ValueError(f"{name} is not defined there") from error
        raise


def _square_root(value: Value) -> Value:
    if value < 0:
        raise ValueError("a negative number has no real square root")
    if isinstance(value, Fraction):
        above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if above**2 == value.numerator and below**2 == value.denominator:
            return Fraction(above, below)
    return _guarded("sqrt", lambda x: math.sqrt(x), [value])


def _factorial(value: Value) -> Fraction:
    if value != int(value) or value < 0:
        raise ValueError("a factorial needs a whole number that is not negative")
    if value > MOST_FACTORIAL:
        raise ValueError(f"factorials are computed up to {MOST_FACTORIAL}")
    return Fraction(math.factorial(int(value)))


def _round(value: Value, places: Value = Fraction(0)) -> Fraction:
    """Halves away from zero, as on paper."""
    if int(places) != places or not -100 <= places <= 100:
        raise ValueError("round takes a whole number of places, up to 100")
    scale = Fraction(10) ** int(places)
    scaled = Fraction(value if isinstance(value, Fraction) else repr(value)) * scale
    whole = math.floor(abs(scaled) + Fraction(1, 2))
    return Fraction(whole if scaled >= 0 else -whole) / scale


def _logarithm(value: Value, base: Value = Fraction(10)) -> Value:
    """To the base 10 unless another is given, as on a calculator; `ln` is the natural one."""
    if value <= 0 or base <= 0 or base == 1:
        raise ValueError("a logarithm needs a positive number, and a positive base that is not 1")
    if base == 2 or base == 10:
        return _log(value, math.log2 if base == 2 else math.log10)
    return _log(value, math.log) / _log(base, math.log)


def _log(value: Value, log: Callable[[int | float], float]) -> float:
    """Of numerator and denominator, which may be larger than any float."""
    return log(value.numerator) - log(value.denominator) if isinstance(value, Fraction) else log(value)


def _trigonometric(function: Callable[[float], float]) -> Callable[[Value], Value]:
    """Without the noise of a pi that is itself rounded: sin(pi) is 0."""
    return lambda angle: float(round(function(float(angle)), 15))


def _tangent(angle: Value) -> Value:
    if abs(math.cos(float(angle))) < 1e-15:
        raise ValueError("tan is not defined there")
    return math.tan(float(angle))


#: name -> function, fewest and most arguments
FUNCTIONS: dict[str, tuple[Callable[..., Value], int, int]] = {
    "sqrt": (_square_root, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *values: min(values), 1, 100),
    "max": (lambda *values: max(values), 1, 100),
    "floor": (lambda x: Fraction(math.floor(x)), 1, 1),
    "ceil": (lambda x: Fraction(math.ceil(x)), 1, 1),
    "log": (_logarithm, 1, 2),
    "ln": (lambda x: _logarithm(x, math.e), 1, 1),
    "log10": (lambda x: _logarithm(x), 1, 1),
    "log2": (lambda x: _logarithm(x, Fraction(2)), 1, 1),
    "exp": (lambda x: math.exp(x), 1, 1),
    "sin": (_trigonometric(math.sin), 1, 1),
    "cos": (_trigonometric(math.cos), 1, 1),
    "tan": (_tangent, 1, 1),
    "asin": (lambda x: math.asin(x), 1, 1),
    "acos": (lambda x: math.acos(x), 1, 1),
    "atan": (lambda x: math.atan(x), 1, 1),
    "factorial": (_factorial, 1, 1),
}


def plain_number(value: Value, digits: int = 15) -> Number:
    """A number as JSON shows it well: exact if it is short, else rounded to `digits`; text if no float holds it."""
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
