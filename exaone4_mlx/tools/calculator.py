"""A calculator for a model: an expression -> its value.

Notes:
- `_to_python` rewrites the notation that Python lacks (5!, 50%, √2, 1,234), token by token. `ast` parses the result.
  `_evaluate` computes the kinds of node that it lists and no other.
- An expression with two possible meanings is refused, and the error asks for a clear one: 3,5 or 50 + 10%.
- The model reads the docstring of `calculator`. The demo was trained with these words.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from .arithmetic import (
    ARGUMENTS,
    CONSTANTS,
    FUNCTIONS,
    OPERATIONS,
    POSTFIX_FUNCTIONS,
    Number,
    Value,
    bounded,
    call,
    number,
    plain_number,
    power,
    square_root,
)

MAX_CHARACTERS = 1000
MAX_DEPTH = 40


def calculator(expression: str) -> Number:
    """Evaluate an arithmetic expression.

    Args:
        expression: The expression to evaluate
    """
    try:
        return plain_number(_evaluate(ast.parse(_to_python(expression), mode="eval").body))
    except (RecursionError, MemoryError) as error:  # of ast.parse
        raise _too_deep() from error
    except OverflowError as error:  # an operation on an exact number and a float
        raise ValueError("the result is too large") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error


TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<sign>\*\*|//|[-+*/%^)!,²³°√]|x(?=\s*\d)|(?:x|of|de|의|mod)(?![^\W²³]))"
    r"|(?P<constant>(?i:pi|π|e)(?![^\W²³]))|(?P<function>[^\W\d²³][^\W²³]*)|(?P<open>\()|(?P<other>\S))"
)
#: Other characters for the same sign. Full-width characters are converted separately.
SAME_SIGNS = str.maketrans("×✕⋅·∙÷∕⁄−–", "*****///--")
#: Sign -> the sign of Python that binds in the same way: 5! becomes '5'.factorial.
PREFIX = {"+": "+", "-": "-", "√": "~"}
POSTFIX = {"!": ".factorial", "²": ".square", "³": ".cube", "°": ".degrees"}
POWER = {"^": "**", "**": "**"}
BINARY = {
    **{"+": "+", "-": "-", "*": "*", "/": "/", "//": "//", "%": "%", "mod": "%"},
    **{"x": "*", "of": "*", "de": "*", "의": "*"},
}


@dataclass
class _Level:
    """The whole expression, or an open parenthesis in it."""

    position: int = 0  # of the parenthesis in the text
    function: str = ""  # whose arguments the parenthesis holds
    operand: int = 0  # index in the output of the operand that a following % applies to


def _to_python(expression: str) -> str:
    """The expression in Python's grammar. Raises ValueError for what is not an expression.

    Numbers become strings, and parentheses become lists, because 50% and (50%) differ in a sum.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"the expression is longer than {MAX_CHARACTERS} characters")
    text = "".join(map(_fold, expression)).translate(SAME_SIGNS).rstrip(" \t\n=?")
    if re.search(r"(?<![\d.])0x", text):
        raise ValueError("hexadecimal numbers are not supported")
    tokens = [(str(match.lastgroup), match[str(match.lastgroup)], match.end()) for match in TOKEN.finditer(text)]
    if not tokens:
        raise ValueError("the expression is empty")
    out: list[str] = []
    levels = [_Level()]
    function = ""  # a name whose parenthesis must be the next token
    value = ""  # what ends before the token: "atom", "percentage", or "" where a value must follow
    for (kind, token, end), following in zip_longest(tokens, tokens[1:], fillvalue=("other", "", 0)):
        level = levels[-1]
        if function and kind != "open":
            break
        if not value and kind == "number":
            plain, value = token.replace(",", ""), "atom"
            if plain != token and ARGUMENTS.get(level.function, (1, 1))[1] > 1:
                raise ValueError(f"{token} can be read in two ways here; write {plain} or a space after ,")
            out.append(repr(plain))
        elif not value and kind == "constant":
            value = "atom"
            out.append(token.lower())
        elif not value and kind == "function":
            function = token.lower()
            if function not in FUNCTIONS:
                raise ValueError(f"unknown name {token[:40]!r}; known are {', '.join([*FUNCTIONS, 'pi', 'e'])}")
        elif not value and kind == "open":
            out.append(f"{function}(" if function else "[")
            levels.append(_Level(end, function, len(out)))
            function = ""
            if len(levels) > MAX_DEPTH:
                raise _too_deep()
        elif not value and token in PREFIX:
            out.append(PREFIX[token])
        elif value == "atom" and token in POSTFIX:
            out.append(POSTFIX[token])
        elif value == "atom" and token in POWER:
            value = ""
            out.append(POWER[token])
        elif value and token == "%" and following[0] in ("sign", "other") and following[1] != "√":
            value = "percentage"
            out[level.operand :] = ["percent(", *out[level.operand :], ")"]
        elif value and token == ")" and len(levels) > 1:
            value = "atom"
            out.append(")" if levels.pop().function else "]")
        elif value and (token in BINARY or (token == "," and level.function)):
            value = ""
            out.append(BINARY.get(token, ","))
            level.operand = len(out)
        else:
            raise _unexpected(token, end - len(token) + 1)
    if function:
        raise ValueError(f"{function} needs its argument in parentheses")
    if not value:
        raise ValueError("the expression ends where a number should follow")
    if len(levels) > 1:
        raise ValueError(f"the parenthesis at position {levels[-1].position} is not closed")
    return "".join(out)


def _unexpected(token: str, position: int) -> ValueError:
    if token == ",":
        return ValueError(f"unexpected comma at position {position}: decimals are written with a point, as in 3.5")
    if token == ")":
        return ValueError(f"the parenthesis at position {position} closes nothing")
    return ValueError(f"unexpected {token!r} at position {position}")


def _fold(character: str) -> str:
    """A full-width character as the usual one. The result is always one character, so that positions stay."""
    folded = unicodedata.normalize("NFKC", character) if character not in "²³·" else character
    return folded if len(folded) == 1 else character


def _evaluate(node: ast.expr, depth: int = 1) -> Value:
    if depth > MAX_DEPTH:
        raise _too_deep()
    operations = []  # a sum of 500 numbers is a tree of depth 500: compute it in a loop
    while isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Pow):
        operations.append(node)
        node = node.left
    value = _evaluate_operand(node, partial(_evaluate, depth=depth + 1))
    percentage = _is_percentage(node)
    for operation in reversed(operations):
        additive = isinstance(operation.op, ast.Add | ast.Sub)
        if additive and _is_percentage(operation.right) and not percentage:
            raise ValueError("adding a percentage can be read in two ways; write 50 * 1.1 or 50 + 0.1")
        percentage = percentage and additive
        value = bounded(OPERATIONS[type(operation.op)](value, _evaluate(operation.right, depth)))
    return value


def _evaluate_operand(node: ast.expr, evaluate: Callable[[ast.expr], Value]) -> Value:
    match node:
        case ast.Constant(str(text)):
            return number(text)
        case ast.Name(name):
            return CONSTANTS[name]
        case ast.List([inside]) | ast.UnaryOp(ast.UAdd(), inside):
            return evaluate(inside)
        case ast.UnaryOp(ast.USub(), inside):
            return -evaluate(inside)
        case ast.UnaryOp(ast.Invert(), inside):
            return _evaluate_root(inside, evaluate)
        case ast.BinOp(base, ast.Pow(), exponent):
            return power(evaluate(base), evaluate(exponent))
        case ast.Attribute(inside, name):
            return call(name, POSTFIX_FUNCTIONS[name], evaluate(inside))
        case ast.Call(ast.Name("percent"), [inside]):
            return evaluate(inside) / 100
        case ast.Call(ast.Name(name), arguments):
            least, most = ARGUMENTS.get(name, (1, 1))
            if not least <= len(arguments) <= most:
                raise ValueError(f"{name} takes {least if least == most else f'{least} to {most}'} arguments")
            return call(name, FUNCTIONS[name], *map(evaluate, arguments))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def _evaluate_root(node: ast.expr, evaluate: Callable[[ast.expr], Value]) -> Value:
    """√ binds closer than a power, and ~ does not: √2 ^ 3 is (√2) ^ 3."""
    roots = 1
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        roots, node = roots + 1, node.operand
    if roots > MAX_DEPTH:
        raise _too_deep()
    exponent = node.right if isinstance(node, ast.BinOp) else None
    value = evaluate(node.left if isinstance(node, ast.BinOp) else node)
    for _ in range(roots):
        value = square_root(value)
    return value if exponent is None else power(value, evaluate(exponent))


def _too_deep() -> ValueError:
    return ValueError(f"the expression is nested more than {MAX_DEPTH} deep")


def _is_percentage(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "percent"
