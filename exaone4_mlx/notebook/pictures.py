"""Pictures of what `inside` found, as HTML and SVG for a notebook, and with matplotlib for a paper.

What is peculiar here:
- Texts of tokens are a stranger's: escaped, and with blanks, line ends and controls made visible.
- Colours never stand alone: probabilities are written beside them, and segments carry words. Those of maps are
  cividis', which the colour-blind read as others do; shades of one colour are laid half transparent over any theme.
- HTML pictures need nothing installed, and have the fonts of the browser: matplotlib's own lacks Korean.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..terminal.format import shortened
from .views import BLUE, FAINT, GREY, ORANGE, escaped, layer_text, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .introspect import AttentionMaps, CacheDrawing, InspectedTokens, LayerCache, TokenNode, TokenRow, TokenTree

#: matplotlib's cividis, from 0 to 1 in equal steps.
CIVIDIS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
SURPRISE = "213,94,0"  # Okabe and Ito's vermillion
MOST_BITS = 10  # of surprise, from which on the shade is darkest
LABELS = 16  # tokens named along an axis, at most: more would overlap
LABEL_WIDTH = 12  # columns of a token's name there
MAP_SIZE, CACHE_WIDTH = 160, 760  # pixels
MARKS, MARK_ROOM = 5, 12  # compactions drawn, the last ones, and pixels from one to the next
PROMPT_END = 20  # characters
BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
#: Fonts with Korean letters on macOS, Linux and Windows.
KOREAN_FONTS = ("Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK KR", "Malgun Gothic")


def visible(text: str) -> str:
    """A token's text with what cannot be seen made visible."""
    return "".join(BLANKS.get(letter, letter if letter.isprintable() else f"\\u{ord(letter):04x}") for letter in text)


# --- tokens -----------------------------------------------------------------------


def tokens_html(found: InspectedTokens) -> str:
    """The tokens one after the other, each with its probability below, and a table of them, folded."""
    cells = "".join(map(_token_cell, found.rows))
    scale = "".join(
        f'<span style="padding:0 .6em;background:{_shade(bits)}">{bits}{"+" * (bits == MOST_BITS)}</span>'
        for bits in (0, 1, 2, 5, MOST_BITS)
    )
    head = ("position", "id", "token", "probability", "surprise (bits)", "rank", "entropy (bits)", "most probable")
    rows = [_token_line(place, row) for place, row in enumerate(found.rows)]
    return (
        f'<div><div style="line-height:1.3">{cells}</div>'
        f'<div style="font-size:85%;margin:.5em 0">below each token: its probability; shade: surprise in bits {scale} '
        f"· {len(found):,} tokens, {found.mean_surprise_bits:.2f} bits each</div>"
        f'<details><summary style="cursor:pointer">Each token, and what was expected</summary>{table_html(head, rows)}'
        "</details></div>"
    )


def _token_cell(row: TokenRow) -> str:
    bits = row.surprise_bits
    told = "–" if row.probability is None else _percent(row.probability)
    title = f"id {row.id}"
    if row.entropy_bits is not None:
        expected = ", ".join(f"{visible(other.text)} {_percent(other.probability)}" for other in row.alternatives)
        title += f" · {bits:.2f} bits of surprise, {row.entropy_bits:.2f} of entropy · expected: {expected}"
    completes = f" → {visible(row.completes)}" if row.completes else ""
    return (
        f'<span title="{escaped(title)}" style="display:inline-block;text-align:center;margin:1px;padding:1px 4px;'
        f'border:1px solid {GREY};border-radius:3px;background:{_shade(bits or 0)}">'
        f'<span style="font-family:monospace">{escaped(visible(row.text) + completes)}</span><br>'
        f'<span style="font-size:75%">{told}</span></span>'
    )


def _token_line(place: int, row: TokenRow) -> tuple[str, ...]:
    token = visible(row.text) + (f" → {visible(row.completes)}" if row.completes else "")
    if row.probability is None or row.surprise_bits is None:
        return (str(place), str(row.id), token, "–", "–", "–", "–", "")
    others = "  ".join(f"{visible(other.text)} {_percent(other.probability)}" for other in row.alternatives)
    return (
        str(place),
        str(row.id),
        token,
        _percent(row.probability),
        f"{row.surprise_bits:.2f}",
        str(row.rank),
        f"{row.entropy_bits:.2f}",
        others,
    )


def _shade(bits: float) -> str:
    return f"rgba({SURPRISE},{0.6 * min(bits, MOST_BITS) / MOST_BITS:.2f})"


def _percent(probability: float) -> str:
    if probability < 1e-5:
        return "<0.001 %"
    return f"{100 * probability:.3g} %" if probability < 0.995 else f"{100 * probability:.1f} %"


# --- attention --------------------------------------------------------------------


def attention_html(maps: AttentionMaps) -> str:
    """A map for each head. What a token does not see stays empty."""
    weights: Any = maps.weights.tolist()
    pictures = "".join(_map_svg(maps, head, rows) for head, rows in enumerate(weights))
    ticks = (0, 0.05, 0.2, 0.5, 1)
    scale = "".join(
        f'<span style="padding:0 .6em;background:{_cividis(math.sqrt(tick))};'
        f'color:{"#000" if tick >= 0.5 else "#fff"}">{tick}</span>'
        for tick in ticks
    )
    return (
        f"<div><b>layer {maps.layer}, {escaped(layer_text(maps.attention))}</b>"
        f'<div style="display:flex;flex-wrap:wrap">{pictures}</div>'
        f'<div style="font-size:85%">weight {scale} · each row adds up to 1; what a token does not see is empty</div>'
        "</div>"
    )


def _map_svg(maps: AttentionMaps, head: int, rows: Sequence[Sequence[float]]) -> str:
    count = len(maps.tokens)
    cell, margin, top = MAP_SIZE / count, 92, 24
    names = [escaped(shortened(visible(token), LABEL_WIDTH)) for token in maps.tokens]
    texts = []
    for i in range(0, count, -(-count // LABELS)):
        middle = (i + 0.5) * cell
        texts.append(f'<text x="{margin - 4}" y="{top + middle + 3:.1f}" text-anchor="end">{names[i]}</text>')
        turned = f"translate({margin + middle + 3:.1f} {top + MAP_SIZE + 6}) rotate(-60)"
        texts.append(f'<text transform="{turned}" text-anchor="end">{names[i]}</text>')
    width, height = margin + MAP_SIZE + 4, top + MAP_SIZE + 92
    return (
        f'<svg width="{width}" height="{height}" font-size="10" fill="currentColor" role="img" style="margin:4px">'
        f"<title>Attention of head {head}</title>"
        f'<text x="{margin + MAP_SIZE / 2}" y="14" text-anchor="middle" font-size="12">head {head}</text>'
        f'<image x="{margin}" y="{top}" width="{MAP_SIZE}" height="{MAP_SIZE}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{_png(_pixels(maps, rows))}"/>'
        f'<rect x="{margin}" y="{top}" width="{MAP_SIZE}" height="{MAP_SIZE}" fill="none" stroke="{GREY}"/>'
        f"{''.join(texts)}"
        f'<text transform="translate(10 {top + MAP_SIZE / 2}) rotate(-90)" text-anchor="middle" font-size="11">'
        "token that attends</text>"
        f'<text x="{margin + MAP_SIZE / 2}" y="{height - 6}" text-anchor="middle" font-size="11">'
        "token that is attended to</text></svg>"
    )


def _pixels(maps: AttentionMaps, rows: Sequence[Sequence[float]]) -> list[list[tuple[int, int, int, int]]]:
    def pixel(i: int, j: int, weight: float) -> tuple[int, int, int, int]:
        if not _sees(maps, i, j):
            return 0, 0, 0, 0
        colour = _cividis(math.sqrt(min(1.0, max(0.0, weight))))
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16), 255

    return [[pixel(i, j, weight) for j, weight in enumerate(row)] for i, row in enumerate(rows)]


def _cividis(value: float) -> str:
    """A colour between the two steps that `value`, from 0 to 1, lies between."""
    place = value * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    ends = CIVIDIS[low], CIVIDIS[low + 1]
    mixed = (
        round(int(ends[0][i : i + 2], 16) * (1 - place + low) + int(ends[1][i : i + 2], 16) * (place - low))
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _png(rows: Sequence[Sequence[tuple[int, int, int, int]]]) -> str:
    """Pixels as the address of a picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 6, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(itertools.chain.from_iterable(row)) for row in rows)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def attention_figure(maps: AttentionMaps, heads: Sequence[int]) -> Figure:
    """The same with matplotlib. Raises ImportError without it."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.colors import PowerNorm
        from matplotlib.font_manager import fontManager
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'exaone4_mlx[notebook]'") from error
    count = maps.weights.shape[0]
    if not heads or any(not 0 <= head < count for head in heads):
        raise ValueError(f"heads must be some of 0 to {count - 1}, not {list(heads)}")
    columns = min(4, len(heads))
    lines = -(-len(heads) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns + 1, 3.6 * lines), squeeze=False, layout="constrained"
    )
    plt.close(figure)  # or the notebook would show it twice: as an open figure, and as the value of the cell
    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(font for font in KOREAN_FONTS if font in installed)]
    step = -(-len(maps.tokens) // LABELS)
    places = range(0, len(maps.tokens), step)
    names = [shortened(visible(maps.tokens[i]), LABEL_WIDTH).replace("$", r"\$") for i in places]
    image = None
    for axis, head in itertools.zip_longest(axes.flat, heads):
        if head is None:
            axis.set_visible(False)
            continue
        weights: Any = maps.weights[head].tolist()
        rows = [
            [weight if _sees(maps, i, j) else math.nan for j, weight in enumerate(row)] for i, row in enumerate(weights)
        ]
        image = axis.imshow(rows, cmap="cividis", norm=PowerNorm(0.5, 0, 1))
        axis.set_title(f"head {head}")
        axis.set_xticks(places, names, rotation=60, ha="right", fontfamily=fonts, fontsize=8)
        axis.set_yticks(places, names, fontfamily=fonts, fontsize=8)
        axis.set_xlabel("token that is attended to")
        axis.set_ylabel("token that attends")
    figure.colorbar(image, ax=axes, label="weight of attention (each row adds up to 1)")
    figure.suptitle(f"layer {maps.layer}, {layer_text(maps.attention)}")
    return figure


def _sees(maps: AttentionMaps, i: int, j: int) -> bool:
    """Whether token i can attend to token j."""
    window = maps.attention.window
    return j <= i and (window is None or j > i - window)


# --- caches -----------------------------------------------------------------------


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
    """What the picture shows, in words."""
    last = held.tokens - 1
    if not held.tokens:
        return "It holds nothing yet."
    kept = f"It holds tokens {held.held_from:,} to {last:,}: {held.rows:,} of the {held.capacity:,} rows of its buffer."
    attends = f"Token {held.tokens:,} attends to tokens {held.attended_from:,} to {last:,} and to itself."
    if held.window == 1:
        attends = f"Token {held.tokens:,} attends to itself."
    if held.window is None:
        return f"{kept} {attends} Nothing is ever forgotten."
    moved = "Rows have not moved yet"
    if held.compactions:
        times = "once," if len(held.compactions) == 1 else f"{len(held.compactions):,} times, last"
        moved = f"Rows moved to the front {times} when token {held.compactions[-1]:,} came"
    if held.next_compaction is None:
        return f"{kept} {attends} {moved}."
    grows = f": the buffer first grows to {held.max_rows:,} rows" if held.capacity < held.max_rows else ""
    following = f"They move {'next' if held.compactions else 'first'} when token {held.next_compaction:,} comes"
    return (
        f"{kept} {attends} {moved}{grows}. {following}: then the last {held.window - 1 + held.reserve:,} rows are "
        f"kept, so that {held.reserve} tokens can be taken back, and {held.slack} can be appended."
    )


def drawn_marks(held: LayerCache) -> Sequence[int]:
    """The last compactions, as many as can be told apart in the picture of the text."""
    if not held.compactions:
        return ()
    room = (CACHE_WIDTH - 100) * held.compactions.step / held.tokens  # from one to the next
    return held.compactions[-MARKS:] if room >= MARK_ROOM else held.compactions[-1:]


def _text_strip(held: LayerCache, marks: Sequence[int]) -> str:
    """The text: what of it was forgotten, is held, and is attended to; a mark where rows moved."""
    parts = [
        (held.held_from, "forgotten", "none"),
        (held.attended_from - held.held_from, "held", ORANGE),
        (held.tokens - held.attended_from, "attended to", BLUE),
    ]
    return _strip("the text", parts, held.tokens, "token", marks)


def _buffer_strip(held: LayerCache) -> str:
    """The buffer: rows that are held, those attended to, and the free ones."""
    parts = [
        (held.attended_from - held.held_from, "held", ORANGE),
        (held.tokens - held.attended_from, "attended to", BLUE),
        (held.capacity - held.rows, "free", "none"),
    ]
    return _strip("the buffer", parts, held.capacity, "row", ())


def _strip(name: str, parts: Sequence[tuple[int, str, str]], total: int, unit: str, marks: Sequence[int]) -> str:
    """A bar of segments (how many, what they are, their colour), with the numbers where they begin below it."""
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
        drawn.append(f'<path d="M{x:.1f} {top}l-4 -8h8z"><title>rows moved when {unit} {place:,} came</title></path>')
    return (
        f'<svg width="{CACHE_WIDTH}" height="68" font-size="11" fill="currentColor" role="img" style="display:block">'
        f'<text x="0" y="{top + 16}">{name}</text><text x="0" y="{top + height + 13}" opacity=".75">{unit}</text>'
        f"{''.join(drawn)}</svg>"
    )


# --- what may come next -------------------------------------------------------------


def tree_html(tree: TokenTree) -> str:
    """From left to right: each token with its probability, and what may follow it."""
    return (
        f'<div><div style="display:flex;align-items:center">{_prompt_end(tree.prompt)}'
        f"{_nodes_html(tree.children)}</div>"
        '<div style="font-size:85%;margin:.4em 0">from the end of the prompt on: each token with its probability after '
        "those to its left; the bar shows it, too</div></div>"
    )


def _prompt_end(prompt: str) -> str:
    end = visible(prompt)
    end = end if len(end) <= PROMPT_END else "…" + end[1 - PROMPT_END :]
    return (
        f'<span title="the end of the prompt" style="padding:1px 6px;margin-right:4px;border:1px dashed {GREY};'
        f'border-radius:3px;white-space:nowrap;font-family:monospace">{escaped(end)}</span>'
    )


def _nodes_html(nodes: Sequence[TokenNode]) -> str:
    return f'<div style="display:flex;flex-direction:column">{"".join(map(_node_html, nodes))}</div>'


def _node_html(node: TokenNode) -> str:
    percent = 100 * node.probability
    end = ' <span style="font-size:85%">(end)</span>' if node.ends_turn else ""
    return (
        f'<div style="display:flex;align-items:center;border-left:1px solid {GREY};padding:1px 0 1px 4px">'
        f'<span style="min-width:9em;padding:1px 6px;margin-right:4px;border:1px solid {GREY};border-radius:3px;'
        f"background:linear-gradient(to right,rgba(86,180,233,.45) {percent:.1f}%,{FAINT} {percent:.1f}%);"
        f'white-space:nowrap"><span style="font-family:monospace">{escaped(visible(node.text))}</span>{end} '
        f'<span style="font-size:80%;float:right;padding-left:1em">{_percent(node.probability)}</span></span>'
        f"{_nodes_html(node.children) if node.children else ''}</div>"
    )
