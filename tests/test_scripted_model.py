"""The model of the tests says what its script says, through every public call."""

from __future__ import annotations

from typing import Any

import pytest

from exaone4_mlx import Chat, Reply, Sampling, generate

TEXT = "one two three four, one two three four, one two five"


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling(temperature=0)},
        {"sampling": Sampling(temperature=2.0, top_k=5, top_p=0.5, min_p=0.1, repetition_penalty=1.5, seed=1)},
        {"sampling": Sampling(presence_penalty=2.0, frequency_penalty=2.0)},
        {"prompt_lookup": True, "sampling": Sampling(temperature=0)},
        {"prefill_step_size": 1},
        {"max_kv_size": 100},
        {"logprobs": 3},
    ],
    ids=lambda options: " ".join(options),
)
def test_script_is_said_with_every_option(scripted: Any, options: dict[str, Any]) -> None:
    for prompt in ("Say one two three four!", [5, 6, 7]):
        reply = generate(*scripted(TEXT), prompt, **options)
        assert (reply.text, reply.finish_reason) == (TEXT, "stop"), prompt


def test_a_cut_reply_does_not_move_the_next_one(scripted: Any) -> None:
    model, tokenizer = scripted("one two", "three", "four")
    count = len(tokenizer.encode("one two"))
    chat = Chat(model, tokenizer)
    said = [Reply.from_events(chat.send("Hello", max_tokens=limit)).text for limit in (count, 9, 9)]
    assert said == ["one two", "three", "four"], "the end of the first turn was drawn, and not read"


def test_a_script_raises_and_runs_out(scripted: Any) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(*scripted(["one two", RuntimeError("out of memory")]), "Hello")
    model = scripted("one")
    generate(*model, "Hello")
    with pytest.raises(AssertionError, match="more often than the script says"):
        generate(*model, "Hello")
    model[0].script.play("again", repeat=True)
    assert {generate(*model, "Hello").text for _ in range(2)} == {"again"}
