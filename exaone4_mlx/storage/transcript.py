"""Export and import of conversations: file names, and the kinds of files that are read.

Notes:
- An export is JSON, which holds the branches too, or readable Markdown.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ..files.text import decode_text, parse_json
from ..text.input_messages import check_messages
from ..text.message import Message
from .conversation import EXTRAS, FORMAT, MAX_BYTES, Conversation, check, check_version, to_json
from .forms import is_time, one_line
from .markdown import HEADER, HEADINGS, MARK, from_markdown, to_markdown
from .turns import title_of

__all__ = ["HEADINGS", "file_name", "from_text", "to_json", "to_markdown"]

CHAT_FORMAT, CHAT_VERSION = "exaone4_mlx chat", 1  # what `Chat.save` writes
MAX_STEM_BYTES = 120  # of a file name, which may have 255 with its folder's own additions
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{n}" for port in ("COM", "LPT") for n in range(10)
}


def read_content(text: str | bytes) -> dict[str, Any]:
    """What a file holds: an object with `messages`, which are not checked, and with what its kind has beside them.

    The kinds are what `to_json` and `to_markdown` give, a file of `Chat.save`, and OpenAI-style messages: as a list,
    one in a line, or as "messages" of an object. Notes before the first comment of Markdown and after the last are no
    part of a conversation. Raises ValueError, which says in one line what is wrong.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is too large: at most {MAX_BYTES:,} bytes are read")
    text = decode_text(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    if header := HEADER.search(text):
        content = from_markdown(text.replace("\r\n", "\n") if header[0].endswith("\r") else text)
    elif text.lstrip().startswith(("{", "[")):
        content = _json_content(text)
    else:
        raise ValueError(
            "it is neither JSON with messages nor Markdown that was exported here, with its lines "
            f"{MARK} ... --> in place"
        )
    if content.get("format") == FORMAT:
        check_version(content)
    elif content.get("format") == CHAT_FORMAT and content.get("version") != CHAT_VERSION:
        version = reprlib.repr(content.get("version"))
        raise ValueError(f"it has version {version}, and this program reads {CHAT_VERSION}")
    if "messages" not in content:
        raise ValueError("it has no messages")
    return content


def _json_content(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        try:
            content = [parse_json(line) for line in text.split("\n") if line.strip()]
        except ValueError:
            raise error from None
    if isinstance(content, dict):
        return {"messages": [content]} if "role" in content else content
    return {"messages": content}


def read_dropped(content: Mapping[str, Any], messages: Sequence[Message]) -> int:
    """The number of messages after the system prompt that the model no longer sees. Raises ValueError for no count."""
    dropped = content.get("dropped", 0)
    if type(dropped) is not int or not 0 <= dropped <= len(messages):
        raise ValueError(f"dropped is {reprlib.repr(dropped)}, and there are {len(messages)} messages")
    return dropped


def from_text(text: str | bytes, name: str = "") -> Conversation:
    """The conversation in a file that `read_content` reads, under a new id.

    Raises ValueError saying in one line what is wrong, with `name`, the file's.
    """
    try:
        conversation = _conversation(read_content(text))
        to_json(conversation)  # what is brought in can also be written
    except ValueError as error:
        raise ValueError(one_line(f"{name or 'the text'} cannot be imported: {error}", limit=500)) from error
    return conversation


def _conversation(content: dict[str, Any]) -> Conversation:
    model, settings, title = content.get("model"), content.get("settings"), content.get("title")
    messages = _messages(content["messages"])
    dropped = read_dropped(content, messages)
    conversation = Conversation.new(model if isinstance(model, str) else "")
    conversation.settings = settings if isinstance(settings, dict) else {}
    conversation.title = one_line(title) if isinstance(title, str) else ""
    conversation.named = bool(conversation.title) and content.get("named") is True
    conversation.title = conversation.title or title_of(messages)
    conversation.created = content["created"] if is_time(content.get("created")) else conversation.created
    conversation.dropped, conversation.messages = dropped, messages
    if content.get("format") == FORMAT:
        conversation.branches, conversation.steps = content.get("branches", []), content.get("steps", [])
        check(conversation)
        for number, branch in enumerate(conversation.branches):
            try:
                conversation.branches[number] = branch | {"messages": _messages(branch["messages"])}
            except ValueError as error:
                raise ValueError(f"branch {number}, {error}") from error
    return conversation


def _messages(messages: Any) -> list[Message]:
    """The messages as the model reads them, with the keys that are known here.

    Raises ValueError for what does not have its form.
    """
    read = []
    for index, message in enumerate(check_messages(messages)):
        if message["role"] == "system" and index:
            raise ValueError(f"message {index}: a system message can only be the first")
        extras = {name: message[name] for name in EXTRAS if message.get(name) is not None}
        for name, value in extras.items():
            if not EXTRAS[name][1](value):
                raise ValueError(f"message {index}: {name} must be {EXTRAS[name][0]}, not {reprlib.repr(value)}")
        read.append({"role": message["role"], "content": message["content"]} | extras)
    return read


def file_name(title: str, suffix: str) -> str:
    """A name for a file of that title, good on macOS, Windows and Linux. `suffix` is ".md", for instance."""
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in title)
    text = re.sub(r'[<>:"/\\|?*\s]+', " ", unicodedata.normalize("NFC", text))
    stem = text.strip(" .-~").encode()[:MAX_STEM_BYTES].decode(errors="ignore").rstrip(" .") or "conversation"
    if unicodedata.normalize("NFKC", stem.split(".")[0]).strip().upper() in RESERVED:  # COM¹ is one too
        stem = f"_{stem}"
    return stem + suffix
