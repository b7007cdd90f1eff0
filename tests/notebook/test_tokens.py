"""Inspected tokens have the probabilities of the model."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx.notebook import inspect_tokens, token_view, tokens as inside
from exaone4_mlx.notebook.html import percent_text, visible


def test_tokens_have_the_probabilities_of_the_model(unread: Any) -> None:
    model, tokenizer = unread
    ids = tokenizer.encode("The capital of South Korea is Seoul. " * 12)
    assert len(ids) > inside.POSITIONS, "more than are computed together"
    found = inspect_tokens(model, tokenizer, ids, top=3)
    likely = mx.softmax(model(mx.array([ids]))[0], axis=-1)
    assert [row.id for row in found] == ids and found[0].probability is None and found[0].alternatives == ()
    for place in (1, 5, inside.POSITIONS, inside.POSITIONS + 1, len(ids) - 1):
        before, row = likely[place - 1], found[place]
        assert row.probability == pytest.approx(before[ids[place]].item(), rel=1e-3)
        entropy = -sum(p * math.log2(p) for p in before.tolist() if p > 0)
        assert row.entropy_bits == pytest.approx(entropy, abs=1e-3)
        assert row.rank == mx.sum(before > before[ids[place]]).item()
        assert [other.id for other in row.alternatives] == mx.argsort(-before)[:3].tolist()
    assert inspect_tokens(model, tokenizer, tokenizer.decode(ids))[-1].id == ids[-1], "a text is encoded as it is"
    assert found[3:5].rows == found.rows[3:5] and "· 2 tokens, " in token_view.tokens_html(found[3:5])


def test_parts_of_characters_are_shown_as_bytes_with_the_character_they_complete(unread: Any) -> None:
    rows = inspect_tokens(*unread, "🎉\n<b>")
    assert rows[0].text.startswith("<0x") and rows[0].completes == ""
    assert [row.completes for row in rows if row.completes] == ["🎉"]
    html = token_view.tokens_html(rows)
    assert "&lt;0xF0&gt;" in html and "→ 🎉" in html and "⏎" in html and "<b>" not in html.replace("<br>", "")
    assert percent_text(4.4e-6) == "<0.001 %", "no probability is written in powers of ten"
    assert [percent_text(p) for p in (0.00002, 0.00199, 0.5, 1)] == ["0.002 %", "0.199 %", "50 %", "100.0 %"]
    assert visible(" a\n\x1b\u202e") == "␣a⏎\\u001b\\u202e"


def test_invalid_texts_and_ids_raise(unread: Any) -> None:
    for wrong, message in (
        ("", "the text is empty"),
        ([5000], "no token 5000"),
        ([3] * 8193, "the context holds 8192"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect_tokens(*unread, wrong)
    with pytest.raises(ValueError, match="top must be a whole number from 1 to 3072, not 0"):
        inspect_tokens(*unread, "Hello", top=0)
