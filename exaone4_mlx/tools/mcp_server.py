"""One MCP server of a config file: off, or running with its tools.

Notes:
- A server ends with its last tool, with `stop`, and with this process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from .mcp_config import ServerConfig
from .mcp_connection import ServerConnection
from .remote_tool import RemoteTool
from .toolbox import ToolError

START_SECONDS = 60.0  # the first start of `npx` or `uvx` downloads the server
INSTALL = "MCP servers need the package mcp: pip install 'exaone4_mlx[mcp]'"


class McpServer:
    """One server of a config file. `start` runs it, and `tools` are what it offers while it runs."""

    def __init__(self, config: ServerConfig) -> None:
        self.config, self.name = config, config.name
        self.tools: tuple[RemoteTool, ...] = ()
        self.warnings: list[str] = []
        self._connection: ServerConnection | None = None
        self._end: Callable[[], object] = lambda: None

    @property
    def runs(self) -> bool:
        """Whether the server is connected; it may have ended since it was started."""
        return self._connection is not None and self._connection.lives

    def begin(self) -> None:
        """Starts the server and does not wait for it. Raises ValueError without the package `mcp`."""
        try:
            import mcp as mcp
        except ImportError as error:
            raise ValueError(INSTALL) from error
        self.stop()
        connection = self._connection = ServerConnection(self.config)
        self._end = weakref.finalize(self, connection.stop)  # also at the end of the process
        connection.thread.start()

    def start(self, timeout: float = START_SECONDS) -> tuple[RemoteTool, ...]:
        """Starts the server, unless it was begun, and returns its tools.

        Raises ValueError, in one line, for a server that does not start, ends, or does not answer in `timeout` seconds.
        """
        if self._connection is None:
            self.begin()
        connection = self._connection
        assert connection is not None
        try:
            if not connection.ready.wait(timeout):
                connection.error = f"did not answer within {timeout:g} seconds"
            if connection.error:
                raise ValueError(f"the MCP server {self.name} {connection.error}")
        except BaseException:
            self.stop()
            raise
        self.warnings = [f"MCP server {self.name}: {note}" for note in connection.notes]
        self.tools = tuple(self._tool(tool) for tool in connection.tools)
        return self.tools

    def _tool(self, tool: RemoteTool) -> RemoteTool:
        """The tool with a `begin` that keeps this server alive."""

        def begin(arguments: Mapping[str, Any]) -> Future[Any]:
            if self._connection is None:
                raise ToolError(f"the MCP server {self.name} is switched off")
            return self._connection.call(tool.server_name, arguments)

        return RemoteTool(tool.name, tool.description, tool.parameters, self.name, tool.server_name, begin)

    def stop(self) -> None:
        """Ends the server and its running calls. It can be started again."""
        self._connection, self.tools = None, ()
        self._end()
