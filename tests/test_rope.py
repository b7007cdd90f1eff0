"""The rotation frequencies, against figures that transformers computed."""

from __future__ import annotations

import math

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


def test_frequencies_are_plain_floats() -> None:
    """An MLX array made at import would belong to one thread's stream."""
    rope = RopeParameters.from_dict(LLAMA3, 32)
    assert all(type(value) is float and math.isfinite(value) for value in inverse_frequencies(rope, 16))
