"""The process of a command, from its start to its end.

Notes:
- It is the entry point of `exaone4-mlx`, `python -m exaone4_mlx` and `python -m exaone4_mlx.COMMAND`.
- While the process starts, Ctrl-C ends it at once, as the system does it. There is no Python traceback.
"""

import contextlib
import os
import signal
import sys
from typing import NoReturn


def run_program(command: str | None = None) -> NoReturn:
    """Runs the command line of this process, or its arguments as those of `command`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in a background job, which ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import INTERRUPTED, main

    try:
        code = main(None if command is None else [command, *sys.argv[1:]])
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        code = INTERRUPTED
    if code == INTERRUPTED:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # waits for no thread: that of a download may wait for the network
    raise SystemExit(code)
