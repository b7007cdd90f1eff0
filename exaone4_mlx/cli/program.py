"""The process of a command, from its start to its end.

Notes:
- It is the entry point of `exaone4-mlx`, `python -m exaone4_mlx`, `python -m exaone4_mlx.COMMAND` and `python -m app`.
- While the process starts, Ctrl-C ends it at once by the default action. There is no Python traceback.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from . import INTERRUPTED


def run_program(command: str | None = None) -> NoReturn:
    """Runs the command line of this process, or its arguments as those of `command`."""

    def program() -> int:
        from .main import main

        return main(None if command is None else [command, *sys.argv[1:]])

    run(program)


def run(program: Callable[[], int]) -> NoReturn:
    """Runs the `program` of this process and ends with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in a background job, which ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .output import prepare_streams

    prepare_streams()
    try:
        code: object = program()
    except SystemExit as end:
        code = end.code
    if code == INTERRUPTED:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # waits for no thread: that of a download may wait for the network
    raise SystemExit(code)
