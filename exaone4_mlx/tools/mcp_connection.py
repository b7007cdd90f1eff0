"""An MCP server from its start to its end. The official package `mcp` speaks with it.

Notes:
- Each server has an asyncio thread of its own. Whoever calls a tool waits in another thread.
- Nothing that a server sends is trusted: names, texts, schemas and results are cleaned and bounded. Its schemas of
  results are not used, because their patterns could take years.
- The model reads text only: an image or a sound is named as what it is. A result of structured data usually repeats it
  as text, for older clients. Then the data is used. Long results are cut, because they would fill the context.
- The standard error of a server is kept for messages, at most its end. It goes to no terminal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..files.text import clean, parse_json
from .mcp_config import ServerConfig
from .mcp_transport import http_transport, process_transport
from .remote_tool import RemoteTool, plain_description, plain_name, plain_parameters
from .schema import shortened
from .toolbox import Toolbox, ToolError

if TYPE_CHECKING:
    from mcp import Client

STOP_SECONDS = 8.0  # the longest wait for the end of a server
MAX_TOOLS = 128
MAX_RESULT = 40_000  # characters of JSON
KEPT = 2_000  # bytes that are kept of the standard error


class ServerConnection:
    """A server from its start to its end."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.ready = threading.Event()  # it answers, or it failed
        self.error = ""
        self.tools: list[RemoteTool] = []
        self.notes: list[str] = []
        self.thread = threading.Thread(target=self._run, name=f"MCP server {config.name}", daemon=True)
        self._errors = b""  # the end of its standard error
        self._statuses: list[int] = []  # of answers over HTTP that are errors
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def lives(self) -> bool:
        return self._client is not None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join(STOP_SECONDS)

    def call(self, name: str, arguments: Mapping[str, Any]) -> Future[Any]:
        """Begins a call. Raises ToolError if the server has ended."""
        with self._lock:
            if self._loop is None or self._client is None:
                raise ToolError(self._gone)
            return asyncio.run_coroutine_threadsafe(self._call(self._client, name, arguments), self._loop)

    # --- in the thread of the server ------------------------------------------

    def _run(self) -> None:
        for name in ("mcp", "httpx2"):  # without a handler, Python writes their warnings to the terminal
            logging.getLogger(name).addHandler(logging.NullHandler())
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.error = self.error or self._reason(error)
        finally:
            self._client = None
            self.error = self.error or self._ended()
            self.ready.set()

    async def _serve(self) -> None:
        """Connects, lists the tools, and waits for `stop` or for the end of the server."""
        from mcp import Client

        with self._lock:
            if self._stopped:
                return
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            self._task = asyncio.current_task()
        try:
            async with self._transport() as transport, Client(transport, client_info=_info()) as client:
                await self._list(client)
                self._client = client
                self.ready.set()
                await self._over.wait()
        except asyncio.CancelledError:
            if not self._over.is_set():
                raise
        finally:
            with self._lock:
                self._loop = self._client = None

    def _end(self) -> None:
        """Ends `_serve`: the connection if there is one, and else the attempt."""
        self._over.set()
        if self._client is None and self._task is not None:
            self._task.cancel()

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        if self.config.kind != "stdio":
            async with http_transport(self.config, self._statuses) as transport:
                yield transport
            return
        read, write = os.pipe()
        drain = threading.Thread(target=self._drain, args=(read,), daemon=True)
        drain.start()
        with os.fdopen(write, "w") as errors:
            try:
                yield process_transport(self.config, errors)
            finally:
                errors.close()
                drain.join(1.0)

    def _drain(self, read: int) -> None:
        """Keeps the end of the standard error. It closes when the server and the guard have ended."""
        with os.fdopen(read, "rb", buffering=0) as errors:
            while data := errors.read(65536):
                self._errors = (self._errors + data)[-KEPT:]
        with self._lock:
            if self._loop is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._over.set)

    async def _list(self, client: Client) -> None:
        """Reads the tools, at most MAX_TOOLS of them, and leaves out those that cannot be used."""
        listed: list[Any] = []
        cursor: str | None = None
        while len(listed) <= MAX_TOOLS:
            page = await client.list_tools(cursor=cursor)
            listed += page.tools
            if not (cursor := page.next_cursor) or not page.tools:
                break
        if len(listed) > MAX_TOOLS:
            self.notes.append(f"it lists more than {MAX_TOOLS} tools; the first {MAX_TOOLS} are offered")
        for tool in listed[:MAX_TOOLS]:
            try:
                self.tools.append(_plain(tool, self.config.name))
            except (ValueError, RecursionError) as error:
                name = shortened(clean(tool.name), 60)
                self.notes.append(f"its tool {name!r} is left out: {shortened(clean(str(error)), 200)}")

    async def _call(self, client: Client, name: str, arguments: Mapping[str, Any]) -> Any:
        """The result of a call. A cancelled task tells the server."""
        from mcp import CallToolRequest, MCPError
        from mcp.types import CallToolRequestParams, CallToolResult
        from pydantic import ValidationError

        params = CallToolRequestParams(name=name, arguments=dict(arguments))
        try:
            result = await client.session.send_request(CallToolRequest(params=params), CallToolResult)
        except MCPError as error:
            lives = self._client is not None and "closed" not in str(error).lower()
            raise ToolError(clean(str(error)) if lives else self._gone) from error
        except ValidationError as error:
            raise ToolError(f"the answer of the MCP server {self.config.name} is not valid") from error
        return content_of(result)

    def _reason(self, error: BaseException) -> str:
        """Why the server does not work, in one line."""
        while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
            error = inner[0]
        text = " ".join(clean(str(error)).split()) or type(error).__name__
        if "closed" in text.lower():
            return self._ended()
        status = f"HTTP status {self._statuses[-1]}: " if self._statuses else ""
        return f"does not work: {status}{shortened(text, 300)}"

    def _ended(self) -> str:
        lines = clean(self._errors.decode("utf-8", "replace")).strip().splitlines()
        return "has ended" + (f"; its last message: {shortened(lines[-1].strip(), 200)}" if lines else "")

    @property
    def _gone(self) -> str:
        return f"the MCP server {self.config.name} {self._ended()}"


def _info() -> Any:
    from mcp.types import Implementation

    from .. import __version__

    return Implementation(name="exaone4_mlx", version=__version__)


def _plain(tool: Any, origin: str) -> RemoteTool:
    """A tool of the package `mcp` as ours. Raises ValueError for one that cannot be used."""
    if not plain_name(tool.name).strip("_.-"):
        raise ValueError("its name has no letter and no digit")
    plain = RemoteTool(
        plain_name(tool.name),
        plain_description(tool.description or tool.title or ""),
        plain_parameters(tool.input_schema),
        origin,
        tool.name,
        _not_connected,
    )
    Toolbox([plain])  # checks the schema
    return plain


def _not_connected(arguments: Mapping[str, Any]) -> Future[Any]:
    raise ToolError("the tool has no server")


def content_of(result: Any) -> Any:
    """The content of a `CallToolResult`. Raises ToolError for a result that is an error."""
    parts = [_part(block) for block in result.content]
    if result.is_error:
        raise ToolError(" ".join(map(str, parts)).strip() or "the tool failed and did not say why")
    if result.structured_content is not None:
        others = [part for part, block in zip(parts, result.content, strict=True) if block.type != "text"]
        return _bounded([result.structured_content, *others] if others else result.structured_content)
    return _bounded(parts[0] if len(parts) == 1 else parts)


def _part(block: Any) -> Any:
    if block.type == "text":
        return _json_or_text(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, {len(block.data) * 3 // 4:,} bytes, not shown]"
    if block.type == "resource_link":
        return f"[link to a resource: {block.name}, {block.uri}]"
    resource = block.resource
    if (text := getattr(resource, "text", None)) is not None:
        return {"uri": str(resource.uri), "text": text}
    return (
        f"[resource {resource.uri}, {resource.mime_type or 'binary'}, {len(resource.blob) * 3 // 4:,} bytes, not shown]"
    )


def _json_or_text(text: str) -> Any:
    """The text, or the JSON object or list that it holds."""
    if text[:1] in ("{", "["):
        with suppress(ValueError):
            return parse_json(text)
    return text


def _bounded(value: Any) -> Any:
    """The value, or the begin of its text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MAX_RESULT:
        return value
    return f"{text[:MAX_RESULT]}… [cut: the result has {len(text):,} characters]"
