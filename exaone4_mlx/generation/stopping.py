"""The conditions that end a reply or its thought: limits, stop strings, loops.

Notes:
- A thought whose budget is used up ends with one fixed sentence and the tokens with which the model ends a thought. A
  part of `max_tokens` is reserved for the answer, so that an answer always follows.
- A loop is many copies of one block and nothing else, for hundreds of tokens. A table of zeros looks the same, so a
  caller who wants such a table must turn `stop_on_repetition` off.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from ..text.events import Answer, Event
from ..text.reply import open_end

#: The text that ends a thought whose budget is used up. Its last part is that of the template.
WRAP_UP = "\nI will answer now.\n</think>\n\n"
ANSWER_PART, ANSWER_TOKENS = 4, 512  # the answer has a quarter of max_tokens, but at most 512, reserved


def thought_limit(budget: int, max_tokens: int, wrap_up: int) -> int:
    """The limit of a thought in tokens, so that `wrap_up` tokens and an answer still fit.

    It is negative if `max_tokens` is too small for both.
    """
    return min(budget, max_tokens - wrap_up - min(max_tokens // ANSWER_PART, ANSWER_TOKENS))


class StopStrings:
    """Ends an answer before a stop string. Text that may be the beginning of a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def filter(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if self.found:
                return
            if not self._stops or not isinstance(event, Answer) or event.problem:
                yield from self.close()
                yield event
            elif text := self._cut(event.text):
                yield Answer(text)

    def close(self) -> Iterator[Event]:
        """The text that was held back. Call it when no more text follows."""
        held, self._held = self._held, ""
        if held and not self.found:
            yield Answer(held)

    def _cut(self, text: str) -> str:
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:  # the first complete one, so that the result is the same for any split of the text
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        kept = open_end(text, *self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


class LoopDetector:
    """Detects a reply that repeats one block: at least 8 copies, over at least 512 tokens.

    Every 32 tokens it searches for the last 16 tokens in the earlier ones.
    """

    COPIES, TOKENS, LONGEST_BLOCK = 8, 512, 512
    EVERY, SAMPLE = 32, 16

    def __init__(self) -> None:
        self._ids = array("i")

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
