"""The loop of a chat in the terminal: errors, Ctrl-C, the end."""

from __future__ import annotations

from chat_terminals import Clock, Lines, Notes, ScriptedChat, talk

from exaone4_mlx.terminal.repl import Repl


def test_texts_are_sent_and_commands_are_not() -> None:
    chat = ScriptedChat()
    code, _, notes = talk(chat, "Hello", "", "   ", "/foo bar", "//foo", "/retry now")
    assert chat.sent == [("send", "Hello"), ("send", "/foo")]
    assert code == 0
    assert any(line.startswith("error: there is no command /foo: /help lists all") for line in notes.lines)
    assert any("/retry takes no argument" in line for line in notes.lines)


def test_without_commands_every_line_is_a_text() -> None:
    chat = ScriptedChat()
    assert talk(chat, "/undo", "//a", "  ", '"""a"""', commands=False)[0] == 0
    assert chat.sent == [("send", "/undo"), ("send", "//a"), ("send", '"""a"""')]


def test_an_error_is_one_line_and_the_conversation_continues() -> None:
    chat = ScriptedChat(ValueError("full:\nundo() or edit() a turn, reset()"))
    code, _, notes = talk(chat, "Hello", "Again")
    assert "error: full: /undo or /edit a turn, /reset" in notes.lines
    assert chat.sent == [("send", "Hello"), ("send", "Again")]
    assert code == 0
    assert talk(ScriptedChat(ValueError("x")), "Hello", can_ask=False)[0] == 1, "in a pipe it is the exit code"


def test_debug_shows_the_traceback_of_an_error() -> None:
    assert "Traceback" in "".join(talk(ScriptedChat(ValueError("x")), "Hello", debug=True)[2].lines)


def test_two_ctrl_c_within_two_seconds_exit() -> None:
    clock = Clock()

    class Slow(Lines):
        def read(self, prompt: str, default: str = "") -> str:
            clock.now += waits.pop(0)
            raise KeyboardInterrupt

    waits = [0.0, 2.5, 1.0]
    notes = Notes()
    assert Repl(ScriptedChat(), notes, Slow(), clock=clock).loop() == 0
    assert not waits, "the second came too late, the third in time"
    assert notes.lines.count("press Ctrl-C again, or Ctrl-D, to exit") == 2


def test_the_exit_command_and_the_end_of_the_input_exit() -> None:
    chat = ScriptedChat()
    assert talk(chat, "/exit", "Hello")[0] == 0
    assert talk(chat)[0] == 0
    assert chat.sent == []


def test_warnings_are_shown_before_the_prompt() -> None:
    notes = Notes()
    repl = Repl(ScriptedChat(), notes, Lines("Hello"))
    repl.warned.append("something")
    repl.loop()
    assert notes.lines[0] == "warning: something"
