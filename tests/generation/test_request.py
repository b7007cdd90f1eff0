"""The limits of a request."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from exaone4_mlx.generation.request import prompt_ids, thought_limit


@pytest.mark.parametrize(
    ("budget", "max_tokens", "limit"),
    [(100, 8192, 100), (9000, 8192, 8192 - 10 - 512), (9000, 1000, 1000 - 10 - 250), (0, 100, 0), (50, 12, -1)],
)
def test_the_answer_has_a_quarter_and_at_most_512_tokens_reserved(budget: int, max_tokens: int, limit: int) -> None:
    assert thought_limit(budget, max_tokens, wrap_up=10) == limit


def test_ids_of_a_prompt_come_in_any_form(unread: tuple[Any, Any]) -> None:
    """[1, L], as `apply_chat_template(…, return_tensors=…)` gives, and NumPy's ids."""
    tokenizer = unread[1]
    ids = tokenizer.encode("Hello, 한글")
    forms: list[Any] = [ids, tuple(ids), [ids], (ids,), [np.int64(id) for id in ids], [mx.array(ids)]]
    forms += [np.array(ids), np.array([ids], np.int32), mx.array(ids), mx.array([ids]), mx.array(ids, mx.uint32)]
    for form in forms:
        assert prompt_ids(tokenizer, form) == (ids, 0), form
    assert prompt_ids(tokenizer, tokenizer("Hello", return_tensors="mlx").input_ids)[0] == tokenizer.encode("Hello")
    for form, message in (
        ([ids, ids], "the prompt has 2 rows; give one, or a batch to model.generate"),
        (mx.array([ids, ids]), "the prompt has 2 rows"),
        (np.array([[ids]]), "these are several rows"),
        ([0.5], "token ids must be whole numbers, not 0.5"),
        (mx.array([0.5]), "token ids must be whole numbers, not 0.5"),
        ([5, {"role": "user"}], "token ids must be whole numbers"),
        (np.array([], np.int32), "the prompt is empty"),
        ([[]], "the prompt is empty"),
        ([True], "message 0 must be an object"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_ids(tokenizer, form)
