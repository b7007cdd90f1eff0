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
from dataclasses import dataclass

from ..text.reply import Answer, Event, open_end
from .decode import PREFILL_STEP_SIZE, PrefillProgress
from .sampling import Sampling, check

MAX_TOKENS = 8192  # of a reply, thought included: enough for a long thought, an end for a loop
#: What ends a thought whose budget is used up. The last part is the template's own.
WRAP_UP = "\nI will answer now.\n</think>\n\n"
LEAST = {"max_tokens": 1, "prefill_step_size": 1, "thinking_budget": 0, "num_draft_tokens": 1, "logprobs": 0}
ANSWER_PART, ANSWER_TOKENS = 4, 512  # a quarter of max_tokens, and no more than this, is kept for the answer


@dataclass(frozen=True)
class Options:
    """How one reply is made. Lengths are in tokens; errors are raised at once, as ValueError.

    `max_tokens` bounds thought and answer together; None means 8,192. `thinking_budget` is how long the thought
    may be; None sets no bound. `stop` ends the answer before a text. `stop_on_repetition` ends a reply that does
    nothing but repeat itself. `progress(done, total)` is told of the prefill.

    `prompt_lookup` guesses that what followed the same words before follows again, and checks it: the same reply, in
    fewer steps where it repeats the prompt. `num_draft_tokens` are guessed at once at most, by that or by a draft model
    (None means 8, or 4 of a draft model). `logprobs` tells of every token that was drawn its log-probability and
    those of so many others, the most probable ones.
    """

    sampling: Sampling | None = None
    max_tokens: int | None = None
    thinking_budget: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_on_repetition: bool = True
    prefill_step_size: int = PREFILL_STEP_SIZE
    progress: PrefillProgress | None = None
    prompt_lookup: bool = False
    num_draft_tokens: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, (Sampling, type(None))):
            raise ValueError(f"sampling must be a Sampling, not {type(self.sampling).__name__}")
        for name, least in LEAST.items():
            limit = getattr(self, name)
            whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= least
            optional = limit is None and name != "prefill_step_size"
            check(name, limit, whole or optional, f"a whole number of at least {least}")
        check("prompt_lookup", self.prompt_lookup, isinstance(self.prompt_lookup, bool), "true or false")
        if not all(isinstance(text, str) and text for text in self.stops):
            raise ValueError(f"stop strings must be texts of at least one character, not {list(self.stops)!r}")

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        listed = isinstance(self.stop, Sequence) and not isinstance(self.stop, str)
        return tuple(self.stop) if listed else (self.stop,)  # type: ignore[return-value]


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
