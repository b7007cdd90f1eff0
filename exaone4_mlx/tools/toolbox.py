"""A chat's tools: what the model is offered, and its calls checked and run.

What is peculiar here:
- A call is what a model wrote: it is checked before anything runs, and whatever goes wrong comes back as a
  result that says so to the model. Only functions that were registered can run, whatever name a call has.
- Schemas are rendered as they were given; only the copy that calls are checked against speaks proper JSON Schema.
- A bare value in place of named arguments belongs to a tool's only parameter.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .call import ToolCall
from .describe import Tool, name_of, parameters_of, schemas, type_hints
from .schema import COMPOSING, check_schema, expected, normalized, shortened, shown, validator, worded
from .values import fitted, number_in, plain_result, plain_text

#: Seconds between two looks at whether a running tool was cancelled.
CANCEL_STEP = 0.02


class ToolError(ValueError):
    """A call that cannot be run as it is; the message is for the model."""


@dataclass(frozen=True)
class ToolResult:
    """What became of one call. `content` is the JSON value that the model is given; {"error": "..."} if `failed`."""

    call: ToolCall
    content: Any
    failed: bool
    seconds: float


class Toolbox:
    """The tools of one chat: what the model is offered, and how a call of it is checked and run.

    `tools` are functions, which can be run, and ready schemas, whose calls are only checked. Raises ValueError
    for what `schemas` refuses, and for a ready schema without a name or with parameters that are no JSON schema.
    """

    def __init__(self, tools: Sequence[Tool] | None = ()) -> None:
        self.schemas = schemas(tools)
        self._tools: dict[str, _Registered] = {}
        for number, (tool, schema) in enumerate(zip(tools or (), self.schemas, strict=True), start=1):
            name = name_of(schema)
            if not isinstance(name, str) or not name:
                raise ValueError(f"tool {number} has no name: {shown(schema)}")
            self._tools[name] = _registered(name, tool)
        self.names = tuple(self._tools)

    def __len__(self) -> int:
        return len(self.schemas)

    def runnable(self, name: str) -> bool:
        """Whether `name` is a Python function; a ready schema can only be offered."""
        return name in self._tools and self._tools[name].function is not None

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """The arguments of a call by name, as the JSON values they were written as, checked against the schema.

        Raises ToolError for an unknown tool or argument, a missing argument, and a value of another kind.
        """
        if call.name not in self._tools:
            known = f"the tools are {', '.join(self.names)}" if self.names else "there are no tools"
            raise ToolError(f"there is no tool {shortened(call.name)!r}; {known}")
        return self._tools[call.name].arguments(call.arguments)

    def run(
        self, call: ToolCall, *, timeout: float | None = None, cancelled: threading.Event | None = None
    ) -> ToolResult:
        """Runs a call in a thread of its own and waits for it, `timeout` seconds at most, until `cancelled` is set.

        Never raises: a call that cannot be run, an error inside the tool, a timeout and a cancellation are failed
        results. A Python thread cannot be stopped: a tool that was given up runs on by itself, until it ends or
        the program does.
        """
        started = time.perf_counter()
        try:
            content, failed = self._outcome(call, timeout, cancelled)
        except Exception as error:
            content, failed = {"error": _told(error)}, True
        return ToolResult(call, content, failed, time.perf_counter() - started)

    def _outcome(self, call: ToolCall, timeout: float | None, cancelled: threading.Event | None) -> tuple[Any, bool]:
        arguments = self.arguments(call)
        tool = self._tools[call.name]
        if tool.function is None:
            raise ToolError(f"{call.name} cannot be run here: only its description is known")
        work = functools.partial(tool.function, **tool.as_python(copy.deepcopy(arguments)))  # a tool may change them
        return _in_thread(work, call.name, timeout, cancelled)


@dataclass(frozen=True)
class _Registered:
    """One tool as calls of it are checked: `parameters` is the JSON schema, `hints` are those of the function."""

    name: str
    parameters: dict[str, Any]
    function: Callable[..., Any] | None
    hints: Mapping[str, Any]

    def arguments(self, given: Any) -> dict[str, Any]:
        named = self._by_name(given)
        try:
            json.dumps(named, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"the arguments of {self.name} must be JSON values: {error}") from error
        problems = self._problems(named)
        if problems and isinstance(given, str) and (number := number_in(given)) is not None:
            renamed = dict.fromkeys(named, number)
            if not self._problems(renamed):
                return renamed
        if problems:
            raise ToolError(f"{self.name}: " + "; ".join(problems[:3]))
        return named

    def as_python(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's type hints want them; a parameter not given keeps its default."""
        return {name: fitted(value, self.hints[name]) for name, value in arguments.items()}

    def _by_name(self, given: Any) -> dict[str, Any]:
        properties = self.parameters["properties"]
        if given is None or (given == "" and not properties):
            return {}
        if (only := self._only) is None and not isinstance(given, dict):
            names = f"the arguments by name ({', '.join(properties)})" if properties else "no arguments"
            raise ToolError(f"{self.name} takes {names}, not the bare value {shown(given)}")
        if only is None or (isinstance(given, dict) and not self._is_bare(given, only)):
            return given
        return {only: given}

    @property
    def _only(self) -> str | None:
        """The parameter that a bare value belongs to: the only one, or the only one that is required."""
        for names in (list(self.parameters["properties"]), self.parameters.get("required", [])):
            if len(names) == 1:
                return names[0]
        return None

    def _is_bare(self, given: dict[str, Any], only: str) -> bool:
        """Whether an object is a value for the parameter `only`, rather than the arguments by name."""
        properties = self.parameters["properties"]
        if not given or given.keys() & properties.keys() or self.parameters.get("additionalProperties") is not False:
            return False
        return "an object" in expected(properties.get(only)).split(" or ")

    def _problems(self, arguments: dict[str, Any]) -> list[str]:
        """What is wrong with the arguments, most telling first."""
        from referencing.exceptions import Unresolvable

        try:
            errors = sorted(validator(self.parameters).iter_errors(arguments), key=lambda error: len(error.path))
            return list(dict.fromkeys(text for error in errors for text in worded(error)))
        except Unresolvable as error:
            raise ToolError(f"the schema of {self.name} refers to what is not in it: {error}") from error
        except RecursionError as error:
            raise ToolError(f"the arguments of {self.name} are nested too deeply") from error


def _registered(name: str, tool: Tool) -> _Registered:
    if not isinstance(tool, Mapping):
        parameters = {**parameters_of(tool, exact=True), "additionalProperties": False}
        return _Registered(name, parameters, tool, type_hints(tool))
    function = tool.get("function", tool)
    given = function.get("parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"the parameters of tool {name!r} must be a JSON schema, not {shown(given)}")
    try:
        parameters = normalized(given)
        check_schema(parameters)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the parameters of tool {name!r} are no valid JSON schema: {error}") from error
    kinds = parameters.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise ValueError(f"the parameters of tool {name!r} must be of type object, not {kinds!r}")
    parameters = {"properties": {}, **parameters, "type": "object"}
    if not parameters.keys() & COMPOSING:
        parameters.setdefault("additionalProperties", False)
    return _Registered(name, parameters, None, {})


def _in_thread(
    work: Callable[[], Any], name: str, timeout: float | None, cancelled: threading.Event | None
) -> tuple[Any, bool]:
    """(content, failed) of a call in a daemon thread. Raises ToolError once the wait is over without them."""
    outcome: list[tuple[Any, bool]] = []
    done = threading.Event()

    def target() -> None:
        try:
            outcome.append((plain_result(work()), False))
        except BaseException as error:  # SystemExit inside a tool ends the tool, not the chat
            outcome.append(({"error": _told(error)}, True))
        finally:
            done.set()

    if cancelled is not None and cancelled.is_set():
        raise ToolError(f"{name} was cancelled")
    threading.Thread(target=target, name=f"tool {name}", daemon=True).start()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not done.is_set():
        left = deadline - time.monotonic()
        if left <= 0:
            raise ToolError(f"{name} was given up after {timeout:g} seconds")
        if cancelled is not None and cancelled.is_set():
            raise ToolError(f"{name} was cancelled")
        step = left if cancelled is None else min(left, CANCEL_STEP)
        done.wait(None if step == math.inf else step)
    return outcome[0]


def _told(error: BaseException) -> str:
    """An error as the model is told it: our own and plain ValueErrors by their message, others by kind too."""
    kind = type(error).__name__
    try:
        message = plain_text(str(error))
    except Exception:  # an error whose own text fails
        message = ""
    if not message:
        return kind
    return shortened(message if type(error) in (ToolError, ValueError) else f"{kind}: {message}", 500)
