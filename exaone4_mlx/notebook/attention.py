"""What the tokens of a text attend to in one layer.

Shapes: H query heads, L tokens, S attended tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..model.config import LayerAttention
from ..model.network import Exaone4ForCausalLM
from ..text.format import cut_to_width
from ..text.tokenizer import Tokenizer
from .config_view import layer_text
from .figure import draw_figure
from .html import small_html, visible
from .tokens import check_count, text_ids, token_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTENTION_TOKENS = 512  # at most: the weights of all layers are computed, [H, L, L] each
MAX_LABELS = 16  # tokens that are named along an axis: more would overlap
LABEL_WIDTH = 12  # columns of the name of a token
#: Fonts with Korean letters on macOS, Linux and Windows. matplotlib's own font has none.
KOREAN_FONTS = ("Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK KR", "Malgun Gothic")


@dataclass(frozen=True)
class AttentionMaps:
    """The attention weights of one layer: `weights` [H, L, S], float32, S = L.

    `weights[h, i, j]` is the weight of token j for token i in head h; each row adds up to 1.
    """

    tokens: tuple[str, ...]
    layer: int
    attention: LayerAttention
    weights: mx.array = field(repr=False, compare=False)

    def __repr__(self) -> str:
        heads, length, _ = self.weights.shape
        window = "" if self.attention.window is None else f", window {self.attention.window}"
        return f"AttentionMaps(layer {self.layer}{window}, {heads} heads, {length} tokens)"

    def plot(self, heads: Sequence[int] | None = None) -> Figure:
        """A matplotlib figure with a map for each of `heads`; None means all heads.

        Raises ImportError without matplotlib, and ValueError for unknown heads.
        """
        try:
            import matplotlib.pyplot as plt
            from matplotlib.colors import PowerNorm
            from matplotlib.font_manager import fontManager
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'exaone4_mlx[notebook]'") from error
        count = self.weights.shape[0]
        chosen = list(range(count)) if heads is None else list(heads)
        if not chosen or any(not 0 <= head < count for head in chosen):
            raise ValueError(f"heads must be some of 0 to {count - 1}, not {chosen}")
        columns = min(4, len(chosen))
        lines = -(-len(chosen) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(3.6 * columns + 1, 3.6 * lines), squeeze=False, layout="constrained"
        )
        plt.close(figure)  # otherwise a notebook shows it twice: as an open figure, and as the value of the cell
        installed = {font.name for font in fontManager.ttflist}
        fonts = ["DejaVu Sans", *(font for font in KOREAN_FONTS if font in installed)]
        step = -(-len(self.tokens) // MAX_LABELS)
        places = range(0, len(self.tokens), step)
        names = [cut_to_width(visible(self.tokens[i]), LABEL_WIDTH).replace("$", r"\$") for i in places]
        image = None
        for axis, head in itertools.zip_longest(axes.flat, chosen):
            if head is None:
                axis.set_visible(False)
                continue
            weights: Any = self.weights[head].tolist()
            rows = [
                [weight if self.sees(i, j) else math.nan for j, weight in enumerate(row)]
                for i, row in enumerate(weights)
            ]
            image = axis.imshow(rows, cmap="cividis", norm=PowerNorm(0.5, 0, 1))
            axis.set_title(f"head {head}")
            axis.set_xticks(places, names, rotation=60, ha="right", fontfamily=fonts, fontsize=8)
            axis.set_yticks(places, names, fontfamily=fonts, fontsize=8)
            axis.set_xlabel("token that is attended to")
            axis.set_ylabel("token that attends")
        figure.colorbar(image, ax=axes, label="weight of attention (each row adds up to 1)")
        figure.suptitle(f"layer {self.layer}, {layer_text(self.attention)}")
        return figure

    def sees(self, i: int, j: int) -> bool:
        """True if token i can attend to token j."""
        window = self.attention.window
        return j <= i and (window is None or j > i - window)


def attention_html(maps: AttentionMaps) -> str:
    """All maps, as a picture; without matplotlib what to install."""
    try:
        figure = maps.plot()
    except ImportError as error:
        return small_html(f"{maps!r}: {error}")
    alt = f"{maps!r}: a map for each head, with a row for each token that attends"
    return draw_figure(figure, alt)._repr_html_()


def attention_maps(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, text: str | Sequence[int], layer: int
) -> AttentionMaps:
    """The attention weights of one layer for a text or ids, which are encoded as they are, without a chat template.

    `layer` counts from 0. Raises ValueError for an unknown layer, an empty text, and a text of more than 512 tokens.
    """
    config = model.config
    check_count("layer", layer, 0, config.num_hidden_layers - 1)
    ids = text_ids(config, tokenizer, text)
    if len(ids) > ATTENTION_TOKENS:
        raise ValueError(f"the text has {len(ids)} tokens; attention weights are shown for at most {ATTENTION_TOKENS}")
    output = model.model.forward(mx.array([ids]), use_cache=False, output_attentions=True)
    assert output.attentions is not None
    weights = output.attentions[layer][0].astype(mx.float32)
    mx.eval(weights)
    return AttentionMaps(tuple(token_text(tokenizer, id) for id in ids), layer, config.layers[layer], weights)
