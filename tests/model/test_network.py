"""The network equals transformers', and every rule that makes it EXAONE 4 is needed for that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, random_ids, tiny_model

from exaone4_mlx import Exaone4Config
from exaone4_mlx.model import layer as layer_module, network
from exaone4_mlx.model.config import LayerAttention
from exaone4_mlx.model.layer import Layer, merge_heads

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "network.json").read_text())
LENGTH, KEPT = GOLDENS["length"], slice(GOLDENS["start"], None, GOLDENS["step"])


def difference(case: str) -> float:
    """How far our logits are from transformers'."""
    golden = GOLDENS["cases"][case]
    model = tiny_model(**golden["config"])
    return distance(model(random_ids(LENGTH))[0, KEPT], mx.array(golden["logits"]))


@pytest.mark.parametrize("case", GOLDENS["cases"])
def test_logits_equal_transformers(case: str) -> None:
    assert mx.max(mx.abs(mx.array(GOLDENS["cases"][case]["logits"]))).item() > 5, "goldens of no scale prove nothing"
    assert difference(case) < 1e-4


def layers_changed(change: Callable[[int, LayerAttention], LayerAttention]) -> Callable[[pytest.MonkeyPatch], None]:
    original = Exaone4Config.layers.fget
    assert original is not None

    def apply(patch: pytest.MonkeyPatch) -> None:
        changed = property(lambda self: tuple(change(i, layer) for i, layer in enumerate(original(self))))
        patch.setattr(Exaone4Config, "layers", changed)

    return apply


def norm_first(self: Any, x: mx.array, *call: Any) -> mx.array:
    layer = Layer.of(self)
    x = x + layer.output(merge_heads(layer.attention(self.post_attention_layernorm(x), *call)))
    return x + layer.down(layer.mlp_hidden(self.post_feedforward_layernorm(x)))


def no_head_norm(patch: pytest.MonkeyPatch) -> None:
    original = mx.fast.rms_norm
    patch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: x if weight is None else original(x, weight, eps))


LOCAL, GLOBAL = LayerAttention(7, True), LayerAttention(None, False)
BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "RoPE on global layers": layers_changed(lambda i, layer: layer._replace(rope=True)),
    "no RoPE on local layers": layers_changed(lambda i, layer: layer._replace(rope=False)),
    "window one smaller": layers_changed(lambda i, layer: layer._replace(window=layer.window and layer.window - 1)),
    "window one larger": layers_changed(lambda i, layer: layer._replace(window=layer.window and layer.window + 1)),
    "pattern shifted": layers_changed(lambda i, layer: GLOBAL if i == 0 else LOCAL),
    "global layer windowed": layers_changed(lambda i, layer: layer._replace(window=7)),
    "llama3 scaling dropped": lambda patch: patch.setattr(
        layer_module,
        "inverse_frequencies",
        lambda rope, size, length: [rope.rope_theta ** (-2 * i / size) for i in range(size // 2)],
    ),
    "norm before instead of after": lambda patch: patch.setattr(network.Block, "__call__", norm_first),
    "query and key norm dropped": no_head_norm,
}


@pytest.mark.parametrize("rule", BROKEN)
def test_breaking_a_rule_is_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[rule](monkeypatch)
    assert difference("hybrid") > 1e-2, f"the goldens do not notice: {rule}"


def test_all_global_model_rotates_every_layer() -> None:
    """Where there is no window at all, no layer goes without positions."""
    model = tiny_model(sliding_window=None)
    assert all(layer.self_attn.spec.rotation is not None for layer in model.layers)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_lower_precision_stays_near_float32(dtype: mx.Dtype) -> None:
    ids = random_ids(40)
    exact, rounded = tiny_model()(ids), tiny_model(dtype=dtype)(ids)
    assert rounded.dtype == dtype
    assert distance(exact, rounded) < 0.5, "rounding alone does not move logits of scale ten this far"


def test_batch_rows_do_not_see_each_other() -> None:
    model, ids = tiny_model(), random_ids(30, batch=3)
    alone = mx.concatenate([model(ids[i : i + 1]) for i in range(3)])
    assert distance(model(ids), alone) < 1e-4


def test_parameters_changed_after_load_count_from_the_next_call() -> None:
    """The modules are the only truth: LoRA, quantization and training rely on it."""
    model, ids = tiny_model(), random_ids(10)
    before = model(ids)
    model.model.layers[0].self_attn.q_proj.weight *= 2.0
    model.model.norm.weight *= 3.0
    assert distance(before * 3.0, model(ids)) < 1e-3, "queries are normalized, so only the last norm may show"
