"""A chat template from a checkpoint, run as a stranger's program: in a sandbox, against a deadline.

What is peculiar here:
- EXAONE's template needs loop controls, `trim_blocks`, `lstrip_blocks` and a `tojson` that takes
  `ensure_ascii` and escapes nothing for HTML: the environment of transformers.
- The sandbox refuses attributes with underscores. Loops, endless ones too, end at the deadline, which a line
  trace of this thread watches. It cannot interrupt a single operation, so what one operation takes in (the
  operands of `~` and of filters, what is printed, numbers given to calls) is measured before it runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

DEADLINE_SECONDS = 2.0
MAX_SIZE = 10_000_000  # characters that one operation may take in: far more than any prompt
MAX_PRODUCT = 1_000_000_000  # characters of a string times characters of what a method of it is given
#: Filters that make text of any size out of a number; no chat template needs them.
OVERSIZED_FILTERS = ("center", "indent", "format", "wordwrap", "batch", "slice")


class ChatTemplate:
    """A compiled chat template; `origin` names its file in errors."""

    def __init__(self, source: str, origin: str) -> None:
        self._source, self._origin = source, origin
        self._compiled: jinja2.Template | None = None

    @classmethod
    def find(cls, folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
        """chat_template.jinja, else the one in tokenizer_config.json (of several, the one named "default")."""
        file = folder / "chat_template.jinja"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), str(file))
        source = tokenizer_config.get("chat_template")
        if isinstance(source, list):
            source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}.get(
                "default"
            )
        return cls(source, f"{folder / 'tokenizer_config.json'} (chat_template)") if isinstance(source, str) else None

    def render(self, **variables: Any) -> str:
        """The prompt text. Raises ValueError, naming the template, for whatever goes wrong in it."""
        try:
            with _deadline(DEADLINE_SECONDS):
                if self._compiled is None:
                    self._compiled = _Environment().from_string(self._source)
                return self._compiled.render(**variables)
        except _Overdue as error:
            raise ValueError(f"{self._origin}: the chat template did not end within {DEADLINE_SECONDS:g} s") from error
        except (SecurityError, MemoryError, RecursionError, OverflowError) as error:
            raise ValueError(f"{self._origin}: the chat template was stopped: {_reason(error)}") from error
        except _Refusal as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        except Exception as error:
            raise ValueError(f"{self._origin}: the chat template fails: {_reason(error)}") from error


class _Overdue(BaseException):
    """The deadline has passed. No Exception, so that nothing inside a template can catch it."""


class _Refusal(Exception):
    """raise_exception() in the template."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters |= {"tojson": _tojson, "replace": _replace, "measured": _measured}
        self.globals["raise_exception"] = _raise_exception
        for name in OVERSIZED_FILTERS:
            del self.filters[name]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)

        def measured(node: nodes.Expr) -> nodes.Expr:
            constant = isinstance(node, (nodes.TemplateData, nodes.Const))
            return node if constant else nodes.Filter(node, "measured", [], [], None, None, lineno=node.lineno)

        for printed in list(tree.find_all((nodes.Concat, nodes.Output))):
            printed.nodes = [measured(operand) for operand in printed.nodes]  # type: ignore[attr-defined]
        for filtered in list(tree.find_all(nodes.Filter)):
            if filtered.node is not None and filtered.name != "measured":
                filtered.node = measured(filtered.node)
        return tree

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text formatting with % is not available in chat templates")
        if operator == "**" and (abs(left) > MAX_SIZE or abs(right) > 16):
            raise SecurityError(f"the power {left} ** {right} is too large")
        if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            times, text = (left, right) if isinstance(left, int) else (right, left)
            if not isinstance(text, str) or not isinstance(times, int) or times * len(text) > MAX_SIZE:
                raise SecurityError("a repetition this large is not allowed")
        if operator == "+":
            _measured(left), _measured(right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if any(isinstance(value, (int, float)) and abs(value) > MAX_SIZE for value in given):
            raise SecurityError(f"a call with a number above {MAX_SIZE} is not allowed")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_product(owner, *(value for value in given if isinstance(value, str)))
            if any(isinstance(value, int) and value > 1000 for value in given):
                raise SecurityError("a text this wide is not allowed")
        return super().call(__context, __obj, *args, **kwargs)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises _Overdue inside the block, at its next line of Python, once `seconds` are over. For this thread only."""
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise _Overdue
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    if indent is not None and indent > 16:
        raise SecurityError(f"an indent of {indent} is too large")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    _check_product(text, new)
    return text.replace(old, new, count)


def _measured(value: Any) -> Any:
    """`value`, unless printing it would take more than MAX_SIZE characters."""
    if _size(value, MAX_SIZE) > MAX_SIZE:
        raise SecurityError(f"a value of more than {MAX_SIZE} characters is not allowed")
    return value


def _size(value: Any, limit: int) -> int:
    """Characters of `value`, roughly; counting ends beyond `limit`."""
    if isinstance(value, str):
        return len(value)
    total = 1
    if isinstance(value, (list, tuple, dict)):
        for item in value if not isinstance(value, dict) else (*value.keys(), *value.values()):
            total += _size(item, limit - total)
            if total > limit:
                break
    return total


def _check_product(text: str, *others: str) -> None:
    if len(text) * (1 + max(map(len, others), default=0)) > MAX_PRODUCT:
        raise SecurityError("an operation on texts this long is not allowed")


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
