"""A folder or a hub id -> a local folder. Files that are written whole or not at all.

Notes:
- Only useful files are downloaded: see `hub.py`.
- No MLX: a config is read without it.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from .text import not_json

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
#: The models in the package: one to talk to, and its draft model.
BUILT_IN = {"demo": DEMO_FOLDER, "demo-draft": DEMO_FOLDER / "draft"}
MAX_TOKEN_ID = 10_000_000  # EXAONE's vocabulary has 102,400 tokens
MAX_GROWTH = 1000  # of a text by a normalizer of a tokenizer
#: The files of a model folder that are used here. No other file is downloaded.
USEFUL_FILES = ("*.json", "*.jinja", "*model*.safetensors", "merges.txt", "README.md", "LICENSE*", "NOTICE*")

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
_bar: ContextVar[Bar | None] = ContextVar("bar", default=None)


@contextmanager
def downloads_shown_by(bar: Bar) -> Iterator[None]:
    """Replaces the bars of huggingface_hub, in this thread. `bar(repo)` yields a function (done, total) of bytes."""
    before = _bar.set(bar)
    try:
        yield
    finally:
        _bar.reset(before)


def find_folder(path_or_repo: str | Path, revision: str | None = None, files: Sequence[str] = USEFUL_FILES) -> Path:
    """The local folder of a model: "demo", "demo-draft", a folder, or a hub id, whose `files` are downloaded if needed.

    Raises FileNotFoundError if there is no such folder and no such repository can be downloaded.
    """
    if (built_in := BUILT_IN.get(str(path_or_repo))) is not None:
        if revision is not None:
            raise ValueError("the demo model has no revisions")
        return built_in
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for hub ids; {folder} is a local folder")
        check_files(folder)
        return folder
    if folder.exists():
        needed = "a model is a folder with config.json and model.safetensors"
        raise FileNotFoundError(f"{folder} is not a folder; {needed}{other_format(folder)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_repo)) or str(path_or_repo).startswith((".", "/", "~")):
        names = [*BUILT_IN, *(one.name for one in folder.parent.glob("*/"))] if folder.parent.is_dir() else []
        near = "".join(
            f"; did you mean {folder.with_name(name)}?" for name in get_close_matches(folder.name, names, n=1)
        )
        raise FileNotFoundError(f"there is no folder {folder}{near}")
    from .hub import download  # here: nearly no command needs it

    bar = _bar.get()
    with bar(str(path_or_repo)) if bar else nullcontext() as progress:
        return download(str(path_or_repo), revision, files, progress)


def check_files(folder: Path) -> None:
    """Raises ValueError for a useful file that is a link out of the folder, or no file (a FIFO or a device).

    Such a link would let the maker of a folder choose any file of its user, which `convert` then copies or publishes.
    The links of the hub's cache lead to its blobs.
    """
    for file in sorted({file for pattern in (*USEFUL_FILES, "*.safetensors") for file in folder.glob(pattern)}):
        target = file.resolve()
        if not file.is_file() and not file.is_dir():
            raise ValueError(f"{file} is not a file: it is a broken link, a FIFO or a device")
        is_blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
        if not is_blob and not target.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{file} is a link to {target}, which is outside the folder; copy that file into the folder"
            )


def other_format(path: Path) -> str:
    """What to do with a folder or file that is no model, or has weights in a format that is not read here; else ""."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if any(file.name == "adapter_config.json" for file in files):
        return "; it is an adapter: give its base as the model, and this folder with --adapter-path"
    if gguf := [file.name for file in files if file.suffix == ".gguf"]:
        return f"; {gguf[0]} is a GGUF file for llama.cpp, so take the original repository or an MLX one in its place"
    if other := [file.name for file in files if file.suffix in (".bin", ".pt", ".pth") and "model" in file.name]:
        return (
            f"; {other[0]} is a PyTorch file. transformers converts it: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError if the file holds no JSON object."""
    try:
        values = json.loads(path.read_bytes())  # with a byte order mark, too
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise not_json(path, error) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def without_middle(message: str) -> str:
    """An error message without its middle if that is long: it may quote a name or a value of any length."""
    return message if len(message) <= 600 else f"{message[:400]} … {message[-190:]}"


def read_token(config: Mapping[str, Any], key: str) -> str | None:
    """The text of a token in tokenizer_config.json, where it may be an object with its text as "content"."""
    given = config.get(key)
    text = given.get("content") if isinstance(given, Mapping) else given
    if text is None or isinstance(text, str):
        return text
    raise ValueError(f"tokenizer_config.json: {key} must be the text of a token, not {given!r:.99}")


def read_tokenizer(path: Path) -> bytes:
    """The content of a tokenizer.json. Raises ValueError for values with which the tokenizers library ends the process.

    Errors for other wrong content are of any type.
    """
    description, content = read_json(path), path.read_bytes()
    model, normalizer = description["model"], json.dumps(description.get("normalizer"))
    ids = [*model["vocab"].values(), *(token["id"] for token in description.get("added_tokens") or ())]
    if (largest := max(ids, default=0)) > MAX_TOKEN_ID:
        raise ValueError(f"its largest id is {largest}; at most {MAX_TOKEN_ID} is allowed")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("continuing_subword_prefix and end_of_word_suffix must be null in a byte-level tokenizer")
    replacements = re.findall(r'"(?:content|prepend)": "((?:[^"\\]|\\.)+)"', normalizer)
    if math.prod(map(len, replacements)) > MAX_GROWTH:
        raise ValueError(f"its normalizer can make a text more than {MAX_GROWTH} times longer")
    return content.removeprefix(codecs.BOM_UTF8)


@contextmanager
def atomic_file(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` at the end of the block unless the block fails.

    It is written in the same folder as .DIGEST.PROCESS-THREAD.partial, with the digest of its name. Partial files of
    killed processes are removed. The new file has the mode of the old one, else `mode`, less the umask.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    name = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    remove_partial_files(path.parent, name)
    partial = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with open(partial, "wb", opener=lambda file, flags: os.open(file, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path, name: str = "*") -> None:
    """Removes what killed processes left of the atomic files with this digest of their name."""
    for left in folder.glob(f".{name}.*-*.partial"):
        process = left.name.split(".")[2].partition("-")[0]
        if process.isdecimal() and not _is_running(int(process)):
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
