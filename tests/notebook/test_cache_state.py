"""A drawn cache holds what a real cache holds."""

from __future__ import annotations

import itertools
import re
from typing import Any

import mlx.core as mx
import pytest
from conftest import tiny_model

from exaone4_mlx import Exaone4Config
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.notebook import cache_view, draw_cache


def test_a_drawn_cache_equals_a_real_one() -> None:
    model = tiny_model(max_position_embeddings=1400)
    row = mx.zeros((1, 1, 1, 2))
    local, seen = RotatingKVCache(7), KVCache(1400)
    compactions = []
    for tokens in range(1, 1301):
        used = local.stop
        for cache in (local, seen):
            cache.update(row, row)
        if local.stop <= used:
            compactions.append(tokens - 1)
        drawn, whole = draw_cache(model, tokens).layers
        assert (drawn.layer, whole.layer) == (0, 3)
        assert (drawn.rows, drawn.capacity, drawn.tokens - drawn.attended_from) == (
            local.stop,
            local.rows.capacity,
            local.past,
        ), f"after {tokens} tokens"
        assert list(drawn.compactions) == compactions
        assert (whole.rows, whole.capacity, whole.attended_from) == (tokens, seen.rows.capacity, 0)
    assert len(compactions) == 2
    assert draw_cache(model, compactions[0]).layers[0].next_compaction == compactions[0]
    assert draw_cache(model, compactions[0] + 1).layers[0].next_compaction == compactions[1]


def test_a_drawn_cache_is_described_in_words() -> None:
    config = Exaone4Config(sliding_window=4096, max_position_embeddings=131_072)
    html = cache_view.caches_html(draw_cache(config, 100_000))
    assert "local (L), window 4,096" in html and "global (G)" in html
    assert "Token 100,000 attends to tokens 95,905 to 99,999 and to itself." in html and "forgotten" in html
    assert draw_cache(config, 0, layer=2).layers[0].rows == 0 and "It is empty." in cache_view.caches_html(
        draw_cache(config, 0)
    )
    assert "▼" not in cache_view.caches_html(draw_cache(config, 100, layer=0)), "a legend of marks that are not there"
    for tokens, layer in ((-1, 0), (131_073, 0), (5, 32)):
        with pytest.raises(ValueError, match="must be a whole number from 0 to"):
            draw_cache(config, tokens, layer)


def test_marks_and_names_of_a_drawn_cache_do_not_overlap() -> None:
    config = Exaone4Config(sliding_window=4096, max_position_embeddings=131_072)
    for tokens in range(1, 131_072, 997):
        held = draw_cache(config, tokens, layer=0).layers[0]
        html = cache_view.caches_html(draw_cache(config, tokens, layer=0))
        places = [float(place) for place in re.findall(r'<path d="M([\d.]+) ', html)]
        assert all(after - before >= 10 for before, after in itertools.pairwise(places)), f"after {tokens} tokens"
        assert bool(places) == bool(held.compactions) == ("▼ rows moved to the front" in html)
        for strip in html.split("</svg>"):
            names = re.findall(r'<text x="([\d.]+)" y="13" text-anchor="end"><tspan[^>]*>.</tspan> ([^<]*)', strip)
            ends = sorted((float(right), 6 * len(name)) for right, name in names)
            assert all(right <= after - wide for (right, _), (after, wide) in itertools.pairwise(ends)), strip
    many = draw_cache(config, 100_000, layer=0)
    assert f"the last of {len(many.layers[0].compactions)} times" in cache_view.caches_html(many)


def test_a_buffer_grows_before_its_rows_move() -> None:
    config = Exaone4Config(sliding_window=32, max_position_embeddings=8192)
    (young,) = draw_cache(config, 200, layer=0).layers
    text = cache_view.cache_text(young)
    assert f"first grows to {young.max_rows} rows. They move first before token {young.next_compaction}" in text
    assert "grows" not in cache_view.cache_text(draw_cache(config, 1500, layer=0).layers[0])


@pytest.mark.parametrize("wrong", ["demo", None, 5])
def test_a_cache_is_drawn_of_a_model_or_a_config(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"takes a model, as load\(\) returns it, or an Exaone4Config, not"):
        draw_cache(wrong, 100)
