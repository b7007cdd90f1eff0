"""Output of the commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def show(text: str) -> None:
    """Prints a part of the result."""
    print(text, flush=True)


def show_json(value: dict[str, Any]) -> None:
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def log(text: str) -> None:
    """Prints a text that is not part of the result."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Prints Python warnings as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        log(f"warning: {warning.message}")


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that draws a bar with the time left, on a terminal and after half a second."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=True, delay=0.5, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        yield report


def prepare_streams() -> None:
    """Replaces closed standard streams by empty ones, and sets UTF-8 independently of the locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
