"""A picture of how far each tensor is from its source, as an SVG.

What is peculiar here:
- Colours are ones that colour-blind readers tell apart, and shapes tell the groups apart without them.
- Names of tensors are other people's text, and stand in it as text.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

PLOT_NAME = "errors.svg"


class Kind(NamedTuple):
    """One kind of tensor: what it is called, the part of a name that tells it, and how the picture draws it."""

    label: str
    part: str
    colour: str  # Okabe and Ito's palette, made for colour-blind readers; shapes tell the groups apart without it
    shape: str


KINDS = (
    Kind("embedding", "embed_tokens", "#000000", "diamond"),
    Kind("query", "q_proj", "#0072B2", "circle"),
    Kind("key", "k_proj", "#56B4E9", "circle"),
    Kind("value", "v_proj", "#009E73", "circle"),
    Kind("attention output", "o_proj", "#CC79A7", "circle"),
    Kind("MLP gate", "gate_proj", "#D55E00", "triangle"),
    Kind("MLP up", "up_proj", "#E69F00", "triangle"),
    Kind("MLP down", "down_proj", "#6B4A00", "triangle"),
    Kind("output head", "lm_head", "#000000", "square"),
    Kind("norm", "norm", "#777777", "square"),
)
OTHER = Kind("other", "", "#777777", "diamond")

WIDTH, HEIGHT = 960, 520
LEFT, RIGHT, TOP, BOTTOM = 72, 940, 84, 464  # the frame that the points lie in
PADDING = 8  # between its sides and the first and last point


def error_plot(tensors: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with a mark for each tensor: across, its place in the network; up, its relative error.

    "" where no error was measured. The axis is logarithmic where the errors lie far apart.
    """
    measured = measured_ones(tensors)
    if not measured:
        return ""
    scale = _Scale([100 * tensor["relative_error"] for tensor in measured])
    step = (RIGHT - LEFT - 2 * PADDING) / len(measured)
    across = [LEFT + PADDING + (place + 0.5) * step for place in range(len(measured))]
    font = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="{font}" font-size="13" fill="#222222" role="img">',
        "<title>Relative error of every tensor</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600">Relative error of every tensor</text>',
        *_legend(measured),
        *_layer_bands(measured, step),
    ]
    for value in scale.ticks:
        y = scale.y(value)
        lines.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#cccccc" stroke-width="1"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{value:g} %</text>')
    lines.append(f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#222222"/>')
    kind_of_axis = ", logarithmic" if scale.logarithmic else ""
    lines.append(
        f'<text transform="translate(18 {(TOP + BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"relative error{kind_of_axis}</text>"
    )
    lines.append(f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">layer</text>')
    size = 4.5 if len(measured) <= 100 else 3.5
    for x, tensor in zip(across, measured, strict=True):
        kind = kind_of(tensor["name"])
        about = f"{tensor['name']}: {100 * tensor['relative_error']:.3g} %, {tensor.get('bits')} bits"
        mark = _mark(kind, x, scale.y(100 * tensor["relative_error"]), size)
        lines.append(mark.replace("/>", f"><title>{html.escape(one_line(about))}</title></path>"))
    return "\n".join([*lines, "</svg>"]) + "\n"


class _Scale:
    """Percent -> height. `ticks` are the round values that are labelled."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        self.logarithmic = high / low >= 4
        if self.logarithmic:
            self.low, self.high = math.log10(low) - 0.06, math.log10(high) + 0.06
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if high / low < 3000 else (1,)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            self.ticks = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        else:
            width = _round_step((max(high - min(values), high * 0.05)) / 4)
            self.low = math.floor(min(values) / width) * width
            self.high = math.ceil(high / width + 0.1) * width
            self.ticks = [self.low + width * i for i in range(round((self.high - self.low) / width) + 1)]

    def y(self, value: float) -> float:
        place = math.log10(value) if self.logarithmic and value > 0 else self.low if self.logarithmic else value
        return BOTTOM - (BOTTOM - TOP) * (max(place, self.low) - self.low) / (self.high - self.low)


def _round_step(width: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width * 0.999)


def _legend(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {kind_of(tensor["name"]) for tensor in measured}
    lines, x = [], float(LEFT + 6)
    for kind in (*KINDS, OTHER):
        if kind in present:
            lines.append(_mark(kind, x, 52, 5))
            lines.append(f'<text x="{x + 10:.0f}" y="56.5">{kind.label}</text>')
            x += 32 + 6.7 * len(kind.label)
    return lines


def _layer_bands(measured: Sequence[Mapping[str, Any]], step: float) -> list[str]:
    """Every other layer on grey, and numbers below, as many as there is room for."""
    layers = [_layer(tensor["name"]) for tensor in measured]
    numbers = list(dict.fromkeys(layer for layer in layers if layer is not None))
    every = next((n for n in (1, 2, 5, 10, 20, 50) if len(numbers) / n <= 16), 100)
    lines = []
    for number in numbers:
        start, count = LEFT + PADDING + step * layers.index(number), layers.count(number)
        if number % 2 == 0:
            lines.append(
                f'<rect x="{start:.1f}" y="{TOP}" width="{step * count:.1f}" height="{BOTTOM - TOP}" fill="#f4f4f4"/>'
            )
        if number % every == 0:
            lines.append(
                f'<text x="{start + step * count / 2:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{number}</text>'
            )
    return lines


def _mark(kind: Kind, x: float, y: float, size: float) -> str:
    s = size
    paths = {
        "circle": f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0z",
        "triangle": f"M{x:.1f} {y - 1.2 * s:.1f}l{1.15 * s:.2f} {2 * s:.2f}h{-2.3 * s:.2f}z",
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z",
        "diamond": f"M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:.2f} {1.3 * s:.2f}l{-1.3 * s:.2f} {1.3 * s:.2f}"
        f"l{-1.3 * s:.2f} {-1.3 * s:.2f}z",
    }
    return f'<path d="{paths[kind.shape]}" fill="{kind.colour}" stroke="#ffffff" stroke-width="0.6"/>'


def kind_of(name: str) -> Kind:
    """The kind of a tensor, from its name."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return next((kind for kind in KINDS if module.endswith(kind.part)), OTHER)


def in_network_order(tensors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As data passes through them: the embedding, each layer's attention and MLP, the output head."""

    def place(tensor: Mapping[str, Any]) -> tuple[float, int]:
        kind, layer = kind_of(tensor["name"]), _layer(tensor["name"])
        return (-1 if kind is KINDS[0] else math.inf) if layer is None else layer, rank(kind)

    return sorted(tensors, key=place)


def rank(kind: Kind) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _layer(name: str) -> int | None:
    found = re.search(r"\.layers\.(\d{1,6})\.", f".{name}")
    return int(found[1]) if found else None


def measured_ones(tensors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [tensor for tensor in in_network_order(tensors) if finite(tensor.get("relative_error"))]


def one_line(text: str) -> str:
    """Without control, separating and unpaired characters; runs of blanks are one."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
