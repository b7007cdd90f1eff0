"""Titles that the model makes, with `app.titles`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_sessions import PLAIN, WAIT_SECONDS, finished, say, until

from app import titles as titles_module
from app.engine import ChatEngine, LoadedModel
from app.models import Choice
from app.settings import Settings
from app.state import AppState
from app.titles import usable
from exaone4_mlx import ConversationStore, fit

QUESTION = "Where should we go on the island of Jeju, and for how many days at least?"
CUT = "Where should we go on the island of Jeju, and f…"


@pytest.fixture
def make(unread: Any, tmp_path: Path) -> Callable[..., AppState]:
    def one(label: str = "unread") -> AppState:
        engine = ChatEngine(LoadedModel(Choice(label, label), *unread, fit("demo")))
        return AppState(engine, ConversationStore(tmp_path), makes_titles=True)

    return one


def title_is(state: AppState, id: str, title: str) -> None:
    until(lambda: state.store.read(id).title == title, f"the title {title!r}, not {state.store.read(id).title!r}")


def no_title_is_made(state: AppState, id: str) -> None:
    thread = state._titles and state._titles._thread  # type: ignore[union-attr]
    if thread is not None:
        thread.join(WAIT_SECONDS)
    assert state.store.read(id).title == CUT


def test_the_model_names_a_conversation_after_its_first_reply(make: Any, scripted: Any):
    scripted("Three days.", "  **Title: Days on Jeju.**")
    state = make()
    session = state.tab("one").session
    before = state.listed
    say(session, QUESTION)
    title_is(state, session.id, "Days on Jeju")
    until(lambda: session.conversation.title == "Days on Jeju" and state.listed > before + 2, "the page learns it")
    stored = state.store.read(session.id)
    assert not stored.named and stored.revision == session.conversation.revision, "a title is no change of the messages"
    scripted("More.", repeat=True)
    say(session, "And then?")
    assert state.store.read(session.id).title == "Days on Jeju"


def test_none_is_made_where_the_user_named_it_or_switched_them_off_or_for_the_demo(make: Any, scripted: Any):
    scripted("ok", "Another title", repeat=True)
    state = make()
    session = state.tab("one").session
    say(session, QUESTION, Settings(titles=False))
    no_title_is_made(state, session.id)
    named = state.tab("two").session
    state.rename(named.id, "mine")
    say(named, QUESTION)
    time.sleep(0.05)
    assert state.store.read(named.id).title == "mine"
    demo = make("demo")
    session = demo.tab("one").session
    say(session, QUESTION)
    no_title_is_made(demo, session.id)


def test_a_new_message_ends_a_title_at_once_and_what_it_began_is_not_used(make: Any, scripted: Any):
    scripted("ok", "Slowly goes on and on", "The reply.", pause=0.1, ends=True)
    state = make()
    session = state.tab("one").session
    say(session, QUESTION)
    generation = until(lambda: state._titles._generation, "the title begins")
    until(lambda: generation.so_far.answer_tokens > 1, "the title has a word")
    session.send("And now?", [], PLAIN)
    until(lambda: state._titles._generation is not generation, "the title ends")
    whole = len(state.engine.loaded.tokenizer.encode("Slowly goes on and on"))
    assert len(generation.token_ids) < whole, "the reply waited for the whole title"
    assert state.store.read(session.id).title == CUT
    finished(session)
    assert "Slowly" not in str(session.view().messages), "the title went into the conversation"


def test_what_the_user_typed_while_a_title_was_made_stays(make: Any, scripted: Any):
    scripted("ok", "Slow title of the model", pause=0.03)
    state = make()
    session = state.tab("one").session
    say(session, QUESTION)
    until(lambda: state._titles._generation is not None, "the title begins")
    state.rename(session.id, "mine")
    state._titles._thread.join(WAIT_SECONDS)
    assert state.store.read(session.id).title == session.conversation.title == "mine"


@pytest.mark.parametrize(
    ("text", "said", "title"),
    [
        ('"Jeju in three days"', "Jeju?", "Jeju in three days"),
        ("제목: 제주도 여행 계획.", "제주도", "제주도 여행 계획"),
        ("## **Título: Tres días**", "¿Cuántos días?", "Tres días"),
        ("Jeju trip", "제주도 여행", ""),  # the wrong language
        ("제주도", "Jeju", ""),
        ("", "Jeju", ""),
        ("12 34", "Jeju", ""),
        ("<think> so", "Jeju", ""),
        ("word " * 20, "Jeju", ""),
        ("a\x1b[31mb\x00 c", "Jeju", ""),
    ],
)
def test_only_a_short_line_in_the_language_of_the_conversation_is_a_title(text: str, said: str, title: str):
    assert usable(text, said) == title


def test_the_prompt_of_a_title_is_short_whatever_was_attached(make: Any, scripted: Any, monkeypatch: Any):
    prompts: list[str] = []
    real = titles_module.stream_generate
    monkeypatch.setattr(
        titles_module,
        "stream_generate",
        lambda *given, **options: (prompts.append(given[2]), real(*given, **options))[1],
    )
    scripted("ok " * 150, "Long talk")
    state = make()
    session = state.tab("one").session
    say(session, "word " * 300)
    until(lambda: prompts, "a title begins")
    assert 1200 < len(prompts[0]) < 1400
