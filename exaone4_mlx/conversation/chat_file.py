"""The JSON file of a saved chat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.folders import atomic_file
from ..files.text import decode_text
from ..generation.options import SAMPLING_FIELDS, Options, Sampling
from ..text.input_messages import check_messages

FILE_FORMAT, FILE_VERSION = "exaone4_mlx chat", 1
CACHE_SUFFIX = ".cache"  # of the file beside a saved chat that holds its caches
#: Options that a saved chat keeps, beside those of sampling.
SAVED_OPTIONS = tuple(
    field.name for field in dataclasses.fields(Options) if field.metadata["kept"] and field.name not in SAMPLING_FIELDS
)
SAVED_SETTINGS = {"sampling", "overflow", *SAVED_OPTIONS}


def cache_path(path: Path) -> Path:
    """The file of the caches beside a saved chat."""
    return path.with_name(path.name + CACHE_SUFFIX)


def saved_options(options: Options) -> dict[str, Any]:
    """The options that a saved chat keeps, as JSON values."""
    sampling = {name: getattr(options, name) for name in SAMPLING_FIELDS}
    return {name: getattr(options, name) for name in SAVED_OPTIONS} | {"sampling": sampling}


def check_place(path: Path) -> None:
    """Raises ValueError if a file is there that is no saved chat."""
    if path.is_file() and path.stat().st_size and FILE_FORMAT not in path.read_text("utf-8", "replace")[:200]:
        raise ValueError(f"{path} is there already and is no saved chat; choose another name, or delete it")


def write_chat(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all."""
    text = json.dumps({"format": FILE_FORMAT, "version": FILE_VERSION, **content}, ensure_ascii=False, indent=1)
    with atomic_file(path) as stream:
        stream.write(text.encode())


def read_chat(path: Path) -> dict[str, Any]:
    """The content of a saved chat, checked; its settings are keyword arguments of `Chat`.

    Raises FileNotFoundError for a missing file, and ValueError for one that is no saved chat.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved chat {path}")
    try:
        content = json.loads(decode_text(path.read_bytes()))
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"its format is not {FILE_FORMAT!r}")
        if content.get("version") != FILE_VERSION:
            raise ValueError(f"it has version {content.get('version')!r}, and this program reads {FILE_VERSION}")
        messages, dropped = content.get("messages"), content.get("dropped", 0)
        messages = [] if messages == [] else check_messages(messages)  # type: ignore[arg-type]
        if not isinstance(dropped, int) or not 0 <= dropped <= len(messages):
            raise ValueError(f"dropped is {dropped!r}")
        settings, tools = content.get("settings", {}), content.get("tools", [])
        if not isinstance(settings, dict) or set(settings) - SAVED_SETTINGS:
            raise ValueError("its settings are malformed")
        if not isinstance(tools, list) or not all(isinstance(name, str) for name in tools):
            raise ValueError("its tools are malformed")
        if (sampling := settings.pop("sampling", None)) is not None:
            settings |= vars(Sampling(**sampling))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved chat: {error}") from error
    return {"messages": messages, "dropped": dropped, "settings": settings, "tools": tools}
