"""The fused form computes what the modules compute, notices replaced weights, and takes no more memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, in_a_thread, mostly_heavy, random_ids, tiny_model
from mlx.optimizers import SGD
from mlx.utils import tree_flatten, tree_map

from exaone4_mlx.model.cache import make_caches
from exaone4_mlx.model.layer import swiglu

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}  # whole groups of 32
IDS = random_ids(20)


def step(model: Any, form: Any, ids: mx.array = IDS) -> mx.array:
    """Logits of `ids`, one token at a time."""
    cache = model.make_cache()
    return mx.concatenate([form(ids[:, i : i + 1], cache) for i in range(ids.shape[1])], axis=1)


def differences(model: Any) -> dict[str, float]:
    """How far the fused form is from the modules, by what it runs."""
    fused, exact = model.fused(), model(IDS)
    found = {
        "whole": distance(fused(IDS, model.make_cache()), exact),
        "token by token": distance(step(model, fused), exact),
    }
    for size in (3, 8):  # compiled functions for several tokens
        cache = model.make_cache()
        parts = [fused(IDS[:, i : i + size], cache) for i in range(0, 20, size)]
        found[f"{size} tokens"] = distance(mx.concatenate(parts, axis=1), exact)
    last = fused.logits(fused.prefill(IDS, model.make_cache(), 20))
    return found | {"prefill": distance(last, exact[:, -1:])}


def is_close(model: Any) -> bool:
    return all(difference < 1e-4 for difference in differences(model).values())


def quantized(model: Any, **bits: int) -> Any:
    """In 4 bits, but for the projections in `bits`."""

    def choose(name: str, module: Any) -> Any:
        return hasattr(module, "to_quantized") and {"group_size": 32, "bits": bits.get(name.rsplit(".")[-1], 4)}

    nn.quantize(model, class_predicate=choose)
    return model


def biased(model: Any) -> Any:
    for layer in model.layers:
        layer.self_attn.k_proj.bias = mx.arange(64) / 10
        layer.mlp.down_proj.bias = mx.ones((64,))
    return model


def adapted(model: Any) -> Any:
    """LoRA adapters of mlx-lm, which change something, in training mode as its trainer leaves them."""
    from mlx_lm.tuner.utils import linear_to_lora_layers  # takes over a second

    linear_to_lora_layers(model, 3, {"rank": 2, "scale": 4.0, "dropout": 0.0})
    for name, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    return model


KINDS: dict[str, Callable[[], Any]] = {
    "floats": lambda: tiny_model(**WIDE),
    "4 bits": lambda: quantized(tiny_model(**WIDE)),
    "mixed bits": lambda: quantized(tiny_model(**WIDE), v_proj=8, up_proj=8),
    "biases": lambda: biased(tiny_model(**WIDE)),
    "LoRA": lambda: adapted(tiny_model(**WIDE)),
    "LoRA on 4 bits": lambda: adapted(quantized(tiny_model(**WIDE))),
    "tied": lambda: quantized(tiny_model(**WIDE, tie_word_embeddings=True)),
    "all global": lambda: tiny_model(**WIDE, sliding_window=None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_form_equals_the_modules(kind: str) -> None:
    model = KINDS[kind]()
    exact = model(IDS)
    assert is_close(model), differences(model)
    assert distance(model(IDS), exact) < 1e-5, "fusing changed the modules"


def test_fused_form_of_a_batch_equals_the_modules() -> None:
    model, ids = tiny_model(), random_ids(20, batch=3)
    assert distance(step(model, model.fused(), ids), model(ids)) < 1e-4


def scaled(model: Any) -> None:
    model.layers[1].mlp.gate_proj.weight = model.layers[1].mlp.gate_proj.weight * 2


def updated(model: Any) -> None:
    model.update({"model": {"layers": [{"mlp": {"down_proj": {"weight": mx.ones((64, 128))}}}]}})


def norm_replaced(model: Any) -> None:
    model.layers[0].self_attn.k_norm.weight = mx.arange(32) / 8


def trained(model: Any) -> None:
    _, grads = nn.value_and_grad(model, lambda network: network(IDS).square().mean())(model)
    SGD(learning_rate=0.1).update(model, grads)


def embedding_replaced(model: Any) -> None:
    model.model.embed_tokens.weight = model.model.embed_tokens.weight[::-1]


def modules_replaced(model: Any) -> None:
    other = tiny_model(seed=5, **WIDE)
    model.layers[1], model.layers[2].mlp = other.layers[1], other.layers[2].mlp


CHANGES = [scaled, updated, norm_replaced, trained, embedding_replaced, modules_replaced, quantized, biased, adapted]


@pytest.mark.parametrize("change", mostly_heavy(CHANGES, 5))
def test_replaced_weights_count_from_the_next_fused_form(change: Callable[[Any], Any]) -> None:
    model = tiny_model(**WIDE)
    before = model.fused()
    logits = step(model, before)
    assert model.fused() is before, "nothing was replaced"
    change(model)
    assert distance(step(model, before), logits) == 0, "a fused form does not change"
    assert model.fused() is not before and distance(step(model, model.fused()), logits) > 1e-2
    assert is_close(model), differences(model)


def test_an_in_place_write_needs_refresh() -> None:
    model = tiny_model(**WIDE)
    before = step(model, model.fused())
    model.layers[1].mlp.gate_proj.weight *= 2
    model.layers[0].self_attn.o_proj.weight[:] = 0.25
    assert distance(step(model, model.fused()), before) == 0
    model.fused(refresh=True)
    assert distance(step(model, model.fused()), before) > 1e-2 and is_close(model)


def test_unchanged_layers_are_kept() -> None:
    model = tiny_model(**WIDE)
    before = model.fused().layers
    scaled(model)
    assert [a is b for a, b in zip(before, model.fused().layers, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("change", [lambda model: None, quantized])
def test_fusing_takes_no_memory(change: Callable[[Any], Any]) -> None:
    model = tiny_model(hidden_size=256, intermediate_size=512)
    mx.eval(model.parameters())  # tests share these weights
    others = mx.get_active_memory()
    change(model)
    model.update(tree_map(lambda array: array + 0, model.parameters()))
    mx.eval(model.parameters())
    held = mx.get_active_memory() - others
    mx.eval(step(model, model.fused()))
    assert mx.get_active_memory() - others < held + 50_000
    model.set_dtype(mx.bfloat16)
    model.fused()
    mx.eval(model.parameters())
    mx.synchronize()
    assert mx.get_active_memory() - others < (0.6 if change is not quantized else 1) * held + 50_000, (
        "old weights are kept"
    )


def test_another_thread_can_read_the_parameters_while_a_model_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second chat evaluates them. An array that is lazy can be evaluated by the thread that made it only."""
    model, update = tiny_model(), nn.Module.update

    def updated(module: Any, parameters: Any, *args: Any, **options: Any) -> Any:
        in_a_thread(lambda: mx.eval(parameters))
        return update(module, parameters, *args, **options)

    mx.eval(model.parameters())
    monkeypatch.setattr(nn.Module, "update", updated)
    model.fused()


def test_compiled_functions_of_every_thread_are_freed_with_the_model() -> None:
    """MLX frees a compiled graph only in the thread that ran it last: each thread must compile its own."""

    def use() -> None:
        model = tiny_model(hidden_size=256, intermediate_size=512)
        exact = model(IDS)
        mx.eval(model.fused().parameters, exact)
        for _ in range(2):
            assert distance(step(model, model.fused()), exact) < 1e-3
            assert in_a_thread(lambda: distance(step(model, model.fused()), exact)) < 1e-3

    use()
    before = mx.get_active_memory()
    for _ in range(2):
        use()
        assert mx.get_active_memory() < before + 100_000


def test_parameters_keep_names_and_values_and_are_saved(tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: array + 0 for name, array in tree_flatten(model.parameters())}
    model.fused()
    model.save_pretrained(tmp_path)
    saved = mx.load(str(tmp_path / "model.safetensors"))
    now = dict(tree_flatten(model.parameters()))
    assert saved.keys() == now.keys() == before.keys()
    for name, array in before.items():
        assert mx.array_equal(array, now[name]) and mx.array_equal(array, saved[name]), name


def test_a_model_can_be_copied_and_pickled() -> None:
    model = tiny_model(**WIDE)
    expected = step(model, model.fused())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        scaled(copied)
        assert distance(step(copied, copied.fused()), expected) > 1e-2
    assert distance(step(model, model.fused()), expected) == 0


def test_gradients_and_compiled_training_use_the_modules() -> None:
    """Also after the model was fused: its weights are slices then."""
    model, other = tiny_model(), tiny_model()
    model.fused()
    found = []
    for network in (model, other):
        _, grads = nn.value_and_grad(network, lambda network: network(IDS).square().mean())(network)
        found.append(dict(tree_flatten(grads)))
    for name, grad in found[0].items():
        assert distance(grad, found[1][name]) < 1e-3 * max(1.0, mx.max(mx.abs(grad)).item()), name
    optimizer = SGD(learning_rate=0.01)
    loss = nn.value_and_grad(model, lambda network: network(IDS).square().mean())
    state = [model.state, optimizer.state]

    def train() -> mx.array:
        value, grads = loss(model)
        optimizer.update(model, grads)
        return value

    compiled = mx.compile(train, inputs=state, outputs=state)
    for _ in range(3):
        before = model(IDS)
        mx.eval(compiled(), model.parameters())
        assert distance(model(IDS), before) > 1e-6
        assert distance(step(model, model.fused()), model(IDS)) < 1e-3


@pytest.mark.parametrize("last_layer", ["sliding_attention", "full_attention"])
@pytest.mark.parametrize("before", [0, 5, 30])
def test_prefill_computes_the_last_token_and_caches_all(before: int, last_layer: str) -> None:
    model = tiny_model(layer_types=["full_attention", "sliding_attention", "sliding_attention", last_layer]).model
    for length in (1, 2, 7, 8, 20):
        ids = random_ids(before + length)
        whole, chunks = model.make_cache(), model.make_cache()
        expected = model(ids, whole)[:, -1:]
        if before:
            model.prefill(ids[:, :before], chunks, before + length)
        found = model.prefill(ids[:, before:], chunks, before + length)
        assert found.shape == expected.shape == (1, 1, 32)
        assert distance(found, expected) < 1e-5, length
        assert distance(model(ids[:, :1], chunks), model(ids[:, :1], whole)) < 1e-5, "the next token"


@pytest.mark.parametrize("count", [3, 5])
def test_caches_of_another_depth_are_refused_before_anything_is_written(count: int) -> None:
    model = tiny_model()
    for form in (model, model.fused()):
        cache = (model.make_cache() + model.make_cache())[:count]
        with pytest.raises(ValueError, match=f"cache has {count} layers, and the model 4"):
            form(IDS[:, :1], cache)
        assert all(one.offset == 0 for one in cache)


def test_tokens_of_several_conversations_pass_a_layer_as_rows() -> None:
    """`before` and `after` take a position for each token, so that a batch attends row by row between them."""
    model = tiny_model(sliding_window=None)
    layer, offsets = model.fused().layers[1], [3, 11, 1]
    x = mx.random.normal((3, 1, 32), key=mx.random.key(0))
    queries, keys, values = layer.before(x, mx.array(offsets))
    for row, offset in enumerate(offsets):
        alone = layer.before(x[row : row + 1], offset)
        assert all(distance(a[row : row + 1], b) < 1e-5 for a, b in zip((queries, keys, values), alone, strict=True))
        attended = layer.attention(x[row : row + 1], None, cache_at(offset))
        assert distance(layer.after(x[row : row + 1], attended), layer(x[row : row + 1], None, cache_at(offset))) < 1e-5


def cache_at(offset: int) -> Any:
    """A cache of `offset` tokens whose keys and values are zero."""
    cache = make_caches([None])[0]
    cache.update(*[mx.zeros((1, 2, offset, 16))] * 2)
    return cache


def test_swiglu_is_silu_times_up() -> None:
    gate, up = (mx.random.normal((5,), key=mx.random.key(i)) for i in range(2))
    assert distance(swiglu(gate, up), nn.silu(gate) * up) < 1e-6
