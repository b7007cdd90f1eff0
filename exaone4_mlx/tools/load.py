"""A file of Python functions -> the tools of a chat.

Notes:
- The file runs as any Python program does. The caller must warn the user first.
- Its tools are the public functions that it defines, or the functions in its list `tools`.
- An error is one line with the place: `FILE.py:12: …`.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .describe import function_schema

ToolFunction = Callable[..., Any]


def load_tools(path: str | Path) -> list[ToolFunction]:
    """Runs a Python file and returns its tools. The file can import modules from its own folder.

    Raises FileNotFoundError for a missing file, and ValueError, naming file and line, for a file that fails, that
    defines no tool, or with a tool that `function_schema` refuses.
    """
    path = Path(path)
    module = _run(path)
    if hasattr(module, "tools"):
        tools = module.tools
        if not isinstance(tools, (list, tuple)) or not all(callable(tool) for tool in tools):
            raise ValueError(f"{path}: its `tools` must be a list of functions, not {tools!r:.80}")
    else:
        tools = [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    if not tools:
        raise ValueError(f"{path}: there is no tool in it; define a function, or a list `tools`")
    for tool in tools:
        try:
            function_schema(tool)
        except ValueError as error:
            raise ValueError(f"{path}{_line_of(tool, path)}: {error}") from error
    return list(tools)


def _run(path: Path) -> ModuleType:
    try:
        source = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file of tools {path}") from error
    except OSError as error:
        raise ValueError(f"cannot read the tools of {path}: {error.strerror}") from error
    module = ModuleType(f"tools of {path.stem}")  # a name that shadows no module
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look it up there
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        raise ValueError(_error_text(error, path)) from error
    return module


def _error_text(error: BaseException, path: Path) -> str:
    """An error as one line: the innermost line of the file in the traceback, and the message."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    what = " ".join(str(error).split())
    return f"{path}{f':{lines[-1]}' if lines else ''}: {type(error).__name__}{f': {what}' if what else ''}"


def _line_of(tool: ToolFunction, path: Path) -> str:
    code = getattr(inspect.unwrap(tool), "__code__", None)
    return f":{code.co_firstlineno}" if code is not None and code.co_filename == str(path) else ""
