"""`python -m app`: the desktop chat.

What is peculiar here:
- It answers this computer only, unless `--host` says otherwise, and its page loads nothing from elsewhere: a
  content security policy forbids it, whatever a reply may hold.
- What can be checked without the weights is checked before they are read.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .desk import Desk

DEFAULT_MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; form-action 'self'; frame-ancestors 'self'"
)
MAX_UPLOAD_BYTES = 64 * 2**20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the app until Ctrl-C, and returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        desk = _desk(options)
        _serve(desk, options)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        _say(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app", description="EXAONE 4.0 as a chat in the browser, on this computer."
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="PATH", help='a folder, a hub id, or "demo" (default: %(default)s)'
    )
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="where converted models lie that can be chosen on the page; may be repeated (default: this folder)",
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a conversation at most (default: all)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this computer only")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    parser.add_argument("--tools", type=Path, metavar="FILE.py", help="offer the functions of this file, which is run")
    parser.add_argument("--system-prompt", default="", metavar="TEXT", help="what new conversations begin with")
    parser.add_argument("--thinking", action="store_true", help="let new conversations think first (default: no)")
    parser.add_argument(
        "--data-dir", type=Path, metavar="FOLDER", help="where conversations are kept (default: the user's data folder)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _desk(options: argparse.Namespace) -> Desk:
    """Everything that the options ask for: the model is read last."""
    from exaone4_mlx import BUILTIN_TOOLS, fit, load_tools

    tools: list[Any] = []
    if options.tools:
        if options.tools.is_file():
            _say(f"running {options.tools} for its tools")
        tools += load_tools(options.tools)
    names = {tool.__name__ for tool in tools}
    tools += [tool for tool in BUILTIN_TOOLS if tool.__name__ not in names]
    folder = options.data_dir or _data_folder()

    from .desk import Desk, Loaded
    from .models import Loading, choices, step_size
    from .settings import Settings
    from .store import Store

    if options.context == 1:
        raise ValueError("context must be at least 2 tokens: one to read, and one to say")
    needs = fit(options.model, context=options.context)
    if not needs.fits:
        gigabytes = f"{needs.total_bytes / 1e9:.1f} of {needs.memory_bytes / 1e9:.1f} GB"
        advice = f": try --context {needs.largest_context}" if needs.largest_context else ""
        _say(f"warning: model and caches may need {gigabytes}{advice}")
    started = time.monotonic()
    _say(f"loading {options.model}")
    model, tokenizer = Loading(options.model).result()
    step = step_size(model, tokenizer)
    _say(f"ready after {time.monotonic() - started:.1f} s")
    folders = options.models or [Path.cwd()]
    choice = choices(options.model, folders)[0]
    settings = Settings(system=options.system_prompt, thinking=options.thinking, ask=bool(options.tools))
    return Desk(
        Loaded(choice, model, tokenizer, needs, step),
        Store(folder / "conversations"),
        tools=tools,
        settings=settings,
        folders=folders,
        given=options.model,
    )


def _serve(desk: Desk, options: argparse.Namespace) -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="exaone4_mlx-") as uploads:  # files that are dropped, until the end
        os.environ["GRADIO_TEMP_DIR"] = uploads
        for end in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends it as Ctrl-C does: replies are kept
            signal.signal(end, signal.default_int_handler)
        _run(desk, options)


def _run(desk: Desk, options: argparse.Namespace) -> None:
    from .ui import build

    page = build(desk)
    _, address, _ = page.launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=not options.no_browser,
        prevent_thread_lock=True,
        quiet=True,
        **launch_options(options.host),
    )
    _say(f"EXAONE is at {address} (Ctrl-C ends it)")
    try:
        threading.Event().wait()
    finally:
        desk.stop_all()
        page.close()


def launch_options(host: str) -> dict[str, Any]:
    """How the page is served, whatever the address."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .ui import CSS, I18N, theme

    middleware = [Middleware(_Guard)]
    if host in LOOPBACK:  # no other site may name this computer as its own
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK[:2], "[::1]"]))
    return {
        "i18n": I18N,
        "theme": theme(),
        "css": CSS,
        "pwa": True,
        "share": False,
        "run_history": False,
        "show_error": False,
        "max_threads": 256,  # Gradio does as many things at once: every reply that is looked at is one
        "max_file_size": MAX_UPLOAD_BYTES,
        "favicon_path": str(Path(__file__).with_name("icon.svg")),
        "footer_links": ["api", "gradio"],
        "app_kwargs": {"middleware": middleware},
    }


class _Guard:
    """Adds the content security policy to every answer, and lets no page of another site ask for anything."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        if scope["type"] == "http" and _is_foreign(dict(scope["headers"])):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"this page is not for other sites"})
            return
        await self.app(scope, receive, with_policy)


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a page of another site asks, as its browser says."""
    origin = headers.get(b"origin")
    return origin is not None and origin.split(b"://")[-1] != headers.get(b"host")


def _data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("exaone4_mlx", appauthor=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
