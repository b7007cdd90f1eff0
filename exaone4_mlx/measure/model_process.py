"""A process of its own for a download or a conversion: `python -m exaone4_mlx.measure.model_process download REPO`.

Notes:
- It writes one JSON list per line: ["progress", done, total, is_bytes], ["error", text, cause, detail] or ["done"].
- It ends with the program that started it, because its input ends then. It may be killed at any time: what is on the
  disk is continued by the next process with the same arguments.
- A process and not a thread: it takes no time from the chat's interpreter lock, its memory goes back as a whole, and a
  download that waits for the network can be ended at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from ..conversion.convert import convert
from ..conversion.request import BYTE_STAGES
from ..files.folders import USEFUL_FILES
from ..files.hub_errors import DownloadError
from ..files.resumable import download_resumably

NICENESS = 10  # the chat goes first


def main(kind: str, *arguments: str) -> None:
    threading.Thread(target=_end_with_the_program, daemon=True).start()
    os.nice(NICENESS)
    try:
        if kind == "download":
            download_resumably(arguments[0], USEFUL_FILES, lambda done, total: _tell("progress", done, total, True))
        else:
            source, target, bits = arguments
            convert(
                source, target, q_bits=int(bits),
                progress=lambda done, total, stage: _tell("progress", done, total, stage in BYTE_STAGES),
            )  # fmt: skip
        _tell("done")
    except DownloadError as error:
        _tell("error", f"{error}", error.cause, error.detail)
    except Exception as error:  # a checkpoint can be damaged in many ways
        _tell("error", f"{error}" or type(error).__name__, "", "")


def _tell(*values: Any) -> None:
    sys.__stdout__.write(json.dumps(values) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _end_with_the_program() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # the interpreter cannot end while a thread reads the standard input
