"""The messages of a turn: what the user sends and edits, what a file gives back, and a reply that is cut."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..files.attachments import Attachment, in_prompt
from ..files.text import number, objects
from ..text.input_messages import check_messages
from ..text.message import Message, turn_starts
from .forms import one_line

TITLE_LENGTH = 48  # characters


def user_message(text: str, attachments: Sequence[tuple[Attachment, int]]) -> Message:
    """A user's message: the text that the model sees, and beside it the typed text and the files."""
    message: Message = {"role": "user", "content": in_prompt(text, [attachment for attachment, _ in attachments])}
    if attachments:
        message["text"] = text
        message["files"] = [
            {"name": attachment.name, "tokens": tokens, "text": attachment.text} for attachment, tokens in attachments
        ]
    return message


def as_read(messages: Sequence[Message]) -> list[Message]:
    """The messages of a file as the model reads them.

    The page shows `text` and `files` in place of the content. They are left out where the content is not made of them.
    """
    with contextlib.suppress(ValueError):  # what no model reads can still be shown
        messages = check_messages(messages)
    read = []
    for message in messages:
        try:
            files = [(Attachment(file["name"], file["text"]), file["tokens"]) for file in message.get("files") or ()]
            made = user_message(message["text"], files)["content"]
        except (KeyError, TypeError, AttributeError):  # any JSON may be there
            made = None
        other = message["role"] != "user" or message["content"] != made
        read.append({name: value for name, value in message.items() if not (other and name in ("text", "files"))})
    return read


def edited(message: Mapping[str, Any], text: str) -> Message:
    """A message with another text: a user's with the same files, a reply with its thought. Such a reply is whole."""
    if not text.strip():
        raise ValueError("the text is empty")
    if message["role"] == "assistant":
        kept = {name: message[name] for name in ("reasoning_content", "made") if name in message}
        return {"role": "assistant", "content": text, **kept}
    files = [file for file in objects(message.get("files")) if "text" in file]  # an imported one may have a name only
    return user_message(
        text, [(Attachment(str(file.get("name")), str(file["text"])), number(file.get("tokens"))) for file in files]
    )


def closed(messages: Sequence[Message]) -> list[Message]:
    """The messages of an unfinished reply as if it were cut here: every call gets a result."""
    messages = [dict(message) for message in messages]
    if messages and messages[-1]["role"] == "assistant":
        messages[-1]["finish_reason"] = "cancelled"
    refused = {"role": "tool", "content": {"error": "not run: the reply was cut off"}, "failed": True}
    return [*messages, *[refused] * missing_results(messages)]


def title_of(messages: Sequence[Message]) -> str:
    """The automatic title of a conversation: the beginning of its first turn."""
    for message in messages:
        if message["role"] == "user":
            said = str(message.get("text") or message["content"])
            files = objects(message.get("files"))
            words = one_line(said) or one_line(", ".join(str(file.get("name")) for file in files))
            return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1] + "…"
    return ""


def turn_place(messages: Sequence[Message], number: int | None) -> tuple[int, int]:
    """The number of a turn, of the last one for None, and the position of its message."""
    if not (starts := turn_starts(messages)):
        raise ValueError("the conversation has no turns yet")
    number = len(starts) - 1 if number is None else number
    if not 0 <= number < len(starts):
        raise ValueError(f"there is no turn {number}")
    return number, starts[number]


def reply_place(messages: Sequence[Message], number: int | None) -> tuple[int, int]:
    """The number of a turn, and the position of its last reply. Raises ValueError if the turn has none."""
    number, start = turn_place(messages, number)
    end = next((at for at in turn_starts(messages) if at > start), len(messages))
    replies = [at for at in range(start, end) if messages[at]["role"] == "assistant"]
    if not replies:
        raise ValueError("this turn has no reply")
    return number, replies[-1]


def missing_results(messages: Sequence[Message]) -> int:
    calls = 0
    for message in messages:
        calls = calls - 1 if message["role"] == "tool" else len(objects(message.get("tool_calls")))
    return max(calls, 0)
