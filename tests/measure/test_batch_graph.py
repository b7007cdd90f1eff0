"""What a batch costs, as counts: nodes, bytes and Python's time of a step, beside single steps and mlx-lm's batch."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import TINY

from exaone4_mlx import Exaone4Config
from exaone4_mlx.measure.batch_graph import batch_bytes
from exaone4_mlx.measure.graph import in_own_process

ROWS = (1, 2, 4, 8, 16)
MODULE = "exaone4_mlx.measure.batch_graph"
ALL, HYBRID = ["full_attention"] * 30, (["sliding_attention"] * 3 + ["full_attention"]) * 16
#: LG's two models: layers, and bytes of their weights in 4 bits with groups of 64.
MODELS = {"1.2B": (ALL, 720e6), "32B": (HYBRID, 18.0e9)}


def config_of(layer_types: list[str]) -> dict[str, Any]:
    window = 4096 if "sliding_attention" in layer_types else None
    given = {"num_hidden_layers": len(layer_types), "layer_types": layer_types, "sliding_window": window}
    return Exaone4Config.from_dict({**TINY, "sliding_window_pattern": None, **given}).to_dict()


def test_a_step_of_several_rows_has_fewer_nodes_than_their_single_steps() -> None:
    config = config_of(["sliding_attention", "full_attention"])
    one, four = (
        in_own_process("count_batch", "exaone4_mlx", config, "float32", True, n, module=MODULE) for n in (1, 4)
    )
    assert four["dispatching"] < 4 * one["dispatching"]
    assert four["dispatching"] - one["dispatching"] <= 3 * 2 * 5 + 3 * 2, (
        "4 kernels for each row and layer, and its token"
    )


def test_bytes_of_a_token_have_a_part_of_the_weights_and_whole_caches() -> None:
    config = Exaone4Config.from_dict(
        {**TINY, "num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": "LLLG"}
    )
    alone, eight = (batch_bytes(config, 8000, rows, 100) for rows in (1, 8))
    assert alone - eight == 7000
    row = batch_bytes(config, 0, 1, 1) / 4
    assert batch_bytes(config, 0, 1, 100) == row * (3 * 8 + 100), "local layers attend to their window"


@pytest.mark.heavy
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_a_batch(name: str, bits: int | None) -> None:
    """Prints the table of docs/measurements.md."""
    pytest.importorskip("mlx_lm")
    config = config_of(MODELS[name][0])
    print(
        f"\n{name}, {bits or 32} bits: rows, dispatching nodes, those of single steps, of mlx-lm, ms of Python, of mlx-lm"
    )
    for rows in ROWS:
        given = config, "float32", bits is not None, rows
        ours, theirs = (
            (
                in_own_process("count_batch", engine, *given, module=MODULE),
                in_own_process("batch_seconds", engine, *given, module=MODULE),
            )
            for engine in ("exaone4_mlx", "mlx-lm")
        )
        if rows == 1:
            single = ours[0]["dispatching"]
        print(
            f"{rows:3} {ours[0]['dispatching']:6} {single * rows:6} {theirs[0]['dispatching']:6}"
            f" {1e3 * ours[1]:7.2f} {1e3 * theirs[1]:7.2f}"
        )
        assert rows == 1 or ours[0]["dispatching"] < single * rows
