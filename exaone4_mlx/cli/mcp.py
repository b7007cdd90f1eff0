"""`--mcp-config` and `--mcp-server`: the tools of MCP servers, for the commands that offer tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from ..tools.mcp_load import load_mcp
from ..tools.mcp_server import McpServer
from .output import note


def server_tools(
    options: argparse.Namespace, taken: Iterable[str], failed: Callable[[str], None] | None
) -> list[Callable[..., Any]]:
    """The tools of the chosen servers. Prints what each runs, before it runs."""

    def announce(server: McpServer) -> None:
        what = "starting" if server.config.kind == "stdio" else "connecting to"
        note(f"{what} MCP server {server.name}: {server.config.text}")

    return [*load_mcp(options.mcp_config, options.mcp_server, taken=taken, before=announce, failed=failed)]
