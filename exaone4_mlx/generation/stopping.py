"""What ends a reply, or the thought in it: limits, stop strings, loops.

What is peculiar here:
- A thought that has used up its budget is ended as the model itself would end it, behind one sentence that says
  so. Of `max_tokens` a part is kept for the answer, so that an answer always comes.
- A loop is many copies of one block and nothing else, for hundreds of tokens. A table of zeros looks like it, too:
  who asks for one switches the detection off.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from ..text.events import Answer, Event
from ..text.reply import open_end

#: What ends a thought whose budget is used up. The last part is the template's own.
WRAP_UP = "\nI will answer now.\n</think>\n\n"
ANSWER_PART, ANSWER_TOKENS = 4, 512  # a quarter of max_tokens, and no more than this, is kept for the answer


def thought_limit(budget: int, max_tokens: int, wrap_up: int) -> int:
    """How many tokens a thought may have, so that after the `wrap_up` tokens enough is left for an answer.

    Negative where `max_tokens` is too small for both.
    """
    return min(budget, max_tokens - wrap_up - min(max_tokens // ANSWER_PART, ANSWER_TOKENS))


class StopStrings:
    """Holds back of an answer what could be the beginning of a stop string, and cuts it off before one."""

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
        """What was held back, once it is clear that no stop string follows."""
        held, self._held = self._held, ""
        if held and not self.found:
            yield Answer(held)

    def _cut(self, text: str) -> str:
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:  # the one that is complete first, whatever pieces the text came in
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        kept = open_end(text, *self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


class LoopDetector:
    """Notices that a reply has become copies of one block: at least 8 of them, over at least 512 tokens.

    Looked for every 32 tokens only, by searching the last 16 among those before.
    """

    COPIES, TOKENS, LONGEST_BLOCK = 8, 512, 512
    EVERY, SAMPLE = 32, 16

    def __init__(self) -> None:
        self._ids = array("i")

    def add(self, token: int) -> bool:
        """Whether the tokens so far end in a loop."""
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
