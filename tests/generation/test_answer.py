"""Structured answers: each follows its format, from the end of the thought on."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest
from conftest import Always, mostly_heavy, random_ids, roll_dice, tiny_model

from exaone4_mlx import Chat, Options, Sampling, Tokenizer, ToolCall, generate
from exaone4_mlx.generation import constrain
from exaone4_mlx.generation.answer import AnswerConstraint, AnswerOrCalls
from exaone4_mlx.generation.decode import Sampler, TokenStream
from exaone4_mlx.generation.formats import read_format
from exaone4_mlx.generation.prefill import prefill

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "나"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def sampled(tokenizer: Tokenizer, format: Any, rng: random.Random) -> str:
    """A random answer in this format."""
    found = read_format(format)
    assert found is not None
    held = AnswerConstraint(tokenizer, *found, tokenizer.vocab_size)
    held.begin()
    ids: list[int] = []
    while held.active and len(ids) < 300:
        ids.append(rng.choice([id for id, may in enumerate(held.allowed().tolist()) if may]))
        held.advance(ids[-1])
    assert ids[-1] == tokenizer.eos_token_id, "the answer ends the turn"
    return tokenizer.decode(ids[:-1])


def test_random_answers_follow_their_formats(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    grammar = 'start: "yes" | "no, " /[a-c]{1,3}/'
    for _ in range(5):
        jsonschema.validate(json.loads(sampled(tokenizer, FORMAT, rng)), SCHEMA)
        assert re.fullmatch(
            "[0-9]{3}-[가-나]{2}", sampled(tokenizer, {"type": "regex", "regex": "[0-9]{3}-[가-나]{2}"}, rng)
        )
        assert re.fullmatch("yes|no, [a-c]{1,3}", sampled(tokenizer, {"type": "grammar", "grammar": grammar}, rng))


@pytest.mark.heavy
def test_a_grammar_that_costs_too_much_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "COMPILE_SECONDS", 1)
    rules = "\n".join(f'r{n}: "a" r{n + 1} | "b" r{n + 1}' for n in range(20_000))
    for format, reason in (
        ({"type": "regex", "regex": "(" * 50_000 + "a" + ")" * 50_000}, r"regex parse error:$"),
        ({"type": "grammar", "grammar": f'start: r0\n{rules}\nr20000: "x"'}, "it is too large to compile"),
        ({"type": "json_schema", "json_schema": {"schema": {"multipleOf": 10**6 + 3}}}, "it takes more than 1 s"),
    ):
        found = read_format(format)
        assert found is not None
        with pytest.raises(
            ValueError, match=f"^the {found[0]} of response_format cannot be enforced: .*{reason}"
        ) as caught:
            AnswerConstraint(tokenizer, *found, tokenizer.vocab_size)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("thinking", mostly_heavy([True, False], 1))
def test_the_answer_of_a_model_follows_the_schema_after_its_thought(thinking: bool, demo: Any) -> None:
    """The demo was never trained to write such JSON."""
    replies = []
    for how in ({}, {"prompt_lookup": True}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("exaone4_mlx.generation.draft.DraftScheduler", Always)
            reply = generate(
                *demo, "Who are you?", thinking=thinking, temperature=0.8, seed=1, response_format=FORMAT, **how
            )
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        assert bool(reply.thinking) == thinking and reply.finish_reason == "stop"
        replies.append((reply.text, reply.thinking))
    assert replies[0] == replies[1], "the same with drafts"
    budget = generate(
        *demo, "Hello", thinking=True, thinking_budget=2, response_format={"type": "regex", "regex": "[ab]"}
    )
    assert budget.text in ("a", "b") and budget.thinking.endswith("I will answer now.")


def test_a_chat_answers_in_a_format(demo: Any) -> None:
    chat = Chat(*demo, settle=False)
    assert chat.ask("Hello", response_format={"type": "regex", "regex": "yes|no"}).text in ("yes", "no")


def test_where_tools_are_offered_the_model_calls_them_or_answers_in_the_format(scripted: Any) -> None:
    call = '<tool_call>{"name": "roll_dice", "arguments": {"max_num": 6}}</tool_call>'
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
    chat = Chat(*scripted(f"{call}\n{call}", '{"a": 7}'), settle=False, tools=[roll_dice])
    events = list(chat.send("Roll!", response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [call.arguments for call in calls] == [{"max_num": 6}] * 2, "several calls, as without a format"
    assert json.loads(str(chat.messages[-1]["content"])) == {"a": 7}


def test_an_answer_or_calls_is_one_of_both(tokenizer: Tokenizer) -> None:
    """At random: the first token decides, and calls follow their schemas."""
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}}
    rng, kinds = random.Random(0), set[str]()
    start, end = (tokenizer.encode(tag)[0] for tag in ("<tool_call>", "</tool_call>"))
    for _ in range(20):
        held = AnswerOrCalls(tokenizer, "regex", "yes|no", tokenizer.vocab_size, [tool])
        held.begin()
        ids: list[int] = []
        while held.active and len(ids) < 100:
            allowed = [id for id, may in enumerate(held.allowed().tolist()) if may]
            ids.append(rng.choice([*allowed, *({start, end} & set(allowed))]))
            held.advance(ids[-1])
        text = tokenizer.decode(ids[:-1])
        found = re.fullmatch(
            r'(?:yes|no)|(?:<tool_call>\{"name": "f", "arguments": \{"x": [12]\}\}</tool_call>\n{0,2})+', text
        )
        assert found or len(ids) == 100, text
        kinds.add(text[:1])
    assert kinds == {"y", "n", "<"}
    held.begin()
    with pytest.raises(ValueError, match="not allowed here"):
        held.advance(end)


def test_formats_that_cannot_be_enforced_are_refused_before_work(unread: Any) -> None:
    for given, message in (
        ({"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}, "the json_schema of response_format"),
        ({"type": "regex", "regex": "("}, "the regex of response_format cannot be enforced"),
        ({"type": "grammar", "grammar": "start: nothing"}, "the grammar of response_format cannot be enforced"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(*unread, "Hello", response_format=given)
    for given, message in (
        ("json", "must be an object with a type of text, json_object, .* not str"),
        ({"type": "object"}, "not 'object'; a schema goes into"),
        ({"type": "json_schema", "json_schema": {}}, "needs json_schema.schema, an object"),
        ({"type": "regex"}, "needs regex, a text"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(response_format=given)
    for name, value in (("min_tokens", 1), ("constrain_tools", True)):
        with pytest.raises(ValueError, match=f"it cannot be combined with {name}"):
            Options(response_format=FORMAT, **{name: value})
    assert Options(response_format={"type": "text"}, min_tokens=1).min_tokens == 1


def test_a_begun_answer_follows_the_format(demo: Any) -> None:
    """A reply in JSON that max_tokens cut goes on within its schema."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
    chat = Chat(*demo, temperature=0, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    whole = chat.ask("Capital of Peru?").text
    chat.reset()
    chat.ask("Capital of Peru?", max_tokens=3)
    list(chat.continue_reply())
    assert chat.messages[-1]["content"] == whole and json.loads(whole).keys() == {"city"}
    begun = chat.ask("Capital of Peru?", prefill_response='{"city": "Q').text
    assert "city" not in begun and json.loads('{"city": "Q' + begun)["city"].startswith("Q")
    with pytest.raises(ValueError, match="the begun answer does not follow the format of response_format"):
        chat.ask("Capital of Peru?", prefill_response="Lima")


def test_logits_processors_see_all_tokens_and_come_first(unread: Any) -> None:
    """As in mlx-lm. Probabilities that are reported stay those of the model."""
    model, prompt = tiny_model(), random_ids(9)[0].tolist()

    def penalty(tokens: mx.array, logits: mx.array) -> mx.array:
        logits[:, tokens] -= 6.0  # in place, as mlx-lm's own processors do
        return logits

    expected = list(prompt)
    for _ in range(12):
        expected.append(mx.argmax(penalty(mx.array(expected), model(mx.array([expected]))[:, -1])).item())
    cache = model.make_cache()
    sampler = Sampler(Sampling(temperature=0.0, top_p=1.0), prompt, 61, processors=[penalty])
    logits = prefill(model, prompt, cache)
    stream = TokenStream(model, logits, cache, sampler, 1)
    assert [*prompt, *islice(stream, 12)] == expected
    for given, message in (
        ({"logits_processors": [5]}, "logits_processors must be a list of functions"),
        ({"logits_processors": [penalty], "prompt_lookup": True}, "cannot be combined with drafts"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(*unread, "Hello", **given)
    with pytest.raises(ValueError, match="must return logits of shape"):
        generate(*unread, "Hello", logits_processors=[lambda tokens, logits: logits[0]])
