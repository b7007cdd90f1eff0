"""The status line with its meter: pure functions of a `View`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from exaone4_mlx.text.format import size_text

from .i18n import Words
from .work import View

NEARLY_FULL = 0.8  # of the context


def status_html(view: View, words: Words, model: str, memory_bytes: int) -> str:
    """A line in plain words: what a reply does or how fast it was, and the use of the context. Its details are folded.

    Warnings follow. A frame replaces the line, so that a screen reader is not to announce it.
    """
    details = [*_counts(view, words), *_context(view, words), words("memory", size=size_text(memory_bytes)), model]
    rows = "".join(f"<li>{escape(part)}</li>" for part in details)
    line = f"<span>{escape(' · '.join(_state(view, words)))}</span>{_meter(view, words)}"
    return (
        f'<details class="status"><summary title="{escape(words("details"))}">{line}</summary>'
        f'<ul class="card">{rows}</ul></details>{_warnings(view, words)}'
    )


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
    counts = view.counts
    generated = 0 if counts is None else counts.thinking_tokens + counts.answer_tokens
    if counts is None or not generated or not counts.decode_seconds:
        return []
    return [words("speed", speed=f"{generated / counts.decode_seconds:.1f}")]


def _counts(view: View, words: Words) -> list[str]:
    if (counts := view.counts) is None:
        return []
    generated = counts.thinking_tokens + counts.answer_tokens
    parts = [words("tokens", count=f"{generated:,}")]
    if view.first_token_seconds is not None:
        parts.append(words("first_after", seconds=words.seconds(view.first_token_seconds)))
    if counts.drafted_tokens:
        parts.append(words("drafted", accepted=f"{counts.accepted_tokens:,}", drafted=f"{counts.drafted_tokens:,}"))
    reused = f" ({words('reused', count=f'{counts.cached_tokens:,}')})" if counts.cached_tokens else ""
    return [*parts, words("prompt", count=f"{counts.prompt_tokens:,}") + reused]


def _context(view: View, words: Words) -> list[str]:
    used, limit = view.context_tokens, view.context_limit
    return [f"{words('context')} {words('context_of', used=f'{used:,}', limit=f'{limit:,}')}"] if limit else []


def _meter(view: View, words: Words) -> str:
    used, limit = view.context_tokens, view.context_limit
    if not limit:
        return ""
    percent = min(100, round(100 * used / limit)) or int(used > 0)  # a context in use is not empty
    text = escape(words("context_used", percent=percent))
    return (
        f'<span class="context"><meter min="0" max="{limit}" high="{int(limit * NEARLY_FULL)}" optimum="0" '
        f'value="{used}" aria-label="{text}"></meter> {text}</span>'
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
