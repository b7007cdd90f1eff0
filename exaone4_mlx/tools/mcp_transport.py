"""How an MCP server is reached: as a process of this computer, or at a URL.

Notes:
- A process runs behind `mcp_guard`, so that it ends when this program does.
- A server of this computer is reached without a proxy.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from .mcp_config import ServerConfig

MAX_ANSWER = 32 * 2**20  # bytes of an answer over HTTP


def process_transport(config: ServerConfig, errors: TextIO) -> Any:
    """The transport of a process whose standard error is `errors`. Raises ValueError if it cannot be started."""
    from mcp import StdioServerParameters, stdio_client

    _check_command(config)
    guard = [str(Path(__file__).with_name("mcp_guard.py")), config.command, *config.args]
    given = StdioServerParameters(
        command=sys.executable, args=["-I", "-S", *guard], env=dict(config.env), cwd=config.cwd
    )
    return stdio_client(given, errlog=errors)


def _check_command(config: ServerConfig) -> None:
    """Raises ValueError for a program or a folder that does not exist."""
    if config.cwd is not None and not Path(config.cwd).is_dir():
        raise ValueError(f"there is no folder {config.cwd}")
    path = config.env.get("PATH", os.environ.get("PATH"))
    if shutil.which(config.command, path=path) is None and not (
        config.cwd and shutil.which(str(Path(config.cwd, config.command)))
    ):
        raise ValueError(f"there is no program {config.command}")


@asynccontextmanager
async def http_transport(config: ServerConfig, statuses: list[int]) -> AsyncIterator[Any]:
    """The transport of a URL, which appends statuses of errors to `statuses`."""
    import httpx2
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    local = urlsplit(config.url).hostname in ("localhost", "127.0.0.1", "::1")

    async def check(response: httpx2.Response) -> None:
        if response.is_error:
            statuses.append(response.status_code)
        if int(response.headers.get("content-length") or 0) > MAX_ANSWER:
            raise ValueError(f"its answer has over {MAX_ANSWER // 2**20} MB")

    def made(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers={**(headers or {}), **config.headers},
            timeout=timeout or httpx2.Timeout(30.0, read=300.0),
            trust_env=not local,
            event_hooks={"response": [check]},
        )

    if config.kind == "sse":
        yield sse_client(config.url, httpx_client_factory=made)
        return
    async with made() as client:
        yield streamable_http_client(config.url, http_client=client)
