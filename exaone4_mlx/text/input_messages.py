"""Messages as a caller gives them -> checked and guarded messages, as a chat template takes them.

Notes:
- Arguments of a tool call that are a JSON string (OpenAI's form) are parsed. As a string they would be quoted twice.
- The content of a tool message may be any JSON value. All other content is text.
- A control string inside a message could end a turn or open another. `Guard.protect` puts a mark inside each one before
  the template is rendered. After rendering, the tokenizer removes the mark and encodes the string as ordinary text.
- A past reply is the model's own text. It keeps the strings that the model writes (think, tool call), but no role.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
#: The control strings that the model itself writes in a reply.
REPLY_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
#: Unicode noncharacters: no text has a use for them. `ChatTemplate` keeps them as they are.
MARKS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF)))


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, with joined text parts and parsed arguments of tool calls.

    Raises ValueError, naming the message, for an unknown role and for content that no template can render.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
    checked = [_check_message(message, f"message {index}") for index, message in enumerate(messages)]
    if not checked:
        raise ValueError("there are no messages")
    return checked


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where} has the unknown role {role!r}; roles are {', '.join(ROLES)}")
    checked = dict(message)
    if role != "tool":
        checked["content"] = _check_text(message.get("content"), role, where)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, (list, tuple)):
            raise ValueError(f"{where}: tool_calls must be a list, not {type(calls).__name__}")
        checked["tool_calls"] = [_check_call(call, where) for call in calls]
    return checked


def _check_text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, (list, tuple)):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise ValueError(f"{where}: content may have text parts only; this model reads no images or files")
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise ValueError(f"{where}: {role} content must be a string or a list of text parts, not {type(content).__name__}")


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function", call), Mapping):
        raise ValueError(f"{where}: a tool call must be an object with name and arguments")
    function = dict(call.get("function", call))
    key = "arguments" if "arguments" in function else "parameters"
    if not isinstance(function.get("name"), str) or key not in function:
        raise ValueError(
            f"{where}: a tool call needs a name and arguments, not {json.dumps(function, default=str)[:200]}"
        )
    if isinstance(function[key], str):
        with contextlib.suppress(ValueError, RecursionError):  # a string that is not JSON is a value of its own
            function[key] = json.loads(function[key] or "{}")
    return {**call, "function": function} if "function" in call else function


def is_begun_thought(message: Message) -> bool:
    """Whether a checked message of the assistant has a thought and nothing after it."""
    return message["role"] == "assistant" and not message["content"] and bool(message.get("reasoning_content"))


def check_continued(message: Message, enable_thinking: bool) -> None:
    """Raises ValueError for a checked last message that a model cannot continue."""
    if message["role"] == "tool" or message.get("tool_calls"):
        raise ValueError("continue_final_message continues a text, and the last message is a tool's or has tool calls")
    if is_begun_thought(message):
        if not isinstance(message["reasoning_content"], str):
            raise ValueError("reasoning_content of the last message must be a text")
        if not enable_thinking:
            raise ValueError("the last message is a begun thought; continue it with enable_thinking=True")


@dataclass(frozen=True)
class Guard:
    """Protects the values of one prompt, with marks that they do not contain."""

    pattern: re.Pattern[str]  # of the control strings
    mark: str
    end: str  # marks the end of a message that is continued

    @classmethod
    def of(cls, pattern: re.Pattern[str], content: Any) -> Guard:
        """Raises ValueError for content that is not JSON."""
        try:
            text = json.dumps(content, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"messages and tools must be JSON values: {error}") from error
        free = [mark for mark in MARKS if mark not in text]
        if len(free) < 2:
            raise ValueError("the messages contain every Unicode noncharacter; at least two must be free")
        return cls(pattern, free[0], free[1])

    def cut(self, rendered: str) -> str:
        """A prompt up to the end of its last message, which has `end` and a space behind it.

        A template that strips a message loses the space, and then the prompt ends without spaces, as in transformers.
        """
        prompt, end, rest = rendered.rpartition(self.end)
        if not end:
            raise ValueError("continue_final_message is not possible: the chat template omits the last message")
        return prompt if rest.startswith(" ") else prompt.rstrip()

    def protect_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        kept = {"content": REPLY_MARKS, "reasoning_content": REPLY_MARKS} if message["role"] == "assistant" else {}
        return {
            key: value if key == "role" else self.protect(value, kept.get(key, ())) for key, value in message.items()
        }

    def protect(self, value: Any, kept: Iterable[str] = ()) -> Any:
        """`value` with the mark inside each control string in it, at any depth, except those in `kept`."""
        if isinstance(value, str):
            return self.pattern.sub(
                lambda match: match[0] if match[0] in kept else match[0][0] + self.mark + match[0][1:], value
            )
        if isinstance(value, Mapping):
            return {self.protect(key, kept): self.protect(item, kept) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.protect(item, kept) for item in value]
        return value
