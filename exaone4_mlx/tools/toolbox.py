"""The tools of a chat: what the model is offered, and how its calls are checked and run.

Notes:
- The model writes the calls, so each is checked before anything runs. Every failure becomes a result, which the model
  reads. Only registered functions can run, whatever name a call has.
- A ready schema is rendered unchanged. Calls are checked against a copy of it in valid JSON Schema.
- A tool of another process (`RemoteTool`) is checked as a ready schema is, and its values stay JSON values.
- A bare value in place of named arguments belongs to the only parameter of the tool.
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

from .call import ToolCall, ToolResult
from .check import CHECK_SECONDS, argument_errors
from .describe import Tool, name_of, parameters_of, schemas, type_hints
from .remote_tool import RemoteTool
from .schema import COMPOSING, check_schema, format_error, format_type, format_value, normalized, shortened
from .values import coerce, parse_number, result_to_json, valid_text

#: Seconds between two checks for cancellation while a tool runs.
CANCEL_STEP = 0.02


class ToolError(ValueError):
    """A call that cannot run. The message is for the model."""


class Toolbox:
    """The tools of one chat: functions, which can run, and ready schemas, whose calls are only checked.

    Raises ValueError for what `schemas` refuses, and for a ready schema without a name or with invalid parameters.
    """

    def __init__(self, tools: Sequence[Tool] | None = ()) -> None:
        self.schemas = schemas(tools)
        self._tools: dict[str, _RegisteredTool] = {}
        for number, (tool, schema) in enumerate(zip(tools or (), self.schemas, strict=True), start=1):
            name = name_of(schema)
            if not isinstance(name, str) or not name:
                raise ValueError(f"tool {number} has no name: {format_value(schema)}")
            self._tools[name] = _register(name, tool)
        self.names = tuple(self._tools)

    def __len__(self) -> int:
        return len(self.schemas)

    def runnable(self, name: str) -> bool:
        """Whether `name` is a Python function. A ready schema can only be offered."""
        return name in self._tools and self._tools[name].function is not None

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """The arguments of a call by name: the JSON values of the call, checked against the schema.

        Raises ToolError for an unknown tool or argument, a missing argument, and a value of another type.
        """
        if call.name not in self._tools:
            known = f"the tools are {', '.join(self.names)}" if self.names else "there are no tools"
            raise ToolError(f"there is no tool {shortened(call.name)!r}; {known}")
        return self._tools[call.name].check_arguments(call.arguments)

    def run(
        self, call: ToolCall, *, timeout: float | None = None, cancelled: threading.Event | None = None
    ) -> ToolResult:
        """Runs a call in its own thread and waits for it, at most `timeout` seconds, until `cancelled` is set.

        Never raises: an invalid call, an error inside the tool, a timeout and a cancellation are failed results.
        Python cannot stop a thread: after a timeout or a cancellation a function continues until it ends or the
        program does. The call of a `RemoteTool` is cancelled.
        """
        started = time.perf_counter()
        try:
            arguments = copy.deepcopy(self.arguments(call))  # a tool may change them
            tool = self._tools[call.name]
            if tool.function is None:
                raise ToolError(f"{call.name} cannot be run here: only its description is known")
            if isinstance(tool.function, RemoteTool):
                running = tool.function.begin(arguments)
                try:
                    content, failed = _run_in_thread(running.result, call.name, timeout, cancelled)
                finally:
                    running.cancel()  # without effect after its end
            else:
                # A parameter without an argument keeps its default.
                values = {name: coerce(value, tool.hints[name]) for name, value in arguments.items()}
                work = functools.partial(tool.function, **values)
                content, failed = _run_in_thread(work, call.name, timeout, cancelled)
        except Exception as error:
            content, failed = {"error": _error_text(error)}, True
        return ToolResult(call, content, failed, time.perf_counter() - started)


@dataclass(frozen=True)
class _RegisteredTool:
    """`parameters` is a valid JSON schema; `hints` are the type hints of the function."""

    name: str
    parameters: dict[str, Any]
    function: Callable[..., Any] | None
    hints: Mapping[str, Any]

    def check_arguments(self, given: Any) -> dict[str, Any]:
        named = self._by_name(given)
        try:
            json.dumps(named, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"the arguments of {self.name} must be JSON values: {error}") from error
        problems = self._problems(named)
        if problems and isinstance(given, str) and (number := parse_number(given)) is not None:
            as_number = dict.fromkeys(named, number)
            if not self._problems(as_number):
                return as_number
        if problems:
            raise ToolError(f"{self.name}: " + "; ".join(problems[:3]))
        return named

    def _by_name(self, given: Any) -> dict[str, Any]:
        """The arguments as an object. A bare value belongs to the only parameter, or to the only required one."""
        properties = self.parameters["properties"]
        if given is None or (given == "" and not properties):
            return {}
        candidates = (list(properties), self.parameters.get("required", []))
        only = next((names[0] for names in candidates if len(names) == 1), None)
        if only is None and not isinstance(given, dict):
            names = f"the arguments by name ({', '.join(properties)})" if properties else "no arguments"
            raise ToolError(f"{self.name} takes {names}, not the bare value {format_value(given)}")
        if only is None or (isinstance(given, dict) and not self._is_bare_object(given, only)):
            return given
        return {only: given}

    def _is_bare_object(self, given: dict[str, Any], only: str) -> bool:
        """Whether an object is the value of the parameter `only`, and not the arguments by name."""
        properties = self.parameters["properties"]
        if not given or given.keys() & properties.keys() or self.parameters.get("additionalProperties") is not False:
            return False
        return "an object" in format_type(properties.get(only)).split(" or ")

    def _problems(self, arguments: dict[str, Any]) -> list[str]:
        """Every error in the arguments, outer ones first."""
        from referencing.exceptions import Unresolvable

        try:
            errors = sorted(argument_errors(self.parameters, arguments), key=lambda error: len(error.path))
            return list(dict.fromkeys(text for error in errors for text in format_error(error)))
        except TimeoutError as error:
            raise ToolError(f"the arguments of {self.name} take more than {CHECK_SECONDS:g} s to check") from error
        except Unresolvable as error:
            raise ToolError(f"the schema of {self.name} refers to something outside it: {error}") from error
        except RecursionError as error:
            raise ToolError(f"the arguments of {self.name} are nested too deeply") from error


def _register(name: str, tool: Tool) -> _RegisteredTool:
    function = None
    if isinstance(tool, RemoteTool):
        function, tool = tool, tool.schema
    if not isinstance(tool, Mapping):
        parameters = {**parameters_of(tool, exact=True), "additionalProperties": False}
        return _RegisteredTool(name, parameters, tool, type_hints(tool))
    given = tool.get("function", tool).get("parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"the parameters of tool {name!r} must be a JSON schema, not {format_value(given)}")
    try:
        parameters = normalized(given)
        check_schema(parameters)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the parameters of tool {name!r} are not a valid JSON schema: {error}") from error
    kinds = parameters.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise ValueError(f"the parameters of tool {name!r} must be of type object, not {kinds!r}")
    parameters = {"properties": {}, **parameters, "type": "object"}
    if not parameters.keys() & COMPOSING:
        parameters.setdefault("additionalProperties", False)
    return _RegisteredTool(name, parameters, function, {})


def _run_in_thread(
    work: Callable[[], Any], name: str, timeout: float | None, cancelled: threading.Event | None
) -> tuple[Any, bool]:
    """(content, failed) of a call in a daemon thread. Raises ToolError at a timeout or a cancellation."""
    outcome: list[tuple[Any, bool]] = []
    done = threading.Event()

    def target() -> None:
        try:
            outcome.append((result_to_json(work()), False))
        except BaseException as error:  # SystemExit inside a tool ends the tool, not the chat
            outcome.append(({"error": _error_text(error)}, True))
        finally:
            done.set()

    if cancelled is not None and cancelled.is_set():
        raise ToolError(f"{name} was cancelled")
    threading.Thread(target=target, name=f"tool {name}", daemon=True).start()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not done.is_set():
        left = deadline - time.monotonic()
        if left <= 0:
            raise ToolError(f"{name} did not end within {timeout:g} seconds")
        if cancelled is not None and cancelled.is_set():
            raise ToolError(f"{name} was cancelled")
        step = left if cancelled is None else min(left, CANCEL_STEP)
        done.wait(None if step == math.inf else step)
    return outcome[0]


def _error_text(error: BaseException) -> str:
    """An error for the model: the message of a ToolError or a plain ValueError; with its type for other errors."""
    kind = type(error).__name__
    try:
        message = valid_text(str(error))
    except Exception:  # the __str__ of an error may fail
        message = ""
    if not message:
        return kind
    return shortened(message if type(error) in (ToolError, ValueError) else f"{kind}: {message}", 500)
