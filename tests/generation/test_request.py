"""The limits of a request."""

from __future__ import annotations

import pytest

from exaone4_mlx.generation.request import thought_limit


@pytest.mark.parametrize(
    ("budget", "max_tokens", "limit"),
    [(100, 8192, 100), (9000, 8192, 8192 - 10 - 512), (9000, 1000, 1000 - 10 - 250), (0, 100, 0), (50, 12, -1)],
)
def test_the_answer_has_a_quarter_and_at_most_512_tokens_reserved(budget: int, max_tokens: int, limit: int) -> None:
    assert thought_limit(budget, max_tokens, wrap_up=10) == limit
