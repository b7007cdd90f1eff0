"""Export and import of conversations: file names, and the kinds of files that are read.

Notes:
- An export is JSON, which holds the branches too, or readable Markdown.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any

from ..files.text import decode_text, parse_json
from ..text.input_messages import check_messages
from ..text.message import Message
from .conversation import EXTRAS, FORMAT, MAX_BYTES, Conversation, check, check_version, to_json
from .forms import is_time, one_line
from .markdown import HEADER, MARK, from_markdown, to_markdown

__all__ = ["file_name", "from_text", "to_json", "to_markdown"]

CHAT_FORMAT = "exaone4_mlx chat"  # what `Chat.save` of the package writes; its version 1 is read
MAX_STEM_BYTES = 120  # of a file name, which may have 255 with its folder's own additions
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{n}" for port in ("COM", "LPT") for n in range(10)
}


def file_name(title: str, suffix: str) -> str:
    """A name for a file of that title, good on macOS, Windows and Linux. `suffix` is ".md", for instance."""
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in title)
    text = re.sub(r'[<>:"/\\|?*\s]+', " ", unicodedata.normalize("NFC", text))
    stem = text.strip(" .-~").encode()[:MAX_STEM_BYTES].decode(errors="ignore").rstrip(" .") or "conversation"
    if unicodedata.normalize("NFKC", stem.split(".")[0]).strip().upper() in RESERVED:  # COM¹ is one too
        stem = f"_{stem}"
    return stem + suffix


# --- in --------------------------------------------------------------------------


def from_text(text: str | bytes, name: str = "") -> Conversation:
    """The conversation in a file of one of the kinds that are read here, under a new id.

    These are what `to_json` and `to_markdown` give, a file of `Chat.save`, and OpenAI-style messages, as a list or
    as "messages" of an object. Notes before the first comment and after the last are no part of a conversation.
    Raises ValueError saying in one line what is wrong, with `name`, the file's.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"it is too large: at most {MAX_BYTES:,} bytes are read")
        text = decode_text(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
        if header := HEADER.search(text):
            content = from_markdown(text.replace("\r\n", "\n") if header[0].endswith("\r") else text)
        elif text.lstrip().startswith(("{", "[")):
            content = parse_json(text)
        else:
            raise ValueError(
                "it is neither JSON with messages nor Markdown that was exported here, with its lines "
                f"{MARK} ... --> in place"
            )
        conversation = _conversation(content if isinstance(content, dict) else {"messages": content})
        to_json(conversation)  # what is brought in can also be written
    except ValueError as error:
        raise ValueError(one_line(f"{name or 'the text'} cannot be imported: {error}", limit=500)) from error
    return conversation


def _conversation(content: dict[str, Any]) -> Conversation:
    if content.get("format") == FORMAT:
        check_version(content)
    elif content.get("format") == CHAT_FORMAT and content.get("version") != 1:
        raise ValueError(f"it has version {reprlib.repr(content.get('version'))}, and this program reads 1")
    if "messages" not in content:
        raise ValueError("it has no messages")
    model, settings, title = content.get("model"), content.get("settings"), content.get("title")
    messages, dropped = _messages(content["messages"]), content.get("dropped", 0)
    if type(dropped) is not int or not 0 <= dropped <= len(messages):
        raise ValueError(f"dropped is {reprlib.repr(dropped)}, and there are {len(messages)} messages")
    conversation = Conversation.new(model if isinstance(model, str) else "")
    conversation.settings = settings if isinstance(settings, dict) else {}
    conversation.title = one_line(title) if isinstance(title, str) else ""
    conversation.named = bool(conversation.title) and content.get("named") is True
    conversation.title = conversation.title or _first_words(messages)
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


def _first_words(messages: list[Message]) -> str:
    asked = next((message for message in messages if message["role"] == "user"), None)
    lines = str(asked.get("text") or asked["content"]).splitlines() if asked else []
    return next(filter(None, (one_line(line, limit=60) for line in lines)), "")


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
