"""Nodes are counted as a GPU runs them, and Python's share is that of whole steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import TINY, tiny_model

from exaone4_mlx.measure import engines, graph


def their_nodes(pattern: str | None, layers: int, bits: int | None = 4) -> int:
    """Dispatching nodes of a step of mlx-lm's own model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells that there is no torch
        exaone4 = pytest.importorskip("mlx_lm.models.exaone4")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "sliding_window": 64 if pattern else None}
    rope = {"rope_theta": 1e4, "rope_scaling": None, "sliding_window_pattern": pattern}
    model = exaone4.Model(exaone4.ModelArgs.from_dict(TINY | sizes | rope | {"num_hidden_layers": layers}))
    if bits:
        nn.quantize(model, 64, bits)
    mx.eval(model.parameters())
    with graph.one_node_each():
        return graph.dispatching(graph.step_nodes(model, model.make_cache()))


@pytest.mark.heavy
def test_mlx_lm_has_19_nodes_in_a_rope_layer_and_17_in_a_global_one() -> None:
    """Counted on Metal's op list by hand: 7 products, 4 norms, 2 rotations, 2 cache writes, attention, 2 sums, SwiGLU."""
    least, rope, plain = (their_nodes(pattern, len(pattern)) for pattern in ("LG", "LLG", "LGG"))
    assert rope - least == 19
    assert plain - least == 17, "a global layer of a hybrid does not rotate"
    assert their_nodes(None, 2) - their_nodes(None, 1) == 19
    assert their_nodes(None, 2, None) - their_nodes(None, 1, None) == 19, "products in full precision count alike"


def test_without_replacements_the_count_is_that_of_the_cpu() -> None:
    model = tiny_model(sliding_window=64)
    plain = graph.step_nodes(model, model.make_cache())
    with graph.one_node_each():
        assert graph.step_nodes(model, model.make_cache()).total() < plain.total()


def test_the_step_alone_is_counted() -> None:
    def three_nodes(ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """A cast, a square and a product, beside the views."""
        return mx.square(ids.astype(mx.float32))[..., None] * mx.array([1.0, 2.0])

    counted = graph.step_nodes(three_nodes, [])
    assert graph.dispatching(counted) == 4, f"the token's choice is the fourth: {counted}"
    assert counted.total() > 4


def test_replacements_have_the_shapes_of_the_originals_and_are_removed() -> None:
    x, packed = mx.ones((2, 3, 64)), mx.quantize(mx.ones((128, 64)), 64, 4)

    def shapes() -> list[tuple[int, ...]]:
        return [
            mx.fast.rms_norm(x, None, 1e-5).shape,
            mx.fast.rope(x, 64, traditional=False, base=1e4, scale=1.0, offset=3).shape,
            mx.quantized_matmul(x, *packed, transpose=True, group_size=64, bits=4).shape,
            mx.quantized_matmul(mx.ones((2, 128)), *packed, transpose=False, group_size=64, bits=4).shape,
            mx.dequantize(*packed, group_size=64, bits=4).shape,
        ]

    real, rms_norm = shapes(), mx.fast.rms_norm
    with graph.one_node_each():
        assert shapes() == real
        assert mx.fast.rms_norm is not rms_norm
    assert mx.fast.rms_norm is rms_norm


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize(
    ("engine", "rope", "plain"), [("exaone4_mlx", 15, 14), pytest.param("mlx-lm", 19, 17, marks=pytest.mark.heavy)]
)
def test_a_layer_has_15_nodes_with_rope_and_14_without(engine: str, rope: int, plain: int, is_quantized: bool) -> None:
    """For one token. mlx-lm has 19 and 17."""
    counts = graph.in_own_process("count_nodes", engine, tiny_model().config.to_dict(), "float32", is_quantized)
    assert counts["dispatching nodes of a RoPE layer"] == rope
    assert counts["dispatching nodes of a global layer"] == plain


@pytest.mark.parametrize(
    ("engine", "kind", "rope"),
    [
        ("exaone4_mlx", "lora", 15 + 4 * 2),
        ("exaone4_mlx", "dora", 15 + 4 * 3),
        pytest.param("mlx-lm", "lora", 19 + 7 * 4, marks=pytest.mark.heavy),
        pytest.param("mlx-lm", "dora", 19 + 7 * 13, marks=pytest.mark.heavy),
    ],
)
def test_an_adapter_adds_two_thin_products_to_each_of_four(engine: str, kind: str, rope: int) -> None:
    """A product and one that adds to the base's; DoRA's gain is a third node."""
    counts = graph.in_own_process("count_nodes", engine, tiny_model().config.to_dict(), "float32", True, kind)
    assert counts["dispatching nodes of a RoPE layer"] == rope


@pytest.mark.parametrize("is_quantized", [False, True])
def test_pythons_share_is_that_of_whole_steps_without_evaluation(is_quantized: bool, monkeypatch: Any) -> None:
    steps, argmax, rms_norm = [], mx.argmax, mx.fast.rms_norm
    monkeypatch.setattr(mx, "argmax", lambda logits, axis: steps.append(logits.shape) or argmax(logits, axis=axis))
    config = tiny_model(head_dim=64).config.to_dict()
    seconds = graph.host_seconds(["exaone4_mlx"], config, "float32", is_quantized, None, 2)["exaone4_mlx"]
    assert len(seconds) == 2 and min(seconds) > 0
    assert steps == [(1, 128)] * 3 * engines.BUILT_STEPS, "a round for warming up"
    assert mx.fast.rms_norm is rms_norm
