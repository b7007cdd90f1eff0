"""Lines typed in a terminal, with `prompt_toolkit`: editing, history, several lines, questions.

Notes:
- Enter sends the text. Alt-Enter, a backslash at the end, or an opening triple quote continue it in the next line.
- Ctrl-C clears the typed text and keeps it in the history. It interrupts only at an empty line.
- Text that was typed before a question appeared is discarded: it is no answer.
- Only its owner can read the history file.
- prompt_toolkit draws on the terminal itself: its output cleans each piece of text.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.shortcuts import CompleteStyle

from ..text.format import clean
from .commands import QUOTES, continues

HISTORY_VARIABLE = "EXAONE4_MLX_HISTORY"
QUESTION = "  run it? yes, no or always: "
ANSWERS = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "a": "always", "always": "always"}


def history_file() -> Path:
    """The path of the history: $EXAONE4_MLX_HISTORY, or a file in the state folder of the platform."""
    if chosen := os.environ.get(HISTORY_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "exaone4_mlx" / "history"


def open_history(path: Path) -> History:
    """The history in a file that only its owner can read. Raises OSError if it cannot be created."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)) as stream:
        if os.fstat(stream.fileno()).st_mode & 0o077:
            os.fchmod(stream.fileno(), 0o600)
    return FileHistory(str(path))


class TerminalInput:
    """Reads lines and answers. `complete(text)` yields completions of a line and the number of letters they replace.

    `stores` is whether typed lines are appended to the history file.
    """

    def __init__(
        self, complete: Callable[[str], Iterable[tuple[str, int]]], warn: Callable[[str], None], stores: bool = True
    ) -> None:
        self._output = cleaned(get_app_session().output)
        history: History = InMemoryHistory()
        if stores:
            try:
                history = open_history(history_file())
            except OSError as error:
                warn(f"the history is not stored: {error}")
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            completer=_Completer(complete),
            complete_while_typing=False,
            output=self._output,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
            enable_open_in_editor=True,
            key_bindings=_line_keys(),
            prompt_continuation=lambda width, number, wrapped: " " * width,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """The typed text. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C at an empty line."""
        return self._session.prompt(FormattedText([("bold", prompt)]), default=default)

    def ask(self) -> str:
        """Asks whether the shown call may run: "yes", "no" or "always". The answer erases the question."""
        question: PromptSession[str] = PromptSession(erase_when_done=True, output=self._output)
        self._discard_typed(question)
        while True:
            try:
                typed = question.prompt(FormattedText([("ansicyan", QUESTION)])).strip().casefold()
            except EOFError:
                return "no"
            if answer := ANSWERS.get(typed):
                return answer

    @contextmanager
    def quiet(self) -> Iterator[Callable[[], object]]:
        """Hides text that is typed during a reply; it appears in the next line. Yields what restores the terminal."""
        try:
            import termios

            number = sys.stdin.fileno()
            before = termios.tcgetattr(number)
        except (ImportError, OSError, ValueError):
            yield lambda: None
            return
        restore = partial(termios.tcsetattr, number, termios.TCSANOW, before)
        quiet = [*before]
        quiet[3] = before[3] & ~termios.ECHO
        try:
            termios.tcsetattr(number, termios.TCSANOW, quiet)
            yield restore
        finally:
            restore()

    @staticmethod
    def _discard_typed(session: PromptSession[str]) -> None:
        clear_typeahead(session.input)
        with contextlib.suppress(OSError, ImportError):
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def cleaned(output: Output) -> Output:
    """The output, where names of files and texts of a saved chat cannot hold escape codes."""
    write = output.write
    output.write = lambda data: write(data if set(data) <= {"\r", "\n"} else clean(data))  # type: ignore[method-assign]
    return output


def _line_keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not continues(buffer.text):
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
