"""The server of the page: its address, the requests that it answers, and the headers of every answer.

Notes:
- It listens on this computer only, unless `--host` says otherwise. Then it needs a password.
- It answers requests for an IP address, for localhost, and for the names that the user gave. So no other site can
  give this computer a name of its own (DNS rebinding).
- The page loads nothing from other hosts: a content security policy forbids it for every reply.
- Dropped files are in a folder of the running app. The next start removes the folder of an app that was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import hmac
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from exaone4_mlx.server.address import Address

if TYPE_CHECKING:
    from .state import AppState

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-src 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'self'"
)
MAX_UPLOAD_BYTES = 64 * 2**20
MAX_BODY_BYTES = 4_000_000  # of any other request: a whole conversation has less
UPLOAD = "/gradio_api/upload"  # its files have a limit of their own
CALLED = "/gradio_api/component_server"  # the functions that the page's script calls
PASSWORD_VARIABLE = "EXAONE4_MLX_PASSWORD"
MIN_PASSWORD = 8  # characters


@dataclass(frozen=True)
class PageAddress(Address):
    """The address of the page, and its password ("" for none)."""

    password: str = field(default="", repr=False)

    @classmethod
    def with_password(cls, address: Address, password: str | None) -> PageAddress:
        """Raises ValueError where a password is missing or too short. None is none, by the user's own decision."""
        if not address.is_local and password == "":
            raise ValueError(
                f"--host {address.host} lets other computers in; give --password, or --no-password if everyone there "
                "may read and write your conversations"
            )
        if password and len(password) < MIN_PASSWORD:
            raise ValueError(f"the password must have at least {MIN_PASSWORD} characters")
        return cls(**vars(address), password=password or "")

    def admits(self, password: str) -> bool:
        return hmac.compare_digest(password.encode(), self.password.encode())


def password_of(options: argparse.Namespace) -> str | None:
    """The password of the command line, the environment or the terminal. "" is none given, None is --no-password."""
    if options.no_password:
        if options.password is not None:
            raise ValueError("--password and --no-password contradict each other")
        return None
    given: str | None = options.password
    if given == "" and not (given := os.environ.get(PASSWORD_VARIABLE, "")):
        given = getpass.getpass("Password for the page: ")
    return given if given is not None else os.environ.get(PASSWORD_VARIABLE, "")


def serve(state: AppState, address: PageAddress, *, folder: Path, opens_browser: bool) -> None:
    """Serves the page until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with upload_folder(folder) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # replies are kept, also when a terminal closes
            signal.signal(end, signal.default_int_handler)

        with without_proxies():
            from .ui import build

            page = build(state)
            _, local, _ = page.launch(
                server_name=address.host,
                server_port=address.port,
                inbrowser=opens_browser,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(address),
            )
        say(f"EXAONE is at {local} (Ctrl-C ends it)")
        if address.listens_everywhere and (here := _network_address()):
            say(f"and for other computers at http://{here}:{urlsplit(local).port}/")
        if not address.password and address.host not in ("127.0.0.1", "localhost", "::1"):
            say(
                "WARNING: there is no password: everyone who can reach this address reads and writes your conversations"
            )
        try:
            threading.Event().wait()
        finally:
            state.stop_all()
            page.close()


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Hides the proxies of the environment from Gradio, whose first requests go to its own server."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def launch_options(address: PageAddress) -> dict[str, Any]:
    """The server options that do not depend on the place where it listens."""
    from starlette.middleware import Middleware

    from .theme import styles, theme
    from .ui import I18N

    password: dict[str, Any] = {}
    if address.password:
        password = {
            "auth": lambda _, password: address.admits(password),
            "auth_message": "Any user name, and the password that the app was started with.",
        }
    return {
        "i18n": I18N,
        "theme": theme(),
        "css": styles(),
        "pwa": True,
        "share": False,
        "run_history": False,
        "show_error": False,
        "max_threads": 256,  # Gradio's limit of calls at once: each tab that follows a reply takes one
        "max_file_size": MAX_UPLOAD_BYTES,
        "favicon_path": str(Path(__file__).with_name("icon.svg")),
        "footer_links": ["api"],  # hidden: a button in the settings opens it
        "app_kwargs": {"middleware": [Middleware(_RequestGuard, address=address)]},
        **password,
    }


class _RequestGuard:
    """Refuses requests for other names and from other sites; adds the content security policy to every answer.

    A call of the page's script with values that no page sends is refused, too.
    """

    def __init__(self, app: Any, address: PageAddress) -> None:
        self.app, self.address = app, address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def with_policy(message: Any) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]), path := scope["path"])
        if refusal is None:
            try:
                return await self.app(scope, self._limited(receive, path), with_policy)
            except Exception as error:  # of any kind, from Gradio's reading of the request on
                if begun or path.rstrip("/") != CALLED:
                    raise
                refusal = 400, f"this is no request of the page ({type(error).__name__}: {str(error)[:200]})".encode()
        await send({"type": "http.response.start", "status": refusal[0], "headers": []})
        await send({"type": "http.response.body", "body": refusal[1]})

    def _limited(self, receive: Any, path: str) -> Any:
        """Ends a body of unknown length at the limit."""
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES and path != UPLOAD:
                raise ValueError(f"a request may have {MAX_BODY_BYTES:,} bytes")
            return message

        return limited

    def _refusal(self, headers: dict[bytes, bytes], path: str) -> tuple[int, bytes] | None:
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if not self.address.answers_to(host.decode("latin-1")):
            return 400, b"this computer does not answer to that name; start the app with --allowed-host NAME"
        if origin is not None and origin.split(b"://")[-1] != host:  # the page of another site sends it
            return 403, b"this page is not for other sites"
        length = headers.get(b"content-length", b"0")
        if path != UPLOAD and not (length.isdigit() and len(length) < 12 and int(length) <= MAX_BODY_BYTES):
            return 413, f"a request may have {MAX_BODY_BYTES:,} bytes; drop large texts as files".encode()
        return None


@contextlib.contextmanager
def upload_folder(folder: Path) -> Iterator[Path]:
    """A folder for dropped files, which exists until the end. Folders of apps that were killed are removed first."""
    uploads = folder / "uploads"
    uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(uploads, fcntl.LOCK_EX)  # one app at a time looks at the others, and makes its own
    try:
        for other in uploads.iterdir():
            with contextlib.suppress(OSError):  # its app runs: the system ends a lock with its process
                os.close(_lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
                shutil.rmtree(other)
        made = Path(tempfile.mkdtemp(dir=uploads))
        own = _lock(made, fcntl.LOCK_EX)
    finally:
        os.close(lock)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(own)


def _lock(folder: Path, kind: int) -> int:
    """Locks a folder until the returned file descriptor is closed. Raises BlockingIOError for one that is locked."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
    except BaseException:
        os.close(file)
        raise
    return file


def _network_address() -> str:
    """The address of this computer in its network; "" without one. No packet is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect(("192.0.2.1", 9))
        return str(any_socket.getsockname()[0])
    return ""


def data_folder() -> Path:
    """The user's folder for conversations."""
    from platformdirs import user_data_path

    return user_data_path("exaone4_mlx", appauthor=False)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
