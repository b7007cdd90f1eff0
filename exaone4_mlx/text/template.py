"""A chat template from a checkpoint, run as untrusted code: in a sandbox, with a deadline.

Notes:
- The environment is that of transformers: loop controls, `trim_blocks`, `lstrip_blocks`, and a `tojson` with the
  argument `ensure_ascii` and without HTML escapes. EXAONE's template needs all of them.
- The sandbox refuses attributes with underscores. It allows only the filters and methods that chat templates use.
- A line trace of this thread watches the deadline, so that endless loops end. It cannot interrupt a single operation,
  so the size of each operand is checked before the operation.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .input_messages import MARKS

DEADLINE_SECONDS = 2.0  # CPU time of this thread
MAX_SIZE = 10_000_000  # characters of one operand: far more than any prompt has
MAX_BITS = 4096  # of a product of numbers

FILTERS = set(
    "capitalize count d default e escape first float forceescape int items join last length list lower map reject "
    "rejectattr replace reverse safe select selectattr string title tojson trim upper".split()
)
GLOBALS = {"dict", "namespace", "range"}
METHODS = {
    str: set(
        "capitalize count endswith find index isalnum isalpha isdigit isspace join lower lstrip partition "
        "removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith strip title "
        "upper".split()
    ),
    dict: {"get", "items", "keys", "values"},
    list: {"count", "index"},
    tuple: {"count", "index"},
}


class ChatTemplate:
    """A chat template; `origin` names its file in errors."""

    def __init__(self, source: str, origin: str) -> None:
        self.source, self._origin = source, origin
        self._compiled: jinja2.Template | None = None
        self._variables: set[str] = set()

    @classmethod
    def find(cls, folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
        """chat_template.jinja, or else the template in tokenizer_config.json (of several, the one named "default")."""
        file = folder / "chat_template.jinja"
        if file.is_file():
            try:
                return cls(file.read_text(encoding="utf-8-sig"), str(file))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 text") from error
        source = tokenizer_config.get("chat_template")
        if isinstance(source, list):
            named = [entry for entry in source if isinstance(entry, Mapping) and entry.get("name") == "default"]
            source = named[0].get("template") if named else None
        return cls(source, f"{folder / 'tokenizer_config.json'} (chat_template)") if isinstance(source, str) else None

    def render(self, options: Mapping[str, Any], **variables: Any) -> str:
        """The prompt text. The template must read every variable in `options`; it may ignore the other variables.

        Raises ValueError, naming the template, for every error in it.
        """
        try:
            with _deadline(DEADLINE_SECONDS):
                if self._compiled is None:
                    environment = _Environment()
                    self._variables = meta.find_undeclared_variables(environment.parse(self.source))
                    self._compiled = environment.from_string(self.source)
                if unknown := sorted(set(options) - self._variables):
                    raise _Refusal(f"it has no option {', '.join(unknown)}")
                return self._compiled.render(**variables, **options)
        except _Overdue as error:
            raise ValueError(f"{self._origin}: the chat template did not end within {DEADLINE_SECONDS:g} s") from error
        except (SecurityError, MemoryError, RecursionError, OverflowError) as error:
            raise ValueError(f"{self._origin}: the chat template was stopped: {_reason(error)}") from error
        except _Refusal as error:
            raise ValueError(f"the chat template refuses this: {error}") from error
        except Exception as error:
            raise ValueError(f"{self._origin}: the chat template fails: {_reason(error)}") from error


class _Overdue(BaseException):
    """The deadline has passed. It is not an Exception, so that nothing inside a template can catch it."""


class _Refusal(Exception):
    """raise_exception() in the template."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters = {name: made for name, made in self.filters.items() if name in FILTERS}
        self.filters |= {"tojson": _tojson, "replace": _replace, "join": _join, "check_size": _check_size}
        self.globals = {name: made for name, made in self.globals.items() if name in GLOBALS}
        self.globals["raise_exception"] = _raise_exception

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The parsed template, with a size check around every operand that can be large."""
        tree = super()._parse(source, name, filename)
        for node in list(tree.find_all(nodes.Node)):
            if isinstance(node, (nodes.Concat, nodes.Output)):
                node.nodes = [_with_size_check(operand) for operand in node.nodes]
            elif isinstance(node, (nodes.Compare, nodes.Operand)):
                node.expr = _with_size_check(node.expr)
            elif isinstance(node, nodes.Pair):
                node.key = _with_size_check(node.key)
            elif isinstance(node, nodes.Getitem):
                node.arg = _with_size_check(node.arg)
            elif isinstance(node, (nodes.Filter, nodes.Test)) and node.name != "check_size" and node.node is not None:
                node.node = _with_size_check(node.node)
        return tree

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("the method 'format' of a str is not allowed")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "%" and not numbers:
            raise SecurityError("formatting with % is not allowed")
        if operator == "**" and not (numbers and abs(left) <= MAX_SIZE and abs(right) <= 16):
            raise SecurityError("a power this large is not allowed")
        if operator == "*" and numbers:
            if sum(side.bit_length() for side in (left, right) if isinstance(side, int)) > MAX_BITS:
                raise SecurityError("a product this large is not allowed")
        elif operator == "*":
            times, text = (left, right) if isinstance(left, int) else (right, left)
            if not isinstance(text, str) or not isinstance(times, int) or times * len(text) > MAX_SIZE:
                raise SecurityError("a repetition this large is not allowed")
        elif operator == "+":
            _check_size([left, right])
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # jinja2's signature
        _check_size([args, kwargs])
        owner: Any = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes, int, float, dict, list, tuple)):
            allowed = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), set())
            if name not in allowed:
                raise SecurityError(f"the method {name!r} of a {type(owner).__name__} is not allowed")
            if isinstance(owner, str) and name == "replace":
                return _replace(owner, *args, **kwargs)
            if isinstance(owner, str) and name == "join":
                return _join(args[0], owner)
        return super().call(__context, __obj, *args, **kwargs)


def _with_size_check(node: nodes.Expr) -> nodes.Expr:
    constant = isinstance(node, (nodes.TemplateData, nodes.Const, nodes.Slice))
    return node if constant else nodes.Filter(node, "check_size", [], [], None, None, lineno=node.lineno)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises _Overdue inside the block after `seconds` of CPU time, at the template's next line or the next call."""
    end = time.thread_time() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise _Overdue
        return watch if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError(f"an indent of {indent} is not allowed")
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if ensure_ascii:  # except the marks: the tokenizer removes them later
        text = re.sub(rf"[^\x00-\x7f{MARKS}]+", lambda match: json.dumps(match[0])[1:-1], text)
    return text


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    if len(text) + text.count(old) * len(new) > MAX_SIZE:
        raise SecurityError("a text this long is not allowed")
    return text.replace(old, new, count)


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    texts = [str(value if attribute is None else value[attribute]) for value in values]
    if len(texts) * len(separator) + sum(map(len, texts)) > MAX_SIZE:
        raise SecurityError("a text this long is not allowed")
    return separator.join(texts)


def _check_size(value: Any) -> Any:
    """`value`. Raises SecurityError if it has more than MAX_SIZE characters and items."""
    if _size(value, MAX_SIZE) > MAX_SIZE:
        raise SecurityError(f"a value of more than {MAX_SIZE} characters is not allowed")
    return value


def _size(value: Any, limit: int) -> int:
    """The approximate number of characters of `value`; counting stops above `limit`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    total = 1
    if isinstance(value, (list, tuple, dict)):
        for item in value if not isinstance(value, dict) else (*value.keys(), *value.values()):
            total += _size(item, limit - total)
            if total > limit:
                break
    return total


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
