"""The text of a PDF. A child process reads it: limits of time and memory, and a closed tab, end the process.

Notes:
- A small PDF can unpack to any size, and pypdf can take any time for a page. A thread could not be ended.
- The child process is this file: it imports pypdf, and nothing of the app.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable

MAX_PDF_PAGES = 2000
MAX_PDF_CHARACTERS = 4_000_000
PDF_SECONDS = 60.0
PDF_BYTES = 2 * 2**30  # of memory, where the system has such a limit
STEP_SECONDS = 0.1  # between two looks at `cancelled`


def read_pdf(data: bytes, name: str, cancelled: Callable[[], bool] = lambda: False) -> str:
    """The text of the pages, with blank lines between them.

    Raises ValueError, naming the file, if it is damaged, encrypted, without text or too large, and at a limit.
    """
    command = [sys.executable, "-I", __file__, name]
    end, pipe = time.monotonic() + PDF_SECONDS, subprocess.PIPE
    given: bytes | None = data
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as child:
        try:
            while True:
                try:
                    answer, _ = child.communicate(given, timeout=STEP_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    given = None  # it is taken
                    if cancelled():
                        raise ValueError(f"reading {name} was cancelled") from None
                    if time.monotonic() > end:
                        raise ValueError(f"{name} takes more than {PDF_SECONDS:g} s to read; split it") from None
        finally:
            child.kill()
    try:
        kind, text = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: its reader ended with code {child.returncode}") from error
    if kind == "error":
        raise ValueError(text)
    return str(text)


def pdf_text(data: bytes, name: str) -> str:
    """The text of a PDF's pages, with blank lines between them."""
    try:
        import pypdf
    except ImportError as error:
        raise ValueError(
            f"{name} is a PDF, and reading those needs pypdf: pip install 'pypdf', or the extra '.[pdf]'"
        ) from error
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)  # no messages about repairs in the terminal
    locked = False
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted
        locked = locked and not reader.decrypt("")  # many open without a password
        page_count = 0 if locked else len(reader.pages)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: pypdf raises many for damaged files
        if not locked:
            raise _damaged(name, error) from error
    if locked:
        raise ValueError(f"{name} is encrypted; save a copy without a password")
    if page_count > MAX_PDF_PAGES:
        raise ValueError(f"{name} has {page_count} pages, more than the {MAX_PDF_PAGES} that are read; split it")
    pages: list[str] = []
    characters = 0
    for number in range(page_count):
        try:
            page = reader.pages[number].extract_text().strip()
        except MemoryError:
            raise
        except Exception as error:
            raise _damaged(name, error) from error
        characters += len(page)
        if characters > MAX_PDF_CHARACTERS:
            raise ValueError(f"{name} holds more than {MAX_PDF_CHARACTERS:,} characters of text; split it")
        pages.append(page)
    text = "\n\n".join(filter(None, pages))
    if not text:
        raise ValueError(f"{name} holds no text: a scan is pictures of pages, and needs text recognition first")
    return text.replace("\0", "").encode("utf-8", "replace").decode()  # halves of characters occur


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is damaged, or no PDF: {str(error) or type(error).__name__}")


def _main() -> None:
    name, data = sys.argv[1], sys.stdin.buffer.read()
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (PDF_BYTES, PDF_BYTES))
    try:
        answer = ("text", pdf_text(data, name))
    except ValueError as error:
        answer = ("error", str(error))
    except MemoryError:
        answer = ("error", f"{name} takes more than {PDF_BYTES // 2**30} GB of memory to read; split it")
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main()
