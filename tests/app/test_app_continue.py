"""A reply that was cut goes on, and an edited reply is kept or continued: as a branch, in all tabs, on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_sessions import ENDLESS, PLAIN, WAIT_SECONDS, contents, finished, say, until
from conftest import call_text, roll_dice

from app.i18n import Words
from app.render import items
from app.session import Session
from app.settings import Settings
from exaone4_mlx import Chat, Conversation, ConversationStore

SHORT = Settings(max_tokens=3)


@pytest.fixture
def store(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path / "conversations")


@pytest.fixture
def session(unread: Any, store: ConversationStore) -> Iterator[Session]:
    def save(session: Session) -> None:
        session.conversation = store.write(session.conversation)

    session = Session(
        Conversation.new(),
        PLAIN,
        tools=(roll_dice,),
        keeps=True,
        chat_of=lambda session: Chat(*unread, overflow="drop_oldest", settle=False),
        save=save,
        ended=lambda session: None,
        step_size=lambda: 512,
        measure=lambda messages: (len(messages), 100),
    )
    yield session
    session.stop()
    assert session.join(WAIT_SECONDS)


def test_a_reply_that_was_cut_goes_on_as_one_message(session: Session, scripted: Any, store: ConversationStore) -> None:
    scripted("one two three", " four five")
    say(session, "Count", SHORT)
    cut = session.view()
    before = cut.messages[-1]
    assert before["finish_reason"] == "length"
    session.continue_reply(PLAIN)
    view = finished(session)
    reply = view.messages[-1]
    assert len(view.messages) == 2 and reply["content"] == before["content"] + " four five"
    assert reply["stats"]["answer_tokens"] > 3 and reply["finish_reason"] == "stop"
    assert view.forks == {1: (1, 2)} and view.undo == "continue"
    assert store.read(session.id).messages == session.conversation.messages
    session.undo()
    assert session.view().messages[-1] == before, "Undo brings the reply back as it was"
    session.redo()
    assert session.view().messages[-1] == reply


def test_while_it_goes_on_the_page_shows_the_whole_reply(
    session: Session, scripted: Any, store: ConversationStore
) -> None:
    scripted("one two three", ENDLESS, " five six", pause=0.01)
    say(session, "Count", SHORT)
    before = contents(session)[-1]
    session.continue_reply(PLAIN)
    until(lambda: session.view().coming and session.view().coming[-1]["content"] != before, "something new")
    view = session.view()
    assert [message["role"] for message in view.messages] == ["user"]
    assert view.coming[0]["content"].startswith(before) and len(view.coming) == 1
    with pytest.raises(ValueError, match="in progress"):
        session.continue_reply(PLAIN)
    session.stop()
    view = finished(session)
    assert view.messages[-1]["content"].startswith(before) and view.messages[-1]["finish_reason"] == "cancelled"
    again = len(view.messages[-1]["content"])
    session.continue_reply(SHORT)
    assert len(finished(session).messages[-1]["content"]) > again
    assert store.read(session.id).messages == session.conversation.messages


def test_an_error_leaves_the_reply_as_it_was(session: Session, scripted: Any) -> None:
    scripted("one two three", [RuntimeError("no memory")])
    say(session, "Count", SHORT)
    before = session.view().messages
    session.continue_reply(PLAIN)
    view = finished(session)
    assert "no memory" in str(view.error) and view.messages == before and not view.forks


def test_an_edited_reply_is_kept_or_continued_as_a_branch(
    session: Session, scripted: Any, store: ConversationStore
) -> None:
    scripted("one", "two", " more", "again")
    say(session, "first", PLAIN)
    say(session, "second", PLAIN)
    session.save_reply("mine", 0)
    view = session.view()
    assert contents(session) == ["first", "mine"] and view.forks == {1: (1, 2)} and view.undo == "edit"
    assert view.messages[-1].get("finish_reason") is None, "an edited reply is whole"
    session.undo()
    assert contents(session) == ["first", "one", "second", "two"]
    session.continue_reply(PLAIN, "also mine", 0)
    finished(session)
    assert contents(session) == ["first", "also mine more"]
    assert say(session, "third", PLAIN).messages[-1]["content"] == "again"
    assert store.read(session.id).branches == session.conversation.branches
    for text in ("", " \n"):
        with pytest.raises(ValueError, match="empty"):
            session.save_reply(text)
        with pytest.raises(ValueError, match="not empty"):
            session.continue_reply(PLAIN, text)
    with pytest.raises(ValueError, match="there is no turn 7"):
        session.save_reply("x", 7)


def test_an_edited_reply_keeps_its_text_when_nothing_comes(session: Session, scripted: Any) -> None:
    scripted("one", ENDLESS, pause=0.01)
    say(session, "first", PLAIN)
    session.continue_reply(PLAIN, "mine")
    session.stop()
    finished(session)
    assert contents(session)[-1].startswith("mine")


def test_a_call_that_was_cut_is_written_again(session: Session, scripted: Any) -> None:
    call = call_text(max_num=6)
    scripted(f"So: {call}", call, "Done.")
    view = say(session, "Roll!", Settings(use_tools=True, ask=False, max_tokens=9))
    assert "<tool_call>" in view.messages[-1]["content"]
    session.continue_reply(Settings(use_tools=True, ask=False))
    view = finished(session)
    assert [message["role"] for message in view.messages] == ["user", "assistant", "tool", "assistant"]
    assert view.messages[-1]["content"] == "Done." and not view.messages[2]["failed"]


def test_items_say_how_a_reply_ended() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    replies: list[dict[str, Any]] = [
        {"content": "a", "finish_reason": "length"},
        {"content": "a", "finish_reason": "stop"},
        {"content": "", "tool_calls": [call]},
    ]
    shown = [items([{"role": "user", "content": "x"}, {"role": "assistant", **one}], Words("en")) for one in replies]
    assert [of[-1]["ending"] for of in shown] == ["cut", "whole", "calls"]
