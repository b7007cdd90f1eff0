"""Turns of a chat in the terminal: Ctrl-C, questions, a full context, saved conversations."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_terminals import DONE, ScriptedChat, talk

from exaone4_mlx import Answer, ToolCall
from exaone4_mlx.conversation.chat import Chat
from exaone4_mlx.generation.options import Sampling
from exaone4_mlx.text.events import Done


def test_ctrl_c_during_a_reply_cancels_it() -> None:
    def interrupt(chat: ScriptedChat) -> Answer:
        os.kill(os.getpid(), signal.SIGINT)
        assert chat.cancelled.wait(5), "the chat is cancelled in another thread"
        return Answer("half")

    before = signal.getsignal(signal.SIGINT)
    cancelled = Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)
    chat = ScriptedChat([interrupt, cancelled])
    code, _, notes = talk(chat, "Hello", "Again")
    assert code == 0
    assert notes.events[:2] == [Answer("half"), cancelled]
    assert len(chat.sent) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_pipe_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(ScriptedChat([Answer("x"), Done("cancelled", 1, 0, 0, 1, 0, 0, 0, 0)]), "Hello", "Again", can_ask=False)


def test_tools_ask_before_they_run() -> None:
    call, free = ToolCall("send", {}), ToolCall("dice", {})
    answers: list[Any] = []

    def approving(chat: ScriptedChat) -> Answer:
        answers.append([chat.approve(call), chat.approve(free)])
        return Answer("")

    chat = ScriptedChat(*[[approving, DONE]] * 5)
    interrupt = KeyboardInterrupt()
    talk(chat, *"12345", asks=["send"], answers=("no", "yes", interrupt, "always"))
    assert answers == [[False, True], [True, True], [False, True], [True, True], [True, True]]
    assert chat.cancelled.is_set(), "Ctrl-C at the question ends the turn"


def test_a_nearly_full_context_is_one_warning() -> None:
    def fill(tokens: int, dropped: int = 0) -> Callable[[ScriptedChat], Answer]:
        def filled(chat: ScriptedChat) -> Answer:
            chat.context_tokens, chat.dropped = tokens, dropped
            return Answer("")

        return filled

    chat = ScriptedChat(*[[fill(*state), DONE] for state in ((81,), (90,), (60, 4), (85, 4))])
    _, _, notes = talk(chat, *"1234")
    warnings_shown = [
        line for line in notes.lines if ("context" in line or "room" in line) and not line.startswith("[")
    ]
    assert [line.split(":")[0] for line in warnings_shown] == [
        "81% of the context for the conversation is used",
        "the context is full",
        "85% of the context for the conversation is used",
    ]
    assert "first 4 messages" in warnings_shown[1]


@pytest.fixture
def chat(demo: Any) -> Chat:
    return Chat(*demo, sampling=Sampling(temperature=0), settle=False)


def test_saved_caches_are_reused(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(chat, "Hello", f"/save {file} caches")
    assert (tmp_path / "talk.json.cache").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, notes = talk(Chat(chat.model, chat.tokenizer, settle=False), f"/load {file}", "Hello")
    assert notes.events[-1].cached_tokens > 10


def test_a_loaded_conversation_keeps_settings_that_are_not_saved(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(chat, f"/save {file}")
    unsaved = {"max_kv_size": 900, "kv": 8, "prompt_lookup": True, "num_draft_tokens": 3}
    _, repl, _ = talk(chat, f"/load {file}", unsaved=unsaved)
    loaded = repl.chat
    assert loaded is not chat and loaded.max_kv_size == 900
    assert (loaded.options.prompt_lookup, loaded.options.num_draft_tokens, loaded._cache.kv.key_bits) == (True, 3, 8)
