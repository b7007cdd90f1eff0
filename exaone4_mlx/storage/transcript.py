"""Export and import of conversations: JSON, or readable Markdown.

Notes:
- In Markdown, comments carry the structure: <!-- exaone4_mlx: NAME {...} --> on its own line begins a message or one
  of its fields. Headings, summaries and lists of files are for readers and repeat the comments.
- A field is the text up to the next comment, so that an edit by hand has an effect. A line of text that looks like such
  a comment gets a backslash. A lone surrogate becomes an entity, for example &#xd800;.
- An open code block of a cut reply is closed; otherwise the rest of the page is shown as code.
- Markdown holds the messages that are shown, and says how many branches are beside them. JSON holds the branches.
- Texts keep their exact line breaks, unless an editor changed those of the whole file.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from exaone4_mlx import check_messages, decode_text
from exaone4_mlx.files.text import json_text, parse_json

from .branches import Message
from .forms import is_time, one_line
from .store import FORMAT, MAX_BYTES, ROLES, Conversation, check, check_version, to_json

__all__ = ["file_name", "from_text", "to_json", "to_markdown"]

CHAT_FORMAT = "exaone4_mlx chat"  # what `Chat.save` of the package writes; its version 1 is read
FIELDS = ("text", "reasoning_content", "content", "tool_calls")  # sections of a message in Markdown, in this order
HEADINGS = {"system": "System prompt", "user": "You", "assistant": "EXAONE", "tool": "Tool"}
MAX_STEM_BYTES = 120  # of a file name, which may have 255 with its folder's own additions
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{n}" for port in ("COM", "LPT") for n in range(10)
}

_MARK = "<!-- exaone4_mlx:"
_MARKER = re.compile(_MARK + r" (\w+)(?: (\{.*\}))? -->")
_HEADER = re.compile(rf"^{_MARK} conversation\b.*$", re.MULTILINE)
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(.*)")
_HALF = re.compile("[\ud800-\udfff]|&(?=(?:amp;)*#xd[89a-f][0-9a-f]{2};)")
_HALF_ENTITY = re.compile(r"&(amp;)?((?:amp;)*)#x(d[89a-f][0-9a-f]{2});")


def _is_file(value: Any) -> bool:
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
        lambda value: isinstance(value, list) and all(map(_is_file, value)),
    ),
    "failed": ("true or false", lambda value: isinstance(value, bool)),
    "seconds": ("a number", lambda value: type(value) in (int, float)),
}


# --- out -------------------------------------------------------------------------


def to_markdown(conversation: Conversation) -> str:
    """Readable Markdown. `from_text` reads its messages, thoughts and calls without loss."""
    head = {name: getattr(conversation, name) for name in ("title", "named", "model", "created", "dropped", "settings")}
    about = " · ".join(filter(None, (conversation.created[:10], _shown(one_line(conversation.model)))))
    lines = [_marker("conversation", {"version": 1} | head), _title_line(conversation.title), "", about, ""]
    if beside := len(conversation.branches):
        more = f"{beside} other branch" + ("es are" if beside > 1 else " is")
        lines += [f"{more} not shown here. An export as JSON has all of them.", ""]
    for message in conversation.messages:
        lines += _message_lines(message)
    return "\n".join([*lines, _marker("end"), ""])


def _message_lines(message: Message) -> Iterable[str]:
    yield _marker(message["role"], {name: message[name] for name in EXTRAS if name in message and name not in FIELDS})
    yield from (f"## {HEADINGS[message['role']]}", "")
    files = message["files"] if isinstance(message.get("files"), list) else []
    if names := [one_line(file["name"]) for file in files if _is_file(file)]:
        yield from (f"Files: {_shown(', '.join(names))}", "")
    for name in FIELDS:
        value = message.get(name)
        if name not in message or (value is None and message["role"] != "tool"):
            continue
        if name == "content" and "text" in message and value == message["text"]:
            continue
        if name == "tool_calls" or not isinstance(value, str):
            yield _marker(name, None if name == "tool_calls" else {"json": True})
            yield from ("```json", json_text(value, indent=1), "```", "")
            continue
        fence = _open_fence(value)
        text = _shown(value) + (f"\n{fence}" if fence else "")
        yield _marker(name, {"closed": fence} if fence else None)
        if summary := _summary(name, message):
            yield from (f"<details><summary>{summary}</summary>", "", text, "", "</details>", "")
        else:
            yield from ("", text, "")


def _summary(name: str, message: Message) -> str:
    """The line under which a field is folded; "" for a field that is not folded."""
    if name == "reasoning_content":
        return "Thought"
    return "What the model saw" if name == "content" and "text" in message else ""


def _marker(name: str, values: dict[str, Any] | None = None) -> str:
    inside = json_text(values).replace("--", r"\u002d\u002d") + " " if values else ""  # nothing may end the comment
    return f"{_MARK} {name} {inside}-->"


def _title_line(title: str) -> str:
    return f"# {_shown(one_line(title)) or 'Conversation'}"


def _open_fence(text: str) -> str:
    """The line that ends the code block which `text` leaves open, or ""."""
    indent, fence = "", ""
    for line in text.split("\n"):
        if not (match := _FENCE.fullmatch(line.rstrip())):
            continue
        if not fence and not ("`" in match[2] and "`" in match[3]):
            indent, fence = match[1], match[2]
        elif fence and match[2].startswith(fence) and not match[3]:
            fence = ""
    return fence and indent + fence


def _shown(text: str) -> str:
    """`text` without lines that could be taken for a comment of ours, and without half characters."""
    text = re.sub(rf"^(?=\\*{_MARK})", r"\\", text, flags=re.MULTILINE)
    return _HALF.sub(lambda match: "&amp;" if match[0] == "&" else f"&#x{ord(match[0]):04x};", text)


def _unshown(text: str) -> str:
    text = re.sub(rf"^\\(?=\\*{_MARK})", "", text, flags=re.MULTILINE)
    return _HALF_ENTITY.sub(lambda m: f"&{m[2]}#x{m[3]};" if m[1] else chr(int(m[3], 16)), text)


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
        if header := _HEADER.search(text):
            content = _from_markdown(text.replace("\r\n", "\n") if header[0].endswith("\r") else text)
        elif text.lstrip().startswith(("{", "[")):
            content = parse_json(text)
        else:
            raise ValueError(
                "it is neither JSON with messages nor Markdown that was exported here, with its lines "
                f"{_MARK} ... --> in place"
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


@dataclass
class _Section:
    """A comment of ours and the lines up to the next."""

    name: str
    values: dict[str, Any]
    line: int
    lines: list[str] = field(default_factory=list)


def _from_markdown(text: str) -> dict[str, Any]:
    head, *sections = _sections(text)
    if head.name != "conversation":
        raise ValueError(f"line {head.line}: {head.name!r} cannot stand there")
    if not sections or sections[-1].name != "end":
        raise ValueError(f"it is cut off: the last of its comments is {_marker('end')}")
    title = next((line for line in head.lines if line.startswith("# ")), None)
    content = head.values | {"format": FORMAT, "messages": []}
    if title is not None and isinstance(content.get("title"), str) and title.rstrip() != _title_line(content["title"]):
        content |= {"title": _unshown(title[2:]), "named": True}
    messages = content["messages"]
    for section in sections[:-1]:
        if section.name in ROLES:
            messages.append(section.values | {"role": section.name})
            _check_heading(section)
        elif section.name not in FIELDS or not messages or section.name in messages[-1]:
            raise ValueError(f"line {section.line}: {section.name!r} cannot stand there")
        else:
            messages[-1][section.name] = _value(section, messages[-1])
    for message in messages:
        if "text" in message:
            message.setdefault("content", message["text"])
    return content


def _sections(text: str) -> list[_Section]:
    sections: list[_Section] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.startswith(_MARK):
            if sections:
                sections[-1].lines.append(line)
            continue
        try:
            if not (match := _MARKER.fullmatch(line.rstrip())):
                raise ValueError(f"{line[:60]!r} is not whole")
            sections.append(_Section(match[1], parse_json(match[2] or "{}"), number))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return sections


def _check_heading(section: _Section) -> None:
    """Raises ValueError for text between a heading and its message, where it would be lost."""
    for number, line in enumerate(section.lines, section.line + 1):
        if line.strip() and not line.startswith(("## ", "Files: ")):
            raise ValueError(f"line {number}: {line[:60]!r} belongs to no message; move it below the next comment")


def _value(section: _Section, message: Message) -> Any:
    """The value of a field: the text between its comment and the next, without its layout."""
    body = "\n".join(section.lines)
    if section.name == "tool_calls" or section.values.get("json"):
        if not (match := re.fullmatch(r"```json\n(.*)\n```", body.strip(), re.DOTALL)):
            raise ValueError(f"line {section.line}: there must be one block ```json below this")
        try:
            return parse_json(match[1])
        except ValueError as error:
            raise ValueError(f"line {section.line}: {error}") from error
    if _summary(section.name, message):
        body = re.sub(r"\A<details><summary>.*</summary>\n", "", body)
        body = re.sub(r"\n</details>\n*\Z", "", body)
    body = body.removeprefix("\n").removesuffix("\n")
    if fence := section.values.get("closed"):
        body = body.removesuffix(f"\n{fence}")
    return _unshown(body)
