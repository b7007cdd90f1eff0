"""A chat template from a checkpoint, run as untrusted code: in a sandbox, with a limit of time and of memory.

Notes:
- The environment is that of transformers: loop controls, `trim_blocks`, `lstrip_blocks`, and a `tojson` with the
  argument `ensure_ascii` and without HTML escapes. EXAONE's template needs all of them.
- The sandbox allows only the filters, methods and types that chat templates use.
- Python cannot interrupt a single operation, so none may be long. `_Hooks` puts a call of ours around every operation
  whose cost depends on its operands. The call measures the operands before the operation, and charges what it makes
  to `Meter`. What is charged is never returned: a template that frees its values is charged for them too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from .meter import (
    GROWTH,
    LIST_ITERATOR,
    MAX_BITS,
    METER,
    READING,
    SCANNING,
    Meter,
    Overdue,
    charge_text,
    joined,
    listed,
    replaced,
    size_of,
    steps,
    text_of,
    tojson,
)

MAX_SOURCE = 200_000  # characters; EXAONE's template has under 10,000
DEADLINE_SECONDS = 2.0  # CPU time of this thread

FILTERS = set(
    "capitalize count d default e escape first float forceescape int items join last length list lower map reject "
    "rejectattr replace reverse safe select selectattr string title tojson trim upper".split()
)
WRITING = set("capitalize join lower partition removeprefix removesuffix replace split splitlines title upper".split())
METHODS: dict[type, set[str]] = {
    str: READING | SCANNING | WRITING,
    dict: {"get", "items", "keys", "values"},
    list: {"count", "index"},
    tuple: {"count", "index"},
    LoopContext: {"changed", "cycle"},
}
DATA = (str, int, float, list, tuple, dict, Undefined, type(None))
OWN = (BlockReference, LoopContext, Macro, Namespace, TemplateReference)


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
        before = METER.set(Meter(DEADLINE_SECONDS, size_of([variables, dict(options)], sys.maxsize)))
        try:
            self._compiled = self._compiled or self._compile()
            if unknown := sorted(set(options) - self._variables):
                raise _Refusal(f"it has no option {', '.join(unknown)}")
            return self._compiled.render(**variables, **options)
        except Overdue as error:
            raise ValueError(f"{self._origin}: the chat template did not end within {DEADLINE_SECONDS:g} s") from error
        except _Refusal as error:
            raise ValueError(f"the chat template refuses this: {str(error)[:2000]}") from error
        except Exception as error:
            stopped = isinstance(error, (SecurityError, MemoryError, RecursionError, OverflowError))
            reason = f"{type(error).__name__}: {error}"[:500].removesuffix(": ")
            raise ValueError(
                f"{self._origin}: the chat template {'was stopped' if stopped else 'fails'}: {reason}"
            ) from error
        finally:
            METER.reset(before)

    def _compile(self) -> jinja2.Template:
        if len(self.source) > MAX_SOURCE:
            raise SecurityError(f"it has {len(self.source)} characters; at most {MAX_SOURCE} are allowed")
        environment, before = _Environment(), sys.gettrace()
        sys.settrace(lambda frame, event, argument: METER.get().charge(0))  # the compiler has no hooks: at each call
        try:
            self._variables = meta.find_undeclared_variables(environment.parse(self.source))
            return environment.from_string(self.source)
        finally:
            sys.settrace(before)


class _Refusal(Exception):
    """raise_exception() in the template."""


class _Hooks(NodeTransformer):
    """Puts filters of ours around the operations that jinja2 compiles to plain Python."""

    def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.EvalContextModifier)):
            raise SecurityError(f"the statement {type(node).__name__.lower()} is not allowed")
        node = super().generic_visit(node)
        if isinstance(node, nodes.Output):
            node.nodes = [_hook("text_of", child) for child in node.nodes]
        elif isinstance(node, nodes.For):
            node.iter = _hook("steps", node.iter)
        elif isinstance(node, nodes.Concat):
            node = _hook("_concat", nodes.List(node.nodes, lineno=node.lineno))
        elif isinstance(node, (nodes.Compare, nodes.Operand)):
            node.expr = _hook("_read", node.expr)
        elif isinstance(node, nodes.Pair):
            node.key = _hook("_read", node.key)
        elif isinstance(node, nodes.Call) and node.dyn_args is not None:
            node.dyn_args = _hook("list", node.dyn_args)
        elif isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            node = _hook("_made", node)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            ends = (node.arg.start, node.arg.stop, node.arg.step)
            node = _hook("_slice", node.node, *(nodes.Const(None) if end is None else end for end in ends))
        return node


def _hook(name: str, node: Any, *args: nodes.Expr) -> nodes.Expr:
    constant = name == "_read" and isinstance(node, nodes.Const)
    return node if constant else nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    intercepted_unops = frozenset(["+", "-"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], optimized=False)
        self._plain = jinja2.Environment()
        self._plain.filters |= {"tojson": tojson, "replace": replaced, "join": joined, "list": listed}
        self.filters = {name: self._filter(name) for name in FILTERS}
        hooks: list[Any] = [text_of, steps, _concat, _read, _made, _slice]
        self.filters |= {hook.__name__: pass_context(hook) for hook in hooks}
        self.tests = {name: self._test(name) for name in self.tests}
        self.globals = {name: self.globals[name] for name in ("dict", "namespace", "range")}
        self.globals["raise_exception"] = _raise_exception

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Hooks().visit(super()._parse(source, name, filename))
        return tree

    # The compiler computes no constants with these functions: they have `pass_context`.
    def _filter(self, name: str) -> Any:
        @pass_context
        def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            size = size_of(value) if name in GROWTH or isinstance(value, str) else 0
            charge_text(name, size, args, kwargs)
            if name == "int" and size > MAX_BITS:  # four bits of an integer for each character
                raise SecurityError("a number this long is not allowed")
            made = self._plain.call_filter(name, value, args, kwargs, context)
            lazy = isinstance(made, Iterator) and not isinstance(made, (LIST_ITERATOR, *OWN))
            return iter(listed(made)) if lazy else made  # `size_of` can measure what a list's iterator will return

        return run

    def _test(self, name: str) -> Any:
        @pass_context
        def run(context: Any, *args: Any, **kwargs: Any) -> Any:
            METER.get().read(*(args, kwargs) if len(args) + len(kwargs) > 1 or isinstance(args[0], str) else ())
            return self._plain.call_test(name, args[0], args[1:], kwargs, context)

        return run

    def concat(self, texts: Iterable[str]) -> str:
        return joined(list(texts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, (*DATA, *OWN)) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> None:
        """`call` refuses the method `format`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        METER.get().charge(64, size_of(argument))
        return super().getitem(obj, argument)

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:
        METER.get().charge(size_of(arg) if isinstance(arg, int) else 64)
        return super().call_unop(context, operator, arg)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter, sides = METER.get(), (left, right)
        if all(isinstance(side, (int, float)) for side in sides):
            meter.charge(100 + sum(map(size_of, sides)))
            bits = [side.bit_length() if isinstance(side, int) else 0 for side in sides]
            if operator == "**" and bits[0] * abs(right) > MAX_BITS:
                raise SecurityError("a power this large is not allowed")
            if operator == "*" and sum(bits) > MAX_BITS:
                raise SecurityError("a product this large is not allowed")
        elif operator == "%":
            raise SecurityError("formatting with % is not allowed")
        elif operator == "*":
            times, text = sides if isinstance(left, int) else (right, left)
            if not isinstance(text, str) or not isinstance(times, int):
                raise SecurityError("a repetition of this is not allowed")
            meter.charge(times * size_of(text) if times > 0 else 64)
        elif operator == "+" and all(isinstance(side, (str, list, tuple)) for side in sides):
            each = 24 if any(isinstance(side, Markup) for side in sides) else 8
            meter.charge(64 + each * (len(left) + len(right)))
        elif not all(isinstance(side, DATA) for side in sides):
            raise SecurityError(f"{operator} of a {type(left).__name__} and a {type(right).__name__} is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # jinja2's signature
        meter = METER.get()
        meter.charge(500 + 100 * (len(args) + len(kwargs)))
        if isinstance(__obj, (*OWN, Undefined)):
            if isinstance(__obj, LoopContext):  # of a recursive loop: its items have no other hook
                args = tuple(steps(__context, values) for values in args)
            return super().call(__context, __obj, *args, **kwargs)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", type(__obj).__name__)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
        meter.read(owner if isinstance(owner, (list, tuple)) else None, args, kwargs)
        if any(__obj is known for known in __self.globals.values()):
            meter.charge(140 * sum(len(arg) for arg in args if isinstance(arg, (dict, list, tuple))))
            return __obj(*args, **kwargs)
        if name not in next((names for kind, names in METHODS.items() if isinstance(owner, kind)), ()):
            raise SecurityError(f"the method {name!r} of a {type(owner).__name__} is not allowed")
        if isinstance(owner, str):
            if name in ("join", "replace"):
                return joined(args[0], owner) if name == "join" else replaced(owner, *args, **kwargs)
            charge_text(name, size_of(owner), args, kwargs)
            if name in ("split", "rsplit", "splitlines"):
                separator = next((value for value in (*args, *kwargs.values()) if isinstance(value, str)), None)
                meter.charge(64 * (owner.count(separator) if separator else len(owner)))
        return __obj(*args, **kwargs)


def _read(context: Any, value: Any) -> Any:
    METER.get().read(value)
    return value


def _concat(context: Any, values: list[Any]) -> str:
    return joined(values)


def _made(context: Any, value: Any) -> Any:
    METER.get().charge(64 + 140 * len(value))
    return value


def _slice(context: Any, value: Any, *ends: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        METER.get().charge(64 + 8 * len(range(*slice(*ends).indices(len(value)))))
    return value[slice(*ends)]


def _raise_exception(message: str) -> None:
    raise _Refusal(message)
