"""Engines do the work that `bench` measures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

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


@pytest.mark.parametrize("q_bits", [None, 4])
def test_mlx_lm_runs_the_same_weights(q_bits: int | None) -> None:
    from exaone4_mlx import load
    from exaone4_mlx.files.folders import DEMO_FOLDER

    ours, _ = load("demo", dtype="float32", q_bits=q_bits)
    theirs = peers.MlxLm(ours, DEMO_FOLDER, 2048, mx.float32)
    ids = mx.array([measurements.random_ids(50, 3072)])
    assert mx.abs(ours(ids) - theirs._model(ids)).max().item() < 1e-3
    assert theirs.weights_bytes == engines.nbytes(ours)
