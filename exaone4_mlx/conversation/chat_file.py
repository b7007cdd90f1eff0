"""The file of a saved chat.

Notes:
- It is JSON. A name that ends in .md gives Markdown, without the settings.
- What the desktop chat writes and exports is read too: its messages, not its settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.folders import atomic_file
from ..files.text import json_text
from ..generation.options import SAMPLING_FIELDS, Options, Sampling
from ..storage.conversation import Conversation
from ..storage.markdown import MARK, to_markdown
from ..storage.transcript import CHAT_FORMAT, CHAT_VERSION, read_content, read_dropped
from ..storage.turns import title_of
from ..text.input_messages import check_messages

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
    if path.is_file() and path.stat().st_size:
        text = path.read_text("utf-8", "replace")
        if not (text.startswith(MARK) if is_markdown(path) else CHAT_FORMAT in text[:200]):
            raise ValueError(f"{path} is there already and is no saved chat; choose another name, or delete it")


def is_markdown(path: Path) -> bool:
    return path.suffix.lower() == ".md"


def write_chat(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all: JSON, or for a name that ends in .md Markdown of the messages."""
    if is_markdown(path):
        made = dataclasses.replace(Conversation.new(), messages=content["messages"], dropped=content["dropped"])
        text = to_markdown(dataclasses.replace(made, title=title_of(made.messages)))
    else:
        text = json_text({"format": CHAT_FORMAT, "version": CHAT_VERSION, **content}, indent=1)
    with atomic_file(path) as stream:
        stream.write(text.encode())


def read_chat(path: Path) -> dict[str, Any]:
    """The content of a saved chat, checked; its settings are keyword arguments of `Chat`.

    Other files that `read_content` reads have messages only. Raises FileNotFoundError for a missing file, and
    ValueError for one without messages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved chat {path}")
    try:
        content = read_content(path.read_bytes())
        is_own = content.get("format") == CHAT_FORMAT
        settings, tools = (content.get("settings", {}), content.get("tools", [])) if is_own else ({}, [])
        messages = [] if is_own and content["messages"] == [] else check_messages(content["messages"])
        dropped = read_dropped(content, messages)
        if not isinstance(settings, dict) or set(settings) - SAVED_SETTINGS:
            raise ValueError("its settings are malformed")
        if not isinstance(tools, list) or not all(isinstance(name, str) for name in tools):
            raise ValueError("its tools are malformed")
        if (sampling := settings.pop("sampling", None)) is not None:
            settings |= vars(Sampling(**sampling))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved chat: {error}") from error
    return {"messages": messages, "dropped": dropped, "settings": settings, "tools": tools}
