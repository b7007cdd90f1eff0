"""The MCP servers of a config file, each off or running, and the tools of those that run.

Notes:
- A server ends with its last tool, with `stop`, and with this process.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .mcp_config import ServerConfig, read_servers
from .mcp_connection import ServerConnection
from .remote_tool import RemoteTool, named_apart
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


def mcp_servers(path: str | Path) -> list[McpServer]:
    """The servers of a config file (`{"mcpServers": {"NAME": {"command", "args", "env"} | {"url", "headers"}}}`).

    None is started. Raises FileNotFoundError, and ValueError for what cannot be used.
    """
    return [McpServer(config) for config in read_servers(path)]


def mcp_tools(servers: Iterable[McpServer], taken: Iterable[str] = ()) -> list[RemoteTool]:
    """The tools of the servers that run, with names that differ from each other and from those `taken`."""
    return named_apart([tool for server in servers if server.runs for tool in server.tools], taken)


def load_mcp(
    path: str | Path,
    servers: Sequence[str] | None = None,
    *,
    timeout: float = START_SECONDS,
    taken: Iterable[str] = (),
    before: Callable[[McpServer], None] = lambda server: None,
    failed: Callable[[str], None] | None = None,
) -> list[RemoteTool]:
    """Starts MCP servers of a config file and returns their tools, as `Chat(tools=…)` takes them.

    `servers` are the names of those that are started; None starts all that the file does not disable. They end with
    their last tool, and with this process. `taken` are the names of other tools: one of the same name gets its server's
    name in front. `before(server)` is called before a server starts.

    Raises ValueError, naming the server, for one that does not work, unless `failed` takes the message. Warns of tools
    that are left out.
    """
    found = mcp_servers(path)
    known = [server.name for server in found]
    if unknown := [name for name in servers or () if name not in known]:
        raise ValueError(f"{path} has no MCP server {unknown[0]!r}; it has {', '.join(known)}")
    chosen = [server for server in found if (not server.config.disabled if servers is None else server.name in servers)]
    if not chosen:
        raise ValueError(f"{path} disables all of its MCP servers; name one")
    for server in chosen:
        before(server)
        server.begin()
    tools: list[RemoteTool] = []
    for server in chosen:
        try:
            tools += server.start(timeout)
        except ValueError as error:
            if failed is None:
                raise
            failed(str(error))
        for text in server.warnings:
            warnings.warn(text, stacklevel=2)
    return named_apart(tools, taken)
