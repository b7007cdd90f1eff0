"""The tools that the flags name: --tools, --builtin-tools and --mcp-config."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..tools.describe import schemas
from .output import note

if TYPE_CHECKING:
    from ..tools.mcp_server import McpServer


def read_tools(options: argparse.Namespace, failed: Callable[[str], None] | None = None) -> list[Callable[..., Any]]:
    """The tools. Prints what is executed, before it is.

    An MCP server that does not work raises ValueError, unless `failed` takes the message.
    """
    tools: list[Callable[..., Any]] = []
    if options.tools:
        from ..tools.load import load_tools

        if options.tools.is_file():
            note(f"running {options.tools} for its tools")
        tools += load_tools(options.tools)
    if options.builtin_tools:
        from ..tools.builtin import BUILTIN_TOOLS

        tools += BUILTIN_TOOLS
    schemas(tools)  # raises ValueError for two tools with one name
    if options.mcp_config:
        from ..tools.mcp_server import load_mcp

        taken = [tool.__name__ for tool in tools]
        tools += load_mcp(options.mcp_config, options.mcp_server, taken=taken, before=_announce, failed=failed)
    return tools


def _announce(server: McpServer) -> None:
    what = "starting" if server.config.kind == "stdio" else "connecting to"
    note(f"{what} MCP server {server.name}: {server.config.text}")
