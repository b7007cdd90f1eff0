"""A conversation, and the readable JSON file that holds it.

Notes:
- A lone surrogate (half a character) is written as a JSON escape, so that every file is valid UTF-8.
- Version 2 of the format has branches and steps. Files of version 1 have none.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files.text import json_text, parse_json
from ..text.message import Message
from .branches import Branch, Step, Tree, check_branches
from .forms import is_time

FORMAT, VERSION = "exaone4_mlx conversation", 2
ROLES = ("system", "user", "assistant", "tool")
MAX_BYTES = 64 * 2**20  # of a file; what is larger is not read
ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


def is_attached(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and type(value.get("tokens")) is int


#: What a message may have besides role and content -> what it must be, in words and as a check.
EXTRAS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "reasoning_content": ("a string", lambda value: isinstance(value, str)),
    "tool_calls": ("a list", lambda value: isinstance(value, list)),
    "tool_call_id": ("a string", lambda value: isinstance(value, str)),
    "finish_reason": ("a string", lambda value: isinstance(value, str)),
    "stats": ("an object", lambda value: isinstance(value, dict)),
    "made": ("an object", lambda value: isinstance(value, dict)),
    "text": ("a string", lambda value: isinstance(value, str)),
    "files": (
        "a list of objects with name and tokens",
        lambda value: isinstance(value, list) and all(map(is_attached, value)),
    ),
    "failed": ("true or false", lambda value: isinstance(value, bool)),
    "seconds": ("a number", lambda value: type(value) in (int, float)),
}


@dataclass
class Conversation:
    """The messages of a conversation and its settings. `messages` are OpenAI-style and kept as they are."""

    id: str
    title: str = ""
    named: bool = False  # the title is the user's own
    pinned: bool = False  # it is above the others in the list
    created: str = ""
    updated: str = ""
    revision: int = 0  # that was read or written; 0 was never on disk
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0  # messages after the system prompt that the model no longer sees
    messages: list[Message] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)  # beside the messages
    steps: list[Step] = field(default_factory=list)  # that Undo takes back

    @property
    def tree(self) -> Tree:
        """The messages after the system prompt, with their branches."""
        return Tree(self.messages[self._system :], self.dropped, self.branches, self.steps)

    def show(self, tree: Tree, system: Sequence[Message] | None = None) -> None:
        """Takes the messages and the branches of a tree; `system` is the system prompt, if there is another."""
        system = self.messages[: self._system] if system is None else system
        self.messages, self.dropped = [*system, *tree.messages], tree.dropped
        self.branches, self.steps = tree.branches, tree.steps

    @property
    def _system(self) -> int:
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    @classmethod
    def new(cls, model: str = "", settings: dict[str, Any] | None = None) -> Conversation:
        """An empty one with an id of its own, not yet on disk."""
        now = timestamp()
        return cls(new_id(), created=now, updated=now, model=model, settings=dict(settings or {}))


def read_conversation(path: Path, id: str) -> Conversation:
    """The conversation of a file; its name says which, not the id inside. Raises ValueError and OSError."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("it is not a file")
    if info.st_size > MAX_BYTES:
        raise ValueError(f"it has {info.st_size:,} bytes, and at most {MAX_BYTES:,} are read")
    content = parse_json(path.read_bytes())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    check_version(content)
    if "messages" not in content:
        raise ValueError("it has no messages")
    names = {item.name for item in dataclasses.fields(Conversation)}
    conversation = Conversation(**{name: value for name, value in content.items() if name in names} | {"id": id})
    check(conversation)
    return conversation


def check(conversation: Conversation) -> None:
    """Raises ValueError for a field without its form. Of messages it checks only the fields that are read here."""
    messages = conversation.messages
    if not isinstance(messages, list):
        raise ValueError(f"messages must be a list, not {type(messages).__name__}")
    _check_messages(messages, "message", system=1)
    system = int(bool(messages) and messages[0]["role"] == "system")
    check_branches(len(messages) - system, conversation.branches, conversation.steps, _check_messages)
    for name, right in {
        "title": isinstance(conversation.title, str),
        "named": isinstance(conversation.named, bool),
        "pinned": isinstance(conversation.pinned, bool),
        "created": is_time(conversation.created),
        "updated": is_time(conversation.updated),
        "revision": type(conversation.revision) is int and conversation.revision >= 0,
        "model": isinstance(conversation.model, str),
        "settings": isinstance(conversation.settings, dict),
        "dropped": type(conversation.dropped) is int and 0 <= conversation.dropped <= len(messages),
    }.items():
        if not right:
            raise ValueError(f"{name} cannot be {reprlib.repr(getattr(conversation, name))}")


def _check_messages(messages: list[Message], name: str, system: int = 0) -> None:
    """Raises ValueError for a message without its form; only the first `system` messages can be a system prompt."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"{name} {index} must be an object with a role of {', '.join(ROLES)}")
        role, content = message["role"], message.get("content")
        if role == "system" and index >= system:
            raise ValueError(f"{name} {index}: a system message can only be the first")
        if not (isinstance(content, str) or role == "tool" or (role == "assistant" and content is None)):
            raise ValueError(f"{name} {index}: {role} content must be a string, not {type(content).__name__}")


def check_version(content: Mapping[str, Any]) -> None:
    """Raises ValueError for a file of a later version."""
    if (version := content.get("version")) not in range(1, VERSION + 1):
        raise ValueError(f"it has version {reprlib.repr(version)}, and this program reads up to {VERSION}")


def to_json(conversation: Conversation) -> str:
    """The conversation as its file holds it. Raises ValueError for what is no JSON."""
    return json_text({"format": FORMAT, "version": VERSION, **vars(conversation)}, indent=1)


def timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def new_id() -> str:
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
