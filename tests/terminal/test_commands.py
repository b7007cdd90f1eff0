"""The commands of a chat in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapters import random_adapter
from chat_terminals import Lines, Notes, ScriptedChat, talk

from exaone4_mlx import Answer
from exaone4_mlx.conversation.chat import Chat
from exaone4_mlx.generation.options import Options, Sampling
from exaone4_mlx.model.adapter_file import write_adapter
from exaone4_mlx.terminal.commands import COMMANDS, completions, continues, read_line
from exaone4_mlx.terminal.repl import Repl
from exaone4_mlx.text.events import Done


def test_a_line_is_a_text_or_a_command() -> None:
    for line, read in {
        "Hello": ("", "Hello"),
        "/think on": ("/think", "on"),
        "/retry": ("/retry", ""),
        "//usr is a folder": ("", "/usr is a folder"),
        '"""/no command"""': ("", "/no command"),
        '"""\na\nb\n"""': ("", "a\nb"),
        "  indented": ("", "  indented"),
    }.items():
        assert read_line(line) == read, line


def test_which_lines_continue() -> None:
    assert continues("a\\") and continues('"""a') and continues('"""')
    assert not continues("a") and not continues('"""a"""') and not continues('""""""')


def test_edit_puts_the_text_into_the_input_line() -> None:
    chat = ScriptedChat()
    _, repl, notes = talk(chat, "one", "two", "/edit 1", "one!", "/edit", "", "/edit 9", "three")
    assert repl.keys.defaults == ["", "", "", "one", "", "two", "", "", ""]
    assert chat.sent == [("send", "one"), ("send", "two"), ("edit 0", "one!"), ("send", "three")]
    assert any("drops 1 later turn;" in line for line in notes.lines)
    assert "error: there is no turn 9: the conversation has 2" in notes.lines


def test_commands_change_settings() -> None:
    chat = ScriptedChat()
    _, _, notes = talk(
        chat, "/set presence_penalty 1.5", "/set seed 3", "/set max_tokens 9", "/set top_p 7", "/set colour red",
        "/set seed x", "/set seed", "/set", "/budget 5", "/budget -1", "/think on", "/think maybe", "/system Be brief.",
    )  # fmt: skip
    assert chat.options == Options(presence_penalty=1.5, seed=3, max_tokens=9, thinking_budget=5, thinking=True)
    assert chat.system_prompt == "Be brief."
    errors = [line for line in notes.lines if line.startswith("error")]
    assert [error[:25] for error in errors] == [
        "error: top_p must be abov",
        "error: there is no settin",
        "error: seed must be a who",
        "error: seed needs a value",
        "error: /budget needs a wh",
        "error: /think takes on or",
    ]
    assert any(line.startswith("temperature 0.1, top_p 1.0") for line in notes.lines)
    talk(chat, "/set presence_penalty default", "/set max_tokens default", "/budget off", "/system off")
    assert chat.options == Options(seed=3, thinking=True)
    assert chat.system_prompt is None


def test_tools_can_be_switched_off_and_on() -> None:
    def one() -> int:
        return 1

    def two() -> int:
        return 2

    chat = ScriptedChat(tools=(one, two))
    _, repl, notes = talk(chat, "/tools off", "/tools two", "/tools three", asks=["two"])
    assert list(chat.tools) == [two]
    assert notes.lines[-3:-1] == ["off one", "on  two, asks before it runs"]
    assert "there is no tool 'three'; the tools are one, two" in notes.lines[-1]
    talk(chat, "/tools on")
    repl.screen.lines.clear()
    assert "error: there are no tools" in talk(ScriptedChat(), "/tools")[2].lines[0]


def test_tab_completes_commands_and_their_arguments(tmp_path: Path) -> None:
    def dice() -> int:
        return 1

    repl = Repl(ScriptedChat(tools=(dice,)), Notes(), Lines())
    assert list(completions(repl, "/th")) == [("/think", 3), ("/thought", 3)]
    assert ("dice", 1) in completions(repl, "/tools d")
    assert list(completions(repl, "/set pres")) == [("presence_penalty", 4)]
    (tmp_path / "talk.json").write_text("")
    assert list(completions(repl, f"/load {tmp_path}/ta")) == [(f"{tmp_path}/talk.json", len(f"{tmp_path}/ta"))]
    assert list(completions(repl, "//th")) == list(completions(repl, "th")) == []


def test_help_names_every_command() -> None:
    lines = talk(ScriptedChat(), "/help")[2].lines
    assert all(any(line.startswith(name) for line in lines) for name in COMMANDS)


@pytest.fixture
def chat(demo: Any) -> Chat:
    return Chat(*demo, sampling=Sampling(temperature=0), settle=False)


def answers(notes: Notes) -> list[str]:
    texts = [""]
    for event in notes.events:
        if isinstance(event, Answer):
            texts[-1] += event.text
        elif isinstance(event, Done):
            texts.append("")
    return texts[:-1]


def test_a_conversation_with_the_demo(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    code, repl, notes = talk(
        chat, "What is the capital of Peru?", "/retry", "/edit 1", "What is the capital of Italy?", "Hello", "/undo",
        "/think on", "What is 348 + 275?", "/thought", "/stats", f"/save {file}", f"/save {file}", "/reset", f"/load {file}",
    )  # fmt: skip
    assert code == 0 and not [line for line in notes.lines if line.startswith("error")]
    peru, again, rome, _, total = answers(notes)
    assert "Lima" in peru and "Lima" in again and "Rome" in rome and "623" in total
    assert "removed: Hello" in notes.lines
    assert any("5 + 8" in line or "348" in line for line in notes.lines if not line.startswith("["))
    assert any(line.startswith("2 turns, 4 messages; context") for line in notes.lines)
    assert repl.chat is not chat
    assert repl.chat.turns == ["What is the capital of Italy?", "What is 348 + 275?"]
    assert repl.chat.options.thinking, "settings come from the file"
    assert notes.lines[-2] == "> What is 348 + 275?" and "623" in notes.lines[-1]


def test_adapters_are_swapped_between_replies(chat: Chat, tmp_path: Path) -> None:
    config = chat.model.config
    write_adapter(tmp_path / "mine", random_adapter("lora", config, seed=3, num_layers=1, scale=12.0))
    question = "Who are you?"
    try:
        code, _, notes = talk(
            chat, "/set max_tokens 8", "/adapter", question, f"/adapter '{tmp_path / 'mine'}'", "/retry", "/adapter nowhere",
            "/adapter off", "/retry",
        )  # fmt: skip
        plain, adapted, again = answers(notes)
        assert code == 0 and plain == again != adapted
        assert f"adapters: {tmp_path / 'mine'} (scale 1)" in notes.lines
        assert [line for line in notes.lines if line.startswith("error")] == ["error: there is no folder nowhere"]
        assert notes.lines.count("the model has no adapter") == 2
    finally:
        chat.model.set_adapters()


def test_a_reply_that_was_cut_goes_on(chat: Chat) -> None:
    _, _, notes = talk(
        chat, "/continue", "/set max_tokens 4", "What is the capital of Italy?", "/set max_tokens 50", "/continue"
    )
    assert any("no reply to continue" in line for line in notes.lines)
    first, rest = answers(notes)
    assert chat.messages[-1]["content"] == first + rest and "Rome" in first + rest
    assert len(chat.messages) == 2 and chat.messages[-1]["finish_reason"] == "stop"


def test_saving_overwrites_no_other_file(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("dear")
    _, _, notes = talk(chat, f"/save {file}", "/save", "/load", f"/load {file}", f"/load {tmp_path}/none")
    assert file.read_text() == "dear"
    errors = [line for line in notes.lines if line.startswith("error")]
    assert len(errors) == 5 and "exists already" in errors[0] and "is not a saved chat" in errors[3]
