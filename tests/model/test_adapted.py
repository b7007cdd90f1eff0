"""Adapters on a model compute what mlx-lm and PEFT compute with them, in every form, and can be taken off."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from adapters import random_adapter
from conftest import distance, greedy_tokens, mostly_heavy, random_ids, tiny_model
from mlx.utils import tree_flatten, tree_unflatten

from exaone4_mlx.model.adapted import adapted_bytes
from exaone4_mlx.model.adapter import KEYS, Adapter, AdapterConfig, adapted_rows
from exaone4_mlx.model.adapter_file import write_adapter
from exaone4_mlx.model.products import AdaptedLinear

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "rope_parameters": {"rope_theta": 10_000.0}}
IDS = random_ids(20)
BITS = [None, 3, 4, 5, 6, 8]


def wide_model(bits: int | None = None, **changes: Any) -> Any:
    model = tiny_model(**WIDE | changes)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    return model


def adapter_for(model: Any, kind: str = "lora", **changes: Any) -> Adapter:
    return random_adapter(kind, model.config, **changes)


def fused_into(model: Any, *given: tuple[Adapter, float]) -> Any:
    """A model in full precision, with the adapters added into its weights."""
    other = copy.deepcopy(model)
    for name, module in other.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            linear = nn.Linear(1, 1, bias=False)
            linear.weight = mx.dequantize(
                module.weight, module.scales, module.biases, module.group_size, module.bits
            ).astype(mx.float32)
            other.update_modules(tree_unflatten([(name, linear)]))
    weights = [(name, adapted_rows(given, name, array)) for name, array in tree_flatten(other.parameters())]
    other.update(tree_unflatten(weights))
    return other


def step(model: Any, ids: mx.array = IDS) -> mx.array:
    """The logits of the fused form, one token at a time."""
    cache, fused = model.make_cache(), model.fused()
    return mx.concatenate([fused(ids[:, i : i + 1], cache) for i in range(ids.shape[1])], axis=1)


@pytest.mark.parametrize("bits", mostly_heavy(BITS, 3))
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_modules_and_the_fused_form_equal_fused_weights(kind: str, bits: int | None) -> None:
    """Among them DoRA of 3, 5 and 6 bits, where mlx-lm's DoRA fails."""
    model = wide_model(bits)
    before, adapter = model(IDS), adapter_for(model, kind)
    exact = fused_into(model, (adapter, 1.0))(IDS)
    model.set_adapters(adapter)
    assert distance(exact, before) > 0.5, "the adapter changes nothing"
    assert distance(model(IDS), exact) < 1e-4
    assert distance(step(model), exact) < 1e-4
    whole = model.fused()(IDS, model.make_cache())
    assert distance(whole, exact) < 1e-4
    last = model.fused().logits(model.fused().prefill(IDS, model.make_cache(), 20))
    assert distance(last, exact[:, -1:]) < 1e-4, "the last layer of a prompt"
    assert greedy_tokens(model, IDS[0].tolist(), 20) == greedy_tokens(model.fused(), IDS[0].tolist(), 20)


@pytest.mark.parametrize(
    "keys", [("self_attn.v_proj",), ("mlp.gate_proj", "self_attn.q_proj"), ("self_attn.o_proj", "lm_head")]
)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_some_projections_of_a_joint_product_have_adapters(kind: str, keys: tuple[str, ...]) -> None:
    model = wide_model(4)
    adapter = adapter_for(model, kind, keys=keys, num_layers=2)
    exact = fused_into(model, (adapter, 1.0))(IDS)
    model.set_adapters(adapter)
    assert distance(model(IDS), exact) < 1e-4
    assert distance(step(model), exact) < 1e-4


def test_several_adapters_add_up_with_their_scales() -> None:
    model = wide_model(4)
    given = [(adapter_for(model, "lora"), 0.5), (adapter_for(model, "dora", rank=2, seed=1), -0.25)]
    exact = fused_into(model, *given)(IDS)
    model.set_adapters([adapter for adapter, _ in given], [scale for _, scale in given])
    assert distance(model(IDS), exact) < 1e-4
    assert distance(step(model), exact) < 1e-4
    assert [scale for _, scale in model.adapters] == [0.5, -0.25]
    model.set_adapters([adapter for adapter, _ in given], 0.0)
    assert distance(step(model), wide_model(4)(IDS)) < 1e-4, "with scale 0 an adapter changes nothing"


@pytest.mark.parametrize("bits", [None, 4])
def test_adapters_are_swapped_and_taken_off(bits: int | None) -> None:
    model = wide_model(bits)
    names = [name for name, _ in tree_flatten(model.parameters())]
    plain, logits, joint = step(model), {}, model.fused()._bare[0][1]
    for seed in (1, 2, 1):
        model.set_adapters(adapter_for(model, seed=seed))
        found = step(model)
        assert distance(found, logits.setdefault(seed, found)) == 0
    assert distance(logits[1], logits[2]) > 0.1
    assert model.fused()._bare[0][1] is joint, "the weights of the model are not joined again"
    model.set_adapters()
    assert model.adapters == () and distance(step(model), plain) == 0
    assert [name for name, _ in tree_flatten(model.parameters())] == names


def test_whole_weights_replace_those_of_the_model_until_they_are_taken_off() -> None:
    model = wide_model()
    plain, names = step(model), ("model.layers.3.mlp.up_proj.weight", "model.norm.weight")
    parameters = dict(tree_flatten(model.parameters()))
    full = Adapter(AdapterConfig("full"), {name: parameters[name] * 1.5 for name in names})
    exact = fused_into(model, (full, 0.5))(IDS)
    model.set_adapters(full, 0.5)
    assert distance(model(IDS), exact) < 1e-4 and distance(step(model), exact) < 1e-4
    assert distance(exact, plain) > 0.1
    model.set_adapters(adapter_for(model))
    model.set_adapters()
    assert distance(step(model), plain) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: adapter_for(wide_model(hidden_size=32)), r"lora_a has shape \(32, 3\), .* needs \(64, 3\)"),
        (lambda model: adapter_for(wide_model(num_hidden_layers=5)), "has model.layers.4.self_attn.q_proj.lora_a, which"),
        (lambda model: Adapter(AdapterConfig("full"), {"model.x": mx.ones(3)}), "has model.x, which this model does not"),
        (
            lambda model: Adapter(AdapterConfig("full"), {"lm_head.weight": mx.ones((61, 64))}),
            r"lm_head.weight has shape \(61, 64\), and in this model \(61, 8\) of .*: whole weights need the model",
        ),
        (
            lambda model: [Adapter(AdapterConfig("full"), {"model.norm.weight": mx.ones(64)}), adapter_for(model)],
            "has whole weights: it cannot be combined with another adapter",
        ),
    ],
)  # fmt: skip
def test_an_adapter_for_another_model_is_refused_and_the_model_stays(make: Callable[[Any], Any], message: str) -> None:
    model = wide_model(4)
    model.set_adapters(adapter_for(model))
    before, active = step(model), model.adapters
    with pytest.raises(ValueError, match=message):
        model.set_adapters(make(model))
    assert model.adapters is active and distance(step(model), before) == 0


def test_wrong_scales_are_named() -> None:
    model = wide_model()
    with pytest.raises(ValueError, match="there are 1 adapters and 2 scales"):
        model.set_adapters(adapter_for(model), [1.0, 2.0])
    with pytest.raises(ValueError, match="the scale of the adapter must be a number, not '1'"):
        model.set_adapters(adapter_for(model), "1")  # type: ignore[arg-type]


@pytest.mark.heavy
def test_layers_of_a_trainer_must_be_taken_off_first() -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = wide_model()
    linear_to_lora_layers(model, 1, {"rank": 2, "scale": 4.0, "dropout": 0.0})
    with pytest.raises(ValueError, match=r"model.layers.3.* is a LoRALinear; take its adapter off first"):
        model.set_adapters(adapter_for(model))


def test_a_model_with_adapters_is_not_saved_as_a_checkpoint(tmp_path: Path) -> None:
    model = wide_model()
    model.set_adapters(adapter_for(model))
    with pytest.raises(ValueError, match="is a AdaptedLinear, not a layer of Exaone4ForCausalLM: fuse it first"):
        model.save_pretrained(tmp_path)
    again = copy.deepcopy(model)
    assert distance(again(IDS), model(IDS)) == 0 and again.adapters[0][0].config == model.adapters[0][0].config
    again.set_adapters()
    assert not any(isinstance(module, AdaptedLinear) for module in again.modules())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_layers_compute_in_the_dtype_of_the_model(dtype: mx.Dtype) -> None:
    model = wide_model(4)
    model.set_dtype(dtype)
    model.set_adapters(adapter_for(model, "dora"))
    assert model(IDS).dtype == step(model).dtype == dtype


@pytest.mark.parametrize("layout", ["mlx-lm", "peft"])
def test_folders_are_put_on_by_their_path(tmp_path: Path, layout: str) -> None:
    model, adapter = wide_model(), adapter_for(wide_model(), "dora")
    write_adapter(tmp_path, adapter, layout)
    model.set_adapters(adapter)
    exact = step(model)
    model.set_adapters(str(tmp_path))
    assert distance(step(model), exact) == 0
    assert model.adapters[0][0].name == str(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("keys", [KEYS, ("self_attn.k_proj", "mlp.up_proj", "lm_head")])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_bytes_of_adapters_are_those_that_they_take(
    kind: str, count: int, keys: tuple[str, ...], dtype: mx.Dtype
) -> None:
    model = wide_model(num_hidden_layers=4, tie_word_embeddings=False)
    model.set_dtype(dtype)
    mx.eval(model.fused().parameters)

    def used() -> int:
        gc.collect()
        mx.synchronize()
        mx.clear_cache()  # a cached buffer may be larger than the array that it is reused for
        return mx.get_active_memory()

    before = used()
    given = [adapter_for(model, kind, seed=seed, rank=16, keys=keys) for seed in range(count)]
    mx.eval([adapter.arrays for adapter in given])
    model.set_adapters(given)
    model.fused()
    counted = adapted_bytes([(adapter, 1.0) for adapter in given], model.config, dtype.size)
    taken = used() - before
    assert 0.95 * taken <= counted <= 1.4 * taken
