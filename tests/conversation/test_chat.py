"""A conversation: nothing is read twice, nothing is lost, and nothing runs that was not given."""

from __future__ import annotations

import dataclasses
import gc
import json
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import call_text, distance, hold, roll_dice, small_caches, tiny_model
from scripted import ScriptedModel

from exaone4_mlx import (
    Answer,
    Chat,
    Conversation,
    Done,
    Generation,
    Options,
    Reply,
    Sampling,
    Thinking,
    ToolCall,
    ToolResult,
    generate,
    load,
)
from exaone4_mlx.conversation import turn as turn_module
from exaone4_mlx.conversation.begun import is_cut
from exaone4_mlx.files.text import json_text
from exaone4_mlx.generation import reply_loop, worker
from exaone4_mlx.generation.constrain import ToolConstraint
from exaone4_mlx.generation.decode import Sampler, TokenStream
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.generation.worker import Worker
from exaone4_mlx.storage.transcript import to_json, to_markdown

GREEDY = Sampling(temperature=0.0)


def reply(turn: Any) -> Reply:
    return Reply.from_events([event for event in turn if not isinstance(event, ToolResult)])


async def coroutine(call: Any) -> bool:
    return False


def test_a_chat_keeps_the_beginning_of_an_answer_with_its_continuation(scripted: Any) -> None:
    chat = Chat(*scripted(f" roll: {call_text(max_num=6)}", "A 4."), tools=[roll_dice], settle=False)
    assert chat.ask("Roll!", prefill_response="I").text == "roll: A 4.", "of the first reply only"
    assert [message["content"] for message in chat.messages] == ["Roll!", "I roll:", 4, "A 4."]


# --- reuse --------------------------------------------------------------------


class Scripted:
    """A sampler whose first tokens are those of `Recorded.script`."""

    def __init__(self, sample: Any) -> None:
        self._sample = sample

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        token = self._sample(logits, allowed)
        scripted = next(Recorded.script, None)
        return token if scripted is None else mx.array([scripted])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sample, name)


class Recorded(TokenStream):
    """Records the logits that a reply began with, and its tokens."""

    began: Any = None
    tokens: Any = None
    script: Any = iter(())

    def __init__(self, model: Any, logits: mx.array, cache: Any, sample: Any, *others: Any) -> None:
        Recorded.began, Recorded.tokens = logits, []
        super().__init__(model, logits, cache, Scripted(sample), *others)

    def __next__(self) -> int:
        token = super().__next__()
        Recorded.tokens.append(token)
        return token


def course(rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Twelve turns: what to do, what to say, with a thought or not."""
    yield "send", "My name is Clara.", False
    sayings = [
        "What is 348 + 275?", "Roll D6 dice twice!", "Roll a D20!", "What is my name?", "대한민국의 수도는?",
        "¿Cuánto es 45 + 78?", "Which one is bigger, 3.12 vs 3.9? " * 3, "안녕하세요",
    ]  # fmt: skip
    for step in range(11):
        what = "retry" if step in (3, 8) else "edit" if step in (5, 9) else "send"
        yield what, sayings[1] if step in (1, 6) else rng.choice(sayings), rng.random() < 0.6


@pytest.mark.heavy
@pytest.mark.parametrize("settled", [True, False], ids=["settled", "at once"])
@pytest.mark.parametrize("name", ["random 0"])
def test_twelve_turns_equal_cold_runs_and_read_only_what_is_new(
    name: str, settled: bool, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twelve_turns(name, demo[1], settled, monkeypatch)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["demo", "demo, small caches", "random 1", "random 2"])
def test_twelve_turns_more_often(name: str, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints the README's table."""
    with monkeypatch.context() as patch:
        prepared = twelve_turns(name, demo[1], True, patch)
    at_once = twelve_turns(name, demo[1], False, monkeypatch)
    print(f"\n| turn ({name}) | everything again | sent at once | after settling |\n|---|---|---|---|")
    for (what, everything, settled), (_, _, hurried) in zip(prepared, at_once, strict=True):
        print(f"| {what} | {everything} | {hurried} | {settled} |")


def twelve_turns(
    name: str, tokenizer: Any, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, int, int]]:
    """(what the turn was, its prompt tokens, those that were processed), turn by turn, all of it checked."""
    if name.startswith("random"):
        model = small_caches(tiny_model(int(name[-1]), vocab_size=3072, max_position_embeddings=9000))
    else:
        model = load("demo", dtype="float32")[0]
        if "small" in name:
            small_caches(model)
    prompts: list[list[int]] = []

    def noted(model: Any, request: Any, **options: Any) -> Any:
        prompts.append(list(request.ids))
        return Generation(model, request, **options)

    monkeypatch.setattr(reply_loop, "TokenStream", Recorded)
    monkeypatch.setattr(turn_module, "Generation", noted)
    chat = Chat(model, tokenizer, tools=[roll_dice], sampling=GREEDY, max_tokens=60, settle=settled)
    call = "hm\n</think>\n\n" + "\n".join([call_text("roll_dice", max_num=6)] * 2) + tokenizer.eos_token
    rows = []
    for number, (what, text, thinking) in enumerate(course(random.Random(name))):
        before = chat.messages
        if settled:
            chat.settle()
        if name.startswith("random") and text.startswith("Roll D6") and what == "send":
            Recorded.script = iter(tokenizer.encode(call if thinking else call.partition("\n\n")[2]))
        if what == "send":
            done = reply(chat.send(text, thinking=thinking))
        else:
            done = reply(chat.retry(thinking=thinking) if what == "retry" else chat.edit(-1, text, thinking=thinking))

        # The last reply of the turn began with the logits of a cold start, and went on with the same tokens.
        cold = model.make_cache()
        logits = prefill(model, prompts[-1], cold)
        assert distance(logits, Recorded.began) < 1e-3, number
        expected = TokenStream(model, logits, cold, Sampler(GREEDY.resolved(False), [], 3072))
        assert [next(expected) for _ in Recorded.tokens] == Recorded.tokens, f"turn {number}: other tokens than cold"

        # It read the new messages and some glue and, if it was not given time or was cut, the reply before them.
        processed = done.prompt_tokens - done.cached_tokens
        started = max(i for i, message in enumerate(chat.messages) if message["role"] == "user")
        new = chat.messages[started:-1]
        last = before[max((i for i, one in enumerate(before) if one["role"] == "assistant"), default=0) :]
        if number and (not settled or is_cut(last[0])):  # a cut reply may be continued, so it is not read anew
            new += last
        allowed = sum(16 + len(tokenizer.encode(_rendered(message))) for message in new)
        assert processed <= allowed or not number, f"turn {number}, {what} {text!r}"
        kind = f"{what}{' with a thought' if thinking else ''}{', tools' if done.tool_calls else ''}"
        rows.append((kind, done.prompt_tokens, processed))
    kinds = " ".join(kind for kind, _, _ in rows)
    assert all(part in kinds for part in ("thought", "tools", "retry", "edit")), "the course must have every kind"
    return rows


def _rendered(message: dict[str, Any]) -> str:
    calls = "".join(call_text(call["function"]["name"], **call["function"]["arguments"]) + "\n"
                    for call in message.get("tool_calls", ()) if isinstance(call["function"]["arguments"], dict))  # fmt: skip
    content = message["content"]
    return calls + (content if isinstance(content, str) else json.dumps(content))


def test_calls_are_read_in_their_new_form_while_their_tools_run(scripted: Any) -> None:
    """Between two rounds of a turn only the results are new, if the tools took their time."""
    chat: Chat

    def slow(city: str) -> str:
        """Take time.

        Args:
            city: where
        """
        chat.settle()
        return "done"

    model, tokenizer = scripted("hm " * 40 + f"\n</think>\n\n{call_text('slow', city='Seoul')}", "ok\n</think>\n\nYes.")
    chat = Chat(model, tokenizer, tools=[slow])
    chat.settle()
    first = tokenizer.apply_chat_template([{"role": "user", "content": "Go"}], tools=[slow], enable_thinking=True)
    done = reply(chat.send("Go", thinking=True))
    assert done.prompt_tokens - done.cached_tokens <= len(first) + len(tokenizer.encode('{"result": "done"}')) + 16


def test_settling_that_is_waited_for_takes_its_turn_among_busy_chats(scripted: Any) -> None:
    model, tokenizer = scripted("one")
    chat = Chat(model, tokenizer, settle=False)
    reply(chat.send("a"))
    owner, ended = Worker.of(model), threading.Event()

    def piece() -> Iterator[None]:
        if not ended.is_set():
            owner.submit(piece())  # never idle
        time.sleep(0.005)
        yield

    owner.submit(piece())
    chat.settle()
    ended.set()
    assert len(chat._cache.ids) == chat.context_tokens


def test_new_message_interrupts_settling(scripted: Any) -> None:
    """A turn waits for one piece of idle work at most, and what was prepared is not lost."""
    chat = Chat(*scripted("word " * 100, "Yes."))
    done = reply(chat.send("Hello", stop_on_repetition=False))
    assert done.answer_tokens > 100
    started = time.perf_counter()
    again = reply(chat.send("Hello"))
    assert again.cached_tokens > 0
    assert again.text == "Yes."
    assert time.perf_counter() - started < 30


# --- history ------------------------------------------------------------------


def test_history_goes_into_generate_as_it_is(demo: Any) -> None:
    chat = Chat(*demo, system_prompt="Be brief.", sampling=GREEDY)
    reply(chat.send("My name is Clara.", thinking=True))
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    last = chat.messages[-1]
    assert last["content"] == "Nice to meet you, Clara."
    assert last["reasoning_content"]
    assert (last["finish_reason"], last["stats"]["thinking_tokens"] > 0) == ("stop", True)
    asked = [*chat.messages, {"role": "user", "content": "What is my name?"}]
    assert generate(*demo, asked, sampling=GREEDY).text == reply(chat.send("What is my name?")).text


def test_retry_undo_edit_and_reset(scripted: Any) -> None:
    chat = Chat(*scripted("one", "two", "three", "four", "five"), system_prompt="S")
    reply(chat.send("a"))
    reply(chat.send("b"))
    assert reply(chat.retry()).text == "three"
    assert [message["content"] for message in chat.messages] == ["S", "a", "one", "b", "three"]
    assert chat.undo() == "b"
    assert chat.turns == ["a"]
    assert reply(chat.edit(0, "c")).text == "four"
    assert [message["content"] for message in chat.messages] == ["S", "c", "four"]
    chat.system_prompt = "T"
    reply(chat.send("d"))
    chat.reset()
    assert [message["content"] for message in chat.messages] == ["T"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda chat: chat.send(" \n"), "there is nothing to send"),
        (lambda chat: chat.send(None), "the text to send must be a string, not None"),
        (lambda chat: chat.resume("x"), "results must be a list, one for each open call"),
        (lambda chat: chat.resume([float("nan")]), "not JSON compliant"),
        (lambda chat: chat.edit(0, ""), "there is nothing to send"),
        (lambda chat: chat.edit(1, "x"), "there is no turn 1: the conversation has 1"),
        (lambda chat: chat.edit("a", "x"), "there is no turn 'a'"),
        (lambda chat: chat.send("x", temprature=1), "temprature"),
        (lambda chat: chat.send("x", thinking="yes"), "thinking must be true or false"),
        (lambda chat: chat.send("x", thinking_budget=5), "this prompt opens none"),
        (lambda chat: chat.send("x", max_tokens=0), "max_tokens must be"),
        (lambda chat: chat.send("x", tools=[5]), "a tool must be a function"),
        (lambda chat: chat.send("word " * 9000), r"has \d+ tokens, and the context of 8192 must hold it"),
        (lambda chat: chat.resume([1]), "0 calls wait for results, and 1 results were given"),
    ],
)
def test_what_is_wrong_is_told_before_anything_changes(scripted: Any, act: Any, message: str) -> None:
    chat = Chat(*scripted("one"))
    reply(chat.send("a"))
    before = chat.messages
    with pytest.raises((ValueError, TypeError), match=message):
        act(chat)
    assert chat.messages == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overflow": "forget"}, "overflow must be 'error' or 'drop_oldest', not 'forget'"),
        ({"system_prompt": 5}, "the system prompt must be a text"),
        ({"max_tool_rounds": -1}, "max_tool_rounds must be a count, not -1"),
        ({"tool_timeout": 0}, "tool_timeout must be seconds, more than 0, not 0"),
        ({"thinking": "yes"}, "thinking must be true or false, not 'yes'"),
        ({"approve": 5}, "approve must be a function that returns True or False"),
        ({"approve": coroutine}, "and no coroutine"),
        ({"thinking_budget": -1}, "thinking_budget must be a whole number"),
        ({"tools": "calculator"}, "tools must be a list"),
    ],
)
def test_settings_without_meaning_are_refused(demo: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chat(*demo, **settings)


def test_undo_and_retry_need_a_turn(demo: Any) -> None:
    for act in (lambda chat: chat.undo(), lambda chat: chat.retry()):
        with pytest.raises(ValueError, match="the conversation has no turns yet"):
            act(Chat(*demo))


def test_other_messages_take_the_place_of_the_history_and_what_is_the_same_stays_read(scripted: Any) -> None:
    chat = Chat(*scripted("one", "two", "three", "four"))
    reply(chat.send("first " * 30))
    before = chat.messages
    reply(chat.send("second " * 30))
    chat.set_messages([*before, {"role": "user", "content": "Hm"}, {"role": "assistant", "content": "ok"}])
    assert chat.turns == ["first " * 30, "Hm"] and chat.dropped == 0
    done = list(chat.send("third"))[-1]
    assert done.prompt_tokens - done.cached_tokens < 40 < done.cached_tokens
    with pytest.raises(ValueError, match="message 0 has the unknown role"):
        chat.set_messages([{"role": "none", "content": ""}])
    turn = chat.send("fourth")
    next(turn)
    with pytest.raises(RuntimeError, match="a turn of this chat is in progress"):
        chat.set_messages([])
    turn.close()
    chat.set_messages([])
    assert chat.messages == [] and chat.context_tokens == 0


# --- replies that are cut -----------------------------------------------------


def test_turn_dropped_half_way_keeps_what_came(scripted: Any) -> None:
    chat = Chat(*scripted("one two three four five six", "again"))
    came = ""
    for event in chat.send("a"):
        came += event.text
        if "three" in came:
            break
    assert chat.messages[-1]["content"] == came == "one two three"
    assert chat.messages[-1]["finish_reason"] == "cancelled"
    assert reply(chat.send("b")).text == "again"


def test_turn_that_an_interrupted_cell_left_open_is_closed_by_the_next(scripted: Any) -> None:
    chat = Chat(*scripted("one two three four", "again"))
    turn = chat.send("a")
    next(turn)  # and the cell is interrupted here, its frame kept alive by the traceback
    assert reply(chat.send("b")).text == "again"
    assert [message["content"] for message in chat.messages] == ["a", "one", "b", "again"]
    assert list(turn) == []


def test_turn_of_another_thread_is_not_disturbed(scripted: Any) -> None:
    chat = Chat(*scripted("one two three four"))
    turn = chat.send("a")
    next(turn)
    errors: list[BaseException] = []

    def meddle() -> None:
        for act in (lambda: chat.send("b"), chat.undo, chat.reset):
            try:
                act()
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=meddle)
    thread.start()
    thread.join()
    assert len(errors) == 3
    assert "a turn of this chat is in progress: cancel() it" in str(errors[0])
    assert reply([Answer("one"), *turn]).text == "one two three four"


@pytest.mark.parametrize("cancelled", [False, True])
def test_turn_whose_thread_is_gone_or_that_was_cancelled_is_closed_by_the_next(scripted: Any, cancelled: bool) -> None:
    """Web servers take every event in some thread of a pool."""
    chat = Chat(*scripted("one two three four", "again"))
    turn = chat.send("a")
    leave = threading.Event()
    taken = threading.Event()

    def consume() -> None:
        next(turn)
        taken.set()
        if cancelled:
            leave.wait(20)

    thread = threading.Thread(target=consume)
    thread.start()
    taken.wait(20)
    if not cancelled:
        thread.join()
    with pytest.raises(RuntimeError, match=r"cancel\(\) it"):
        chat.send("b")
    chat.cancel()
    assert reply(chat.send("b")).text == "again"
    leave.set()
    assert chat.messages[1]["finish_reason"] == "cancelled"


def test_misuse_inside_an_approval_is_told(scripted: Any) -> None:
    errors: list[str] = []

    def approve(call: ToolCall) -> bool:
        for act in (chat.undo, chat.reset, lambda: chat.send("b")):
            with pytest.raises(RuntimeError) as error:
                act()
            errors.append(str(error.value))
        return True

    chat = Chat(*scripted(call_text("roll_dice", max_num=6), "Well."), tools=[roll_dice], approve=approve)
    assert reply(chat.send("a")).text == "Well."
    assert len(errors) == 3


def test_left_turn_that_the_garbage_collector_ends_in_the_owners_thread_blocks_nobody(scripted: Any) -> None:
    model, tokenizer = scripted("word " * 30, "again")
    chat = Chat(model, tokenizer, settle=False)
    turns = [chat.send("a", stop_on_repetition=False)]
    next(turns[0])
    Worker.of(model).call(turns.clear)  # the last reference goes there
    assert chat.messages[-1]["role"] == "assistant"
    assert reply(Chat(model, tokenizer).send("b")).text == "again"


def test_dropped_chats_leave_nothing_alive(scripted: Any) -> None:
    """No reference cycle keeps the caches until the garbage collector comes."""
    model, tokenizer = scripted(*["one"] * 6)
    caches = []
    gc.collect()
    gc.disable()
    try:
        for settle in (False, True):
            chat = Chat(model, tokenizer, settle=settle)
            reply(chat.send("a"))
            with pytest.warns(UserWarning, match="a turn was dropped before it began"):
                chat.send("never begun")
            caches.append(weakref.ref(chat._cache))
            del chat
        Worker.of(model).call(lambda: None)
        Worker.of(model).call(lambda: None)
        assert [cache() for cache in caches] == [None, None]
    finally:
        gc.enable()


def test_settling_twice_at_once_reads_no_nonsense(unread: Any) -> None:
    """Two pieces of idle work on one cache: the later one ends the earlier one."""
    model, tokenizer = small_caches(tiny_model(1, vocab_size=3072, max_position_embeddings=9000)), unread[1]
    chat = Chat(model, tokenizer, messages=[{"role": "user", "content": "word " * 400}], settle=False)
    ids = tokenizer.apply_chat_template(chat.messages, add_generation_prompt=False)
    owner = Worker.of(model)
    works = [owner.submit(chat._cache.settle(ids), idle=True) for _ in range(3)]
    for work in works:
        work.wait()
    assert chat._cache.ids == ids[: len(chat._cache.ids)]
    assert {layer.offset for layer in chat._cache.layers} == {len(chat._cache.ids)}
    logits, cached = owner.call(lambda: chat._cache.prefill([*ids, 9]))
    assert cached > 0
    assert owner.call(lambda: distance(logits, model(mx.array([[*ids, 9]]))[:, -1])) < 1e-3


def test_weights_that_change_between_turns_count_from_the_next(unread: Any) -> None:
    model, tokenizer = tiny_model(5, vocab_size=3072, max_position_embeddings=4000), unread[1]
    chat = Chat(model, tokenizer, sampling=GREEDY, max_tokens=8)
    reply(chat.send("Hello"))
    chat.settle()
    model.update({"model": {"norm": {"weight": model.model.norm.weight * 1.5}}})
    text = reply(chat.retry()).text
    cold = Chat(model, tokenizer, sampling=GREEDY, max_tokens=8)
    assert reply(cold.send("Hello")).text == text
    with pytest.raises(ValueError, match="this prompt cache was made for another model"):
        Chat(*unread, prompt_cache=chat._cache)


def test_cancel_from_another_thread_ends_in_good_order(scripted: Any) -> None:
    chat = Chat(*scripted("word " * 400))
    events = []
    for event in chat.send("a", stop_on_repetition=False):
        events.append(event)
        if len(events) == 5:
            thread = threading.Thread(target=chat.cancel)
            thread.start()
            thread.join()
    assert events[-1].finish_reason == "cancelled"
    assert chat.messages[-1]["finish_reason"] == "cancelled"
    assert chat.messages[-1]["content"].startswith("word")


def test_nothing_comes_after_cancel_but_the_end(scripted: Any) -> None:
    """Events that were made ahead of a slow reader are not given, nor kept."""
    chat = Chat(*scripted("word " * 60))
    turn = chat.send("a", stop_on_repetition=False)
    first = next(turn)
    time.sleep(0.5)  # the reply is being made meanwhile
    chat.cancel()
    assert [type(event) for event in turn] == [Done]
    assert chat.messages[-1]["content"] == first.text
    assert chat.messages[-1]["finish_reason"] == "cancelled"


@pytest.mark.parametrize("where", ["prepare", "use_tools"])
def test_interrupt_at_a_bad_moment_leaves_a_chat_that_goes_on(
    scripted: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(*scripted(call_text("roll_dice", max_num=6), "Well."), tools=[roll_dice])

    real, calls = getattr(Chat, where), []

    def interrupted(self: Chat, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Chat, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chat.send("a"))
    assert chat.open_calls == ()
    assert reply(chat.send("b")).finish_reason == "stop"


def test_no_error_of_any_kind_leaves_a_turn_in_progress(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As pyo3's: no Exception."""

    def panic(*args: Any, **options: Any) -> Any:
        raise Panic

    answers: list[Any] = [panic, lambda call: True]
    script = [call_text("roll_dice", max_num=6), call_text("roll_dice", max_num=6), "Well.", "Again.", "Better."]
    chat = Chat(*scripted(*script), tools=[roll_dice], approve=lambda call: answers.pop(0)(call))
    with pytest.raises(Panic):
        list(chat.send("a"))
    assert chat.messages[-1]["failed"] and chat.open_calls == ()
    assert reply(chat.send("b")).text == "Well."
    turn = chat.send("c")
    with monkeypatch.context() as patch:
        patch.setattr("exaone4_mlx.text.reply.ReplyParser.feed", panic)
        with pytest.raises(Panic):
            list(turn)
    assert chat.messages[-1]["finish_reason"] == "error" and repr(turn).startswith("Turn(closed")
    assert reply(chat.retry()).text == "Better."


def test_cancel_ends_a_turn_that_waits_for_another_chat(scripted: Any) -> None:
    model, tokenizer = scripted("never")
    go = hold(Worker.of(model))
    chat = Chat(model, tokenizer)
    turn = chat.send("a")
    threading.Timer(0.2, chat.cancel).start()
    assert [event.finish_reason for event in turn] == ["cancelled"]
    go.set()
    assert chat.messages[-1]["content"] == ""


def test_retry_that_is_stopped_before_anything_came_leaves_the_old_reply(scripted: Any) -> None:
    chat = Chat(*scripted("one", "two"))
    reply(chat.send("a"))
    before = chat.messages
    turn = chat.retry()
    turn.cancel()
    assert [event.finish_reason for event in turn if isinstance(event, Done)] == ["cancelled"]
    assert chat.messages == before


def test_error_in_the_model_is_raised_and_the_chat_goes_on(scripted: Any) -> None:
    chat = Chat(*scripted(["one", " two", RuntimeError("out of memory")], "again"))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.send("a"))
    assert (chat.messages[-1]["content"], chat.messages[-1]["finish_reason"]) == ("one", "error")
    assert reply(chat.send("b")).text == "again"


def test_thought_that_was_cut_is_kept_apart(scripted: Any) -> None:
    chat = Chat(*scripted("hm hm hm"))
    assert reply(chat.send("a", thinking=True, max_tokens=2)).finish_reason == "length"
    assert (chat.messages[-1]["content"], chat.messages[-1]["finish_reason"]) == ("", "length")
    assert chat.messages[-1]["reasoning_content"]


# --- tools --------------------------------------------------------------------


def test_tools_run_until_there_is_an_answer(scripted: Any) -> None:
    chat = Chat(*scripted(2 * call_text(max_num=6), "You rolled 4 and 4."), tools=[roll_dice])
    events = list(chat.send("Roll D6 dice twice!"))
    results = [event for event in events if isinstance(event, ToolResult)]
    assert [(r.call, r.content, r.failed) for r in results] == [(ToolCall("roll_dice", {"max_num": 6}), 4, False)] * 2
    assert "".join(event.text for event in events if isinstance(event, Answer)).strip() == "You rolled 4 and 4."
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert isinstance(events[-1], Done)
    assert sum(isinstance(event, Done) for event in events) == 1


def results_of(turn: Any) -> list[Any]:
    return [event.content for event in turn if isinstance(event, ToolResult)]


def failing(city: str) -> str:
    """Fail.

    Args:
        city: where
    """
    raise KeyError(city)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (call_text("os.system", command="ls"), "no tool"),
        (call_text("roll_dice", max_num="six"), "max_num"),
        (call_text("roll_dice"), "max_num"),
        (call_text("failing", city="Seoul"), "KeyError"),
    ],
)
def test_bad_calls_go_back_to_the_model_as_results(scripted: Any, body: str, expected: str) -> None:
    chat = Chat(*scripted(body, "I see."), tools=[roll_dice, failing])
    events = list(chat.send("a"))
    result = next(event for event in events if isinstance(event, ToolResult))
    assert result.failed
    assert expected in result.content["error"]
    assert chat.messages[-2] == {"role": "tool", "content": result.content, "failed": True, "seconds": result.seconds}
    assert chat.messages[-1]["content"] == "I see."


def test_call_that_is_no_json_goes_back_too(scripted: Any) -> None:
    body = '<tool_call>{"name": "roll_dice", "arguments": {</tool_call>'
    chat = Chat(*scripted(body, "I see."), tools=[roll_dice])
    list(chat.send("a"))
    assert chat.messages[1]["content"] == body
    assert "this is no valid call: not JSON" in chat.messages[2]["content"]["error"]
    assert chat.messages[3]["content"] == "I see."


@pytest.mark.parametrize("body", ["<tool_call>6</tool_call>", "<tool_call>oops</tool_call>"])
def test_tag_without_tools_or_with_a_value_only_is_answer_text(scripted: Any, body: str) -> None:
    assert reply(Chat(*scripted(body)).send("a")).text == body
    if "6" in body:
        assert reply(Chat(*scripted(body), tools=[roll_dice]).send("a")).text == body


def test_call_in_a_chat_without_tools_does_not_block_it(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("roll_dice", max_num=6), "I have none."))
    assert reply(chat.send("a")).text == "I have none."
    assert "there are no tools" in chat.messages[2]["content"]["error"]
    assert chat.open_calls == ()


def test_conversation_goes_on_from_given_messages(scripted: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]},
    ]
    chat = Chat(*scripted("one", "two"), messages=messages)
    assert (chat.system_prompt, chat.turns, chat.open_calls) == ("Be brief.", ["a"], (ToolCall("f", {"x": 1}),))
    assert reply(chat.resume([5])).text == "one"
    again = Chat(*scripted("three"), messages=chat.messages[:4])
    assert reply(again.reply()).text == "three"
    with pytest.raises(ValueError, match="there is nothing to reply to"):
        again.reply()
    with pytest.raises(ValueError, match="there are two system prompts"):
        Chat(*scripted(), "Be brief.", messages=messages)
    with pytest.raises(ValueError, match="unknown role 'robot'"):
        Chat(*scripted(), messages=[{"role": "robot", "content": "x"}])


def test_bare_argument_of_a_tool_with_one(scripted: Any) -> None:
    chat = Chat(*scripted('<tool_call>{"name": "roll_dice", "arguments": 6}</tool_call>', "4."), tools=[roll_dice])
    assert results_of(chat.send("a")) == [4]


def test_rounds_are_bounded_and_the_model_answers_in_the_end(scripted: Any) -> None:
    ran: list[int] = []

    def count(n: int) -> int:
        """Count.

        Args:
            n: a number
        """
        ran.append(n)
        return n

    call = call_text("count", n=1)
    chat = Chat(*scripted(call, call, "Enough."), tools=[count], max_tool_rounds=2)
    assert reply(chat.send("a")).text == "Enough."
    endless = Chat(*scripted(*[call] * 9), tools=[count], max_tool_rounds=2)
    done = list(endless.send("a"))[-1]
    assert done.finish_reason == "tool_calls"
    assert len(ran) == 4
    assert "2 rounds of calls, and they are used up" in endless.messages[-1]["content"]["error"]
    assert endless.open_calls == ()


def test_approval_is_asked_in_the_callers_thread_before_each_call(scripted: Any) -> None:
    asked: list[tuple[ToolCall, int]] = []

    def approve(call: ToolCall) -> bool:
        asked.append((call, threading.get_ident()))
        return len(asked) == 1

    script = scripted(call_text("roll_dice", max_num=6) * 2 + call_text("roll_dice", max_num="x"), "Well.")
    chat = Chat(*script, tools=[roll_dice], approve=approve)
    results = results_of(chat.send("a"))
    assert results[0] == 4
    assert results[1] == {"error": "not run: the user did not allow this call"}
    assert "max_num" in results[2]["error"], "a call that is wrong bothers nobody"
    assert asked == [(ToolCall("roll_dice", {"max_num": 6}), threading.get_ident())] * 2


@pytest.mark.parametrize("answer", [1, "not today", None, object()])
def test_anything_but_true_is_a_refusal(scripted: Any, answer: Any) -> None:
    script = scripted(call_text("roll_dice", max_num=6), "Well.")
    chat = Chat(*script, tools=[roll_dice], approve=lambda call: answer)
    assert results_of(chat.send("a")) == [{"error": "not run: the user did not allow this call"}]


def test_saving_overwrites_saved_chats_only(demo: Any, tmp_path: Path) -> None:
    chat = Chat(*demo, messages=[{"role": "user", "content": "a"}], settle=False)
    file = tmp_path / "tools.py"
    file.write_text("precious = 1")
    with pytest.raises(ValueError, match="is there already and is no saved chat"):
        chat.save(file)
    assert file.read_text() == "precious = 1"
    file = tmp_path / "notes.md"
    file.write_text(f"My notes, and an export:\n\n{to_markdown(Conversation.new())}")
    with pytest.raises(ValueError, match="is there already and is no saved chat"):
        chat.save(file)
    for name in ("chat.json", "chat.md") * 2:
        chat.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        chat.save(tmp_path / "none" / "chat.json")
    with pytest.warns(UserWarning, match="there are no caches"):
        assert Chat.load(tmp_path / "chat.json", *demo, caches=True, settle=False).turns == ["a"]
    assert repr(chat) == f"Chat(1 turn, {chat.context_tokens} of 8192 tokens)"


def waiting(begun: Callable[[], None], leave: threading.Event) -> Callable[[str], str]:
    """A tool that says when it has begun and comes back when it may leave."""

    def wait(city: str) -> str:
        """Wait.

        Args:
            city: where
        """
        begun()
        leave.wait(20)
        return "late"

    return wait


@pytest.mark.heavy
def test_slow_tool_is_left_after_its_time_and_blocks_no_other_chat(scripted: Any) -> None:
    entered, leave = threading.Event(), threading.Event()
    script = scripted(call_text("wait", city="x"), "other chat", "Well.")
    slow = Chat(*script, tools=[waiting(entered.set, leave)], tool_timeout=1.5)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(results_of(slow.send("a"))))
    thread.start()
    entered.wait(20)
    assert reply(Chat(*script).send("b")).text == "other chat"
    assert thread.is_alive(), "the other chat was answered while the tool still ran"
    thread.join(20)
    leave.set()
    assert "1.5 s" in results[0]["error"]


def test_cancel_while_a_tool_runs(scripted: Any) -> None:
    leave = threading.Event()
    chat = Chat(*scripted(call_text("wait", city="x") * 2, "never"), tools=[waiting(lambda: chat.cancel(), leave)])
    started = time.perf_counter()
    done = list(chat.send("a"))[-1]
    leave.set()
    assert time.perf_counter() - started < 15
    assert done.finish_reason == "cancelled"
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "tool"]
    assert chat.open_calls == ()


def test_turn_dropped_between_two_calls_leaves_none_without_a_result(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("roll_dice", max_num=6) * 2, "Well."), tools=[roll_dice])
    for event in chat.send("a"):
        if isinstance(event, ToolResult):
            break
    assert [message["content"] for message in chat.messages[2:]] == [4, {"error": "not run: the turn was ended"}]
    assert reply(chat.send("b")).text == "Well."


def test_calls_of_tools_known_by_schema_wait_for_the_caller(scripted: Any) -> None:
    schema = {"type": "function", "function": {"name": "look_up", "parameters": {"properties": {"x": {"type": "int"}}}}}
    chat = Chat(*scripted(call_text("look_up", x=1) + "\n" + call_text("roll_dice", max_num=6), "Fine."),
                tools=[schema, roll_dice])  # fmt: skip
    assert list(chat.send("a"))[-1].finish_reason == "tool_calls"
    assert chat.open_calls == (ToolCall("look_up", {"x": 1}), ToolCall("roll_dice", {"max_num": 6}))
    with pytest.raises(ValueError, match="waits for the results of its calls"):
        chat.send("b")
    with pytest.raises(ValueError, match="2 calls wait for results, and 1 results"):
        chat.resume(["x"])
    assert reply(chat.resume([{"found": True}, 3])).text == "Fine."
    assert [message["content"] for message in chat.messages[2:4]] == [{"found": True}, 3]


def test_reply_that_is_cut_behind_a_call_leaves_none_open(scripted: Any) -> None:
    text = call_text("roll_dice", max_num=6)
    model, tokenizer = scripted(text + " and then more words", "Well.")
    chat = Chat(model, tokenizer, tools=[roll_dice])
    assert reply(chat.send("a", max_tokens=len(tokenizer.encode(text)) + 2)).finish_reason == "length"
    refused = {"role": "tool", "content": {"error": "not run: the reply was cut off"}, "failed": True}
    assert chat.messages[-1] == refused
    assert reply(chat.send("b")).text == "Well."


def read(path: str) -> str:
    """Read a file."""
    return "word " * 9000


def test_result_too_long_for_the_context_is_replaced(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("read", path="x"), "Too long."), tools=[read])
    assert reply(chat.send("a")).text == "Too long."
    assert "too long for what is left of the context" in chat.messages[2]["content"]["error"]


def test_result_too_long_of_a_turn_that_was_cancelled(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("read", path="x") * 2, "Well."), tools=[read])
    for event in chat.send("a"):
        if isinstance(event, ToolResult):
            chat.cancel()
    assert event.finish_reason == "cancelled"
    assert reply(chat.send("b")).text == "Well."


def test_call_before_a_stop_string_runs(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("roll_dice", max_num=6) + "\nstop here", "Well."), tools=[roll_dice])
    assert results_of(chat.send("a", stop=["stop"])) == [4]


def test_tool_that_changes_its_arguments_changes_no_history(scripted: Any) -> None:
    def note(entry: dict) -> str:  # type: ignore[type-arg]
        """Note.

        Args:
            entry: what
        """
        entry["seen"] = object()
        return "ok"

    chat = Chat(*scripted(call_text("note", entry={"a": 1}), "Well."), tools=[note])
    reply(chat.send("x"))
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"entry": {"a": 1}}


def test_constrained_calls_fit_the_schema(demo: Any) -> None:
    pytest.importorskip("llguidance")
    tokenizer = demo[1]
    start = tokenizer.encode("<tool_call>")[0]
    model = tiny_model(3, vocab_size=3072, max_position_embeddings=4000)
    ran: list[Any] = []

    def pick(number: int, mood: bool) -> str:
        """Pick.

        Args:
            number: which
            mood: how
        """
        ran.append((number, mood))
        return "ok"

    options = {"tools": [pick], "constrain_tools": True, "max_tool_rounds": 1, "settle": False}
    sampling = Sampling(temperature=1.0, seed=5, logit_bias={start: 40.0})
    finished = 0
    for seed in range(2):
        chat = Chat(model, tokenizer, sampling=Sampling(**{**vars(sampling), "seed": seed}), **options)
        for event in chat.send("a", max_tokens=60):
            assert not (isinstance(event, ToolResult) and event.failed and "not run" not in str(event.content))
            finished += isinstance(event, ToolCall)
    assert finished


def test_constraint_of_a_call_that_was_cut_does_not_hold_the_next_reply(scripted: Any) -> None:
    pytest.importorskip("llguidance")
    chat = Chat(*scripted("<tool_call>", "Plain words.", constrained=True), tools=[roll_dice], constrain_tools=True)
    reply(chat.send("a", max_tokens=2))
    assert reply(chat.send("b")).text == "Plain words."


def test_call_whose_tag_is_spelled_is_held_too(scripted: Any, unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<tool_call>` in ordinary tokens opens a call for the parser, so it does for the constraint."""
    pytest.importorskip("llguidance")
    spelled = unread[1]._plain_backend.encode("<tool_call>", add_special_tokens=False).ids
    began: list[bool] = []
    real = ToolConstraint.begin
    monkeypatch.setattr(ToolConstraint, "begin", lambda self: began.append(True) or real(self))
    chat = Chat(*scripted(spelled, constrained=True), tools=[roll_dice], constrain_tools=True, settle=False)
    reply(chat.send("a", max_tokens=len(spelled) + 1))
    assert began == [True]


# --- the context --------------------------------------------------------------


def test_oldest_turns_are_dropped_whole_and_stay_in_the_history(unread: Any) -> None:
    tokenizer = unread[1]
    small = ScriptedModel.tiny(tokenizer, max_position_embeddings=250)
    small.script.play("word " * 30, repeat=True)
    chat = Chat(small, tokenizer, system_prompt="Be brief.", overflow="drop_oldest", max_tokens=40)
    for number in range(10):
        reply(chat.send(f"This is message number {number}.", stop_on_repetition=False))
        assert chat.context_tokens < 250
    assert len(chat.turns) == 10
    assert chat.dropped > 0
    assert chat.messages[1 + chat.dropped]["role"] == "user"
    shown = [*chat.messages[:1], *chat.messages[1 + chat.dropped :]]
    assert len(tokenizer.apply_chat_template(shown)) < 250
    with pytest.raises(ValueError, match=r"the newest turn alone has \d+ tokens"):
        chat.send("word " * 300)
    chat.reset()
    assert (chat.dropped, chat.context_tokens) == (0, 0)


def long_chat(turns: int, context: int) -> tuple[Chat, int]:
    """A chat on the demo model with a context of `context` tokens, after `turns` turns; and the bound of its memory."""
    model, tokenizer = load("demo", dtype="float32")
    config = dataclasses.replace(model.config, max_position_embeddings=context)
    model.config = model.model.config = config
    gc.collect()
    before = mx.get_active_memory()
    chat = Chat(model, tokenizer, sampling=GREEDY, overflow="drop_oldest", max_tokens=60)
    row = 2 * config.num_key_value_heads * config.head_dim * 4  # keys and values in float32
    globals_, windows = 2, 6
    local = (config.sliding_window - 1 + 64 + 512) * row * windows
    pool = Worker.of(model).checkpoints
    checkpoint = (config.sliding_window - 1 + 64) * row * windows
    # Global rows for the context, and once more while a buffer grows; windows likewise; checkpoints; a step's work.
    bound = before + globals_ * context * row * 2 + local * 2 + pool.max_count * checkpoint + 8_000_000
    questions = ["What is 348 + 275?", "대한민국의 수도는?", "Which one is bigger, 3.12 vs 3.9?", "¡Hola!"]
    for number in range(turns):
        reply(chat.send(questions[number % 4], thinking=number % 3 == 0))
        mx.clear_cache()
        assert mx.get_active_memory() <= bound, f"turn {number}"
    assert len(pool.checkpoints) <= pool.max_count
    return chat, bound


@pytest.mark.heavy
def test_memory_of_a_long_chat_is_bounded() -> None:
    chat, _ = long_chat(16, context=300)
    assert chat.dropped > 0


@pytest.mark.heavy
def test_memory_of_200_turns_is_bounded() -> None:
    chat, bound = long_chat(200, context=2048)
    assert chat.dropped > 0
    assert len(chat.turns) == 200
    print(f"200 turns: {mx.get_active_memory() / 1e6:.1f} MB active, bound {bound / 1e6:.1f} MB")


# --- the file -----------------------------------------------------------------


def test_saved_chat_is_readable_and_goes_on(scripted: Any, tmp_path: Path) -> None:
    file, model = tmp_path / "대화.json", scripted("Brief.</think>Hello, Clara.", "Asked.</think>Your name is Clara.")
    chat = Chat(*model, system_prompt="Be brief.", sampling=GREEDY, tools=[roll_dice], thinking=True)
    reply(chat.send("My name is Clara."))
    chat.save(file)
    text = file.read_text()
    assert '"content": "My name is Clara."' in text
    loaded = Chat.load(file, *model, tools=[roll_dice])
    assert loaded.messages == chat.messages
    assert (loaded.options, loaded.system_prompt) == (Options(thinking=True, temperature=0.0), "Be brief.")
    assert reply(loaded.send("What is my name?")).text == "Your name is Clara."
    chat.options = Options(logit_bias={5: -1.5})
    chat.save(file)
    assert Chat.load(file, *model, tools=[roll_dice]).options == chat.options
    with pytest.warns(UserWarning, match="saved with tools that are not given now: roll_dice"):
        Chat.load(file, *model)


def test_caches_are_saved_beside_the_chat(demo: Any, tmp_path: Path) -> None:
    chat = Chat(*demo, sampling=GREEDY)
    reply(chat.send("My name is Clara.", thinking=True))
    chat.save(tmp_path / "chat.json", caches=True)
    loaded = Chat.load(tmp_path / "chat.json", *demo, caches=True, settle=False)
    done = reply(loaded.send("What is my name?"))
    assert done.text == "Your name is Clara."
    assert done.cached_tokens == chat.context_tokens
    data = bytearray((tmp_path / "chat.json.cache").read_bytes())
    data[-100] ^= 1
    (tmp_path / "chat.json.cache").write_bytes(data)
    with pytest.warns(UserWarning, match="starting without it"):
        cold = Chat.load(tmp_path / "chat.json", *demo, caches=True, settle=False)
    assert reply(cold.send("What is my name?")).cached_tokens == 0
    other = tiny_model(vocab_size=3072), demo[1]
    chat.save(tmp_path / "chat.json", caches=True)
    with pytest.raises(ValueError, match="belongs to another model"):
        Chat.load(tmp_path / "chat.json", *other, caches=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not a saved chat"),
        ("[]", "there are no messages"),
        ('{"format": "exaone4_mlx chat", "version": 2}', "it has version 2, and this program reads 1"),
        ('{"format": "exaone4_mlx chat", "version": 1}', "it has no messages"),
        ('{"format": "exaone4_mlx chat", "version": 1, "messages": [{"role": "robot"}]}', "unknown role 'robot'"),
        ('{"format": "exaone4_mlx chat", "version": 1, "messages": [], "dropped": 5}', "dropped is 5"),
        (
            '{"format": "exaone4_mlx chat", "version": 1, "messages": [], "settings": {"approve": 5}}',
            "settings are malformed",
        ),
        (
            '{"format": "exaone4_mlx chat", "version": 1, "messages": [], "settings": {"sampling": {"x": 1}}}',
            "is not a saved chat",
        ),
        (
            '{"format": "exaone4_mlx chat", "version": 1, "messages": [], "settings": {"sampling": {"min_p": null}}}',
            "min_p must be a number",
        ),
        ('{"format": "exaone4_mlx chat", "version": 1, "messages": [], "tools": [5]}', "its tools are malformed"),
    ],
)
def test_files_that_are_no_saved_chats(demo: Any, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        Chat.load(file, *demo)
    with pytest.raises(FileNotFoundError, match="there is no saved chat"):
        Chat.load(tmp_path / "none.json", *demo)


@pytest.mark.parametrize("name", ["chat.json", "chat.md", "export.json", "list.json", "lines.jsonl"])
def test_a_chat_goes_on_from_any_file_with_messages(demo: Any, tmp_path: Path, name: str) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting.", "finish_reason": "stop"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]
    file, export = tmp_path / name, dataclasses.replace(Conversation.new(), messages=said, dropped=2)
    chat = Chat(*demo, messages=said, settle=False)
    chat.dropped = 2
    if name.startswith("chat"):
        chat.save(file)
    else:
        texts = {
            "export.json": to_json(export),
            "list.json": json_text(said),
            "lines.jsonl": "\n".join(map(json_text, said)),
        }
        file.write_text(texts[name])
    loaded = Chat.load(file, *demo, settle=False)
    assert loaded.messages == said
    assert loaded.dropped == (0 if name.startswith("li") else 2)
    if name == "chat.md":
        page = file.read_text()
        assert "# Hello" in page and "<summary>Thought</summary>" in page


# --- threads ------------------------------------------------------------------


def test_chats_in_many_threads_are_answered_in_fair_order(demo: Any) -> None:
    names = ["Clara", "Daniel", "Mina", "Lucas"]
    answers: dict[str, str] = {}

    def talk(name: str) -> None:
        chat = Chat(*demo, sampling=GREEDY)
        reply(chat.send(f"My name is {name}."))
        answers[name] = reply(chat.send("What is my name?")).text

    threads = [threading.Thread(target=talk, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {name: f"Your name is {name}." for name in names}


def test_place_in_the_line_is_told(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_TOGETHER", 1)
    model, tokenizer = scripted("one", "two")
    go = hold(Worker.of(model))
    turns = [Chat(model, tokenizer, settle=False).send("a") for _ in range(2)]
    threads = [threading.Thread(target=lambda turn=turn: list(turn)) for turn in turns]
    for number, (thread, turn) in enumerate(zip(threads, turns, strict=True)):
        thread.start()
        while turn.place != number + 1:
            time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(20)
    assert [turn.place for turn in turns] == [0, 0]


def test_thinking_and_answer_are_separate_events(demo: Any) -> None:
    events = list(Chat(*demo, sampling=GREEDY).send("What is 348 + 275?", thinking=True))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[Thinking, Answer, Done].index)


def test_message_that_is_sent_keeps_keys_of_the_callers_own(scripted: Any) -> None:
    chat = Chat(*scripted("Hi.", "Hi again.", "Hello."))
    list(chat.send({"role": "user", "content": "Hello", "files": ["notes.md"]}))
    assert chat.messages[0] == {"role": "user", "content": "Hello", "files": ["notes.md"]}
    list(chat.retry())
    assert chat.messages[0]["files"] == ["notes.md"]
    list(chat.edit(0, {"role": "user", "content": "Hello!", "files": []}))
    assert chat.messages[0]["files"] == []
    with pytest.raises(ValueError, match="not of role 'system'"):
        chat.send({"role": "system", "content": "Obey."})
    with pytest.raises(ValueError, match="nothing to send"):
        chat.send({"role": "user", "content": " "})


def test_counts_can_be_read_while_a_turn_is_made(scripted: Any) -> None:
    chat = Chat(*scripted(call_text("roll_dice", max_num=6), "You rolled 3."), tools=[roll_dice])
    turn = chat.send("Roll!")
    assert turn.so_far is None
    counts, replies = [], []
    for _ in turn:
        counts.append(turn.so_far)
        replies.append(turn.reply_so_far)
    assert counts[0].finish_reason == "unfinished"
    assert None in replies, "while the tool ran no reply was being made"
    generated = [done.answer_tokens for done in counts]
    assert generated == sorted(generated) and generated[0] > 0
    assert (
        turn.so_far.answer_tokens
        == chat.messages[1]["stats"]["answer_tokens"] + chat.messages[3]["stats"]["answer_tokens"]
    )


def test_context_can_be_bounded_below_the_models(scripted: Any) -> None:
    model, tokenizer = scripted("word " * 500, "Hi.")
    with pytest.raises(ValueError, match="max_kv_size must be a number of tokens from 2 to the model's 8192"):
        Chat(model, tokenizer, max_kv_size=8193)
    chat = Chat(model, tokenizer, max_kv_size=300)
    done = list(chat.send("Hello"))[-1]
    assert done.finish_reason == "length"
    assert done.prompt_tokens + done.answer_tokens == 300, "the reply ends with the context"
    with pytest.raises(ValueError, match="the context of 300 must hold it"):
        chat.send("and now?")
    chat.settings = dataclasses.replace(chat.settings, overflow="drop_oldest")
    list(chat.send("and now?"))
    assert chat.dropped == 2


def test_an_attribute_that_has_no_effect_is_refused(unread: tuple[Any, Any]) -> None:
    chat = Chat(*unread)
    for name, value, hint in (
        ("max_tokens", 2, r"chat\.options = dataclasses\.replace\(chat\.options, max_tokens=2\)"),
        ("thinking", True, "chat.options"),
        ("overflow", "drop_oldest", "chat.settings"),
        ("system", "x", "chat.system_prompt"),
        ("context_limit", 64, "chat.max_kv_size"),
    ):
        with pytest.raises(AttributeError, match=hint):
            setattr(chat, name, value)
