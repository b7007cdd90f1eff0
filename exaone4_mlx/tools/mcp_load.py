"""A config file of MCP servers -> the tools of the servers that the user chose."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .mcp_config import read_servers
from .mcp_server import START_SECONDS, McpServer
from .remote_tool import RemoteTool, named_apart


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
