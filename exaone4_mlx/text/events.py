"""The events of a reply: Thinking, Answer, ToolCall, Logprobs, and Done at the end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..tools.call import ToolCall


@dataclass(frozen=True)
class Thinking:
    """A piece of the thought."""

    text: str


@dataclass(frozen=True)
class Answer:
    """A piece of the answer.

    `problem` is set for text inside tool-call tags that is not a valid call; it gives the reason.
    """

    text: str
    problem: str | None = None


@dataclass(frozen=True)
class CallPart:
    """A piece of the arguments of a call that is being written, as JSON. The whole call follows as a `ToolCall`.

    If an `Answer` with a problem follows instead, the text was no valid call; the arguments are incomplete JSON then.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability. An incomplete character has the text "\ufffd"."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Logprobs(TokenLogprob):
    """The sampled token, and in `top` the most probable tokens at its position.

    This event comes before the text that the token completes. The probabilities are those of the model, before
    penalties, temperature and truncation.
    """

    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Done:
    """The last event of every reply. Times are in seconds; token counts exclude the token that ends the turn.

    `finish_reason` is "stop" (the model ended its turn, or a stop string was found), "length" (`max_tokens` or the
    context is used up), "tool_calls", "cancelled" or "repetition" (the reply repeats itself; LG recommends a
    presence_penalty of 1.5 against that). `cached_tokens` of the `prompt_tokens` were not processed again.
    `thinking_seconds` of the `decode_seconds` went into the thought. A draft model or prompt lookup proposed
    `drafted_tokens`; the model accepted `accepted_tokens` of them.
    """

    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    thinking_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float
    thinking_seconds: float
    peak_bytes: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def __add__(self, later: Done) -> Done:
        """Two replies of one turn as one: sums of counts and times, the finish reason of the later one."""
        sums = {
            field.name: getattr(self, field.name) + getattr(later, field.name)
            for field in dataclasses.fields(Done)
            if field.name not in ("finish_reason", "peak_bytes")
        }
        return Done(later.finish_reason, **sums, peak_bytes=max(self.peak_bytes, later.peak_bytes))

    def joined(self, later: Done) -> Done:
        """Two parts of one reply as one. The prompt is that of the first part; `later` has it and the first part."""
        whole = self + later
        return dataclasses.replace(whole, prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens)


#: What the reply parser returns. `CallPart` comes only where it was asked for.
Event = Thinking | Answer | CallPart | ToolCall
#: What a model's reply consists of.
ReplyEvent = Event | Logprobs | Done
