"""The rotation frequencies equal the numbers that transformers computed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import LLAMA3
from documented import FACTORS

from exaone4_mlx.model.rope import RopeParameters, inverse_frequencies

ORIGINAL = "original_max_position_embeddings"


def rope_of(keys: dict[str, Any], longest: int = 128) -> RopeParameters:
    return RopeParameters.from_dict(keys, max_position_embeddings=longest)


#: transformers 5.24, ROPE_INIT_FUNCTIONS: head_dim 16, max_position_embeddings 128.
#: (keys, tokens of the sequence, frequencies, attention_factor)
TYPES: list[tuple[dict[str, Any], int, list[float], float]] = [
    ({"rope_type": "default", "rope_theta": 1e8}, 10, [10.0**-i for i in range(8)], 1.0),
    (LLAMA3 | {"rope_theta": 1_000_000.0, ORIGINAL: 8192}, 10,  # EXAONE 4.0's
     [1, 0.177827939, 0.0316227786, 0.00562341325, 0.000157436691, 1.11142463e-05, 1.97642339e-06, 3.51463342e-07], 1.0),
    ({"rope_type": "linear", "factor": 4.0}, 10,
     [0.25, 0.079056941, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05], 1.0),
    ({"rope_type": "dynamic", "factor": 4.0}, 128,
     [1, 0.31622776, 0.1, 0.031622779, 0.0099999998, 0.0031622779, 0.001, 0.00031622779], 1.0),
    ({"rope_type": "dynamic", "factor": 4.0}, 200,
     [1, 0.267223, 0.071408123, 0.019081892, 0.0050991201, 0.001362602, 0.00036411858, 9.730085e-05], 1.0),
    ({"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32}, 10,
     [1, 0.19764236, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05], 1.138629436),
    ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.25, "attention_factor": 1.3, "truncate": False}, 10,
     [1, 0.31622776, 0.1, 0.016548309, 0.00125, 0.00039528473, 0.00012500001, 3.9528473e-05], 1.3),
    ({"rope_type": "yarn", "factor": 8.0, ORIGINAL: 64, "mscale": 0.7, "mscale_all_dim": 1.2}, 10,
     [1, 0.22399466, 0.041666664, 0.0039528473, 0.00125, 0.00039528473, 0.00012500001, 3.9528473e-05], 0.916791251),
    ({"rope_type": "longrope", ORIGINAL: 64} | FACTORS, 64,
     [1, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633], 1.08012345),
    ({"rope_type": "longrope", ORIGINAL: 64} | FACTORS, 65,
     [0.5, 0.10540925, 0.025, 0.0063245557, 0.0016666667, 0.00045175396, 0.00012500001, 3.5136418e-05], 1.08012345),
    ({"rope_type": "longrope", ORIGINAL: 64, "factor": 3.0, "attention_factor": 0.8} | FACTORS, 10,
     [1, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633], 0.8),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "length", "frequencies", "attention_factor"), TYPES)
def test_frequencies_of_every_type_equal_transformers(
    keys: dict[str, Any], length: int, frequencies: list[float], attention_factor: float
) -> None:
    rope = rope_of(keys)
    found = inverse_frequencies(rope, 16, length)
    assert found == pytest.approx(frequencies, rel=1e-6)
    assert rope.attention_factor == pytest.approx(attention_factor)
    assert {type(value) for value in found} == {float}, "an MLX array would belong to one thread's stream"


def test_defaults_are_the_documented_ones() -> None:
    yarn = rope_of({"rope_type": "yarn", "factor": 4.0}, 64)
    assert (yarn.beta_fast, yarn.beta_slow, yarn.original_max_position_embeddings) == (32, 1, 64)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    longrope = rope_of({"rope_type": "longrope", ORIGINAL: 32} | FACTORS, 64)
    assert longrope.factor == 2, "the ratio of the context to the original length"
    assert longrope.attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(32)))
    assert rope_of({"rope_type": "longrope"} | FACTORS, 64).attention_factor == 1, "not stretched"
    assert rope_of({key: value for key, value in LLAMA3.items() if key != ORIGINAL}, 32) == rope_of(LLAMA3, 999)


def test_dynamic_stretches_beyond_the_context_and_warns() -> None:
    """The documentation has an original length for it. transformers ignores that."""
    with pytest.warns(UserWarning, match="original_max_position_embeddings 32 has no effect"):
        dynamic = rope_of({"rope_type": "dynamic", "factor": 2.0, ORIGINAL: 32}, 64)
    assert dynamic == rope_of({"rope_type": "dynamic", "factor": 2.0}, 64)
    assert inverse_frequencies(dynamic, 16, 64) == inverse_frequencies(RopeParameters(), 16)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "linear"}, "RoPE type 'linear' needs factor"),
    ({"rope_type": "linear", "factor": 0}, "RoPE key factor must be a positive number, not 0"),
    ({"rope_type": "dynamic", "factor": 2.0, "beta_fast": 1}, "unknown RoPE keys for type 'dynamic': beta_fast"),
    ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}, "beta_fast 0.5 must not be below beta_slow 1"),
    ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "RoPE key truncate must be true or false"),
    ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, "needs a rope_theta other than 1"),
    ({"rope_type": "yarn", "factor": 2.0, ORIGINAL: 32.5}, "original_max_position_embeddings must be a positive whole number"),
    ({"rope_type": "longrope", "short_factor": [1.0]}, "RoPE type 'longrope' needs long_factor"),
    ({"rope_type": "longrope"} | FACTORS | {"long_factor": [1, "2"]}, "long_factor must be a list of positive"),
    ({"rope_type": "longrope"} | FACTORS | {"long_factor": 2.0}, "long_factor must be a list of positive"),
    ({"rope_type": "longrope", ORIGINAL: 1} | FACTORS, "needs an attention_factor where original_max_position_embeddings is 1"),
    ({"rope_type": "default", "factor": 2.0}, "unknown RoPE keys for type 'default': factor"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_errors_name_the_wrong_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_of(keys)


def test_each_pair_has_a_factor() -> None:
    rope = rope_of({"rope_type": "longrope"} | FACTORS, 64)
    rope.check_head_dim(16)
    with pytest.raises(ValueError, match="short_factor has 8 numbers, but head_dim 12 has 6 pairs"):
        rope.check_head_dim(12)
    with pytest.raises(ValueError, match="'dynamic' needs a head_dim of 4 or more, not 2"):
        rope_of({"rope_type": "dynamic", "factor": 2.0}).check_head_dim(2)
