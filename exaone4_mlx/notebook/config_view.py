"""A config -> HTML: one cell for each layer, and a table of dimensions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .html import BLUE, ORANGE, escaped, rows_html

if TYPE_CHECKING:
    from ..model.config import Exaone4Config, LayerAttention

ROW = 16  # layers on a line


def config_html(config: Exaone4Config) -> str:
    lines = []
    for start in range(0, config.num_hidden_layers, ROW):
        cells = "".join(
            _layer_cell(start + place, layer) for place, layer in enumerate(config.layers[start : start + ROW])
        )
        number = f'<span style="display:inline-block;width:3em;text-align:right;padding-right:.6em">{start}</span>'
        lines.append(f'<div style="white-space:nowrap;line-height:1.7em">{number}{cells}</div>')
    legend = "".join(
        f"<div>{_layer_cell(None, layer)} {count} &times; {escaped(layer_text(layer))}</div>"
        for layer, count in Counter(config.layers).items()
    )
    return (
        f"<div><b>{config.num_hidden_layers} layers</b> (numbers: the first of each line){''.join(lines)}"
        f'<div style="margin:.5em 0">{legend}</div>{rows_html(_dimensions(config))}</div>'
    )


def layer_text(layer: LayerAttention) -> str:
    """What a layer attends to, and its position encoding."""
    encoding = "RoPE" if layer.rope else "no position encoding"
    if layer.window is None:
        return f"global: sees everything, {encoding}"
    return f"local: sees the last {layer.window:,} tokens, {encoding}"


def _dimensions(config: Exaone4Config) -> dict[str, str]:
    rope = config.rope_parameters
    return {
        "context": f"{config.max_position_embeddings:,} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens"
        + (", embedding and output head share their weights" if config.tie_word_embeddings else ""),
        "hidden size": f"{config.hidden_size:,}",
        "MLP size": f"{config.intermediate_size:,}",
        "heads": f"{config.num_attention_heads} for queries, {config.num_key_value_heads} for keys and values, "
        f"each of size {config.head_dim}",
        "RoPE": f"{rope.rope_type}, theta {rope.rope_theta:,.10g}",
    }


def _layer_cell(number: int | None, layer: LayerAttention) -> str:
    letter, colour = ("G", ORANGE) if layer.window is None else ("L", BLUE)
    title = layer_text(layer) if number is None else f"layer {number}, {layer_text(layer)}"
    return (
        f'<span title="{escaped(title)}" style="display:inline-block;width:1.5em;line-height:1.5em;text-align:center;'
        f'margin:1px;border-radius:3px;background:{colour};color:#000;font-family:monospace">{letter}</span>'
    )
