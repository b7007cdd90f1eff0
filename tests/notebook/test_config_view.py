"""A config is drawn layer by layer."""

from __future__ import annotations

import re

from conftest import TINY
from shown import Page

from exaone4_mlx import Exaone4Config
from exaone4_mlx.notebook.config_view import config_html


def test_a_config_is_drawn_layer_by_layer() -> None:
    config = Exaone4Config.from_dict(TINY | {"num_hidden_layers": 64, "num_attention_heads": 4})
    html = config_html(config)
    letters = re.findall(r">([LG])</span>", html)
    assert "".join(letters[:64]) == "LLLG" * 16 and letters[64:] == ["L", "G"], "then the legend"
    text = Page(html).text
    assert "48 × local: sees the last 7 tokens, RoPE" in text and "16 × global: sees everything, no position" in text
    assert 'title="layer 63, global: sees everything, no position encoding"' in html


def test_a_config_without_windows_is_global_with_rope() -> None:
    text = Page(config_html(Exaone4Config.from_dict(TINY | {"sliding_window": None}))).text
    assert "4 × global: sees everything, RoPE" in text and "local" not in text
