"""Pieces of a reply's text -> events: Thinking | Answer | ToolCall.

What is peculiar here:
- The prompt opens the thought, so a reply may begin inside it; the model writes `</think>` only.
- Any cut of the text into pieces gives the same events, once neighbours of a kind are joined.
- No character is lost. The template's own glue around `</think>` (one newline before, two after) belongs to
  the tag; a `<tool_call>` whose body is no call comes back as answer text, with the reason.
- A `<tool_call>` inside a thought is thought: nothing that the model merely considered is executed. A
  `</think>` inside a code block of the thought ends it all the same, as in the reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..tools.call import ToolCall
from .events import Answer, Event, Thinking

THINK_END, CALL_START, CALL_END = "</think>", "<tool_call>", "</tool_call>"
#: The problem of a tag that holds a value and no call: as EXAONE's prompt allows for tools without names.
VALUE_ONLY = "a value only, which names no tool"


class ReplyParser:
    """Reads a reply piece by piece: `feed(text)` and, at the end, `close()` return the events so far complete."""

    def __init__(self, inside_thought: bool) -> None:
        self.inside_thought = inside_thought
        self._held = ""  # text whose meaning is still open
        self._newlines = 0  # of the glue after </think>, how many may still come
        self._call: _CallBody | None = None

    @property
    def opens_call(self) -> bool:
        """Whether `<tool_call>` was read last, and nothing of the call yet."""
        return self._call is not None and self._call.empty

    def feed(self, text: str) -> list[Event]:
        self._held += text
        return _joined(self._read(final=False))

    def close(self) -> list[Event]:
        return _joined(self._read(final=True))

    def _read(self, final: bool) -> Iterator[Event]:
        progress = True
        while progress and (self._held or self._call is not None):
            before = (len(self._held), self.inside_thought, self._call is None)
            if self._call is not None:
                yield from self._read_call(final)
            elif self.inside_thought:
                yield from self._read_thought(final)
            else:
                yield from self._read_answer(final)
            progress = before != (len(self._held), self.inside_thought, self._call is None)

    def _read_thought(self, final: bool) -> Iterator[Event]:
        text, tag, rest = self._held.partition(THINK_END)
        if tag:
            self.inside_thought, self._newlines, self._held = False, 2, rest
            text = text.removesuffix("\n")
        else:
            kept = 0 if final else open_end(text, "\n" + THINK_END, THINK_END)
            text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            yield Thinking(text)

    def _read_answer(self, final: bool) -> Iterator[Event]:
        while self._newlines and self._held:
            if self._held[0] != "\n":
                self._newlines = 0
            else:
                self._newlines, self._held = self._newlines - 1, self._held[1:]
        text, tag, rest = self._held.partition(CALL_START)
        if tag:
            self._call, self._held = _CallBody(), rest
        else:
            kept = 0 if final else open_end(text, CALL_START)
            text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            yield Answer(text)

    def _read_call(self, final: bool) -> Iterator[Event]:
        assert self._call is not None
        self._call.feed(self._held)
        self._held = ""
        if (ended := self._call.ended(final)) is None:
            return
        body, closed, self._held = ended
        self._call = None
        calls, problem = read_calls(body)
        if calls:
            yield from calls
        else:
            yield Answer(CALL_START + body + (CALL_END if closed else ""), problem)


class _CallBody:
    """What follows `<tool_call>`, until it is clear where it ends.

    `</tool_call>` ends it, unless it stands inside a string of what is still the beginning of JSON. When that
    beginning breaks, or the reply ends, the first `</tool_call>` was the end.
    """

    def __init__(self) -> None:
        self._text = ""
        self._json = _JsonPrefix()
        self._read = 0  # characters of the text that the JSON reader has seen
        self._searched = 0  # no </tool_call> begins before this
        self._first_end: int | None = None

    @property
    def empty(self) -> bool:
        return not self._text

    def feed(self, text: str) -> None:
        self._text += text

    def ended(self, final: bool) -> tuple[str, bool, str] | None:
        """(body, whether it was closed, the text after it), or None while that is open."""
        while (end := self._text.find(CALL_END, self._searched)) >= 0:
            self._advance(end)
            if self._first_end is None:
                self._first_end = end
            if not (self._json.valid and self._json.in_string):
                # Out of a string this is the end, and where the JSON is broken the first one was.
                return self._cut(end if self._json.valid else self._first_end)
            self._searched = end + 1
        safe = len(self._text) - open_end(self._text, CALL_END)
        self._searched = max(self._searched, safe)
        self._advance(safe)
        if self._first_end is not None and (final or not self._json.valid):
            return self._cut(self._first_end)
        return (self._text, False, "") if final else None

    def _advance(self, stop: int) -> None:
        if stop > self._read:
            self._json.feed(self._text[self._read : stop])
            self._read = stop

    def _cut(self, end: int) -> tuple[str, bool, str]:
        return self._text[:end], True, self._text[end + len(CALL_END) :]


class _JsonPrefix:
    """Reads text piece by piece and knows whether it is still the beginning of one JSON value."""

    _WORDS = r"t(r(ue?)?)?|f(a(l(se?)?)?)?|n(u(ll?)?)?"
    _LITERAL_START = re.compile(rf"-?((0|[1-9]\d*)(\.|(\.\d+)?([eE][+-]?\d*)?)?)?|{_WORDS}")
    _LITERAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null")

    def __init__(self) -> None:
        self.valid = True
        self.in_string = False
        self._escape = 0  # characters of an escape still to come
        self._stack: list[str] = []  # open brackets
        self._expect = "value"  # or: "key", "colon", "comma", "first key", "first value", "end"
        self._literal = ""
        self._string_is_key = False

    def feed(self, text: str) -> None:
        for character in text:
            if not self.valid:
                return
            self.valid = self._string(character) if self.in_string else self._outside(character)

    def _string(self, character: str) -> bool:
        if self._escape:
            first, self._escape = self._escape == 5, self._escape - 1
            if first:
                self._escape = 4 if character == "u" else 0
                return character in '"\\/bfnrtu'
            return character in "0123456789abcdefABCDEF"
        if character == "\\":
            self._escape = 5
        elif character == '"':
            self.in_string = False
            self._expect = "colon" if self._string_is_key else self._after_value()
        return True

    def _outside(self, character: str) -> bool:
        if self._literal:
            if character not in ',]} \t\r\n:"[{':
                self._literal += character
                return self._LITERAL_START.fullmatch(self._literal) is not None
            if not self._LITERAL.fullmatch(self._literal):
                return False
            self._literal, self._expect = "", self._after_value()
        if character in " \t\r\n":
            return True
        expect = self._expect
        if character == '"' and expect != "colon" and expect != "comma" and expect != "end":
            self.in_string, self._string_is_key = True, expect.endswith("key")
            return True
        if character in "{[" and expect.endswith("value"):
            self._stack.append(character)
            self._expect = "first key" if character == "{" else "first value"
            return True
        if character in "}]" and self._stack and self._stack[-1] == "{["[character == "]"]:
            closes = expect == "comma" or expect == ("first key" if character == "}" else "first value")
            self._stack.pop()
            self._expect = self._after_value()
            return closes
        if character == ":" and expect == "colon":
            self._expect = "value"
            return True
        if character == "," and expect == "comma":
            self._expect = "key" if self._stack[-1] == "{" else "value"
            return True
        if expect.endswith("value") and character in "-0123456789tfn":
            self._literal = character
            return True
        return False

    def _after_value(self) -> str:
        return "comma" if self._stack else "end"


def read_calls(body: str) -> tuple[list[ToolCall], str | None]:
    """The calls in the body of one tag (an object, or an array of them), or no call and the reason."""
    try:
        value = json.loads(body, strict=False, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a character (a lone surrogate) is no text
    except (ValueError, RecursionError) as error:
        return [], f"not JSON: {error}"
    items = value if isinstance(value, list) else [value]
    calls = []
    for item in items:
        if not isinstance(item, dict):
            return [], VALUE_ONLY
        if isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item.get("name"), str) or not item["name"]:
            return [], "a call needs a name"
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        calls.append(ToolCall(item["name"], {} if arguments is None else arguments))
    return calls, None if calls else "an empty list of calls"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _parsed(arguments: str) -> Any:
    """An object that was given as a JSON string (OpenAI's form); any other string is a value of its own."""
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def open_end(text: str, *tags: str) -> int:
    """How many characters at the end of `text` could be the beginning of one of `tags`."""
    longest = min(len(text), max(map(len, tags)))
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)


def _joined(events: Iterator[Event]) -> list[Event]:
    """The events, neighbours of a kind made one."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if (isinstance(event, Answer) and isinstance(last, Answer) and event.problem == last.problem) or (
            isinstance(event, Thinking) and isinstance(last, Thinking)
        ):
            result[-1] = replace(last, text=last.text + event.text)
        else:
            result.append(event)
    return result
