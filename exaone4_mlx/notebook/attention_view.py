"""Attention maps -> HTML and SVG.

Notes:
- The pictures need no package, and use the fonts of the browser.
- The colours are those of matplotlib's cividis, which colour-blind readers see as others do.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from ..text.format import shortened
from .attention import LABEL_WIDTH, MAX_LABELS, AttentionMaps
from .config_view import layer_text
from .html import GREY, escaped, visible

#: matplotlib's cividis, from 0 to 1 in equal steps.
CIVIDIS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
MAP_SIZE = 160  # pixels


def attention_html(maps: AttentionMaps) -> str:
    """A map for each head. The cell of a token that is not visible is empty."""
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
        f'<div style="font-size:85%">weight {scale} · each row adds up to 1; cells of invisible tokens are empty</div>'
        "</div>"
    )


def _map_svg(maps: AttentionMaps, head: int, rows: Sequence[Sequence[float]]) -> str:
    count = len(maps.tokens)
    cell, margin, top = MAP_SIZE / count, 92, 24
    names = [escaped(shortened(visible(token), LABEL_WIDTH)) for token in maps.tokens]
    texts = []
    for i in range(0, count, -(-count // MAX_LABELS)):
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
        if not maps.sees(i, j):
            return 0, 0, 0, 0
        colour = _cividis(math.sqrt(min(1.0, max(0.0, weight))))
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16), 255

    return [[pixel(i, j, weight) for j, weight in enumerate(row)] for i, row in enumerate(rows)]


def _cividis(value: float) -> str:
    """The colour of a value from 0 to 1."""
    place = value * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    ends = CIVIDIS[low], CIVIDIS[low + 1]
    mixed = (
        round(int(ends[0][i : i + 2], 16) * (1 - place + low) + int(ends[1][i : i + 2], 16) * (place - low))
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _png(rows: Sequence[Sequence[tuple[int, int, int, int]]]) -> str:
    """Pixels as the data URL of a picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 6, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(itertools.chain.from_iterable(row)) for row in rows)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
