"""A conversation's messages and a reply's events -> what Gradio's Chatbot shows.

Notes:
- There is no reverse direction. Gradio sends its list back with the panels of thoughts and tools, and these must not
  enter a prompt. The conversation itself stays on the server.
- A reply that is being generated has the form of finished messages, so that nothing moves when it ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from exaone4_mlx import Answer, Thinking, ToolCall, ToolResult

from .i18n import Words
from .markdown import fenced, inert, verbatim

Message = dict[str, Any]
ENDS = {"cancelled": "was_stopped", "length": "was_cut", "repetition": "was_loop", "error": "was_error"}
SHORT, LONG = 60, 20_000  # characters of a value in a title, and in a panel
FILE_PREVIEW = 2_000

HALF = re.compile("[\ud800-\udfff]")  # of a character, which cannot be sent to a browser


class ThoughtCounts(Protocol):
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

    def count(self, counts: ThoughtCounts | None) -> None:
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
    calls = 0  # whose results are shown with them
    for index, message in enumerate(everything):
        if message["role"] == "user":
            result += _user(message, words)
        elif message["role"] == "assistant":
            result += _reply(message, _results(everything, index), f"{index}", words, index >= len(messages))
        if message["role"] != "tool":
            calls = len(_objects(message.get("tool_calls")))
        elif calls:
            calls -= 1
        else:  # of a text in tool-call tags that is no call, or of no call at all: the model reads it
            failed, outcome = _outcome(message)
            result.append(_panel(words("failed" if failed else "result"), _fenced(_pretty(outcome), "json")))
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
    yield _text("user", verbatim(str(message.get("text", message["content"]))))


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
    """A call as a panel, and its result as a nested panel."""
    name, given = (str(call.get("name")), call.get("arguments")) if isinstance(call, Mapping) else (str(call), None)
    title, arguments = _code(call_text(name, given)), "" if given is None else _fenced(_pretty(given), "json")
    if result is None:
        yield _panel(title, arguments, id=key, status="pending" if under_way else "done")
        return
    failed, outcome = _outcome(result)
    told = _code(_short(_line(outcome)))
    more: Message = {"duration": round(seconds, 2)} if (seconds := _number(result.get("seconds"))) else {}
    yield _panel(f"{title} → {words('failed')}: {told}" if failed else f"{title} → {told}", arguments, id=key, **more)
    yield _panel(words("failed" if failed else "result"), _fenced(_pretty(outcome), "json"), parent_id=key)


def _outcome(result: Message) -> tuple[bool, Any]:
    """Whether a call failed, and its result; of an error that is nothing else, the text."""
    content, failed = result.get("content"), bool(result.get("failed"))
    if failed and isinstance(content, Mapping) and content.keys() == {"error"}:
        content = content["error"]
    return failed, content


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


def _fenced(text: str, language: str) -> str:
    return fenced(text if len(text) <= LONG else f"{text[:LONG]}…", language) if text else ""


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
