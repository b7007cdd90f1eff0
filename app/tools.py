"""Where a tool comes from, and the permission to run it without a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exaone4_mlx import BUILTIN_TOOLS

from .i18n import Words

BUILT_IN = "built-in"  # in the name of a permission, which is stored

Tool = Any  # a function, or a tool of an MCP server


def origin(tool: Tool) -> tuple[str, str]:
    """The key of the text that says where a tool comes from, and the name in it."""
    if tool in BUILTIN_TOOLS:
        return "from_builtin", ""
    if server := getattr(tool, "origin", ""):
        return "from_mcp", str(server)
    return "from_file", Path(_file(tool)).name


def permission(tool: Tool) -> str:
    """The name of a permission. A tool of another file or server with the same name has another one."""
    kind, server = origin(tool)
    name = str(getattr(tool, "server_name", tool.__name__))
    return f"{name} · {_file(tool) if kind == 'from_file' else server or BUILT_IN}"


def permission_text(name: str, words: Words) -> str:
    """A permission as the settings show it."""
    return f"{name.removesuffix(BUILT_IN)}{words('from_builtin')}" if name.endswith(f" · {BUILT_IN}") else name


def _file(tool: Tool) -> str:
    return str(getattr(getattr(tool, "__code__", None), "co_filename", ""))
