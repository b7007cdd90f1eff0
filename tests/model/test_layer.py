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
from exaone4_mlx.model.layer import TOGETHER, Changes, Watched

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
    return all(is_one(layer[name]) for layer in model.layers for name in TOGETHER)


def is_one(holder: Any) -> bool:
    """Whether its projections with the same input are one product."""
    names = next(names for names in TOGETHER.values() if names[0] in holder)
    return holder.merged.holds([holder[name] for name in names])


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
    model(IDS)  # between the look and the change
    weight[:] = 0.25


def output_given_and_changed(model: Any) -> None:
    ours = mx.zeros((32, 64))
    model.layers[2].self_attn.o_proj.weight = ours
    model(IDS)
    ours[:] = 0.25


def down_of_another_model(model: Any) -> None:
    model.layers[1].mlp.down_proj = tiny_model(seed=5).layers[1]["mlp"]["down_proj"]


def head_norm_given_and_changed(model: Any) -> None:
    ours = mx.ones((16,))
    model.layers[0].self_attn.q_norm.weight = ours
    model(IDS)
    ours[3] = 7.0


def as_in_a_dict(model: Any) -> None:
    model["model"]["layers"][1]["mlp"]["down_proj"]["weight"] = mx.ones((32, 48))


def given_back_by_its_layer(model: Any) -> None:
    parameters = model.layers[1].parameters()
    parameters["mlp"]["down_proj"]["weight"] *= 0
    model.layers[1].update(parameters)


def given_back_by_what_holds_it(model: Any) -> None:
    holder = nn.Module()
    holder.held = model
    parameters = holder.parameters()
    for part in ("o_proj", "q_proj"):
        parameters["held"]["model"]["layers"][1]["self_attn"][part]["weight"] *= 0
    holder.update(parameters)


def a_plain_module_of_its_weight(model: Any) -> None:
    plain = nn.Linear(48, 32, bias=False)
    plain.weight = model.layers[1]["mlp"]["down_proj"]["weight"]
    model.layers[1].mlp.down_proj = plain
    model(IDS)
    plain.weight *= 0


def bias_added(model: Any) -> None:
    model.layers[1].self_attn.o_proj.bias = mx.ones((32,))


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
    "changed in place and given back to the layer": given_back_by_its_layer,
    "changed in place and given back to what holds the model": given_back_by_what_holds_it,
    "an MLP's output, by a module that nobody watches": a_plain_module_of_its_weight,
    "a bias": bias_added,
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
    if change in ("an adapter", "a bias"):
        CHANGES[change](fresh)
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
    assert not is_one(model.layers[0]["mlp"]) and is_one(model.layers[1]["mlp"])
    assert model.layers[1].mlp.down_proj.weight is not None
    assert is_one(model.layers[1]["mlp"]), "those beside it stay together"


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
    assert not is_one(model.layers[0]["self_attn"]) and is_one(model.layers[0]["mlp"])
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
    monkeypatch.setattr(Watched, "__setitem__", dict.__setitem__)
    as_in_a_dict(model)
    assert distance(model(IDS), before) == 0


def test_what_one_model_does_is_checked_once_by_another() -> None:
    model, other = tiny_model(), tiny_model(seed=5)
    called(model)
    for _ in range(2):  # only the first look is news
        assert other.layers[0].mlp.up_proj.weight is not None
        other(IDS)
        called(model)


def test_a_projection_alone_takes_nothing_else_along() -> None:
    model = tiny_model()
    called(model)
    output = model.layers[0]["self_attn"]["o_proj"]
    assert len(pickle.dumps(output)) < 1.5 * output["weight"].nbytes


def test_a_block_may_stand_twice() -> None:
    model = tiny_model(layer_types=["full_attention"] * 4)
    model.model.layers[1] = model.model.layers[3]
    cache = model.make_cache()
    assert distance(model.model.prefill(IDS, cache, 20), model.model(IDS)[:, -1:]) < 1e-4
    assert [one.offset for one in cache] == [20] * 4


@pytest.mark.parametrize("count", [3, 5])
def test_a_cache_of_another_depth_is_refused_before_anything_is_written(count: int) -> None:
    model = tiny_model()
    cache = (model.make_cache() + model.make_cache())[:count]
    with pytest.raises(ValueError, match=f"cache has {count} layers, and the model 4"):
        model(IDS, cache)
    assert all(one.offset == 0 for one in cache)


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


PARTS: dict[str, Callable[[Any], Any]] = {
    "all": lambda model: model,
    "a layer": lambda model: model.layers[3],
    "an MLP": lambda model: model.layers[3]["mlp"],
    "an attention": lambda model: model.layers[3]["self_attn"],
    "queries": lambda model: model.layers[3]["self_attn"]["q_proj"],
    "an attention's output": lambda model: model.layers[3]["self_attn"]["o_proj"],
    "a head's norm": lambda model: model.layers[3]["self_attn"]["k_norm"],
    "a layer's norm": lambda model: model.layers[3]["post_feedforward_layernorm"],
}


@pytest.mark.parametrize("by", ["the model", "the part"])
@pytest.mark.parametrize("part", PARTS)
def test_compiled_training_counts_between_its_steps(part: str, by: str) -> None:
    """Weights are taken and put back by MLX itself: by `mx.compile`, and by the optimizer."""
    model, optimizer = tiny_model(), SGD(learning_rate=0.1)
    trained = PARTS[part](model)
    model.freeze()
    trained.unfreeze()
    taught = model if by == "the model" else trained
    loss = nn.value_and_grad(taught, lambda *_: model(IDS).square().mean())
    state = [trained.state, optimizer.state]

    def step() -> mx.array:
        value, grads = loss(taught)
        optimizer.update(taught, grads)
        return value

    compiled = mx.compile(step, inputs=state, outputs=state)
    seen = [called(model)]
    for _ in range(4):
        mx.eval(compiled())
        for _ in range(3):  # no reference is made in between: that would be noted
            logits = model(IDS)
        mx.eval(logits)
        seen.append(logits)
        assert distance(seen[-2], logits) > 1e-5
    assert distance(logits, apart(model)(IDS)) < 1e-4
