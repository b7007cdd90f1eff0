"""Engines do the work that `bench` measures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import tiny_model

from exaone4_mlx.measure import engines, measurements, peers
from exaone4_mlx.model.kv import KVQuantization


def test_count_tokens_are_made_after_one() -> None:
    tokens = itertools.count()
    assert engines.seconds_of(tokens, 7) >= 0
    assert next(tokens) == 8


def test_ours_reads_and_decodes(unread: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    made: list[int] = []

    class Counted(engines.TokenStream):
        def __next__(self) -> int:
            made.append(super().__next__())
            return made[-1]

    monkeypatch.setattr(engines, "TokenStream", Counted)
    ours = engines.Ours(*unread, tmp_path, 16)
    assert ours.weights_bytes == engines.nbytes(unread[0])
    assert ours.prefill(range(40)) > 0
    assert ours.decode(range(10), 3) > 0
    assert len(made) == 4
    assert ours.build() > 0
    assert len(ours.conversation(["12", "7"])) == 2


def test_ours_quantizes_caches(demo: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    kinds = []
    make_cache = type(demo[0]).make_cache
    monkeypatch.setattr(type(demo[0]), "make_cache", lambda self, kv=None: kinds.append(kv) or make_cache(self, kv))
    kv = KVQuantization(8, 8, 64, "all")
    ours = engines.Ours(*demo, tmp_path, 16, kv)
    ours.prefill(range(10))
    ours.decode(range(10), 2)
    ours.conversation(["12"])
    assert kinds[:2] == [kv, kv] and set(kinds[2:]) == {kv}


@pytest.mark.heavy
@pytest.mark.parametrize("q_bits", [None, 4])
def test_mlx_lm_runs_the_same_weights(q_bits: int | None) -> None:
    from exaone4_mlx import load
    from exaone4_mlx.files.folders import DEMO_FOLDER

    ours, _ = load("demo", dtype="float32", q_bits=q_bits)
    theirs = peers.MlxLm(ours, DEMO_FOLDER, 2048, mx.float32)
    ids = mx.array([measurements.random_ids(50, 3072)])
    assert mx.abs(ours(ids) - theirs._model(ids)).max().item() < 1e-3
    assert theirs.weights_bytes == engines.nbytes(ours)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_weights_one_embedding_and_the_rows_attended(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied, sliding_window=7)
    embeddings = 61 * 32 * 4
    read = engines.nbytes(model) - (0 if tied else embeddings) + 32 * 4
    row = 2 * 2 * 16 * 4  # keys and values of two heads
    assert engines.bytes_per_token(model, 0) == read
    assert engines.bytes_per_token(model, 5) == read + 4 * 5 * row, "all four layers see all of five tokens"
    assert engines.bytes_per_token(model, 100) == read + (3 * 7 + 100) * row, "three see their window"


def test_bytes_of_a_token_with_a_quantized_cache() -> None:
    model = tiny_model(head_dim=64, sliding_window=7)
    more = engines.bytes_per_token(model, 100) - engines.bytes_per_token(model, 0)
    packed = engines.bytes_per_token(model, 100, KVQuantization(8, 8, 64, "global")) - engines.bytes_per_token(model, 0)
    assert more == (3 * 7 + 100) * 2 * 2 * 64 * 4
    assert packed == 3 * 7 * 2 * 2 * 64 * 4 + 100 * 2 * 2 * (64 + 8), "a byte for each number, and scale and bias"


def quantized_tiny() -> Any:
    model = tiny_model(hidden_size=64, intermediate_size=64)
    nn.quantize(model)
    return model


def test_bits_per_weight_count_scales() -> None:
    model = quantized_tiny()
    assert engines.bits_per_weight(model) == pytest.approx(5, abs=0.2), "4, and 2 * 32 for each 64; norms"
