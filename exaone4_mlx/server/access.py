"""Who may send requests: API keys, origins, and a guard around an ASGI application.

Notes:
- A page of another site sends its `Origin`. Only the origins that the user named are answered.
- A body is read here, with a limit of bytes and of time, before the application sees it.
- Keys are compared in constant time, and all of them for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.text import decode_text
from .address import Address

MAX_BODY_BYTES = 4_000_000
BODY_SECONDS = 30.0  # in which a body must be there
SEND_SECONDS = 60.0  # in which a client must read what was sent
KEY_VARIABLE = "EXAONE4_MLX_API_KEY"
MIN_KEY = 8  # characters
OPEN_PATHS = ("/health",)
ERROR_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error",
}  # fmt: skip


def read_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The keys of the command line, of a file with one in each line, and of the environment. Raises ValueError."""
    keys = [*given]
    if file is not None:
        lines = (line.strip() for line in decode_text(file.read_bytes(), str(file)).splitlines())
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{file} holds no key")
    if not keys and os.environ.get(KEY_VARIABLE):
        keys = [os.environ[KEY_VARIABLE]]
    if short := [key for key in keys if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key]:
        raise ValueError(f"an API key has at least {MIN_KEY} ASCII characters without spaces; one has {len(short[0])}")
    return tuple(keys)


@dataclass(frozen=True)
class Access:
    """The rules of a server. Without `keys` everyone who reaches it is admitted."""

    address: Address
    keys: tuple[str, ...] = ()
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = MAX_BODY_BYTES
    open_paths: Collection[str] = OPEN_PATHS

    def client(self, headers: dict[bytes, bytes]) -> str | None:
        """The name of the client that a request's key belongs to; "" without keys, None for a wrong key."""
        if not self.keys:
            return ""
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        matches = [hmac.compare_digest(given, key.encode()) for key in self.keys]
        return f"key {matches.index(True) + 1}" if any(matches) else None

    def salt(self, client: str) -> str:
        """What keeps the stored prefixes of a client apart from those of others, also if keys come in another order."""
        keys = {f"key {number}": key for number, key in enumerate(self.keys, 1)}
        return hashlib.sha256(keys[client].encode()).hexdigest() if client in keys else ""

    def refusal(self, scope: Any, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """The status and the reason with which a request is refused."""
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
        if not self.address.answers_to(host):
            return 400, "this computer does not answer to that name; start the server with --allowed-host NAME"
        if origin and origin.split("://")[-1] != host and origin not in self.origins:
            return 403, "pages of this origin are not answered; start the server with --allowed-origin ORIGIN"
        length = headers.get(b"content-length", b"0")
        if not (length.isdigit() and len(length) < 12 and int(length) <= self.max_body_bytes):
            return 413, f"a request may have {self.max_body_bytes:,} bytes"
        if scope["path"] not in self.open_paths and scope["method"] != "OPTIONS" and self.client(headers) is None:
            return 401, "this server needs an API key: Authorization: Bearer KEY, or x-api-key: KEY"
        return None


class Stalled(Exception):
    """A client does not read its reply. The reply ends, so that it does not keep its place."""


class AccessGuard:
    """Refuses requests before `app` sees them, and hands on bodies that are whole."""

    def __init__(self, app: Any, access: Access, count: Callable[[str, int], None] = lambda path, status: None) -> None:
        """`count(path, status)` is called for each answer."""
        self.app, self.access, self._count = app, access, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        send = self._counted(scope["path"], send)
        headers = dict(scope["headers"])
        refusal = self.access.refusal(scope, headers)
        if refusal is None:
            scope.setdefault("state", {})["client"] = self.access.client(headers) or ""
            try:
                body = await asyncio.wait_for(self._body(receive), BODY_SECONDS)
            except asyncio.TimeoutError:
                refusal = 408, f"the body was not there after {BODY_SECONDS:g} seconds"
            except ValueError as error:
                refusal = 413, str(error)
        if refusal is not None:
            await _refuse(scope["path"], send, *refusal)
            return
        first: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return first.pop() if first else await receive()

        async def sent(message: Any) -> None:
            try:
                await asyncio.wait_for(send(message), SEND_SECONDS)
            except asyncio.TimeoutError as error:
                raise Stalled from error

        with contextlib.suppress(Stalled):
            await self.app(scope, again, sent)

    def _counted(self, path: str, send: Any) -> Any:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._count(path, message["status"])
            await send(message)

        return counted

    async def _body(self, receive: Any) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.access.max_body_bytes:
                raise ValueError(f"a request may have {self.access.max_body_bytes:,} bytes")
            if not message.get("more_body"):
                return bytes(body)


async def _refuse(path: str, send: Any, status: int, reason: str) -> None:
    data = json.dumps(error_body(path, status, reason)).encode()
    length = str(len(data)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def error_body(
    path: str, status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in the form of the dialect that has this path."""
    kind = error_kind(status)
    if path.endswith(("/messages", "/count_tokens")):  # Anthropic's form
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_kind(status: int) -> str:
    return ERROR_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
