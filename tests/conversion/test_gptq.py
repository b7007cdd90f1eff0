"""GPTQ: less error in a layer's outputs than with error search alone, and blocks that are quantized in data order."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_ids, tiny_model

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.conversion import gptq as module
from exaone4_mlx.conversion.gptq import gptq, quantize_block
from exaone4_mlx.conversion.search import quantize_mse
from exaone4_mlx.model.cache import causal_mask

#: Sizes in which the columns of every projection are whole groups.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 2}
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
FOUR = Quantization(4, 64)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def correlated(columns: int = 256, vectors: int = 1024) -> mx.array:
    """The Hessian of strongly correlated inputs."""
    x = normal(vectors, 48, seed=1) @ normal(48, columns, seed=2) + 0.3 * normal(vectors, columns, seed=3)
    return x.T @ x


def output_error(weight: mx.array, hessian: mx.array, parts: tuple[mx.array, ...], bits: int = 4) -> float:
    """The squared error of the outputs for the Hessian's inputs."""
    codes, *grid = parts
    error = mx.dequantize(codes, *(part.astype(mx.float32) for part in grid), 64, bits) - weight.astype(mx.float32)
    return mx.sum((error @ hessian) * error).item()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_outputs_have_less_error_than_with_search_alone(bits: int) -> None:
    weight, hessian = normal(32, 256), correlated()
    ours, search = (
        output_error(weight, hessian, parts, bits)
        for parts in (gptq(weight, hessian, bits, 64), quantize_mse(weight, bits, 64))
    )
    assert ours < 0.6 * search, f"{ours / search:.2f} of the search's error at {bits} bits"


def test_errors_are_passed_on_to_later_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = normal(32, 256), correlated()
    monkeypatch.setattr(module, "SWEEPS", 0)
    whole = output_error(weight, hessian, gptq(weight, hessian, 4, 64))
    monkeypatch.setattr(module, "_rounded", lambda *a: (lambda codes, errors: (codes, 0 * errors))(*_rounded(*a)))
    assert output_error(weight, hessian, gptq(weight, hessian, 4, 64)) > 1.2 * whole


_rounded = module._rounded


def uneven(columns: int = 256) -> mx.array:
    """A Hessian of correlated inputs whose energies differ by a factor of up to 10,000."""
    size = mx.exp(mx.random.uniform(-2.3, 2.3, (columns,), key=mx.random.key(4)))
    return correlated(columns) * size * size[:, None]


def test_scales_are_found_on_compensated_columns_by_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old way, whose scales were fixed beforehand, and a search without weights have more error."""
    weight, hessian = normal(32, 256), uneven()
    monkeypatch.setattr(module, "SWEEPS", 0)
    ours = output_error(weight, hessian, gptq(weight, hessian, 4, 64))
    search, starts = (
        module.quantize_mse,
        iter(mx.argsort(mx.mean(mx.diag(hessian).reshape(-1, 64), axis=1)).tolist()[::-1]),
    )

    def beforehand(targets: mx.array, bits: int, size: int, *more: Any) -> tuple[mx.array, ...]:
        own = slice(64 * (first := next(starts)), 64 * first + 64)
        return search(weight[:, own], bits, size, mx.diag(hessian)[own], more[1])

    for broken in (beforehand, lambda targets, bits, size, importance, dtype: search(targets, bits, size, None, dtype)):
        monkeypatch.setattr(module, "quantize_mse", broken)
        assert output_error(weight, hessian, gptq(weight, hessian, 4, 64)) > 1.03 * ours


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sweeps_never_increase_the_error(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = normal(16, 128).astype(mx.bfloat16), correlated(128)
    errors = []
    for sweeps in range(4):
        monkeypatch.setattr(module, "SWEEPS", sweeps)
        errors.append(output_error(weight, hessian, gptq(weight, hessian, bits, 64), bits))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0], errors


def test_uncorrelated_inputs_give_no_more_error_than_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(16, 128).astype(mx.bfloat16)
    search = quantize_mse(weight, 4, 64, mx.ones(128))
    assert output_error(weight, mx.eye(128), gptq(weight, mx.eye(128), 4, 64)) <= output_error(
        weight, mx.eye(128), search
    )
    monkeypatch.setattr(module, "SWEEPS", 0)
    assert all(mx.array_equal(a, b) for a, b in zip(gptq(weight, mx.eye(128), 4, 64), search, strict=True))


def test_inputs_that_are_always_zero_are_harmless() -> None:
    weight = normal(16, 128)
    alive = mx.where(mx.arange(128) % 16 == 3, 0.0, 1.0)
    hessian = correlated(128) * alive * alive[:, None]
    parts = gptq(weight, hessian, 4, 64)
    assert output_error(weight, hessian, parts) < 0.6 * output_error(weight, hessian, quantize_mse(weight, 4, 64))
    dead = mx.abs(mx.dequantize(*parts, 64, 4) - weight) * (1 - alive)
    assert mx.max(dead).item() < 1, "the weights of a dead column are rounded, not dropped"
    plain = output_error(weight, mx.eye(128), quantize_mse(weight, 4, 64))
    assert output_error(weight, mx.eye(128), gptq(weight, 0 * hessian, 4, 64)) < 1.01 * plain, (
        "without any information, plain rounding"
    )


def test_an_indefinite_hessian_is_damped() -> None:
    weight, hessian = normal(16, 128), correlated(128)
    indefinite = hessian - 0.2 * mx.mean(mx.diag(hessian)) * mx.eye(128)
    parts = gptq(weight, indefinite, 4, 64)
    assert output_error(weight, hessian, parts) < output_error(weight, hessian, quantize_mse(weight, 4, 64))


@pytest.mark.parametrize("hessian", [-2 * mx.eye(64), mx.full((64, 64), 1e37)])
def test_a_hessian_that_no_damping_mends_is_refused(hessian: mx.array) -> None:
    with pytest.raises(ValueError, match="the Hessian"):
        gptq(mx.ones((4, 64)), hessian, 4, 64)


def test_scales_have_the_requested_dtype() -> None:
    weight, hessian = normal(8, 128), correlated(128)
    assert [part.dtype for part in gptq(weight, hessian, 4, 64, dtype=mx.bfloat16)[1:]] == [mx.bfloat16] * 2
    assert [part.dtype for part in gptq(weight.astype(mx.float16), hessian, 4, 64)[1:]] == [mx.float16] * 2


@pytest.mark.parametrize("broken", [mx.zeros((64, 64)), mx.eye(128) * mx.nan])
def test_a_hessian_of_another_shape_or_not_finite_is_refused(broken: mx.array) -> None:
    with pytest.raises(ValueError, match="Hessian"):
        gptq(mx.zeros((4, 128)), broken, 4, 64)


def test_outputs_are_nearer_to_the_originals() -> None:
    """The inputs have errors that depend on each other, so that a weight can undo a part of them."""
    exact = normal(1024, 48, seed=1) @ normal(48, 128, seed=2)
    states = exact + 0.3 * normal(1024, 16, seed=3) @ normal(16, 128, seed=4)
    weight, distances = normal(32, 128), []
    for original in (states, exact):
        hessian, cross = module._moments([(states, original)])
        parts = module._Solver(hessian, cross, 64, 0.01)(weight, 4, None)
        distances.append(mx.sum(mx.square(states @ mx.dequantize(*parts, 64, 4).T - exact @ weight.T)).item())
    assert distances[1] < 0.7 * distances[0], distances


def states_of(model: Exaone4ForCausalLM) -> list[mx.array]:
    """The inputs of the first block, for texts that are longer and shorter than its window."""
    return [model.model.embed_tokens(random_ids(length, seed=length)) for length in (40, 23, 5)]


def forward(model: Exaone4ForCausalLM, number: int, states: list[mx.array]) -> list[mx.array]:
    block = model.layers[number]
    return [block(x, causal_mask(0, x.shape[1], block.window), None) for x in states]


def test_a_block_of_which_nothing_is_quantized_is_the_networks() -> None:
    model = tiny_model(**WIDE)
    states = states_of(model)
    for number in range(2):
        following = forward(model, number, states)
        states = quantize_block(model.layers[number], states, {})
        assert all(mx.array_equal(a, b) for a, b in zip(states, following, strict=True))
    assert not any(isinstance(layer, nn.QuantizedLinear) for _, layer in model.named_modules())


def test_a_quantized_block_computes_the_returned_outputs() -> None:
    model = tiny_model(**WIDE)
    states = states_of(model)
    exact = forward(model, 0, states)
    outputs = quantize_block(model.layers[0], states, dict.fromkeys(PROJECTIONS, FOUR), dtype=mx.bfloat16)
    assert sum(isinstance(layer, nn.QuantizedLinear) for _, layer in model.layers[0].named_modules()) == 7
    for ours, now, before in zip(outputs, forward(model, 0, states), exact, strict=True):
        assert distance(ours, now) < 1e-4
        assert distance(ours, before) > 1e-3
    scales = model.layers[0].mlp.down_proj.scales
    assert scales.dtype == mx.float32 and mx.array_equal(scales, scales.astype(mx.bfloat16))


def test_each_projection_has_its_own_settings() -> None:
    model = tiny_model(**WIDE)
    kept = model.layers[0].mlp.up_proj.weight
    settings = {"self_attn.v_proj": Quantization(6, 32), "mlp.down_proj": Quantization(4, 32, "mxfp4")}
    outputs = quantize_block(model.layers[0], states_of(model), settings)
    v_proj, down_proj = model.layers[0].self_attn.v_proj, model.layers[0].mlp.down_proj
    assert (v_proj.bits, v_proj.group_size, v_proj.mode) == (6, 32, "affine")
    assert (down_proj.mode, "biases" in down_proj) == ("mxfp4", False)
    assert model.layers[0].mlp.up_proj.weight is kept
    for ours, now in zip(outputs, forward(model, 0, states_of(model)), strict=True):
        assert distance(ours, now) < 1e-4


def test_the_input_of_o_proj_comes_from_the_quantized_v_proj(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    moments = module._moments
    monkeypatch.setattr(module, "_moments", lambda states: seen.append(moments(states)) or seen[-1])
    for settings in (["self_attn.o_proj"], ["self_attn.v_proj", "self_attn.o_proj"]):
        model = tiny_model(**WIDE)
        quantize_block(model.layers[0], states_of(model), dict.fromkeys(settings, Quantization(2, 64)))
    (alone, same), _, (after, other) = seen
    assert mx.all(same == 0) and mx.any(other != 0), "the original's o_proj has the values before quantization"
    assert distance(alone, after) > 0.01 * mx.max(alone).item()


def test_the_same_inputs_give_the_same_bytes() -> None:
    weight, hessian = normal(16, 128), correlated(128)
    first, second = gptq(weight, hessian, 4, 64), gptq(weight, hessian, 4, 64)
    assert all(mx.array_equal(a, b) for a, b in zip(first, second, strict=True))
