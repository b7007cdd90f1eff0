"""Replies: the order of events, limits, and errors before the first token."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import mlx.core as mx
import pytest
from conftest import in_a_thread, tiny_model, until

from exaone4_mlx import (
    Answer,
    Done,
    Options,
    PromptCache,
    Reply,
    Sampling,
    Thinking,
    ToolCall,
    generate,
    stream_generate,
)
from exaone4_mlx.generation.request import prompt_ids
from exaone4_mlx.text.reply import LoopDetector

GREEDY = Sampling(temperature=0.0)
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


def test_thought_and_answer_are_separated(scripted: Any) -> None:
    reply = generate(*scripted("hm, hm\n</think>\n\nYes."), "Hello", thinking=True)
    assert (reply.thinking, reply.text, reply.finish_reason) == ("hm, hm", "Yes.", "stop")
    assert reply.thinking_tokens + reply.answer_tokens == len(scripted("")[1].encode("hm, hm\n</think>\n\nYes."))
    assert reply.thinking_tokens > 0 < reply.answer_tokens


def test_without_thinking_all_text_is_answer(scripted: Any) -> None:
    reply = generate(*scripted("Yes."), "Hello")
    assert (reply.thinking, reply.text, reply.thinking_tokens) == ("", "Yes.", 0)


def test_the_initial_state_is_read_from_the_prompt(scripted: Any, demo: Any) -> None:
    """Ids that end inside a thought give a thought."""
    _, tokenizer = demo
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], enable_thinking=True)
    assert generate(*scripted("hm\n</think>\n\nYes."), ids).thinking == "hm"
    assert generate(*scripted("hm\n</think>\n\nYes."), mx.array(ids)).thinking == "hm"


def test_tool_calls_are_reported(scripted: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    events = list(stream_generate(*scripted(f"Well: {CALL}"), "Hello", tools=tools))
    assert ToolCall("f", {"x": 1}) in events
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "tool_calls"
    assert Reply.from_events(events).tool_calls == (ToolCall("f", {"x": 1}),)
    assert generate(*scripted(f"{CALL}\n{CALL}"), "Hello", tools=tools).text == ""


def test_tools_are_in_the_prompt(demo: Any) -> None:
    def measure_rain(city: str) -> float:
        """Measure the rain."""
        return 0.0

    ready = {"type": "function", "function": {"name": "count_birds", "parameters": {}}}
    text = demo[1].decode(prompt_ids(demo[1], "Hello", tools=[measure_rain, ready])[0])
    assert '<tool>{"type": "function", "function": {"name": "count_birds", "parameters": {}}}</tool>' in text
    assert '"name": "measure_rain", "description": "Measure the rain.", "parameters": {"type": "object"' in text


def test_a_begun_answer_is_continued_and_template_variables_are_passed_on(scripted: Any) -> None:
    model, tokenizer = scripted("Seoul.")
    messages = [{"role": "user", "content": "Capital?"}]
    reply = generate(model, tokenizer, messages, prefill_response="The capital is")
    assert reply.text == "Seoul."
    begun = tokenizer.decode(prompt_ids(tokenizer, messages, Options(prefill_response="The capital is"))[0])
    assert begun == tokenizer.decode(prompt_ids(tokenizer, messages)[0]) + "The capital is"
    with pytest.raises(ValueError, match="continue_final_message=True continues it"):
        generate(model, tokenizer, [*messages, {"role": "assistant", "content": "The capital is"}])
    said = {"role": "assistant", "content": "The capital is"}
    scripted("Seoul.", "It is\n</think>\n\nSeoul.", " Seoul.")
    assert generate(model, tokenizer, [*messages, said], continue_final_message=True).text == "Seoul."
    thought = {"role": "assistant", "content": "", "reasoning_content": "Capital:"}
    reply = generate(model, tokenizer, [*messages, thought], continue_final_message=True)
    assert (reply.thinking, reply.text) == ("It is", "Seoul.")
    both = {"role": "assistant", "content": "The capital is", "reasoning_content": "Hm"}
    assert generate(model, tokenizer, [*messages, both], continue_final_message=True).text == " Seoul."
    for last, options, message in (
        (messages[0], {}, "the last message is that of the user"),
        (said | {"content": ""}, {}, "the last message is empty"),
        (said | {"tool_calls": [{"name": "f"}]}, {}, "an assistant's with tool calls"),
        (said, {"thinking": True}, "the reply that is continued has no thought"),
        (said, {"prefill_response": "So"}, "use one"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, [*messages, last], continue_final_message=True, **options)
    variables = {"chat_template": "{{ messages[0].content }} {{ mood }}", "mood": "Calm."}
    ids, _ = prompt_ids(tokenizer, messages, Options(chat_template_args=variables))
    assert tokenizer.decode(ids) == "Capital? Calm."
    for option in ({"prefill_response": "So"}, {"continue_final_message": True}, {"chat_template_args": {}}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} belongs to the chat template"):
            generate(model, tokenizer, [5, 6], **option)


# --- ends ---------------------------------------------------------------------


def test_max_tokens_limits_thought_and_answer_together(scripted: Any) -> None:
    reply = generate(*scripted("a b c d e f\n</think>\n\na b c d e f"), "Hello", thinking=True, max_tokens=12)
    assert reply.thinking_tokens + reply.answer_tokens == 12
    assert reply.finish_reason == "length"


def test_the_context_limits_the_reply(demo: Any) -> None:
    tokenizer = demo[1]
    prompt = tokenizer.encode("a b c d e f g h") * 5
    small = tiny_model(vocab_size=3072, max_position_embeddings=len(prompt) + 10)
    never_stop = {tokenizer.eos_token_id: -1e9, 2: -1e9}
    reply = generate(small, tokenizer, prompt, sampling=Sampling(temperature=0.0, logit_bias=never_stop), max_tokens=99)
    assert (reply.answer_tokens, reply.finish_reason) == (10, "length")


@pytest.mark.parametrize("stop", ["STOP", ["nothing", "STOP"], ("ST", "STOP")])
def test_the_answer_ends_before_a_stop_string(scripted: Any, stop: Any) -> None:
    reply = generate(*scripted("one STO two STOP three"), "Hello", stop=stop)
    expected = "one " if "ST" in stop and isinstance(stop, tuple) else "one STO two "
    assert (reply.text, reply.finish_reason) == (expected, "stop")


def test_min_tokens_keeps_stop_tokens_and_stop_strings_away(scripted: Any) -> None:
    model, tokenizer = scripted("one STO two STOP three STOP four")
    options: dict[str, Any] = {"stop": "STOP", "sampling": GREEDY}
    least = len(tokenizer.encode("one STO two STOP"))
    for min_tokens, text in ((least, "one STO two "), (least + 1, "one STO two STOP three ")):
        scripted("one STO two STOP three STOP four")
        assert generate(model, tokenizer, "Hello", min_tokens=min_tokens, **options).text == text
    scripted("one two", constrained=True)
    reply = generate(model, tokenizer, "Hello", min_tokens=20, max_tokens=20, sampling=GREEDY)
    assert (reply.answer_tokens, reply.finish_reason) == (20, "length")
    with pytest.raises(ValueError, match="min_tokens 8000 does not fit: the prompt leaves"):
        generate(model, tokenizer, "word " * 900, min_tokens=8000)


def test_extra_eos_tokens_end_the_reply(scripted: Any) -> None:
    model, tokenizer = scripted()
    [mark] = tokenizer.encode("[|user|]")
    for extra in ("[|user|]", mark, str(mark), ["[|user|]", "[|tool|]"]):
        scripted("one two [|user|] three")
        reply = generate(model, tokenizer, "Hello", extra_eos_token=extra)
        assert (reply.text, reply.finish_reason) == ("one two ", "stop"), extra
    for extra in ("two tokens", 10**6):
        with pytest.raises(ValueError, match=f"extra_eos_token '?{extra}'? is no token of this model"):
            generate(model, tokenizer, "Hello", extra_eos_token=extra)


def test_stop_strings_have_no_effect_inside_a_thought(scripted: Any) -> None:
    reply = generate(*scripted("a STOP b\n</think>\n\nc STOP d"), "Hello", thinking=True, stop="STOP")
    assert (reply.thinking, reply.text) == ("a STOP b", "c ")


def test_an_incomplete_character_or_tag_is_flushed_at_the_end(scripted: Any, demo: Any) -> None:
    ids = demo[1].encode("뷁")
    assert len(ids) > 1, "this test needs a character of several tokens"
    assert generate(*scripted("a 뷁"), "Hello", max_tokens=len(demo[1].encode("a 뷁")) - 1).text.endswith("�")
    assert generate(*scripted("wait <tool_call>oops"), "Hello").text == "wait <tool_call>oops"


def test_cancel_keeps_the_text_so_far(scripted: Any) -> None:
    generation = stream_generate(*scripted("one two three four five six"), "Hello")
    events = []
    for event in generation:
        events.append(event)
        if len(events) == 2:
            in_a_thread(generation.cancel)
    assert len(events) == 3, "only Done follows cancel"
    assert events[-1].finish_reason == "cancelled"
    assert Reply.from_events(events).text.startswith("one")


def test_cancel_during_the_prompt_ends_at_the_next_chunk(demo: Any) -> None:
    def progress(done: int, total: int) -> None:
        calls.append(done)
        if done:
            generation.cancel()

    calls: list[int] = []
    generation = stream_generate(*demo, "Hello " * 100, prefill_step_size=32, progress=progress)
    events = list(generation)
    assert [type(event) for event in events] == [Done]
    assert (events[0].finish_reason, calls) == ("cancelled", [0, 32])


# --- counts and times ---------------------------------------------------------


def test_done_has_counts_and_times(demo: Any) -> None:
    done = list(stream_generate(*demo, "Hello", sampling=GREEDY, max_tokens=20))[-1]
    assert isinstance(done, Done)
    assert done.prompt_tokens == len(prompt_ids(demo[1], "Hello")[0])
    assert done.cached_tokens == 0
    assert done.prefill_seconds > 0 < done.decode_seconds
    assert done.peak_bytes > 1_000_000


def test_the_reply_is_the_joined_stream(demo: Any) -> None:
    events = list(stream_generate(*demo, "Hello", sampling=GREEDY, max_tokens=30))
    reply = generate(*demo, "Hello", sampling=GREEDY, max_tokens=30)
    assert reply.text == "".join(event.text for event in events if isinstance(event, Answer)) != ""
    assert sum(isinstance(event, (Answer, Thinking)) for event in events) > 1, (
        "the stream must have several text events"
    )


def test_the_same_seed_gives_the_same_reply(demo: Any) -> None:
    options = {"sampling": Sampling(temperature=1.5, seed=11), "max_tokens": 25}
    assert generate(*demo, "Hello", **options).text == generate(*demo, "Hello", **options).text


def test_generate_works_in_any_thread(demo: Any) -> None:
    def text() -> str:
        return generate(*demo, "Hello", sampling=GREEDY, max_tokens=30).text

    assert in_a_thread(text) == text()


# --- errors before work -------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        (" \n", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ("word " * 9000, {}, r"the prompt has \d+ tokens, but the model's context of 8192"),
        ([1, 99_999], {}, "the prompt holds token id 99999; this model has ids 0 to 3071"),
        ([1, -1], {}, "the prompt holds token id -1"),
        ([{"role": "robot", "content": "x"}], {}, "unknown role 'robot'"),
        ([{"role": "user", "content": {"a": 1}}], {}, "user content must be a string"),
        ([1, 2], {"thinking": True}, "thinking and tools belong to the chat template"),
        ("Hello", {"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
        ("Hello", {"max_tokens": 2.5}, "max_tokens must be a whole number of at least 1, not 2.5"),
        ("Hello", {"sampling": {"temperature": 0}}, "sampling must be a Sampling, not dict"),
        ({"role": "user", "content": "Hi"}, {}, "a message goes into a list of messages"),
        (None, {}, "the prompt must be text, a list of messages or token ids, not NoneType"),
        ("Hello", {"stop": 5}, "stop strings must be texts"),
        ("Hello", {"prefill_step_size": 0}, "prefill_step_size must be a whole number of at least 1"),
        ("Hello", {"thinking": 1}, "thinking must be true or false, not 1"),
        ("Hello", {"thinking_budget": 5}, "thinking_budget limits a thought, and this prompt opens none"),
        ("Hello", {"thinking": True, "thinking_budget": -1}, "thinking_budget must be a whole number of at least 0"),
        (
            "Hello",
            {"thinking": True, "thinking_budget": 5, "max_tokens": 8},
            r"max_tokens 8 is too small for a thinking budget: ending the thought takes \d+ tokens",
        ),
        ("Hello", {"tools": {"name": "f"}}, "tools must be a list of functions or JSON schemas"),
        ("Hello \ud83d", {}, "half a character"),
        ("Hello", {"stop": ""}, "stop strings must be texts"),
        ("Hello", {"stop": [3]}, "stop strings must be texts"),
    ],
)
def test_invalid_input_is_refused_before_the_first_token(demo: Any, prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream_generate(*demo, prompt, **options)


def test_unknown_options_are_refused(demo: Any) -> None:
    with pytest.raises(TypeError, match="temprature"):
        generate(*demo, "Hello", temprature=0.5)


# --- the thinking budget, loops, the prompt cache ----------------------------


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
def test_a_thought_ends_after_its_budget_and_an_answer_follows(scripted: Any, demo: Any, budget: int) -> None:
    wrap_up = "\nI will answer now."
    text = "one two three four five six seven eight nine ten"
    reply = generate(*scripted(text), "Hello", thinking=True, thinking_budget=budget, max_tokens=60)
    ended = len(demo[1].encode(f"{wrap_up}\n</think>\n\n"))
    thought, _, rest = reply.thinking.partition(wrap_up)
    assert rest == ""
    assert reply.thinking_tokens == budget + ended
    assert text.startswith(thought)
    assert len(demo[1].encode(thought)) == budget
    assert reply.answer_tokens > 0


def test_a_thought_shorter_than_its_budget_does_not_change(scripted: Any) -> None:
    reply = generate(*scripted("short\n</think>\n\nYes."), "Hello", thinking=True, thinking_budget=50)
    assert (reply.thinking, reply.text) == ("short", "Yes.")


def test_with_a_budget_the_answer_has_a_quarter_of_max_tokens(scripted: Any) -> None:
    reply = generate(*scripted("a " * 200), "Hello", thinking=True, thinking_budget=5000, max_tokens=80)
    assert (reply.thinking_tokens, reply.answer_tokens, reply.finish_reason) == (60, 20, "length")


def test_without_a_budget_the_thought_may_use_all_tokens(scripted: Any) -> None:
    reply = generate(*scripted("a " * 200), "Hello", thinking=True, max_tokens=80)
    assert (reply.thinking_tokens, reply.answer_tokens) == (80, 0)


def test_the_budget_never_splits_a_character(scripted: Any, demo: Any) -> None:
    assert len(demo[1].encode("뷁")) > 2, "this test needs a character of several tokens"
    for budget in range(1, 5):
        reply = generate(*scripted("뷁" * 9), "Hello", thinking=True, thinking_budget=budget, max_tokens=30)
        assert set(reply.thinking.partition("\n")[0]) == {"뷁"}


def test_bytes_without_a_complete_character_do_not_extend_the_thought(scripted: Any, demo: Any) -> None:
    tokenizer = demo[1]
    lead = next(id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == b"\xf0")
    reply = generate(*scripted([lead] * 60), "Hello", thinking=True, thinking_budget=5, max_tokens=60)
    assert reply.thinking.endswith("I will answer now.")


def test_the_model_continues_after_the_forced_end_of_its_thought(demo: Any) -> None:
    """The answer equals that of a cold start with the same tokens, forced ones included."""
    model, tokenizer = demo
    ids, _ = prompt_ids(tokenizer, "What is 348 + 275?", Options(thinking=True))
    cache = PromptCache(model, tokenizer)
    cut = generate(model, tokenizer, ids, sampling=GREEDY, thinking_budget=9, prompt_cache=cache)
    seen = cache.ids[: len(ids) + cut.thinking_tokens]
    assert tokenizer.decode(seen).endswith("\nI will answer now.\n</think>\n\n")
    assert generate(model, tokenizer, seen, sampling=GREEDY).text == cut.text


def test_thought_and_answer_have_separate_times(demo: Any) -> None:
    reply = generate(*demo, "What is 348 + 275?", thinking=True, sampling=GREEDY)
    assert 0 < reply.thinking_seconds < reply.decode_seconds
    assert generate(*demo, "Hello", sampling=GREEDY).thinking_seconds == 0


@pytest.mark.parametrize("inside_thought", [False, True])
def test_a_loop_ends_the_reply(scripted: Any, inside_thought: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopDetector, "TOKENS", 64)
    reply = generate(*scripted("again and " * 50), "Hello", thinking=inside_thought)
    assert reply.finish_reason == "repetition"
    assert reply.thinking_tokens + reply.answer_tokens < 100
    endless = generate(*scripted("again and " * 50), "Hello", stop_on_repetition=False, max_tokens=120)
    assert (endless.finish_reason, endless.answer_tokens) == ("length", 120)


def test_a_prompt_cache_reuses_the_common_prefix(demo: Any) -> None:
    cache = PromptCache(*demo)
    messages = [{"role": "user", "content": "My name is Clara."}]
    first = generate(*demo, messages, sampling=GREEDY, prompt_cache=cache)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "What is my name?"}]
    second = generate(*demo, messages, sampling=GREEDY, prompt_cache=cache)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= first.prompt_tokens + first.answer_tokens
    assert second.text == generate(*demo, messages, sampling=GREEDY).text == "Your name is Clara."


def test_two_replies_on_one_prompt_cache_do_not_mix(demo: Any) -> None:
    """The first reply ends before the second one starts, also with a slow consumer."""
    cache = PromptCache(*demo)
    first = stream_generate(*demo, "Hello", sampling=GREEDY, prompt_cache=cache)
    begin = next(first)
    second = generate(*demo, "What is 3 + 4?", sampling=GREEDY, prompt_cache=cache)
    assert second.text == generate(*demo, "What is 3 + 4?", sampling=GREEDY).text
    assert Reply.from_events([begin, *first]).text == generate(*demo, "Hello", sampling=GREEDY).text


def test_a_dropped_reply_frees_its_caches_soon(demo: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        for events in (0, 1):
            cache = PromptCache(*demo)
            stream = stream_generate(*demo, "Hello", prompt_cache=cache)
            for _ in range(events):
                next(stream)
            alive = weakref.ref(cache)
            del stream, cache
            until(lambda alive=alive: alive() is None)  # the worker thread ends the token in progress
    finally:
        gc.enable()


def test_a_prompt_cache_holds_exactly_the_processed_tokens(demo: Any) -> None:
    model, tokenizer = demo
    cache = PromptCache(model, tokenizer)
    for options in ({}, {"max_tokens": 3}, {"stop": "a"}, {"thinking": True, "thinking_budget": 2}):
        generate(model, tokenizer, "Hello", sampling=GREEDY, prompt_cache=cache, **options)
        assert {layer.offset for layer in cache.layers} == {len(cache.ids)}
    stream = stream_generate(model, tokenizer, "Hello", sampling=GREEDY, prompt_cache=cache)
    next(iter(stream))
    stream.close()
    assert {layer.offset for layer in cache.layers} == {len(cache.ids)}


def test_a_generation_can_be_iterated_in_another_thread(demo: Any) -> None:
    penalties = Sampling(temperature=0.5, seed=1, presence_penalty=1.0, repetition_penalty=1.1, logit_bias={5: 1.0})
    generation = stream_generate(*demo, "Hello", sampling=penalties, max_tokens=5)
    assert in_a_thread(lambda: len(list(generation))) > 0
