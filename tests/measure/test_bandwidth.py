"""Bytes of a token are weights, one embedding, and the attended rows."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
import pytest
from conftest import tiny_model

from exaone4_mlx.measure import bandwidth, engines
from exaone4_mlx.model.kv import KVQuantization


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_weights_one_embedding_and_the_rows_attended(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied, sliding_window=7)
    embeddings = 61 * 32 * 4
    read = engines.nbytes(model) - (0 if tied else embeddings) + 32 * 4
    row = 2 * 2 * 16 * 4  # keys and values of two heads
    assert bandwidth.bytes_per_token(model, 0) == read
    assert bandwidth.bytes_per_token(model, 5) == read + 4 * 5 * row, "all four layers see all of five tokens"
    assert bandwidth.bytes_per_token(model, 100) == read + (3 * 7 + 100) * row, "three see their window"


def test_bytes_of_a_token_with_a_quantized_cache() -> None:
    model = tiny_model(head_dim=64, sliding_window=7)
    more = bandwidth.bytes_per_token(model, 100) - bandwidth.bytes_per_token(model, 0)
    packed = bandwidth.bytes_per_token(model, 100, KVQuantization(8, 8, 64, "global")) - bandwidth.bytes_per_token(
        model, 0
    )
    assert more == (3 * 7 + 100) * 2 * 2 * 64 * 4
    assert packed == 3 * 7 * 2 * 2 * 64 * 4 + 100 * 2 * 2 * (64 + 8), "a byte for each number, and scale and bias"


def quantized_tiny() -> Any:
    model = tiny_model(hidden_size=64, intermediate_size=64)
    nn.quantize(model)
    return model


def test_bits_per_weight_count_scales() -> None:
    model = quantized_tiny()
    assert bandwidth.bits_per_weight(model) == pytest.approx(5, abs=0.2), "4, and 2 * 32 for each 64; norms"
