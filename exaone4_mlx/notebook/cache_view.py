"""Drawings of caches -> HTML and SVG."""

from __future__ import annotations

from collections.abc import Sequence

from .cache_state import CacheDrawing, LayerCache
from .html import BLUE, ORANGE, escaped

CACHE_WIDTH = 760  # pixels
MARKS, MARK_ROOM = 5, 12  # compactions that are drawn at most, and pixels between two of them at least


def caches_html(drawing: CacheDrawing) -> str:
    return f"<div>{''.join(map(_cache_html, drawing.layers))}</div>"


def _cache_html(held: LayerCache) -> str:
    kind = "global (G)" if held.window is None else f"local (L), window {held.window:,}"
    marks = drawn_marks(held)
    last = "the last" if len(marks) == 1 else f"the last {len(marks)}"
    some = f", {last} of {len(held.compactions):,} times" if len(marks) < len(held.compactions) else ""
    legend = f'<div style="font-size:85%;margin-left:76px">▼ rows moved to the front{some}</div>' if marks else ""
    return (
        f'<div style="margin:.6em 0"><b>layer {held.layer}, {kind}, after {held.tokens:,} tokens</b>'
        f"{_text_strip(held, marks)}{legend}{_buffer_strip(held)}"
        f'<div style="font-size:90%">{escaped(cache_text(held))}</div></div>'
    )


def cache_text(held: LayerCache) -> str:
    """The content of the picture, in words."""
    last = held.tokens - 1
    if not held.tokens:
        return "It is empty."
    kept = f"It holds tokens {held.held_from:,} to {last:,}: {held.rows:,} of the {held.capacity:,} rows of its buffer."
    attends = f"Token {held.tokens:,} attends to tokens {held.attended_from:,} to {last:,} and to itself."
    if held.window == 1:
        attends = f"Token {held.tokens:,} attends to itself."
    if held.window is None:
        return f"{kept} {attends} No token is forgotten."
    moved = "Rows have not moved yet"
    if held.compactions:
        times = "once," if len(held.compactions) == 1 else f"{len(held.compactions):,} times, last"
        moved = f"Rows moved to the front {times} before token {held.compactions[-1]:,}"
    if held.next_compaction is None:
        return f"{kept} {attends} {moved}."
    grows = f": the buffer first grows to {held.max_rows:,} rows" if held.capacity < held.max_rows else ""
    following = f"They move {'next' if held.compactions else 'first'} before token {held.next_compaction:,}"
    return (
        f"{kept} {attends} {moved}{grows}. {following}: then the last {held.window - 1 + held.reserve:,} rows are "
        f"kept, so that {held.reserve} tokens can be removed and {held.slack} can be appended."
    )


def drawn_marks(held: LayerCache) -> Sequence[int]:
    """The last compactions, if their marks do not overlap in the picture of the text; otherwise the last one."""
    if not held.compactions:
        return ()
    room = (CACHE_WIDTH - 100) * held.compactions.step / held.tokens  # from one to the next
    return held.compactions[-MARKS:] if room >= MARK_ROOM else held.compactions[-1:]


def _text_strip(held: LayerCache, marks: Sequence[int]) -> str:
    """The text: its forgotten, held and attended tokens, and a mark at each compaction."""
    parts = [
        (held.held_from, "forgotten", "none"),
        (held.attended_from - held.held_from, "held", ORANGE),
        (held.tokens - held.attended_from, "attended to", BLUE),
    ]
    return _strip("the text", parts, held.tokens, "token", marks)


def _buffer_strip(held: LayerCache) -> str:
    """The buffer: held, attended and free rows."""
    parts = [
        (held.attended_from - held.held_from, "held", ORANGE),
        (held.tokens - held.attended_from, "attended to", BLUE),
        (held.capacity - held.rows, "free", "none"),
    ]
    return _strip("the buffer", parts, held.capacity, "row", ())


def _strip(name: str, parts: Sequence[tuple[int, str, str]], total: int, unit: str, marks: Sequence[int]) -> str:
    """A bar of segments (count, name, colour). Below it are the numbers of the first rows."""
    if not total:
        return ""
    left, width, top, height = 76, CACHE_WIDTH - 100, 26, 24
    drawn, at, last_label = [], 0, -100.0
    narrow = []  # segments whose names do not fit inside
    for count, what, colour in parts:
        if not count:
            continue
        x, wide = left + width * at / total, width * count / total
        dashes = ' stroke-dasharray="3 3"' if colour == "none" else ""
        drawn.append(
            f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{height}" fill="{colour}" stroke="currentColor"'
            f"{dashes}><title>{what}: {count:,} {unit}s from {at:,}</title></rect>"
        )
        if wide > 7 * len(what):
            fill = "currentColor" if colour == "none" else "#000"
            drawn.append(
                f'<text x="{x + wide / 2:.1f}" y="{top + 16}" text-anchor="middle" fill="{fill}">{what}</text>'
            )
        else:
            narrow.append((x + wide, what, colour))
        if x - last_label > 50 and left + width - x > 80:
            drawn.append(f'<text x="{x:.1f}" y="{top + height + 13}">{at:,}</text>')
            last_label = x
        at += count
    end = left + width
    free = float(end)
    for right, what, colour in reversed(narrow):  # above the marks, none over another
        right = min(right, free)
        square = (
            f'<tspan fill="{"currentColor" if colour == "none" else colour}">{"□" if colour == "none" else "■"}</tspan>'
        )
        drawn.append(f'<text x="{right:.1f}" y="{top - 13}" text-anchor="end">{square} {what}</text>')
        free = right - 7 * (len(what) + 2) - 6
    drawn.append(f'<text x="{end + 4}" y="{top + height + 13}" text-anchor="end">{total - 1:,}</text>')
    for place in marks:
        x = left + width * place / total
        drawn.append(f'<path d="M{x:.1f} {top}l-4 -8h8z"><title>rows moved before {unit} {place:,}</title></path>')
    return (
        f'<svg width="{CACHE_WIDTH}" height="68" font-size="11" fill="currentColor" role="img" style="display:block">'
        f'<text x="0" y="{top + 16}">{name}</text><text x="0" y="{top + height + 13}" opacity=".75">{unit}</text>'
        f"{''.join(drawn)}</svg>"
    )
