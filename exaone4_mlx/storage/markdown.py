"""A conversation as readable Markdown, and back.

Notes:
- Comments carry the structure: <!-- exaone4_mlx: NAME {...} --> on its own line begins a message or one of its fields.
  Headings, summaries and lists of files are for readers and repeat the comments.
- A field is the text up to the next comment, so that an edit by hand has an effect. A line of text that looks like such
  a comment gets a backslash. A lone surrogate becomes an entity, for example &#xd800;.
- An open code block of a cut reply is closed; otherwise the rest of the page is shown as code.
- It holds the messages that are shown, and says how many branches are beside them.
- Texts keep their exact line breaks, unless an editor changed those of the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files.text import json_text, parse_json
from ..text.message import Message
from .conversation import EXTRAS, FORMAT, ROLES, Conversation, is_attached
from .forms import one_line

FIELDS = ("text", "reasoning_content", "content", "tool_calls")  # sections of a message in Markdown, in this order
#: What is written for readers, by its name. Other languages can replace it: `from_markdown` does not read it.
HEADINGS = {
    "system": "System prompt",
    "user": "You",
    "tool": "Tool",
    "thought": "Thought",
    "content": "What the model saw",
    "branches": "Other branches that are not shown here: {count}. An export as JSON has all of them.",
}

MARK = "<!-- exaone4_mlx:"
_MARKER = re.compile(MARK + r" (\w+)(?: (\{.*\}))? -->")
HEADER = re.compile(rf"^{MARK} conversation\b.*$", re.MULTILINE)
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(.*)")
_HALF = re.compile("[\ud800-\udfff]|&(?=(?:amp;)*#xd[89a-f][0-9a-f]{2};)")
_HALF_ENTITY = re.compile(r"&(amp;)?((?:amp;)*)#x(d[89a-f][0-9a-f]{2});")


def to_markdown(conversation: Conversation, headings: Mapping[str, str] = HEADINGS) -> str:
    """Readable Markdown. `from_text` reads its messages, thoughts and calls without loss, whatever the headings."""
    head = {name: getattr(conversation, name) for name in ("title", "named", "model", "created", "dropped", "settings")}
    about = " · ".join(filter(None, (conversation.created[:10], _shown(one_line(conversation.model)))))
    lines = [_marker("conversation", {"version": 1} | head), _title_line(conversation.title), "", about, ""]
    if beside := len(conversation.branches):
        lines += [headings["branches"].format(count=beside), ""]
    for message in conversation.messages:
        lines += _message_lines(message, headings)
    return "\n".join([*lines, _marker("end"), ""])


def _message_lines(message: Message, headings: Mapping[str, str]) -> Iterable[str]:
    yield _marker(message["role"], {name: message[name] for name in EXTRAS if name in message and name not in FIELDS})
    yield from (f"## {headings.get(message['role'], 'EXAONE')}", "")
    if files := _files_line(message):
        yield from (files, "")
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
            yield from (f"<details><summary>{headings[summary]}</summary>", "", text, "", "</details>", "")
        else:
            yield from ("", text, "")


def _files_line(message: Message) -> str:
    files = message["files"] if isinstance(message.get("files"), list) else []
    names = [one_line(file["name"]) for file in files if is_attached(file)]
    return f"+ {_shown(', '.join(names))}" if names else ""


def _summary(name: str, message: Message) -> str:
    """The heading under which a field is folded; "" for a field that is not folded."""
    if name == "reasoning_content":
        return "thought"
    return "content" if name == "content" and "text" in message else ""


def _marker(name: str, values: dict[str, Any] | None = None) -> str:
    inside = json_text(values).replace("--", r"\u002d\u002d") + " " if values else ""  # nothing may end the comment
    return f"{MARK} {name} {inside}-->"


def _title_line(title: str) -> str:
    return f"# {_shown(one_line(title)) or 'EXAONE'}"


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
    text = re.sub(rf"^(?=\\*{MARK})", r"\\", text, flags=re.MULTILINE)
    return _HALF.sub(lambda match: "&amp;" if match[0] == "&" else f"&#x{ord(match[0]):04x};", text)


def _unshown(text: str) -> str:
    text = re.sub(rf"^\\(?=\\*{MARK})", "", text, flags=re.MULTILINE)
    return _HALF_ENTITY.sub(lambda m: f"&{m[2]}#x{m[3]};" if m[1] else chr(int(m[3], 16)), text)


@dataclass
class _Section:
    """A comment of ours and the lines up to the next."""

    name: str
    values: dict[str, Any]
    line: int
    lines: list[str] = field(default_factory=list)


def from_markdown(text: str) -> dict[str, Any]:
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
        if not line.startswith(MARK):
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
        is_ours = line.startswith(("## ", "Files: ")) or line.strip() == _files_line(section.values).strip()
        if line.strip() and not is_ours:
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
