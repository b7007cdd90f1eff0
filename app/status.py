"""The status line with its meter: pure functions of a `View`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from exaone4_mlx.text.format import size_text

from .i18n import Words
from .work import View

NEARLY_FULL = 0.8  # of the context


def status_html(view: View, words: Words, model: str, memory_bytes: int) -> str:
    """The state of a reply or the counts of the last one, the context, the memory in use, and warnings."""
    parts = [*_state(view, words), words("memory", size=size_text(memory_bytes)), model]
    line = " · ".join(escape(part) for part in parts)
    return f'<div class="status" role="status">{line}{_meter(view, words)}{_warnings(view, words)}</div>'


def notes(warnings: Iterable[str], words: Words) -> list[str]:
    """The notes on a model for the user."""
    return [words("note", text=warning) for warning in warnings]


def _state(view: View, words: Words) -> list[str]:
    if view.running and view.place:
        return [words("in_line", count=view.place)]
    if view.running and view.reading:
        done, total = view.reading
        left = view.reading_left
        more = [] if left is None else [words("time_left", seconds=words.seconds(left))]
        return [words("reading", done=f"{done:,}", total=f"{total:,}"), *more]
    if view.running and view.tool_runs:
        return [words("tool_runs")]
    if view.running and (view.counts is None or view.first_token_seconds is None):
        return [words("starting")]
    return [] if view.counts is None else _counts(view, words)


def _counts(view: View, words: Words) -> list[str]:
    counts = view.counts
    assert counts is not None
    generated = counts.thinking_tokens + counts.answer_tokens
    parts = [words("tokens", count=f"{generated:,}")]
    if generated and counts.decode_seconds:
        parts.append(words("speed", speed=f"{generated / counts.decode_seconds:.1f}"))
    if view.first_token_seconds is not None:
        parts.append(words("first_after", seconds=words.seconds(view.first_token_seconds)))
    if counts.drafted_tokens:
        parts.append(words("drafted", accepted=f"{counts.accepted_tokens:,}", drafted=f"{counts.drafted_tokens:,}"))
    reused = f" ({words('reused', count=f'{counts.cached_tokens:,}')})" if counts.cached_tokens else ""
    return [*parts, words("prompt", count=f"{counts.prompt_tokens:,}") + reused]


def _meter(view: View, words: Words) -> str:
    used, limit = view.context_tokens, view.context_limit
    if not limit:
        return ""
    text = words("context_of", used=f"{used:,}", limit=f"{limit:,}")
    return (
        f'<label class="context">{escape(words("context"))} '
        f'<meter min="0" max="{limit}" high="{int(limit * NEARLY_FULL)}" optimum="0" value="{used}"></meter> '
        f"{escape(text)}</label>"
    )


def _warnings(view: View, words: Words) -> str:
    texts = []
    if view.unsaved:
        texts.append(words("not_saved", error=view.unsaved))
    if view.dropped:
        texts.append(words("dropped", count=view.dropped))
    elif view.context_limit and view.context_tokens > NEARLY_FULL * view.context_limit:
        texts.append(words("nearly_full"))
    return "".join(f'<div class="warning">{escape(text)}</div>' for text in texts)
