"""`generate_batch`: replies to many prompts, in order, each with its options."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from exaone4_mlx import Reply, generate, generate_batch

TEXTS = ["What is 348 + 275?", "Write a poem about the sea.", "안녕하세요", "Who are you?"]


def test_replies_are_those_of_single_calls_in_order(demo: Any) -> None:
    each = [{}, {"max_tokens": 5}, {"thinking": True, "temperature": 0.8, "seed": 3}, {"stop": ["."]}]
    given: dict[str, Any] = {"temperature": 0, "max_tokens": 25}
    found: dict[int, Reply] = {}
    replies = generate_batch(*demo, TEXTS, each=each, on_reply=found.__setitem__, **given)
    expected = [generate(*demo, text, **{**given, **own}) for text, own in zip(TEXTS, each, strict=True)]
    assert [(r.text, r.thinking, r.token_ids) for r in replies] == [(r.text, r.thinking, r.token_ids) for r in expected]
    assert [found[index] for index in range(4)] == replies
    assert generate_batch(*demo, []) == []


def test_errors_come_before_work_and_name_the_prompt(unread: Any) -> None:
    with pytest.raises(ValueError, match="prompt 1: the prompt is empty"):
        generate_batch(*unread, ["Hello", " "])
    with pytest.raises(TypeError, match="no option 'colour'"):
        generate_batch(*unread, ["Hello"], each=[{"colour": "red"}])
    with pytest.raises(ValueError, match="batch_size must be 1 to 8"):
        generate_batch(*unread, ["Hello"], batch_size=9)
    with pytest.raises(ValueError, match="each must be None or 1 mappings"):
        generate_batch(*unread, ["Hello"], each=[{}, {}])
    with pytest.raises(ValueError, match="prompts must be a list"):
        generate_batch(*unread, "Hello")


def test_cancel_ends_all_replies_and_an_exception_too(demo: Any) -> None:
    cancel = threading.Event()

    def ended(index: int, reply: Reply) -> None:
        cancel.set()

    each: list[dict[str, Any]] = [{"max_tokens": 1}, *[{"min_tokens": 3000, "max_tokens": 3000}] * 3]
    replies = generate_batch(*demo, TEXTS, batch_size=2, each=each, on_reply=ended, cancel=cancel)
    assert [reply.finish_reason for reply in replies] == ["length", *["cancelled"] * 3]

    def failing(index: int, reply: Reply) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate_batch(*demo, TEXTS, each=each, on_reply=failing)
