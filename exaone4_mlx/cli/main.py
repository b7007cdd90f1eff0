"""Entry point of all commands: parses the arguments, runs one command and returns its exit code.

Notes:
- Exit codes: 0; 1 for an error, printed as one line; 2 for wrong usage; 130 for Ctrl-C, which keeps the partial reply.
- The first Ctrl-C raises KeyboardInterrupt, or cancels a reply. The second one ends the process by the default action.
- Only the module of the given command is imported, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from .. import __version__
from . import INTERRUPTED
from .help import CommandParser, HelpAll, with_flag_names
from .output import log, prepare_streams, progress_bar, set_quiet

#: Each command is a module of this folder with DESCRIPTION, `add_arguments(parser)` and `run(options) -> exit code`.
COMMANDS = {
    "generate": "stream one reply to a prompt",
    "chat": "hold a conversation in the terminal",
    "convert": "convert a checkpoint to an MLX folder",
    "fuse": "add an adapter to the weights of its base",
    "evaluate": "measure the quality loss of a conversion",
    "fit": "compute the memory that a model needs",
    "bench": "measure the speed of a model on this machine",
    "lora": "fine-tune a model: train an adapter on texts and conversations",
    "doctor": "check that this machine computes correctly",
    "cluster": "check the machines of a host file and their links",
    "serve": "serve a model to OpenAI's and Anthropic's clients",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `arguments` default to those of the process."""
    prepare_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["app"]:
        return _app(arguments[1:])
    parser = _parser(next((argument for argument in arguments if not argument.startswith("-")), ""))
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # reported by the parser of the command, with its usage
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    set_quiet(options.quiet)
    try:
        if message := _unsupported_platform():
            raise RuntimeError(message)
        from ..files.folders import downloads_shown_by

        with on_ctrl_c(_interrupt), logged_warnings(), downloads_shown_by(_download_bar):
            if is_launched() or getattr(options, "pipeline", False):
                from . import ranks

                return ranks.run(options)
            return int(options.run(options))
    except KeyboardInterrupt as interrupt:
        if str(interrupt):
            log(str(interrupt))
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) closed the pipe. Python would report the error again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        log(f"error: {with_flag_names(message, options.parser)}")
        return 1


def _app(arguments: Sequence[str]) -> int:
    """The desktop chat, which has its own flags and handles its own errors."""
    from .app import run_app

    try:
        if message := _unsupported_platform():
            raise ValueError(message)
        return run_app(arguments)
    except ValueError as error:
        log(f"error: {error}")
        return 1


def is_launched() -> bool:
    """Whether `mlx.launch`, or MPI, started this process beside others."""
    return "MLX_RANK" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Prints Python warnings as one line each, in all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest, **more: log(f"warning: {message}")
        yield


@contextmanager
def on_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop` and prints "stopping". The second one ends the process by the default action."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with suppress(RuntimeError, OSError):  # the signal may arrive inside another write
            log("\nstopping" if sys.stderr.isatty() else "stopping")
        stop()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _download_bar(repo: str) -> AbstractContextManager[Callable[[int, int], None]]:
    return progress_bar(f"downloading {repo}", "B")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all commands, with the flags of the chosen one."""
    parser = CommandParser(prog="exaone4-mlx", description="EXAONE 4.0 on MLX.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help)
        if name == chosen:
            module = importlib.import_module(f".{name}", __package__)
            command.command, command.description = name, module.DESCRIPTION
            module.add_arguments(command)
            command.add_argument("--quiet", action="store_true", help="print no progress and no remarks")
            command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
            command.add_argument("--help-all", action=HelpAll, nargs=0, help="show all options and exit")
            command.set_defaults(run=module.run, parser=command)
    commands.add_parser("app", help="chat in the browser; `exaone4-mlx app --help` lists its options")
    return parser


def _unsupported_platform() -> str | None:
    if platform.system() != "Darwin" or platform.machine() == "arm64":
        return None
    return (
        "MLX needs a native Python on Apple silicon, and this one is an x86-64 build (on an M-series Mac it runs "
        "under Rosetta): install an arm64 Python, for instance with `arch -arm64 brew install python`"
    )
