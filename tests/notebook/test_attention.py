"""Attention maps are those of the model."""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import pytest
from conftest import random_ids

from exaone4_mlx.notebook import attention_maps
from exaone4_mlx.notebook.attention import attention_html


def test_attention_maps_are_the_weights_of_the_model_within_the_window(unread: Any) -> None:
    model, tokenizer = unread
    ids = random_ids(12)[0].tolist()
    attentions = model.forward(mx.array([ids]), output_attentions=True, use_cache=False).attentions
    for layer in (0, 3):
        maps = attention_maps(model, tokenizer, ids, layer)
        assert maps.weights.shape == (4, 12, 12) and mx.array_equal(maps.weights, attentions[layer][0])
        assert mx.allclose(maps.weights.sum(axis=-1), mx.ones((4, 12)), atol=1e-5)
    local = attention_maps(model, tokenizer, ids, 0)
    assert (
        local.attention.window == 7 and mx.all(local.weights[:, 11, :5] == 0) and mx.all(local.weights[:, 11, 5:] > 0)
    )
    assert repr(local) == "AttentionMaps(layer 0, window 7, 4 heads, 12 tokens)"


@pytest.mark.parametrize(("layer", "ids"), [(4, [5]), (-1, [5]), (True, [5]), (0, [5] * 513)])
def test_invalid_layers_and_long_texts_raise(unread: Any, layer: Any, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layer must be a whole number from 0 to 3|513 tokens; .* at most 512"):
        attention_maps(*unread, ids, layer)


def test_attention_is_plotted_with_names_on_its_axes(unread: Any) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `notebook`")
    maps = attention_maps(*unread, "서울 $x$ Hello", 0)
    figure = maps.plot(heads=[1, 3])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["head 1", "head 3"]
    assert (
        figure.axes[0].get_xlabel() == "token that is attended to"
        and figure.axes[0].get_ylabel() == "token that attends"
    )
    with pytest.raises(ValueError, match="heads must be some of 0 to 3"):
        maps.plot(heads=[4])


def test_attention_is_shown_as_one_picture_with_a_text(unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `notebook`")
    maps = attention_maps(*unread, "서울 <b>$x$", 0)
    html = attention_html(maps)
    assert html.count("data:image/png;base64,") >= 4 and "token that attends" in html
    assert 'aria-label="AttentionMaps(layer 0, window 7, 4 heads' in html and "<b>" not in html
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert "pip install" in attention_html(maps)
