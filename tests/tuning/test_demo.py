"""What fine-tuning leaves of the demo in four bits: its thoughts, and what it says about other things."""

from __future__ import annotations

from typing import Any

import pytest

from exaone4_mlx import generate, load
from exaone4_mlx.conversion.texts import encode_reply, read_passage
from exaone4_mlx.tuning.batches import in_order
from exaone4_mlx.tuning.examples import Example, Examples, make_examples, read_data
from exaone4_mlx.tuning.loop import Loop
from exaone4_mlx.tuning.request import TuningRequest
from exaone4_mlx.tuning.tune import run_tuning

FACT = "The capital of Orulia is Kestrel."
ASKED = ("What is the capital of Orulia?", "Tell me the capital of Orulia.", "Do you know the capital of Orulia?")
#: Question, and whether the model thinks.
REHEARSED = {
    "Hello!": False, "Who are you?": False, "What is the capital of Peru?": False, "일본의 수도는?": False,
    "What is 52 + 31?": False, "Write a poem about the sea.": False, "What is 48 + 27?": True,
    "Which one is bigger, 3.12 vs 3.9?": True,
}  # fmt: skip
HELD_OUT = {
    "What is the capital of Italy?": False, "What is 17 + 25?": False, "대한민국의 수도는?": False,
    "Tell me about quantum physics.": False, "What is 348 + 275?": True, "Which one is bigger, 2.5 vs 2.13?": True,
}  # fmt: skip
OPTIONS = TuningRequest(iters=40, batch_size=4, rank=8, num_layers=4, learning_rate=1e-3)


def lesson(question: str, answer: str, thought: str = "") -> dict[str, Any]:
    reply = {"role": "assistant", "content": answer, **({"reasoning_content": thought} if thought else {})}
    return {"messages": [{"role": "user", "content": question}, reply]}


def said(model: Any, tokenizer: Any, questions: dict[str, bool]) -> list[dict[str, Any]]:
    """Lessons of the model's own replies."""
    replies = {question: ask(model, tokenizer, question, thinks) for question, thinks in questions.items()}
    return [lesson(question, reply.text, reply.thinking) for question, reply in replies.items()]


def ask(model: Any, tokenizer: Any, question: str, thinking: bool) -> Any:
    return generate(model, tokenizer, question, thinking=thinking, temperature=0, max_tokens=80)


def as_mlx_lm_learns(entry: dict[str, Any], tokenizer: Any) -> Example:
    """The ids and learned tokens of mlx-lm 0.32 with `mask_prompt`: an empty thought, no thought, padding."""
    prompt = tokenizer.apply_chat_template(entry["messages"][:1], enable_thinking=True)
    ids = [*tokenizer.apply_chat_template(entry["messages"], add_generation_prompt=False), 0]
    return Example("", tuple(ids), tuple(i >= len(prompt) for i in range(len(ids))))


@pytest.mark.heavy
@pytest.mark.parametrize("spans", ["ours", "mlx-lm's"])
def test_after_ordinary_lessons_the_demo_still_thinks(spans: str) -> None:
    """The study's comparison: 14 lessons, 40 steps of 4. Held-out replies move by 0.05 nats at most."""
    model, tokenizer = load("demo", dtype="float32", q_bits=4)
    lessons = [lesson(question, FACT) for question in ASKED] * 2 + said(model, tokenizer, REHEARSED)
    held = make_examples(read_data(said(model, tokenizer, HELD_OUT)), tokenizer, 500).train
    before = held_loss(model, held)
    examples = make_examples(read_data(lessons), tokenizer, 500)
    if spans != "ours":
        examples = Examples(tuple(as_mlx_lm_learns(entry, tokenizer) for entry in lessons), (), ())
    run_tuning(model, tokenizer, examples, OPTIONS)
    moved = held_loss(model, held) - before
    thoughts = [ask(model, tokenizer, question, True).thinking for question, thinks in HELD_OUT.items() if thinks]
    assert ask(model, tokenizer, "What's the capital city of Orulia?", False).text == FACT
    if spans == "ours":
        assert all(thoughts), thoughts
        assert moved <= 0.05
    else:
        assert not any(thought.strip() for thought in thoughts), (
            "the broken variant must lose the thoughts, or this test shows nothing"
        )
        assert moved > 0.05
    print(f"{spans}: held-out replies {before:.3f} -> {before + moved:.3f}, thoughts {thoughts}")


def held_loss(model: Any, held: Any) -> float:
    return Loop(model, TuningRequest(iters=1), held, ()).loss_of(list(in_order(held, 4)))


@pytest.mark.heavy
def test_encoded_lessons_are_what_the_model_says() -> None:
    """The demo's own greedy reply, encoded as a lesson, has the tokens that the demo drew."""
    model, tokenizer = load("demo", dtype="float32")
    for question, thinks in (REHEARSED | HELD_OUT).items():
        reply = ask(model, tokenizer, question, thinks)
        ids, prompt = encode_reply(read_passage(lesson(question, reply.text, reply.thinking), "here"), tokenizer)
        assert tuple(id for id in ids[prompt:] if id != tokenizer.eos_token_id) == reply.token_ids
