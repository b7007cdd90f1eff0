"""Status lines of a chat: counts of a turn, use of the context, progress with the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..text.format import ENDS, count_text, time_text

if TYPE_CHECKING:
    from ..text.events import Done

#: What the user can do about the end of a reply.
ADVICE = {
    "length": " (/continue goes on; /set max_tokens N changes the limit)",
    "repetition": "; LG's advice: /set presence_penalty 1.5, then /retry",
}


def end_text(finish_reason: str) -> str | None:
    """The reason of an early end; None for a regular end."""
    return f"[{ENDS[finish_reason]}{ADVICE.get(finish_reason, '')}]" if finish_reason in ENDS else None


def turn_text(done: Done, first_token_seconds: float | None, context: str) -> str:
    """The counts and speeds of a turn."""
    generated = done.thinking_tokens + done.answer_tokens
    reply = count_text(generated, "token")
    if generated > 1 and done.decode_seconds:
        reply += f", {generated / done.decode_seconds:.1f} tokens/s"
    if first_token_seconds is not None:
        reply += f", first after {first_token_seconds:.2f} s"
    if done.drafted_tokens:
        reply += f", {done.accepted_tokens:,} of {done.drafted_tokens:,} draft tokens accepted"
    cached = f" ({done.cached_tokens:,} cached)" if done.cached_tokens else ""
    return f"[{reply} | prompt {done.prompt_tokens:,}{cached} | {context}]"


def context_text(used: int, limit: int) -> str:
    """The used part of the context. The tokens that close the last reply may exceed the limit."""
    return f"context {min(used, limit):,} of {limit:,}"


def extras_text(kv: object, draft_model: str | None, prompt_lookup: bool) -> str:
    """Quantized caches and the source of drafts, for the first line of a chat; "" without any."""
    drafter = f"drafts by {draft_model}" if draft_model else "drafts by prompt lookup" if prompt_lookup else ""
    return "".join(f"; {part}" for part in (kv or "", drafter) if part)


class Progress:
    """The progress of one piece of work; the time left is estimated from the first report on."""

    def __init__(self, now: float, done: int) -> None:
        self.began, self._first = now, done

    def text(self, now: float, done: int, total: int, what: str, unit: str) -> str:
        if unit == "bytes":
            counts = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
        else:
            counts = f"{done:,} of {total:,} {unit}"
        left = ""
        if done > self._first and now > self.began:
            left = f", {time_text((total - done) * (now - self.began) / (done - self._first))} left"
        return f"{what}: {counts}{left}"
