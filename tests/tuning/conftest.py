"""A tiny random model with the demo's tokenizer, and lessons."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import tiny_model

LESSONS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n} {n}."}]}
    for n in range(9)
]


@pytest.fixture
def student(tokenizer: Any) -> tuple[Any, Any]:
    return tiny_model(
        vocab_size=3072, num_hidden_layers=2, sliding_window_pattern="LG", max_position_embeddings=4096
    ), tokenizer


@pytest.fixture
def lessons() -> dict[str, Any]:
    return {"train": LESSONS[:7], "valid": LESSONS[7:]}
