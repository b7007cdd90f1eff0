"""The rotation frequencies, against figures that transformers computed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import LLAMA3

from exaone4_mlx.model.rope import RopeParameters, inverse_frequencies

#: transformers 5.23, ROPE_INIT_FUNCTIONS["llama3"], EXAONE 4.0's parameters, head_dim 16.
EXAONE = LLAMA3 | {"rope_theta": 1_000_000.0, "original_max_position_embeddings": 8192}
EXPECTED = [1, 0.177827939, 0.0316227786, 0.00562341325, 0.000157436691, 1.11142463e-05, 1.97642339e-06, 3.51463342e-07]


def test_llama3_frequencies_equal_transformers() -> None:
    rope = RopeParameters.from_dict(EXAONE, max_position_embeddings=65_536)
    assert inverse_frequencies(rope, 16) == pytest.approx(EXPECTED, rel=1e-6)


def test_default_frequencies_fall_geometrically() -> None:
    rope = RopeParameters.from_dict({"rope_type": "default", "rope_theta": 100.0}, max_position_embeddings=10)
    assert inverse_frequencies(rope, 8) == pytest.approx([1, 100**-0.25, 100**-0.5, 100**-0.75])


def test_original_length_defaults_to_the_context() -> None:
    """As in transformers: a config without the key was trained at its full length."""
    without = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    assert RopeParameters.from_dict(without, 32) == RopeParameters.from_dict(LLAMA3, 999)


#: transformers 5.24, ROPE_INIT_FUNCTIONS, for the tokens of `length`: head_dim 16, max_position_embeddings 128.
FACTORS = {"short_factor": [1 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
TYPES: list[tuple[dict[str, Any], int, list[float], float]] = [
    (
        {"rope_type": "linear", "factor": 4.0},
        10,
        [0.25, 0.079056941, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
        1.0,
    ),
    (
        {"rope_type": "dynamic", "factor": 4.0},
        128,
        [1, 0.31622776, 0.1, 0.031622779, 0.0099999998, 0.0031622779, 0.001, 0.00031622779],
        1.0,
    ),
    (
        {"rope_type": "dynamic", "factor": 4.0},
        200,
        [1, 0.267223, 0.071408123, 0.019081892, 0.0050991201, 0.001362602, 0.00036411858, 9.730085e-05],
        1.0,
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        10,
        [1, 0.19764236, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
        1.138629436,
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 2.0,
            "beta_slow": 0.25,
            "attention_factor": 1.3,
            "truncate": False,
        },
        10,
        [1, 0.31622776, 0.1, 0.016548309, 0.00125, 0.00039528473, 0.00012500001, 3.9528473e-05],
        1.3,
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
        },
        10,
        [1, 0.22399466, 0.041666664, 0.0039528473, 0.00125, 0.00039528473, 0.00012500001, 3.9528473e-05],
        0.916791251,
    ),
    (
        {"rope_type": "longrope", "original_max_position_embeddings": 64} | FACTORS,
        64,
        [1, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633],
        1.08012345,
    ),
    (
        {"rope_type": "longrope", "original_max_position_embeddings": 64} | FACTORS,
        65,
        [0.5, 0.10540925, 0.025, 0.0063245557, 0.0016666667, 0.00045175396, 0.00012500001, 3.5136418e-05],
        1.08012345,
    ),
    (
        {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 3.0, "attention_factor": 0.8}
        | FACTORS,
        10,
        [1, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633],
        0.8,
    ),
]


@pytest.mark.parametrize(("keys", "length", "frequencies", "attention_factor"), TYPES)
def test_frequencies_of_every_type_equal_transformers(
    keys: dict[str, Any], length: int, frequencies: list[float], attention_factor: float
) -> None:
    rope = RopeParameters.from_dict(keys, max_position_embeddings=128)
    assert inverse_frequencies(rope, 16, length) == pytest.approx(frequencies, rel=1e-6)
    assert rope.attention_factor == pytest.approx(attention_factor)


def test_defaults_are_the_documented_ones() -> None:
    yarn = RopeParameters.from_dict({"rope_type": "yarn", "factor": 4.0}, 64)
    assert (yarn.beta_fast, yarn.beta_slow, yarn.original_max_position_embeddings) == (32, 1, 64)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    longrope = RopeParameters.from_dict({"rope_type": "longrope", "original_max_position_embeddings": 32} | FACTORS, 64)
    assert longrope.factor == 2, "how far the context was stretched"
    assert longrope.attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(32)))
    assert RopeParameters.from_dict({"rope_type": "longrope"} | FACTORS, 64).attention_factor == 1, "not at all"


def test_dynamic_begins_at_the_context_and_says_so() -> None:
    """The documentation names an original length for it, and transformers does not look at that."""
    with pytest.warns(UserWarning, match="original_max_position_embeddings 32 has no effect"):
        told = RopeParameters.from_dict(
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}, 64
        )
    assert told == RopeParameters.from_dict({"rope_type": "dynamic", "factor": 2.0}, 64)
    assert inverse_frequencies(told, 16, 64) == inverse_frequencies(RopeParameters(), 16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_type": "linear"}, "RoPE type 'linear' needs factor"),
        ({"rope_type": "linear", "factor": 0}, "RoPE key factor must be a positive number, not 0"),
        ({"rope_type": "dynamic", "factor": 2.0, "beta_fast": 1}, "unknown RoPE keys for type 'dynamic': beta_fast"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}, "beta_fast 0.5 must not be below beta_slow 1"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "RoPE key truncate must be true or false"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, "needs a rope_theta other than 1"),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32.5},
            "original_max_position_embeddings must be a positive whole number",
        ),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "RoPE type 'longrope' needs long_factor"),
        ({"rope_type": "longrope"} | FACTORS | {"long_factor": [1, "2"]}, "long_factor must be a list of positive"),
        ({"rope_type": "longrope"} | FACTORS | {"long_factor": 2.0}, "long_factor must be a list of positive"),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 1} | FACTORS,
            "needs an attention_factor where original_max_position_embeddings is 1",
        ),
        ({"rope_type": "default", "factor": 2.0}, "unknown RoPE keys for type 'default': factor"),
    ],
)
def test_what_means_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeParameters.from_dict(keys, max_position_embeddings=128)


def test_factors_are_one_for_each_pair() -> None:
    rope = RopeParameters.from_dict({"rope_type": "longrope"} | FACTORS, 64)
    rope.check_head_dim(16)
    with pytest.raises(ValueError, match="short_factor has 8 numbers, but head_dim 12 has 6 pairs"):
        rope.check_head_dim(12)
    with pytest.raises(ValueError, match="'dynamic' needs a head_dim of 4 or more, not 2"):
        RopeParameters.from_dict({"rope_type": "dynamic", "factor": 2.0}, 64).check_head_dim(2)


def test_frequencies_are_plain_floats() -> None:
    """An MLX array made at import would belong to one thread's stream."""
    rope = RopeParameters.from_dict(LLAMA3, 32)
    assert all(type(value) is float and math.isfinite(value) for value in inverse_frequencies(rope, 16))
