"""A reply that was cut and continued is the reply that was not cut: its tokens, its message, its caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import call_text, mostly_heavy, roll_dice, small_caches, tiny_model

from exaone4_mlx import Chat, Done, Thinking, Tokenizer, ToolCall
from exaone4_mlx.conversation.begun import begun_reply
from exaone4_mlx.text.message import Message

TIMES = ("prefill_seconds", "decode_seconds", "thinking_seconds", "peak_bytes", "cached_tokens")
TEXTS = ("content", "reasoning_content")
ASKED = "What is 348 + 275? Then name the capital of South Korea."


def last(chat: Chat) -> Message:
    """The last reply, without what differs between two runs."""
    message = next(message for message in reversed(chat.messages) if message["role"] == "assistant")
    stats = {name: value for name, value in message.get("stats", {}).items() if name not in TIMES}
    return message | {"stats": stats}


def cut_and_continued(whole: Chat, chat: Chat, count: int, **options: Any) -> Done:
    """Cuts the reply to `ASKED` after `count` tokens, and continues it. Returns the counts of the second part."""
    chat.ask(ASKED, max_tokens=count, **options)
    chat.settle()
    *_, done = chat.continue_reply()
    assert last(chat) == last(whole), f"cut after {count} tokens"
    assert chat.messages[:-1] == whole.messages[:-1]
    return done


@pytest.mark.parametrize("thinking", mostly_heavy([True, False], 1))
def test_a_reply_that_was_cut_anywhere_becomes_the_whole_one(demo: Any, thinking: bool) -> None:
    """In the thought, at its end, in the answer. The model reads the token after which the reply was cut, again."""
    options: dict[str, Any] = {"temperature": 0, "thinking": thinking}
    whole = Chat(*demo, **options)
    reply = whole.ask(ASKED)
    length = len(reply.token_ids)
    end = reply.thinking_tokens
    assert reply.finish_reason == "stop" and bool(reply.thinking) is thinking
    for count in (end - 1, end, end + 1, length - 1) if thinking else (1, length // 2, length):
        done = cut_and_continued(whole, Chat(*demo, **options), count)
        assert done.prompt_tokens - done.cached_tokens == 1, f"cut after {count} tokens"
        assert done.thinking_tokens + done.answer_tokens == length - count


@pytest.mark.parametrize("options", [
    {"temperature": 0, "presence_penalty": 1.5, "repetition_penalty": 1.3},
    {"temperature": 1.5, "top_p": 0.9, "seed": 7, "thinking": True, "frequency_penalty": 0.5},
], ids=["greedy", "sampled"])  # fmt: skip
def test_past_the_window_with_penalties_and_a_seed(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    """The tokens of a random model are those of no text, and end inside characters."""
    model = small_caches(tiny_model(vocab_size=tokenizer.vocab_size))
    options = {**options, "stop_on_repetition": False, "logit_bias": {tokenizer.eos_token_id: -100}}
    whole, length = Chat(model, tokenizer, **options), 60
    whole.ask(ASKED, max_tokens=length)
    assert length > 3 * model.config.sliding_window, "the reply passes the window"
    assert whole.written is not None
    decoder = tokenizer.stream_decoder()
    pending = [
        count for count, id in enumerate(whole.written.ids, start=1) if decoder.feed(id) is None or decoder.pending
    ]
    assert any(count > 20 for count in pending), "some cuts are inside a character"
    for count in (length // 2, pending[0], pending[-1]):
        chat = Chat(model, tokenizer, **options)
        chat.ask(ASKED, max_tokens=count)
        begun = chat.written.kept(tokenizer) if chat.written else None
        assert begun is not None and count - len(begun.ids) < 6, "the incomplete characters are written again"
        *_, done = chat.continue_reply(max_tokens=length - len(begun.ids))
        assert isinstance(done, Done) and chat.written
        assert chat.written.ids == whole.written.ids, count
        assert [last(chat).get(key) for key in TEXTS] == [last(whole).get(key) for key in TEXTS], count
        assert done.prompt_tokens - done.cached_tokens == 1, "the caches go back to the last whole character"


def test_the_budget_of_a_thought_counts_the_whole_thought(demo: Any) -> None:
    options: dict[str, Any] = {"temperature": 0, "thinking": True, "thinking_budget": 9, "max_tokens": 60}
    whole = Chat(*demo, **options)
    assert "I will answer now." in whole.ask(ASKED).thinking
    chat = Chat(*demo, **options)
    turn = chat.send(ASKED)
    for _ in range(4):
        next(turn)
    turn.close()
    assert 0 < len(last(chat)["reasoning_content"]) < len(last(whole)["reasoning_content"])
    list(chat.continue_reply())
    assert [last(chat)[key] for key in TEXTS] == [last(whole)[key] for key in TEXTS]


# --- calls ------------------------------------------------------------------------------------------------------


def test_a_reply_that_was_cut_inside_a_call_writes_the_call_again(scripted: Any) -> None:
    """Also after a whole call: no call of a reply that was cut has run."""
    call, other = call_text(max_num=6), call_text(max_num=4)
    for written, count in ((f"So: {call}", 9), (f"So: {call}\n{other}", 30)):
        model, tokenizer = scripted(f"So: {written.removeprefix('So: ')}", written.removeprefix("So: "), "Done.")
        chat = Chat(model, tokenizer, tools=[roll_dice], settle=False)
        chat.ask("Roll!", max_tokens=count)
        assert last(chat)["finish_reason"] == "length" and "<tool_call>" in last(chat)["content"]
        assert bool(last(chat).get("tool_calls")) == (other in written), "the second call is cut"
        begun = chat.written.kept(tokenizer) if chat.written else None
        assert begun is not None and tokenizer.decode(begun.ids) == "So: "
        events = list(chat.continue_reply(max_tokens=99))
        calls = [event for event in events if isinstance(event, ToolCall)]
        assert len(calls) == written.count("<tool_call>")
        _, reply, *results, answer = chat.messages
        assert reply["content"] == "So:" and len(reply["tool_calls"]) == len(calls) == len(results)
        assert all(result["role"] == "tool" and not result["failed"] for result in results)
        assert answer["content"] == "Done."


def test_a_call_that_was_cut_is_written_again_after_a_reload(tokenizer: Tokenizer) -> None:
    """Its text has the begun call. A call in an edited text, or in a whole reply, is text."""
    user, call = {"role": "user", "content": "Roll!"}, 'So: <tool_call>{"na'
    for content, reason, kept in (
        (call, "length", "So: "),
        (f"{call_text(max_num=6)} {call}", "cancelled", f"{call_text(max_num=6)} So: "),
        (call_text(max_num=6), "length", call_text(max_num=6)),
        (call, "stop", call),
        ("Seoul \ufffd", "length", "Seoul "),
    ):
        reply = {"role": "assistant", "content": content, "finish_reason": reason}
        _, begun = begun_reply(tokenizer, [user, reply], None, None)
        assert begun.partial().answer == kept and not begun.ids
    _, begun = begun_reply(tokenizer, [user, reply], None, call)
    assert begun.partial().answer == call and begun.is_edited


# --- texts ------------------------------------------------------------------------------------------------------


def test_an_edited_reply_is_continued_from_its_text(demo: Any) -> None:
    """The thought stays. What the user writes sets no control token and calls no tool."""
    chat = Chat(*demo, temperature=0, thinking=True)
    chat.ask(ASKED)
    thought = last(chat)["reasoning_content"]
    text = 'The capital <tool_call>{"name": "roll_dice", "arguments": {"max_num": 6}}</tool_call> of South Korea'
    events = list(chat.continue_reply(text, max_tokens=5))
    assert not any(isinstance(event, (ToolCall, Thinking)) for event in events)
    assert last(chat)["content"].startswith(text) and len(last(chat)["content"]) > len(text)
    assert last(chat)["reasoning_content"] == thought
    assert chat.written is not None
    marks = [id for id in chat.written.ids[:-5] if id in demo[1].control_ids]
    assert marks == [demo[1].think_end_id]
    assert last(chat)["stats"]["answer_tokens"] == 5, "the counts are those of the new part"
    other = {"role": "assistant", "content": "A", "reasoning_content": "B\n"}
    list(chat.continue_reply(other, max_tokens=1))
    assert last(chat)["reasoning_content"] == "B\n" and last(chat)["content"].startswith("A")


def test_a_saved_reply_goes_on(demo: Any, tmp_path: Path) -> None:
    """From its text, and with its caches it reads one token."""
    whole = Chat(*demo, temperature=0, thinking=True)
    whole.ask(ASKED)
    for caches in (False, True):
        chat = Chat(*demo, temperature=0, thinking=True)
        chat.ask(ASKED, max_tokens=20)
        chat.save(tmp_path / "chat.json", caches=caches)
        loaded = Chat.load(tmp_path / "chat.json", *demo, caches=caches)
        *_, done = loaded.continue_reply()
        assert isinstance(done, Done) and last(loaded) == last(whole)
        if caches:
            assert done.prompt_tokens - done.cached_tokens == 1
        loaded.save(tmp_path / "chat.json")
        assert Chat.load(tmp_path / "chat.json", *demo).messages == loaded.messages


def test_a_reply_that_ended_by_itself_goes_on_after_a_changed_setting(scripted: Any) -> None:
    chat = Chat(*scripted("One.", " Two."), settle=False)
    chat.ask("Count!")
    list(chat.continue_reply(min_tokens=1))
    assert [message["content"] for message in chat.messages] == ["Count!", "One. Two."]
    assert last(chat)["finish_reason"] == "stop" and len(chat.turns) == 1


def test_a_stop_string_may_span_the_cut(scripted: Any) -> None:
    """What is shown already cannot be taken back, and is not shown twice."""
    for then, whole in (("D b", "a EN"), ("X b", "a ENX b")):
        chat = Chat(*scripted("a EN" + then, then), stop="END", settle=False)
        chat.ask("Hi", max_tokens=len(chat.tokenizer.encode("a EN")))
        assert last(chat)["content"] == "a EN"
        *_, done = chat.continue_reply()
        assert isinstance(done, Done) and done.finish_reason == "stop" and last(chat)["content"] == whole


def test_a_line_end_at_the_cut_of_a_thought_is_kept_once(scripted: Any) -> None:
    for begun, then, thought in (
        ("a\n", "b\n</think>\n\nYes.", "a\nb"),
        ("a\n", "</think>\n\nYes.", "a"),
        ("a\n\n", "b\n</think>\n\nYes.", "a\n\nb"),
        ("a\n\n", "</think>\n\nYes.", "a\n"),
        ("a </", " b\n</think>\n\nYes.", "a </ b"),
    ):
        chat = Chat(*scripted(begun + then, then), thinking=True, settle=False)
        tokens = chat.tokenizer.encode(begun)
        chat.ask("Hi", max_tokens=len(tokens))
        assert last(chat)["reasoning_content"] == begun
        assert chat.written and (kept := chat.written.kept(chat.tokenizer)) and kept.ids == tuple(tokens)
        list(chat.continue_reply())
        assert [last(chat)[key] for key in TEXTS] == ["Yes.", thought]


def test_what_is_cancelled_at_once_stays_as_it_was(scripted: Any) -> None:
    """An edited text is kept: it is the user's."""
    chat = Chat(*scripted("One two three", repeat=True), settle=False)
    chat.ask("Hi", max_tokens=2)
    before = chat.messages
    turn = chat.continue_reply()
    turn.cancel()
    list(turn)
    assert chat.messages == before
    turn = chat.continue_reply("Other")
    turn.cancel()
    list(turn)
    assert last(chat)["content"] == "Other" and last(chat)["finish_reason"] == "cancelled"
    with pytest.warns(UserWarning, match="a turn was dropped before it began"):
        chat.continue_reply()


def test_what_cannot_be_continued_is_refused(scripted: Any) -> None:
    chat = Chat(*scripted("Yes.", call_text(max_num=6), "Yes."), settle=False)
    with pytest.raises(ValueError, match="no reply to continue: the last message is not the assistant's"):
        chat.continue_reply()
    chat.ask("Hi")
    for text, options, message in (
        (" ", {}, "a text of the assistant that is not empty"),
        (5, {}, "the text of the reply must be a string or a message, not 5"),
        ({"role": "user", "content": "x"}, {}, "a text of the assistant"),
        (None, {"thinking": True}, r"begun with thinking=False: retry\(\) makes another one"),
        (None, {"prefill_response": "So"}, "prefill_response begins a new reply"),
        (None, {"max_tokens": 0}, "max_tokens must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.continue_reply(text, **options)
    schema = {"type": "function", "function": {"name": "roll_dice", "parameters": {}}}
    chat.ask("Roll!", tools=[schema])
    with pytest.raises(ValueError, match=r"ended with calls of tools, and cannot be continued: resume\(\)"):
        chat.continue_reply()
