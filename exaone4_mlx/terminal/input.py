"""Lines typed at a terminal, with `prompt_toolkit`: editing, history, several lines, questions.

What is peculiar here:
- Enter sends. Alt-Enter, a backslash at the end, or an opening triple quote go on in the next line.
- Ctrl-C clears what was typed, and keeps it in the history; only at an empty line it is an interruption.
- Before a question is asked, what was typed ahead is thrown away: it was not meant as an answer.
- The history is a file of its owner's only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from .commands import QUOTES, goes_on

HISTORY_VARIABLE = "EXAONE4_MLX_HISTORY"
QUESTION = "  run it? yes, no or always: "
ANSWERS = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "a": "always", "always": "always"}


def history_file() -> Path:
    """Where the history is kept: $EXAONE4_MLX_HISTORY, or a file in the platform's folder for such things."""
    if chosen := os.environ.get(HISTORY_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "exaone4_mlx" / "history"


def open_history(path: Path) -> History:
    """The history in a file that nobody else may read; raises OSError where there can be none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)) as stream:
        if os.fstat(stream.fileno()).st_mode & 0o077:
            os.fchmod(stream.fileno(), 0o600)
    return FileHistory(str(path))


class TerminalInput:
    """Reads what the user says. `complete(text)` gives what the end of a line may become, with what it replaces."""

    def __init__(self, complete: Callable[[str], Iterable[tuple[str, int]]], warn: Callable[[str], None]) -> None:
        try:
            history = open_history(history_file())
        except OSError as error:
            warn(f"what you type is not kept for the next time: {error}")
            history = InMemoryHistory()
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            completer=_Completer(complete),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
            enable_open_in_editor=True,
            key_bindings=_line_keys(),
            prompt_continuation=lambda width, number, wrapped: " " * width,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """What was typed. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C at an empty line."""
        return self._session.prompt(FormattedText([("bold", prompt)]), default=default)

    def ask(self) -> str:
        """Whether the call that was shown may run: "yes", "no" or "always". The question goes when it is answered."""
        question: PromptSession[str] = PromptSession(erase_when_done=True)
        self._forget_typed(question)
        while True:
            try:
                typed = question.prompt(FormattedText([("ansicyan", QUESTION)])).strip().casefold()
            except EOFError:
                return "no"
            if answer := ANSWERS.get(typed):
                return answer

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is typed while a reply is made does not show in it; it waits for the next line."""
        try:
            import termios

            number = sys.stdin.fileno()
            before = termios.tcgetattr(number)
        except (ImportError, OSError, ValueError):
            yield
            return
        quiet = [*before]
        quiet[3] = before[3] & ~termios.ECHO
        try:
            termios.tcsetattr(number, termios.TCSANOW, quiet)
            yield
        finally:
            termios.tcsetattr(number, termios.TCSANOW, before)

    @staticmethod
    def _forget_typed(session: PromptSession[str]) -> None:
        clear_typeahead(session.input)
        with contextlib.suppress(OSError, ImportError):
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def _line_keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not goes_on(buffer.text):
            buffer.validate_and_handle()
            return
        buffer.cursor_position = len(buffer.text)
        if not buffer.text.startswith(QUOTES):
            buffer.delete_before_cursor()  # the backslash
        buffer.insert_text("\n")

    @keys.add("escape", "enter")
    def next_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.text:
            event.app.exit(exception=KeyboardInterrupt())
            return
        buffer.reset(append_to_history=True)

    return keys


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Iterable[tuple[str, int]]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for text, replaced in self._complete(document.text_before_cursor):
            yield Completion(text, start_position=-replaced)
