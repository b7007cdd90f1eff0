"""A conversation's messages and a reply's events -> what Gradio's Chatbot shows.

What is peculiar here:
- Only this direction exists. Gradio sends its list back with the panels of thoughts and tools in it, and none of
  that may enter a prompt: the conversation itself stays on the server.
- A reply under way has the form of finished messages, so that nothing jumps when it ends.
- Text is shown as Markdown, but HTML in it as it is written, and pictures from elsewhere as links. Only code cannot
  be escaped, and must not be, so it has to be clear to every parser of Markdown what is code: where that depends on
  the lines around, they are set straight, and a pair of backticks that may be none is no code.
- What was escaped comes back into view when a person edits a message: `typed` is the way back.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from exaone4_mlx import Answer, Thinking, ToolCall, ToolResult

from .words import Words

Message = dict[str, Any]
ENDS = {"cancelled": "was_stopped", "length": "was_cut", "repetition": "was_loop", "error": "was_error"}
SHORT, LONG = 60, 20_000  # characters of a value in a title, and in a panel
FILE_PREVIEW = 2_000

#: The first line of a code block: what stands before it (the marks of list items, say), the fence, the language.
FENCE = re.compile(r"([ \t]*(?:(?:[-+*]|[0-9]{1,9}[.)])[ \t]+)*(?:\[[ xX]\][ \t]+)?)(`{3,}(?=[^`]*$)|~{3,})(.*)")
#: The line below the head of a table.
TABLE = re.compile(r"^(?=.*-)(?=.*[|:])[ \t>|:-]+$", re.MULTILINE)
#: Where a span of code may begin, and in what Gradio's parser (marked) sees none: an address, and behind a tilde.
SPAN = re.compile(r"\\[!-/:-@[-`{-~]|((?i:https?://|ftp://|www\.)\S*|~`|\]\(\s*<[^>]*)|(`+)")
MARK = re.compile(
    r"\\?(?:<(?=[A-Za-z/!?])|&(?=#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]*;)|!(?=\[))|(\\[!-/:-@[-`{-~])"
)
ESCAPED = re.compile(r"(\\[!-/:-@[-`{-~])|&lt;|&amp;|&#33;(?=\[)")
ENTITIES = {"<": "&lt;", "&": "&amp;", "!": "&#33;"}
CHARACTERS = {entity: character for character, entity in ENTITIES.items()}
#: `$x$` as pandoc reads it: nothing blank inside at the ends, no digit behind.
DOLLARS = re.compile(r"(?<![\\$])\$(?![\s$])([^$\n]*?[^\s$\\])\$(?![\d$])")
HALF = re.compile("[\ud800-\udfff]")  # of a character, which cannot be sent to a browser
NESTED = 10  # quotes inside one another in which code is looked for


class Counts(Protocol):
    """The counts that a thought is shown with: `exaone4_mlx.Done` has them."""

    @property
    def thinking_tokens(self) -> int: ...
    @property
    def thinking_seconds(self) -> float: ...


class LiveReply:
    """The messages of a turn under way, made from its events."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._before = (0, 0.0)  # tokens and seconds of thoughts in earlier rounds

    def add(self, event: object) -> None:
        """Takes up an event of `Chat.send`; `Done` and unknown ones change nothing."""
        if isinstance(event, ToolResult):
            message = {"role": "tool", "content": event.content, "failed": event.failed, "seconds": event.seconds}
            self._messages.append(message)
        elif isinstance(event, Thinking):
            self._reply["reasoning_content"] = self._reply.get("reasoning_content", "") + event.text
        elif isinstance(event, Answer):
            self._reply["content"] += event.text
        elif isinstance(event, ToolCall):
            call = {"type": "function", "function": {"name": event.name, "arguments": event.arguments}}
            self._reply.setdefault("tool_calls", []).append(call)

    def count(self, counts: Counts | None) -> None:
        """Takes up how much was thought until now."""
        if counts is None or not self._messages or self._messages[-1]["role"] != "assistant":
            return
        tokens, seconds = self._before
        new = {
            "thinking_tokens": counts.thinking_tokens - tokens,
            "thinking_seconds": counts.thinking_seconds - seconds,
        }
        if new["thinking_tokens"] >= self._messages[-1].get("stats", new)["thinking_tokens"]:
            self._messages[-1]["stats"] = new  # between two rounds those of the last one are not added yet

    @property
    def messages(self) -> list[Message]:
        """What came, in the form of a chat's history; a copy, to be read in another thread."""
        return [{**message, **_copied_calls(message)} for message in self._messages]

    @property
    def _reply(self) -> Message:
        """The message that the events of this round go into."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            stats = [message["stats"] for message in self._messages if "stats" in message]
            self._before = (sum(s["thinking_tokens"] for s in stats), sum(s["thinking_seconds"] for s in stats))
            self._messages.append({"role": "assistant", "content": ""})
        return self._messages[-1]


def shown(messages: Sequence[Message], words: Words, coming: Sequence[Message] = (), asking: int = 0) -> list[Message]:
    """A conversation as a value of `gr.Chatbot`: its messages, and those `coming` of a reply under way.

    `asking` is the number of a call, the last one, that waits for the user's word. Whatever a file says that `Store`
    reads can be shown.
    """
    result: list[Message] = []
    everything = [*messages, *coming]
    for index, message in enumerate(everything):
        if message["role"] == "user":
            result += _user(message, words)
        elif message["role"] == "assistant":
            result += _reply(message, _results(everything, index), f"{index}", words, index >= len(messages))
    if asking:
        choices = (("yes", "allow"), ("no", "deny"))
        options = [{"value": f"{value} {asking:d}", "label": words(key)} for value, key in choices]
        result.append({**_text("assistant", words("waits_for_you")), "options": options})
    return result


def turn_at(shown_messages: Sequence[Mapping[str, Any]], index: int) -> int | None:
    """Which turn of the conversation, counted from 0, the message at `index` is; None if it is not a turn's text."""
    if not 0 <= index < len(shown_messages) or not _is_turn(shown_messages[index]):
        return None
    return sum(_is_turn(message) for message in shown_messages[:index])


def inert(text: str) -> str:
    """Markdown whose HTML is shown as it is written, and whose pictures are links. Code stays as it is."""
    return _outside_code(text, _escaped)


def typed(text: str) -> str:
    """What a person meant with a text that was shown by `inert`, and edited then."""
    return _outside_code(text, _unescaped)


def call_text(name: str, arguments: Any) -> str:
    """A call as one line of Python: `roll_dice(max_num=6)`."""
    if isinstance(arguments, Mapping):
        inside = ", ".join(f"{key}={_line(value)}" for key, value in arguments.items())
    else:
        inside = "" if arguments is None else _line(arguments)
    return f"{_short(name)}({_short(inside)})"


def _user(message: Message, words: Words) -> Iterator[Message]:
    for file in _objects(message.get("files")):
        title = words("attached", name=_code(str(file.get("name"))), tokens=f"{_number(file.get('tokens')):,}")
        text = str(file.get("text", ""))
        more = len(text) - FILE_PREVIEW
        rest = f"\n\n{words('more', count=f'{more:,}')}" if more > 0 else ""
        yield _panel(title, _fenced(text[:FILE_PREVIEW], "") + rest, role="user")
    yield _text("user", inert(str(message.get("text", message["content"]))))


def _reply(message: Message, results: Sequence[Message], key: str, words: Words, under_way: bool) -> Iterator[Message]:
    answer, calls = str(message.get("content") or "").strip(), _objects(message.get("tool_calls"))
    if thought := message.get("reasoning_content"):
        growing = under_way and not answer and not calls
        title = _thought_title(message.get("stats"), growing, words)
        yield _panel(title, inert(str(thought).strip()), status="pending" if growing else "done")
    if answer:
        yield _text("assistant", inert(answer))
    for number, call in enumerate(calls):
        result = results[number] if number < len(results) else None
        yield from _call(call.get("function", call), result, f"{key}-{number}", words, under_way)
    if (end := ENDS.get(str(message.get("finish_reason")))) is not None:
        yield _text("assistant", f"*{words(end)}*")


def _thought_title(stats: Any, growing: bool, words: Words) -> str:
    stats = stats if isinstance(stats, Mapping) else {}
    if not (tokens := _number(stats.get("thinking_tokens"))):
        return words("thinking_now" if growing else "thought")
    seconds = words.seconds(_number(stats.get("thinking_seconds")))
    begin = f"{words('thinking_now')} · {seconds}" if growing else words("thought_for", seconds=seconds)
    return f"{begin} · {words('tokens', count=f'{tokens:,}')}"


def _call(call: Any, result: Message | None, key: str, words: Words, under_way: bool) -> Iterator[Message]:
    """A call as a panel, and what came of it as a panel inside."""
    name, given = (str(call.get("name")), call.get("arguments")) if isinstance(call, Mapping) else (str(call), None)
    title, arguments = _code(call_text(name, given)), "" if given is None else _fenced(_pretty(given), "json")
    if result is None:
        yield _panel(title, arguments, id=key, status="pending" if under_way else "done")
        return
    content = result.get("content")
    failed = bool(result.get("failed"))
    outcome = content.get("error", content) if failed and isinstance(content, Mapping) else content
    told = _code(_short(_line(outcome)))
    more: Message = {"duration": round(seconds, 2)} if (seconds := _number(result.get("seconds"))) else {}
    yield _panel(f"{title} → {words('failed')}: {told}" if failed else f"{title} → {told}", arguments, id=key, **more)
    yield _panel(words("failed" if failed else "result"), _fenced(_pretty(outcome), "json"), parent_id=key)


def _panel(title: str, content: str, role: str = "assistant", **metadata: Any) -> Message:
    return {**_text(role, content), "metadata": {"title": title, "status": "done", **metadata}}


def _text(role: str, text: str) -> Message:
    """A message; its text in this form is not indented anew, as Gradio does with a string."""
    return {"role": role, "content": {"type": "text", "text": HALF.sub("\ufffd", text)}}


def _results(messages: Sequence[Message], index: int) -> list[Message]:
    """The results that follow a reply."""
    results = []
    for message in messages[index + 1 :]:
        if message["role"] != "tool":
            break
        results.append(message)
    return results


def _copied_calls(message: Message) -> Message:
    return {"tool_calls": list(message["tool_calls"])} if "tool_calls" in message else {}


def _is_turn(message: Mapping[str, Any]) -> bool:
    return message["role"] == "user" and not (message.get("metadata") or {}).get("title")


@dataclass
class _Block:
    """An open code block: its fence, the column where it stands, and how far its lines are moved to stand there."""

    fence: str
    column: int
    moved: int | None = None

    def ends_with(self, line: str) -> bool:
        bare = line.strip(" \t")
        return bare.startswith(self.fence) and not bare.strip("`~") and _indent(line) <= self.column + 3

    def line(self, line: str) -> str:
        """A line as it stands in the block: a list item would end where it is indented less."""
        if not self.column or not (bare := line.lstrip(" \t")):
            return line
        if self.moved is None:
            self.moved = max(0, self.column - _indent(line))
        return " " * max(self.column, self.moved + _indent(line)) + bare


def _outside_code(text: str, change: Callable[[str], str], depth: int = 0) -> str:
    """Markdown with all changed that is not code."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    has_table = TABLE.search(text) is not None
    result: list[str] = []
    block: _Block | None = None
    waits = False  # whether an earlier backtick may be the begin of a span that ends here
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if block is not None:
            ends = block.ends_with(line)
            result.append(" " * block.column + block.fence if ends else block.line(line))
            block = None if ends else block
            continue
        line = line.replace("```mermaid", "``` mermaid")  # or Gradio would draw it, unescaped
        if begin := FENCE.fullmatch(line):
            before, fence, language = begin[1].expandtabs(4), begin[2], begin[3]
            block, waits = _Block(fence, len(before)), False
            last = result[-1].strip() if result else ""
            if last and (before.strip() or len(before) > 3 or last.endswith(":") or at == len(lines)):
                result.append("")  # or a paragraph could go on here, or the definition of a link
            result.append(f"{before}{fence}{language}")
        elif line.startswith(">") and depth < NESTED:
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith(">")), len(lines))
            quoted = [quote[1:].removeprefix(" ") for quote in lines[at - 1 : end]]
            result += [""] * bool(result and result[-1].strip())  # what is above goes on in it otherwise
            result += [f"> {inner}" for inner in _outside_code("\n".join(quoted), change, depth + 1).split("\n")]
            waits, at = any("`" in quote for quote in quoted), end
        elif waits:
            waits = bool(line.strip(" \t"))
            result.append(change(line))
        else:
            line, waits = _outside_spans(line, change, has_table)
            result.append(line)
    return "\n".join(result)


def _outside_spans(line: str, change: Callable[[str], str], has_table: bool) -> tuple[str, bool]:
    """A line with all changed but its spans of code; and whether one may be open at its end."""
    runs: dict[int, list[int]] = {}  # of backticks: length -> where
    for run in re.finditer("`+", line):
        runs.setdefault(len(run[0]), []).append(run.start())
    parts: list[str] = []
    bracket = line.find("[")
    end = at = 0
    while runs and (found := SPAN.search(line, at)):
        at = found.end()
        address, ticks = found[1], found[2]
        if not ticks:
            if address and "`" in address:
                return "".join([*parts, change(line[end:])]), True
            continue
        closing = runs.get(len(ticks), [])
        number = bisect.bisect_left(closing, at)
        if number == len(closing):
            return "".join([*parts, change(line[end:])]), True
        close = closing[number] + len(ticks)
        if (0 <= bracket < at and "](" in line[at:close]) or (has_table and "|" in line[at:close]):
            return change(line), True  # links and cells come before code
        parts += [change(line[end : found.start()]), line[found.start() : close]]
        end = at = close
    return "".join([*parts, change(line[end:])]), False


def _escaped(text: str) -> str:
    text = MARK.sub(lambda mark: mark[1] or ENTITIES[mark[0][-1]], text)
    return DOLLARS.sub(lambda math: rf"\({math[1]}\)", text)


def _unescaped(text: str) -> str:
    return ESCAPED.sub(lambda mark: mark[1] or CHARACTERS[mark[0]], text)


def _indent(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    text = text if len(text) <= LONG else f"{text[:LONG]}…"
    return f"{fence}{language}\n{text}\n{fence}" if text else ""


def _code(text: str) -> str:
    """A line as a span of code: in a title, too, Markdown would have a meaning."""
    text = HALF.sub("\ufffd", " ".join(text.split()))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def _number(value: Any) -> Any:
    """A count or seconds; 0 for what is none."""
    return value if isinstance(value, (int, float)) and 0 < value < 1e12 else 0


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _line(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return " ".join(text.split())


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
