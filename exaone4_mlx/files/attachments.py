"""A file -> its text, and that text in a prompt.

Notes:
- The bytes of a file decide its type. The suffix of a dropped file gives only the language of the code fence, and
  identifies a damaged PDF.
- PDFs are read in a process of their own: see pdf.py.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .pdf import read_pdf
from .text import decode_text

MAX_FILE_BYTES = 20_000_000
MAX_NAME_LENGTH = 120  # characters

#: suffix -> the language on the fence; "" where there is none
LANGUAGES = {
    ".txt": "", ".text": "", ".log": "", ".rst": "rst", ".tex": "latex", ".srt": "", ".vtt": "",
    ".md": "markdown", ".markdown": "markdown",
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".ipynb": "json", ".yaml": "yaml", ".yml": "yaml",
    ".toml": "toml", ".ini": "ini", ".cfg": "ini", ".conf": "", ".xml": "xml", ".svg": "xml", ".html": "html",
    ".htm": "html", ".css": "css", ".scss": "scss", ".diff": "diff", ".patch": "diff", ".sql": "sql",
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "jsx", ".ts": "typescript",
    ".tsx": "tsx", ".vue": "vue", ".java": "java", ".kt": "kotlin", ".scala": "scala", ".c": "c", ".h": "c",
    ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".metal": "cpp", ".cu": "cpp", ".cs": "csharp", ".go": "go",
    ".rs": "rust", ".swift": "swift", ".m": "objectivec", ".mm": "objectivec", ".rb": "ruby", ".php": "php",
    ".pl": "perl", ".lua": "lua", ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir",
    ".erl": "erlang", ".clj": "clojure", ".dart": "dart", ".zig": "zig", ".asm": "asm", ".s": "asm",
    ".sh": "bash", ".bash": "bash", ".zsh": "bash", ".ps1": "powershell", ".bat": "batch", ".proto": "protobuf",
    ".gradle": "groovy", ".cmake": "cmake", ".jinja": "jinja",
}  # fmt: skip

#: Suffixes for a file chooser.
ACCEPTED: tuple[str, ...] = (*LANGUAGES, ".pdf")
KINDS = "text, Markdown, code, CSV, JSON, YAML, TOML, XML, HTML, logs and PDF"


@dataclass(frozen=True)
class Attachment:
    name: str
    text: str


def read_file(path: str | Path, name: str | None = None, cancelled: Callable[[], bool] = lambda: False) -> Attachment:
    """The text of a file, lines ending in "\\n". `name` is what the file is called, if not as `path` is.

    A PDF is not read further once `cancelled` returns True.

    Raises ValueError, naming the file, for what is missing, empty, too large, or neither text nor a PDF with text.
    """
    path = Path(path)
    name = clean_name(path.name if name is None else name)
    data = _read_bytes(path, name)
    if data.startswith(b"%PDF-") or name.lower().endswith(".pdf"):
        text = read_pdf(data, name, cancelled)
    else:
        try:
            text = decode_text(data, name)
        except ValueError as error:
            raise ValueError(f"{error}; accepted are {KINDS}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{name} holds nothing but blanks")
    return Attachment(name, text)


def read_text(path: Path | None) -> str:
    """The text of a text file or of a PDF, or of standard input. Errors name the source."""
    source = "standard input" if path is None else str(path)
    try:
        data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {source}: {error.strerror}") from error
    return read_pdf(data, source) if data.startswith(b"%PDF-") else decode_text(data, source)


def without_line_end(text: str) -> str:
    """The text without the line end that closes a file or a pipe."""
    return text.removesuffix("\n").removesuffix("\r")


def in_prompt(text: str, attachments: Sequence[Attachment]) -> str:
    """The message as the model reads it: the name and the fenced text of each file, then the text of the user.

    A fence is longer than any run of backticks within, so that a file ends where it ends. Control strings such as
    "[|endofturn|]" stay as they are: in a message the tokenizer reads them as ordinary text.
    """
    parts = []
    for attachment in attachments:
        name, body = clean_name(attachment.name), attachment.text.removesuffix("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
        parts.append(f"File: {name}\n\n{fence}{LANGUAGES.get(Path(name).suffix.lower(), '')}\n{body}\n{fence}")
    if text or not parts:
        parts.append(text)
    return "\n\n".join(parts)


def clean_name(name: str) -> str:
    """The last part of a path in any system's spelling: one line, nothing invisible, at most 120 characters."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name.rstrip("/\\"))[-1])  # macOS takes Hangul apart
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029").strip()
    if len(name) > MAX_NAME_LENGTH:
        suffix = Path(name).suffix if len(Path(name).suffix) <= 20 else ""
        name = name[: MAX_NAME_LENGTH - len(suffix)] + suffix
    return name or "file"


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise ValueError(f"{name} is a folder; drop the files in it")
        if not path.is_file():
            raise ValueError(f"there is no file {name}")
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{name} is larger than {MAX_FILE_BYTES // 1_000_000} MB, the most that is read")
    if not data:
        raise ValueError(f"{name} is empty")
    return data
