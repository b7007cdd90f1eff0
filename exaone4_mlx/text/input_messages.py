"""Messages as a caller gives them -> checked and guarded messages, as a chat template takes them.

Notes:
- Arguments of a tool call that are a JSON string (OpenAI's form) are parsed. As a string they would be quoted twice.
- The content of a tool message may be any JSON value; a list of text parts is their text. All other content is text.
- A template renders results by place and reads no ids. So the results of a reply are put into the order of its calls.
- A control string inside a message could end a turn or open another. `Guard.protect` puts a mark inside each one before
  the template is rendered. After rendering, the tokenizer removes the mark and encodes the string as ordinary text.
  Letter case does not matter: a template may change it.
- This holds for replies too: thoughts and calls are fields of a message, and a mark such as `<think>` within its text
  is text. One form is read: a content that begins with a whole thought, as other servers return it, is split.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
#: The types of text parts: that of chat messages, and those that only OpenAI's Responses API has.
TEXT_PARTS = ("text", *(RESPONSES_PARTS := ("input_text", "output_text")))
#: What EXAONE's template puts between a thought and the answer.
THOUGHT_END = "\n</think>\n\n"
MAX_LEVELS = 200  # of nested values; on some versions of Python more of them end in a RecursionError
#: Unicode noncharacters: no text has a use for them. `ChatTemplate` keeps them as they are.
MARKS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF)))


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """OpenAI-style messages in the one form that is used everywhere. Keys that are not named here stay as they are.

    Text parts are joined, `developer` becomes `system`, and each call of a tool has the form
    {"type": "function", "function": {"name": …, "arguments": …}} with parsed arguments. The results of calls with ids
    are in the order of the calls.

    Raises ValueError, naming the message, for an unknown role, for content that no template can render, and for a
    `tool_call_id` that is unknown, missing or used twice.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
    checked = [_check_message(message, f"message {index}") for index, message in enumerate(messages)]
    if not checked:
        raise ValueError("there are no messages")
    last = -1  # the last message that is not a result
    for place, message in enumerate(checked):
        if message["role"] != "tool":
            last = place
        elif place + 1 == len(checked) or checked[place + 1]["role"] != "tool":
            checked[last + 1 : place + 1] = _results_in_order(checked, last, place + 1)
    return checked


def as_messages(given: str | list[dict[str, Any]], system_prompt: str | None) -> list[dict[str, Any]]:
    """A prompt or messages as checked messages, the system prompt first."""
    if isinstance(given, str):
        if not given.strip():
            raise ValueError("the prompt is empty")
        given = [{"role": "user", "content": given}]
    given = check_messages(given)
    if system_prompt is None:
        return given
    if given[0]["role"] == "system":
        raise ValueError("the messages begin with a system prompt, and system_prompt gives another one")
    return [{"role": "system", "content": system_prompt}, *given]


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role == "developer":
        role = "system"
    if role == "function" or message.get("function_call"):
        raise ValueError(
            f"{where} is of OpenAI's former interface (function); calls are tool_calls of the assistant, and a result "
            "has the role 'tool' and the tool_call_id of its call"
        )
    if role not in ROLES:
        raise ValueError(f"{where} has the unknown role {reprlib.repr(role)}; roles are {', '.join(ROLES)}")
    if role == "tool":
        if "content" not in message:
            raise ValueError(f"{where}: the result of a tool needs content (it may be any JSON value, also null)")
        if not isinstance(message.get("tool_call_id"), (str, type(None))):
            raise ValueError(f"{where}: tool_call_id must be a string, not {reprlib.repr(message['tool_call_id'])}")
    if role != "tool" or _is_text_parts(content):
        content = _check_text(content, role, where)
    if not isinstance(message.get("reasoning_content"), (str, type(None))):
        raise ValueError(
            f"{where}: reasoning_content must be a string, not {reprlib.repr(message['reasoning_content'])}"
        )
    checked = {**message, "role": role, "content": content}
    if role == "assistant" and not message.get("reasoning_content"):
        thought, checked["content"] = split_thought(content or "")
        checked |= {"reasoning_content": thought} if thought else {}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, (list, tuple)):
            raise ValueError(f"{where}: tool_calls must be a list, not {type(calls).__name__}")
        if role != "assistant":
            raise ValueError(f"{where}: only the assistant makes tool_calls, not the {role}")
        checked["tool_calls"] = [_check_call(call, where) for call in calls]
        ids = _call_ids(checked)
        if ids and (None in ids or len(set(ids)) < len(ids)):
            raise ValueError(f"{where}: each call needs an id of its own, and they have {ids}")
    return checked


def split_thought(content: str) -> tuple[str, str]:
    """(thought, answer) of a reply whose text begins with its thought; else ("", content).

    Such a text begins with `<think>`. Without it, as a server returns a reply whose prompt opens the thought, the tag
    `</think>` has a line of its own.
    """
    before, tag, after = content.partition("</think>")
    thought = before.lstrip()
    opened = thought.startswith("<think>")
    own_line = before.endswith("\n") and after.startswith("\n") and "<think>" not in before
    if not tag or not (opened or own_line):
        return "", content
    return thought.removeprefix("<think>").strip(), after.lstrip()


def _is_text_parts(content: Any) -> bool:
    """Whether the result of a tool is a list of text parts, and not another JSON value."""
    parts = content if isinstance(content, (list, tuple)) else ()
    texts = [part for part in parts if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS and "text" in part]
    return 0 < len(texts) == len(parts)


def _check_text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, (list, tuple)):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind in RESPONSES_PARTS:
                raise ValueError(f"{where}: {kind!r} is a type of OpenAI's Responses API; a text part has type 'text'")
            if kind != "text":
                raise ValueError(
                    f"{where}: content may have text parts only, not {kind!r}; this model reads text alone"
                )
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise ValueError(f"{where}: {role} content must be a string or a list of text parts, not {type(content).__name__}")


def _check_call(call: Any, where: str) -> dict[str, Any]:
    """A call in OpenAI's form; it may be given as name and arguments (or parameters) alone."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function", call), Mapping):
        raise ValueError(f"{where}: a tool call must be an object with name and arguments, not {reprlib.repr(call)}")
    function = call.get("function", call)
    if call.get("type", "function") != "function" or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{where}: a tool call needs the type 'function' and a name, not {reprlib.repr(call)}")
    if not isinstance(call.get("id"), (str, type(None))):
        raise ValueError(f"{where}: the id of a tool call must be a string, not {reprlib.repr(call['id'])}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # a string that is not JSON is a value of its own
            arguments = json.loads(arguments or "{}")
    others = {key: value for key, value in call.items() if key not in ("name", "arguments", "parameters")}
    function = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {"type": "function", **others, "function": function}


def _call_ids(message: Message) -> list[Any]:
    """The ids of the calls of a message; none if no call has one."""
    ids = [call.get("id") for call in message.get("tool_calls") or ()]
    return ids if any(ids) else []


def _results_in_order(messages: Sequence[Message], calls: int, end: int) -> list[Any]:
    """The results after the message `calls`, in the order of its calls. Without any `tool_call_id` they keep theirs."""
    results = range(calls + 1, end)
    ids, given = _call_ids(messages[calls]) if calls >= 0 else [], [messages[i].get("tool_call_id") for i in results]
    if not any(given) and len(ids) in (0, len(given)):
        return [messages[i] for i in results]
    for place, id in zip(results, given, strict=True):
        if not id:
            raise ValueError(f"message {place}: the result needs the tool_call_id of its call, one of {ids}")
        if id not in ids:
            raise ValueError(f"message {place}: tool_call_id {id!r} is that of no call before it; calls have {ids}")
        if given.index(id) < place - results.start:
            raise ValueError(f"message {place}: the call {id!r} has a result already")
    if missing := [id for id in ids if id not in given]:
        raise ValueError(f"message {calls}: the call {missing[0]!r} has no result")
    return [messages[results[given.index(id)]] for id in ids]


def composed(value: Any) -> Any:
    """`value` with each text in it, at any depth, in Unicode's form NFC. No key of an object is lost."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        made = {composed(key): composed(item) for key, item in value.items()}
        return made if len(made) == len(value) else {key: composed(item) for key, item in value.items()}
    return [composed(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_begun_thought(message: Message) -> bool:
    """Whether a checked message of the assistant has a thought and nothing after it."""
    return message["role"] == "assistant" and not message["content"] and bool(message.get("reasoning_content"))


def check_continued(message: Message, enable_thinking: bool) -> None:
    """Raises ValueError for a checked last message that a model cannot continue."""
    if message["role"] == "tool" or message.get("tool_calls"):
        raise ValueError("continue_final_message continues a text, and the last message is a tool's or has tool calls")
    if is_begun_thought(message) and not enable_thinking:
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
        return {key: value if key == "role" else self.protect(value) for key, value in message.items()}

    def protect(self, value: Any, level: int = 0) -> Any:
        """`value` with the mark inside each control string in it, at any depth. Raises ValueError beyond 200 levels."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: match[0][0] + self.mark + match[0][1:], value)
        if level > MAX_LEVELS:
            raise ValueError(f"messages and tools must be JSON values of at most {MAX_LEVELS} levels")
        if isinstance(value, Mapping):
            return {self.protect(key): self.protect(item, level + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.protect(item, level + 1) for item in value]
        return value

    def render(
        self,
        template: Callable[..., str],
        messages: Sequence[Message],
        tools: Sequence[Any],
        continued: bool,
        variables: Mapping[str, bool],
        options: Mapping[str, Any],
    ) -> tuple[str, str]:
        """The text of a prompt, and the begun reply that follows it: "" unless `continued`.

        `template` is `ChatTemplate.render`. The begun reply is apart, because the model wrote its tokens after the end
        of the prompt: no token spans both. A last message that the template does not put after the text that opens a
        turn is a part of the prompt.
        """
        protected = [self.protect_message(message) for message in messages]

        def rendered(messages: list[dict[str, Any]], **changed: bool) -> str:
            given = {"messages": messages, "tools": self.protect(tools) or None, **variables, **changed}
            return template(self.protect(options), **given)

        if not continued:
            return rendered(protected), ""
        check_continued(messages[-1], variables["enable_thinking"])
        *before, last = protected
        opened, is_reply = None, last["role"] == "assistant"
        thought = last.get("reasoning_content") if is_reply and variables["enable_thinking"] else None
        if thought or (is_reply and before):
            opened = rendered(before, add_generation_prompt=True, enable_thinking=bool(thought))
        if thought and opened is not None:  # the template erases the thought of a past reply
            return opened, thought + (THOUGHT_END + last["content"] if last["content"] else "")
        whole = self.cut(rendered([*before, {**last, "content": last["content"] + self.end + " "}]))
        return (opened, whole[len(opened) :]) if opened is not None and whole.startswith(opened) else (whole, "")
