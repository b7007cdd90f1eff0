"""`exaone4-mlx serve`: an HTTP server for OpenAI's and Anthropic's clients."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import flags, loading
from .app import app_module
from .output import log, note
from .prompt_cache import open_prefix_store

if TYPE_CHECKING:
    from ..measure.fit import Fit
    from ..model.adapter import Adapter
    from ..model.config import Exaone4Config
    from ..server.address import Address

DESCRIPTION = (
    "Serves a model to OpenAI's clients (chat completions, completions, responses) and Anthropic's (messages), "
    "on this computer only unless --host says otherwise."
)
FIRST_PORT, PORTS = 8080, 20
LEAST_TOKENS = 1024  # of a reply that must have room
PAGE_SECONDS = 5.0  # until the replies of the page are written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..server.access import MAX_BODY_BYTES

    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="default: %(default)s; 0.0.0.0 is every network")
    network.add_argument("--port", type=int, metavar="N", help=f"default: the first free one from {FIRST_PORT}")
    network.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a name of this computer, such as mac.local"
    )
    network.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin call the server, such as http://localhost:3000",
    )
    network.add_argument("--api-key", action="append", default=[], metavar="KEY", help="clients need one of these keys")
    network.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file with a key in each line")
    network.add_argument(
        "--max-body-bytes", type=int, default=MAX_BODY_BYTES, metavar="N", help="of a request (default: %(default)s)"
    )
    queue = parser.add_argument_group("queue")
    queue.add_argument(
        "--max-running", type=int, default=8, metavar="N", help="replies at the same time (default: %(default)s)"
    )
    queue.add_argument(
        "--max-waiting",
        type=int,
        default=64,
        metavar="N",
        help="requests that wait; more get 429 (default: %(default)s)",
    )
    queue.add_argument(
        "--share-prefixes", action="store_true", help="let clients with different keys share what was read for them"
    )
    queue.add_argument(
        "--shutdown-seconds", type=int, default=10, metavar="N", help="for replies in progress at the end (default: 10)"
    )
    page = parser.add_argument_group("the desktop chat (the extra `app`)")
    page.add_argument("--app", action="store_true", help="serve it too, at / of the same port, on the same model")
    page.add_argument(
        "--password", nargs="?", const="", metavar="TEXT", help="ask browsers for it, as `exaone4-mlx app` does"
    )
    page.add_argument("--no-password", action="store_true", help="serve the page to other computers without a password")
    page.add_argument("--data-dir", type=Path, metavar="FOLDER", help="where its conversations are kept")
    parser.add_argument("--thinking", action="store_true", help="think where a request does not say (default: no)")
    parser.add_argument("--model-name", metavar="NAME", help="the name in answers (default: --model)")
    parser.add_argument(
        "--adapter-model",
        action="append",
        type=_named_adapter,
        default=[],
        metavar="NAME=PATH",
        help="also serve the model with this adapter, to requests whose model is NAME; may be repeated",
    )
    parser.add_argument("--log-contents", action="store_true", help="write the bodies of requests into the log")
    memory = flags.add_model_flags(parser)
    flags.add_prompt_cache_flags(memory, in_memory=True)
    parser.set_defaults(nfc=True, draft_model=None, prompt_lookup=False, num_draft_tokens=None, verbose=False)
    flags.add_rank_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Checks address and keys, loads the model, and serves until Ctrl-C. A second Ctrl-C does not wait for replies."""
    try:
        from ..server.access import Access, read_keys
        from ..server.address import Address
        from ..server.app import make_app
        from ..server.engine import ModelServer
        from ..server.http import HttpServer
    except ImportError as error:
        raise RuntimeError("the server needs more packages: pip install 'exaone4_mlx[server]'") from error
    page = _DesktopChat(options)
    port = options.port or next(
        port for port in range(FIRST_PORT, FIRST_PORT + PORTS + 1) if _is_free(options.host, port)
    )
    address = Address.checked(options.host, port, options.allowed_host)
    keys = read_keys(options.api_key, options.api_key_file)
    if not address.is_local and not keys:
        raise ValueError(f"--host {options.host} lets other computers in: give --api-key or --api-key-file")
    page.check(address)
    if wrong := [origin for origin in options.allowed_origin if not origin.startswith(("http://", "https://"))]:
        raise ValueError(f"--allowed-origin is {wrong[0]!r}, and must be like http://localhost:3000")
    for name in ("max_running", "max_waiting", "max_body_bytes", "shutdown_seconds"):
        if getattr(options, name) < (1 if name in ("max_running", "max_body_bytes") else 0):
            raise ValueError(f"--{name.replace('_', '-')} must be a positive number")
    files = loading.find_model(options)
    files = dataclasses.replace(files, named_adapters=_find_named_adapters(options, files.config))
    name = options.model_name or _public_name(options.model)
    if name in files.named_adapters:
        raise ValueError(f"--adapter-model gives the name {name}, which is that of the model")
    needs = loading.check_memory(files, options, files.context)
    store = open_prefix_store(options, needs)
    access = Access(address, keys, frozenset(options.allowed_origin), options.max_body_bytes)
    room = None if needs is None else _room(needs, files, options, store.max_bytes)
    ready = loading.load(files, options)._replace(prefix_store=store)
    engine = ModelServer(
        ready.model,
        ready.tokenizer,
        name,
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        max_kv_size=options.max_kv_size,
        kv=ready.kv,
        salt_of=(lambda client: "") if options.share_prefixes else access.salt,
        prefix_store=store,
        room_bytes=room,
        adapters=files.named_adapters,
    )
    app = page.beside(make_app(engine, access, thinks=options.thinking, logs_contents=options.log_contents), ready)
    at = f"http://{_shown(options.host)}:{port}"

    def say_address() -> None:
        note(f"EXAONE is at {at}/v1{f', and the desktop chat at {at}' if options.app else ''} (Ctrl-C ends it)")

    serving = {"host": options.host, "port": port, "log_config": LOGGING}
    server = HttpServer(app, engine, options.shutdown_seconds, say_address, **serving)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not address.is_local:
        log("this server is reachable from other computers; keys travel in the clear without HTTPS in front of it")
    try:
        server.run()
    finally:
        engine.close()
        page.close(at_once=server.force_exit)
    return 0


def _named_adapter(text: str) -> tuple[str, str]:
    """NAME=PATH as (name, path)."""
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise argparse.ArgumentTypeError(f"{text!r:.99} is not NAME=PATH")
    return name, path


def _find_named_adapters(options: argparse.Namespace, config: Exaone4Config) -> dict[str, Adapter]:
    """The adapters of `serve --adapter-model` by name. Raises ValueError for a repeated name, too."""
    given: list[tuple[str, str]] = options.adapter_model
    if not given:
        return {}
    from ..model.adapter import check_adapters
    from ..model.adapter_file import read_adapter

    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--adapter-model gives the name {twice[0]} twice")
    adapters = {name: read_adapter(path) for name, path in given}
    for adapter in adapters.values():
        check_adapters([(adapter, 1.0)], config)
    return adapters


def _room(needs: Fit, files: loading.ModelFiles, options: argparse.Namespace, stored: int) -> int:
    """Bytes for the caches of all replies in progress. Raises MemoryError where not even a short one has room.

    `needs` is what one conversation needs; `stored` is for what was read before.
    """
    from ..files.safetensors import read_dtype
    from ..measure.sizes import cache_bytes
    from ..text.format import size_text

    own = needs.weights_bytes + needs.adapter_bytes
    room = needs.memory_bytes - own - needs.prefill_bytes - stored
    dtype = files.sizes.activation_dtype(read_dtype(options.dtype))
    if room < sum(cache_bytes(files.config, LEAST_TOKENS, dtype.size, files.kv)):
        raise MemoryError(
            f"a model may have {size_text(needs.memory_bytes)} here: beside {size_text(own)} of "
            f"weights, {size_text(needs.prefill_bytes)} to read prompts and {size_text(stored)} for what was read "
            "before (--prompt-cache-bytes) there is no room for a reply; --max-kv-size, --q-bits 4 and --kv-bits 8 "
            "take less, and --ignore-memory serves anyway"
        )
    if needs.cache_bytes * options.max_running > room:
        log(
            f"the caches of replies in progress have {size_text(room)}, for {room // needs.cache_bytes} of "
            f"{files.context:,} tokens: long replies wait for each other"
        )
    return room


class _DesktopChat:
    """The desktop chat beside the server, if it was asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._made: Any = None
        self._module: Any = app_module("beside") if options.app else None
        for name in ("password", "no_password", "data_dir"):
            if not options.app and getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} is for the desktop chat: give --app, too")

    def check(self, address: Address) -> None:
        """Raises ValueError where a password is missing."""
        if self._module is not None:
            server = app_module("server")
            self._address = server.PageAddress.with_password(address, server.password_of(self._options))

    def beside(self, api: Any, ready: loading.ReadyModel) -> Any:
        """The page and the API as one application; without a page `api` itself."""
        if self._module is None:
            return api
        from ..measure.fit import fit
        from ..server.http import Beside

        options = self._options
        self._made = self._module.PageBeside(
            ready.model,
            ready.tokenizer,
            name=options.model,
            needs=fit(
                options.model,
                max_kv_size=options.max_kv_size,
                dtype=options.dtype,
                q_bits=options.q_bits,
                kv=ready.kv,
                ranks=ready.model.ranks or 1,
            ),
            address=self._address,
            folder=options.data_dir,
            kv=flags.kv_options(options),
            thinking=options.thinking,
            prefixes=ready.prefix_store,
        )
        return Beside(api, self._made)

    def close(self, at_once: bool) -> None:
        if self._made is not None:
            self._made.close(0.0 if at_once else PAGE_SECONDS)


#: Lines of requests go to standard error as JSON. uvicorn says what is wrong only.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
    "loggers": {
        "exaone4_mlx.server": {"handlers": ["stderr"], "level": "INFO"},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING"},
    },
}


def _public_name(model: str) -> str:
    """A hub id as it is, and the last part of a path."""
    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_free(host: str, port: int) -> bool:
    from ..server.address import Address

    try:
        Address.checked(host, port)
    except ValueError as error:
        return port == FIRST_PORT + PORTS or "in use" not in str(error)
    return True
