"""Weights that lie side by side are one product, and whatever is done to a module counts from the next call."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_ids, tiny_model
from mlx.optimizers import SGD
from mlx.utils import tree_flatten, tree_map

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.model.layer import Changes, Noting

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}  # whole groups of 32
IDS = random_ids(20)


def apart(model: Any) -> Exaone4ForCausalLM:
    """The same network, its weights copied and never merged."""
    copy = Exaone4ForCausalLM(model.config)
    if any(isinstance(part, nn.QuantizedLinear) for part in model.modules()):
        nn.quantize(copy, 32, 4)
    copy.update(tree_map(lambda array: array + 0, model.parameters()))
    return copy.eval()


def quantized(model: Any, bits: int = 4) -> Any:
    nn.quantize(model, 32, bits)
    model.merge()
    return model


def is_merged(model: Any) -> bool:
    return all(not layer[part].merged.released for layer in model.layers for part in ("self_attn", "mlp"))


@pytest.mark.parametrize(
    "make", [lambda: tiny_model(**WIDE), lambda: quantized(tiny_model(**WIDE))], ids=["floats", "4 bit"]
)
def test_merged_projections_give_the_same(make: Callable[[], Any]) -> None:
    model = make()
    assert is_merged(model)
    other = apart(model)
    assert not is_merged(other)
    assert distance(model(IDS), other(IDS)) < 1e-5
    cache, other_cache = model.make_cache(), other.make_cache()
    for token in IDS[0].tolist():
        a, b = model(mx.array([[token]]), cache), other(mx.array([[token]]), other_cache)
    assert distance(a, b) < 1e-5, "token by token"


def test_merging_costs_no_memory_and_changes_no_parameter() -> None:
    model = tiny_model(hidden_size=256, intermediate_size=512)
    before = {name: array + 0 for name, array in tree_flatten(model.parameters())}
    mx.eval(before)
    model.update(tree_map(lambda array: array + 0, model.parameters()))
    mx.eval(model.parameters())
    mx.clear_cache()
    held = mx.get_active_memory()
    assert not model.layers[0]["mlp"].merged.holds([model.layers[0]["mlp"]["gate_proj"]] * 2)
    model.merge()
    mx.clear_cache()
    assert mx.get_active_memory() <= held + 4096
    for name, array in tree_flatten(model.parameters()):
        assert mx.array_equal(array, before[name]), name


def test_weights_that_were_replaced_are_let_go() -> None:
    """From the next call on: a cast or quantized model does not keep what it was merged from."""
    others = mx.get_active_memory()
    model = tiny_model(hidden_size=256, intermediate_size=512)
    mx.eval(model(IDS))
    before = mx.get_active_memory() - others
    model.set_dtype(mx.bfloat16)
    mx.eval(model(IDS), model.parameters())
    assert mx.get_active_memory() - others < 0.6 * before


def test_a_block_is_freed_with_its_last_name() -> None:
    """And not when garbage is collected: evaluation reads one block after the other."""
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        for _ in range(3):
            block = tiny_model(hidden_size=256, intermediate_size=512).layers[0]
            mx.eval(block(mx.zeros((1, 4, 256)), "causal", None))
            del block
        assert mx.get_active_memory() < before + 1_000_000
    finally:
        gc.enable()


def test_a_layer_is_made_ready_once() -> None:
    """Merged, released, and replaced: what one call made is there for the next."""
    model = tiny_model()
    for change in (lambda model: None, norm_in_place, updated):
        change(model)
        model(IDS)
        ready = [layer.ready() for layer in model.layers]
        model(IDS)
        assert [layer.ready() for layer in model.layers] == ready


def test_merged_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    saved = mx.load(str(tmp_path / "model.safetensors"))
    for name, array in tree_flatten(model.parameters()):
        assert mx.array_equal(array, saved[name]), name


def first_attention(model: Any) -> Any:
    return model.layers[0].self_attn


def assigned(model: Any) -> None:
    first_attention(model).q_proj.weight = first_attention(model).q_proj.weight[::-1]


def multiplied_in_place(model: Any) -> None:
    model.layers[1].mlp.gate_proj.weight *= 2.0


def element_in_place(model: Any) -> None:
    weight = model.layers[0].self_attn.v_proj.weight
    model(IDS)  # between the look and the change
    weight[0:4] = 0.5


def all_gates_in_place(model: Any) -> None:
    for name, part in model.named_modules():
        if name.endswith("gate_proj"):
            part.weight *= 0


def all_key_norms_in_place(model: Any) -> None:
    for name, part in model.named_modules():
        if name.endswith("k_norm"):
            part.weight[2] = 9.0


def given_back(model: Any) -> None:
    parameters = model.parameters()
    parameters["model"]["layers"][0]["mlp"]["gate_proj"]["weight"] *= 0
    model.update(parameters)


def merged_anew(model: Any) -> None:
    model.parameters()["model"]["layers"][0]["mlp"]["gate_proj"]["weight"] *= 0
    model.merge()


def whole_modules_replaced(model: Any) -> None:
    other = tiny_model(seed=5)
    model.layers[1].self_attn, model.layers[2].mlp = other.layers[1].self_attn, other.layers[2].mlp


def norm_in_place(model: Any) -> None:
    model.layers[0].self_attn.k_norm.weight[3] = 7.0


def updated(model: Any) -> None:
    model.update({"model": {"layers": [{"mlp": {"gate_proj": {"weight": mx.ones((48, 32))}}}]}})


def output_in_place(model: Any) -> None:
    model.layers[2].self_attn.o_proj.weight[:] = 0.25


def output_looked_at_and_changed(model: Any) -> None:
    weight = model.layers[2].self_attn.o_proj.weight
    called(model)  # between the look and the change
    weight[:] = 0.25


def output_given_and_changed(model: Any) -> None:
    ours = mx.zeros((32, 64))
    model.layers[2].self_attn.o_proj.weight = ours
    called(model)
    ours[:] = 0.25


def down_of_another_model(model: Any) -> None:
    model.layers[1].mlp.down_proj = tiny_model(seed=5).layers[1]["mlp"]["down_proj"]


def head_norm_given_and_changed(model: Any) -> None:
    ours = mx.ones((16,))
    model.layers[0].self_attn.q_norm.weight = ours
    called(model)
    ours[3] = 7.0


def as_in_a_dict(model: Any) -> None:
    model["model"]["layers"][1]["mlp"]["down_proj"]["weight"] = mx.ones((32, 48))


def block_replaced(model: Any) -> None:
    model.layers[1] = tiny_model(seed=5).layers[1]


def last_norm_in_place(model: Any) -> None:
    model.layers[3].post_feedforward_layernorm.weight *= 3.0


class Adapter(nn.Module):
    """As LoRA puts one around a projection."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + x.sum(axis=-1, keepdims=True)


def adapted(model: Any) -> None:
    for layer in model.layers:
        names = [name for name, part in layer.named_modules() if name.endswith("q_proj")]
        layer.update_modules({"self_attn": {"q_proj": Adapter(layer["self_attn"]["q_proj"])}})
        assert names


@pytest.mark.parametrize("last_layer", ["sliding_attention", "full_attention"])
@pytest.mark.parametrize("before", [0, 5, 30])
def test_of_a_prompt_the_last_layer_makes_one_token(before: int, last_layer: str) -> None:
    """And the same one as ever, whatever it attends to; the caches hold all of them."""
    model = tiny_model(layer_types=["full_attention", "sliding_attention", "sliding_attention", last_layer]).model
    for length in (1, 2, 7, 8, 20):
        ids = random_ids(before + length)
        whole, pieces = model.make_cache(), model.make_cache()
        expected = model(ids, whole)[:, -1:]
        if before:
            model.prefill(ids[:, :before], pieces, before + length)
        found = model.prefill(ids[:, before:], pieces, before + length)
        assert found.shape == expected.shape == (1, 1, 32)
        assert distance(found, expected) < 1e-5, length
        assert distance(model(ids[:, :1], pieces), model(ids[:, :1], whole)) < 1e-5, "what comes after"


CHANGES: dict[str, Callable[[Any], None]] = {
    "assigned": assigned,
    "multiplied in place": multiplied_in_place,
    "an element, in place": element_in_place,
    "a head's norm, in place": norm_in_place,
    "all gates by their names, in place": all_gates_in_place,
    "all norms by their names, in place": all_key_norms_in_place,
    "parameters changed in place and given back": given_back,
    "parameters changed in place and merged": merged_anew,
    "an attention and an MLP of another model": whole_modules_replaced,
    "update": updated,
    "attention's output, in place": output_in_place,
    "attention's output, looked at before": output_looked_at_and_changed,
    "attention's output, given and then changed": output_given_and_changed,
    "a head's norm, given and then changed": head_norm_given_and_changed,
    "an MLP's output, of another model": down_of_another_model,
    "an MLP's output, as in a dict": as_in_a_dict,
    "a whole block": block_replaced,
    "a layer's norm, in place": last_norm_in_place,
    "an adapter": adapted,
}


def called(model: Any) -> mx.array:
    """Logits of a model that was called so often that nothing is made or checked any more."""
    model(IDS)
    model(IDS)
    assert all(layer._layer.checked is Changes.last for layer in model.layers)
    return model(IDS)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_count_from_the_next_call(change: str) -> None:
    model = tiny_model()
    before = called(model)
    CHANGES[change](model)
    after = model(IDS)
    assert distance(before, after) > 1e-2
    fresh = Exaone4ForCausalLM(model.config)
    if change == "an adapter":
        adapted(fresh)
    fresh.update(tree_map(lambda array: array + 0, model.parameters()))
    assert distance(after, fresh.eval()(IDS)) < 1e-4
    model.merge()
    assert distance(after, model(IDS)) < 1e-4, "merged again"


def test_looking_is_all_that_printing_does() -> None:
    model = tiny_model()
    assert "(q_proj): Linear(input_dims=32, output_dims=64, bias=False)" in repr(model)
    mx.eval(model.parameters())
    assert is_merged(model)
    assert model.layers[0].mlp.up_proj.weight is not None
    assert model.layers[0]["mlp"].merged.released and not model.layers[1]["mlp"].merged.released


def test_a_model_can_be_copied_and_pickled() -> None:
    model = tiny_model()
    expected = model(IDS)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert distance(copied(IDS), expected) < 1e-5
        copied.layers[0].mlp.gate_proj.weight *= 0
        assert distance(copied(IDS), expected) > 1e-2
    assert distance(model(IDS), expected) == 0


def test_other_dtypes_and_quantization_count_from_the_next_call() -> None:
    model = tiny_model(**WIDE)
    exact = model(IDS)
    model.set_dtype(mx.bfloat16)
    assert model(IDS).dtype == mx.bfloat16
    model.set_dtype(mx.float32)
    nn.quantize(model, 32, 4)
    rounded = model(IDS)
    assert distance(exact, rounded) > 1e-2
    assert distance(rounded, quantized(model)(IDS)) < 1e-4


def test_projections_of_different_bits_stay_apart() -> None:
    """As recipes make them. Nothing is lost but speed."""
    model = tiny_model(**WIDE)
    nn.quantize(
        model,
        32,
        4,
        class_predicate=lambda name, part: (
            hasattr(part, "to_quantized") and ({"bits": 8, "group_size": 32} if "v_proj" in name else True)
        ),
    )
    before = model(IDS)
    model.merge()
    assert model.layers[0]["self_attn"].merged.released
    assert not model.layers[0]["mlp"].merged.released
    assert distance(before, model(IDS)) < 1e-4


def test_gradients_flow_into_merged_weights_too() -> None:
    model, other = tiny_model(), None
    other = apart(model)
    found = []
    for network in (model, other):
        _, grads = nn.value_and_grad(network, lambda network: network(IDS).square().mean())(network)
        found.append(dict(tree_flatten(grads)))
    for name, grad in found[0].items():
        assert distance(grad, found[1][name]) < 1e-3 * max(1.0, mx.max(mx.abs(grad)).item()), name


def test_a_change_that_is_not_noted_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    before = called(model)
    monkeypatch.setattr(Noting, "__setitem__", dict.__setitem__)
    as_in_a_dict(model)
    assert distance(model(IDS), before) == 0


@pytest.mark.parametrize("captured", [lambda model: model.state, lambda model: [model], lambda model: model.layers[1]])
def test_a_compiled_step_leaves_nothing_behind(captured: Callable[[Any], Any]) -> None:
    """Its placeholders take the weights' places while it is traced."""
    model = tiny_model()
    before = called(model)
    compiled = mx.compile(lambda ids: model(ids), inputs=captured(model))
    for _ in range(3):
        assert distance(compiled(IDS), before) < 1e-5
        assert distance(model(IDS), before) < 1e-5
    as_in_a_dict(model)
    after = model(IDS)
    assert distance(after, before) > 1e-2
    assert distance(compiled(IDS), after) < 1e-5


def test_a_compiled_training_step_trains_merged_weights() -> None:
    """Weights are taken and put back by MLX itself: by `mx.compile`, and by the optimizer."""
    model, optimizer = tiny_model(), SGD(learning_rate=0.1)
    before = called(model)
    state = [model.state, optimizer.state]
    loss = nn.value_and_grad(model, lambda network, ids: network(ids).square().mean())

    def step(ids: mx.array) -> mx.array:
        value, grads = loss(model, ids)
        optimizer.update(model, grads)
        return value

    compiled = mx.compile(step, inputs=state, outputs=state)
    losses = [compiled(IDS).item() for _ in range(4)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 1.01 * losses[-1]
    assert distance(model(IDS), before) > 1e-2
    assert distance(model(IDS), apart(model)(IDS)) < 1e-5
