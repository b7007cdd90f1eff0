"""Pieces of a reply's text -> events: Thinking | Answer | ToolCall, until a stop string or a loop.

Notes:
- The prompt opens the thought, so a reply may begin inside it. The model writes only the `</think>`.
- Any cut of the text into pieces gives the same events, after neighbours of one kind are joined.
- No character is lost. The newlines that the template puts around `</think>` (one before, two after) belong to the tag.
  The text of a `<tool_call>` that is not a valid call becomes answer text, with the reason.
- A `<tool_call>` inside a thought is part of the thought, so that a call which the model only considers does not run.
  A `</think>` inside a code block of the thought ends the thought, as in the reference.
- With `call_parts` the arguments of a call are events while they are written (`CallPart`), before its `ToolCall`. Where
  the text turns out to be no valid call, its parts are incomplete JSON, and the answer text follows as ever.
- A loop is many copies of one block and nothing else, for hundreds of tokens. A table of zeros looks the same, so a
  caller who wants such a table must turn `stop_on_repetition` off.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .calls import CallReader, read_calls
from .events import Answer, CallPart, Event, Thinking
from .json_prefix import JsonPrefix

THINK_END, CALL_START, CALL_END = "</think>", "<tool_call>", "</tool_call>"


class ReplyParser:
    """Reads a reply in pieces. `feed(text)` and, at the end, `close()` return the events that are complete.

    `begun` is the known text of the thought or answer before the first piece; `thought_before`: the answer is after a
    thought. A line end at the end of a begun thought is held back, and returned with what follows it.
    """

    def __init__(
        self, inside_thought: bool, begun: str = "", thought_before: bool = False, call_parts: bool = False
    ) -> None:
        self.inside_thought, self.call_parts = inside_thought, call_parts
        self.held = ""  # text whose meaning is not clear yet
        self.line_ends_left = 0  # how many more line ends may belong to the last </think>
        self._call: _CallBody | None = None
        if inside_thought and begun.endswith("\n"):
            self.held = "\n"
        elif not inside_thought and thought_before and not begun.strip("\n"):
            self.line_ends_left = max(0, 2 - len(begun))

    @property
    def opens_call(self) -> bool:
        """Whether the text so far ends with `<tool_call>`."""
        return self._call is not None and self._call.empty

    @property
    def inside_call(self) -> bool:
        """Whether a `<tool_call>` has begun and not ended."""
        return self._call is not None

    def feed(self, text: str) -> list[Event]:
        self.held += text
        return join_events(self._read(final=False))

    def close(self) -> list[Event]:
        return join_events(self._read(final=True))

    def _read(self, final: bool) -> Iterator[Event]:
        progress = True
        while progress and (self.held or self._call is not None):
            before = (len(self.held), self.inside_thought, self._call is None)
            if self._call is not None:
                yield from self._read_call(final)
            elif self.inside_thought:
                yield from self._read_thought(final)
            else:
                yield from self._read_answer(final)
            progress = before != (len(self.held), self.inside_thought, self._call is None)

    def _read_thought(self, final: bool) -> Iterator[Event]:
        text, tag, rest = self.held.partition(THINK_END)
        if tag:
            self.inside_thought, self.line_ends_left, self.held = False, 2, rest
            text = text.removesuffix("\n")
        else:
            kept = 0 if final else open_end(text, "\n" + THINK_END, THINK_END)
            text, self.held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            yield Thinking(text)

    def _read_answer(self, final: bool) -> Iterator[Event]:
        while self.line_ends_left and self.held:
            if self.held[0] != "\n":
                self.line_ends_left = 0
            else:
                self.line_ends_left, self.held = self.line_ends_left - 1, self.held[1:]
        text, tag, rest = self.held.partition(CALL_START)
        if tag:
            self._call, self.held = _CallBody(), rest
        else:
            kept = 0 if final else open_end(text, CALL_START)
            text, self.held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            yield Answer(text)

    def _read_call(self, final: bool) -> Iterator[Event]:
        assert self._call is not None
        self._call.feed(self.held)
        self.held = ""
        ended = self._call.ended(final)
        if self.call_parts and (part := self._call.part()):
            yield part
        if ended is None:
            return
        body, closed, self.held = ended
        self._call = None
        calls, problem = read_calls(body)
        if calls:
            yield from calls
        else:
            yield Answer(CALL_START + body + (CALL_END if closed else ""), problem)


class _CallBody:
    """The text after `<tool_call>`, until its end is known.

    `</tool_call>` ends the body, unless it is inside a string of text that is still the beginning of JSON. If the text
    stops being that, or if the reply ends, the first `</tool_call>` was the end.
    """

    def __init__(self) -> None:
        self._text = ""
        self._json = JsonPrefix()
        self._read = 0  # how many characters the JSON reader has read
        self._searched = 0  # no unexamined </tool_call> begins before this position
        self._first_end: int | None = None
        self._arguments, self._shown = CallReader(), 0  # how many characters it has read

    @property
    def empty(self) -> bool:
        return not self._text

    def feed(self, text: str) -> None:
        self._text += text

    def ended(self, final: bool) -> tuple[str, bool, str] | None:
        """(body, whether a tag closed it, the text after it), or None while the end is unknown."""
        while (end := self._text.find(CALL_END, self._searched)) >= 0:
            self._advance(end)
            if self._first_end is None:
                self._first_end = end
            if not (self._json.valid and self._json.in_string):
                # Outside a string, this tag is the end. In broken JSON, the first tag was the end.
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

    def part(self) -> CallPart | None:
        """Further arguments of the call, if it has begun. None after a tag that may have been its end."""
        stop = self._json.length if self._first_end is None else min(self._json.length, self._first_end)
        is_new = self._arguments.name is None
        text = self._arguments.feed(self._text[self._shown : stop])
        self._shown = max(self._shown, stop)
        name = self._arguments.name
        return CallPart(name, text) if name is not None and (text or is_new) else None

    def _cut(self, end: int) -> tuple[str, bool, str]:
        return self._text[:end], True, self._text[end + len(CALL_END) :]


def open_end(text: str, *tags: str) -> int:
    """The length of the longest end of `text` that is the beginning of one of `tags`."""
    longest = min(len(text), max(map(len, tags)))
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)


def join_events(events: Iterator[Event]) -> list[Event]:
    """The events, with neighbours of one kind joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if (isinstance(event, Answer) and isinstance(last, Answer) and event.problem == last.problem) or (
            isinstance(event, Thinking) and isinstance(last, Thinking)
        ):
            result[-1] = replace(last, text=last.text + event.text)
        elif isinstance(event, CallPart) and isinstance(last, CallPart):
            result[-1] = replace(last, arguments=last.arguments + event.arguments)
        else:
            result.append(event)
    return result


# --- ends of a reply ----------------------------------------------------------------------------------------------


class StopStrings:
    """Ends an answer before a stop string. Text that may be the beginning of one is held back, and so is `begun`'s."""

    def __init__(self, stops: Sequence[str], begun: str = "") -> None:
        self._stops = stops
        self._held = begun[len(begun) - open_end(begun, *(stop[:-1] for stop in stops)) :] if stops else ""
        self._known = len(self._held)  # characters held that are no part of the events
        self.found = ""  # the stop string that ended the answer
        self.is_active = True  # whether it searches; before min_tokens it does not

    def filter(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if self.found:
                return
            if not self._stops or not isinstance(event, Answer) or event.problem:
                yield from self.close()
                yield event
            elif text := self._new(self._cut(event.text)):
                yield Answer(text)

    def close(self) -> Iterator[Event]:
        """The text that was held back. Call it when no more text follows."""
        held, self._held = self._new(self._held), ""
        if held and not self.found:
            yield Answer(held)

    def _new(self, text: str) -> str:
        """The text without the part that was known before the first event."""
        known, self._known = self._known, max(0, self._known - len(text))
        return text[known:]

    def _cut(self, text: str) -> str:
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found and self.is_active:  # the first complete one, so that the result is the same for any split of the text
            (_, start, self.found), self._held = min(found), ""
            return text[:start]
        kept = open_end(text, *(stop[:-1] for stop in self._stops))
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


class LoopDetector:
    """Detects a reply that repeats one block: at least 8 copies, over at least 512 tokens.

    Every 32 tokens it searches for the last 16 tokens in the earlier ones.
    """

    COPIES, TOKENS, LONGEST_BLOCK = 8, 512, 512
    EVERY, SAMPLE = 32, 16

    def __init__(self, begun: Sequence[int] = ()) -> None:
        self._ids = array("i", begun)

    def add(self, token: int) -> bool:
        """Adds a token. Returns whether the tokens so far end in a loop."""
        self._ids.append(token)
        return len(self._ids) % self.EVERY == 0 and self._found()

    def _found(self) -> bool:
        size = self._ids.itemsize
        tail = self._ids[-(self.COPIES + 1) * self.LONGEST_BLOCK :].tobytes()
        sample = tail[-self.SAMPLE * size :]
        end = len(tail) - 1
        while (start := tail.rfind(sample, 0, end)) >= 0:
            end = start + len(sample) - 1
            block, odd = divmod(len(tail) - len(sample) - start, size)
            if block > self.LONGEST_BLOCK:
                return False
            repeated = max((self.COPIES - 1) * block, self.TOKENS - block) * size
            if not odd and len(tail) >= repeated + block * size:
                offset = len(tail) - block * size
                if tail[-repeated:] == tail[offset - repeated : offset]:
                    return True
        return False
