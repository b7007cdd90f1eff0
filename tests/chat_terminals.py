"""Stand-ins for a terminal, a chat, a screen and an input, for the tests of the chat in the terminal."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.cells import cell_len

from exaone4_mlx import Answer, ToolCall
from exaone4_mlx.conversation.chat import ChatSettings
from exaone4_mlx.generation.options import Options
from exaone4_mlx.terminal.repl import Repl
from exaone4_mlx.text.events import Done

REPLY = r"""# Sorting 정렬

A paragraph that
has two lines.
## Steps
1. First:
   ```python
   def f():

       return 1
   ```
2. Second
- loose

- list

| a | b |
|---|---|
| 1 | 2 |

\[ a \\ b \]
```
code

# no heading
```
In
1986. it was so.
---
The end"""


DONE = Done("stop", 100, 40, 20, 30, 1.0, 2.0, 1.0, 10**9)


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(0, 30)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def pieces(kind: type, text: str, size: int = 3) -> list[Any]:
    return [kind(text[i : i + size]) for i in range(0, len(text), size)]


class Terminal:
    """An emulated terminal: the rows of text on it, and those that scrolled away."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows, self.row, self.column = [""], 0, 0
        self.jump = self.tallest_jump = 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[^\x1b]", text):
            if part.startswith("\x1b"):
                self._command(part)
            elif part == "\n":
                self._next_row()
            elif part == "\r":
                self.column = self.jump = 0
            else:
                self._put(part)

    def flush(self) -> None:
        pass

    def _command(self, code: str) -> None:
        if code.endswith("A"):
            self.row -= int(code[2:-1] or 1)
            assert self.row >= 0
            self.jump += 1
            self.tallest_jump = max(self.tallest_jump, self.jump)
        elif code == "\x1b[2K":
            assert self.column == 0, "rows are erased from their beginning"
            self.rows[self.row] = ""
        else:
            assert code.endswith("m"), f"only colours, cursor up and erasing: {code!r}"

    def _next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    def _put(self, letter: str) -> None:
        if self.column + cell_len(letter) > self.width:
            self._next_row()
        assert cell_len(self.rows[self.row]) == self.column, "letters are appended to a row"
        self.rows[self.row] += letter
        self.column += cell_len(letter)

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class ScriptedChat:
    """In place of a chat: each turn yields the next list of events, or raises the next error."""

    def __init__(self, *script: Any, tools: tuple[Any, ...] = ()) -> None:
        self.script, self.sent, self.tools = list(script), [], tools
        self.options, self.settings, self.system_prompt = Options(), ChatSettings(overflow="drop_oldest"), None
        self.dropped, self.context_tokens = 0, 10
        self.max_kv_size = self.prompt_limit = 100
        self.cancelled = threading.Event()
        self.messages: list[Any] = []
        self.approve: Callable[[ToolCall], bool] = lambda call: True

    @property
    def turns(self) -> list[str]:
        return [text for kind, text in self.sent if kind == "send"]

    def send(self, text: str, **options: Any) -> Any:
        return self._turn("send", text)

    def retry(self, **options: Any) -> Any:
        return self._turn("retry", "")

    def edit(self, turn: int, text: str, **options: Any) -> Any:
        return self._turn(f"edit {turn}", text)

    def cancel(self) -> None:
        self.cancelled.set()

    def _turn(self, kind: str, text: str) -> Any:
        self.sent.append((kind, text))
        events = self.script.pop(0) if self.script else [Answer("ok"), DONE]
        if isinstance(events, Exception):
            raise events
        return (event(self) if callable(event) else event for event in events)


class Notes:
    """In place of a screen: keeps texts and events."""

    def __init__(self, can_ask: bool = True) -> None:
        self.can_ask, self.lines, self.events = can_ask, [], []
        self.count_tokens: Callable[[str], int] = len

    def reply(self) -> AbstractContextManager[None]:
        return nullcontext()

    def asking(self, call: ToolCall, origin: str = "") -> AbstractContextManager[None]:
        return nullcontext()

    def show(self, event: Any) -> None:
        self.events.append(event)

    def progress(self, done: int, total: int, what: str = "", unit: str = "") -> None:
        pass

    def status(self, text: str) -> None:
        self.lines.append(text)

    markdown = note = status

    def summary(self, text: str) -> None:
        self.lines.append(text)

    def error(self, text: str) -> None:
        self.lines.append(f"error: {text}")


class Lines:
    """In place of an input: each line is a text or an exception."""

    def __init__(self, *lines: Any, answers: tuple[Any, ...] = ()) -> None:
        self.lines, self.answers, self.defaults = list(lines), list(answers), []

    def read(self, prompt: str, default: str = "") -> str:
        self.defaults.append(default)
        line = self.lines.pop(0) if self.lines else EOFError()
        return self._next(line)

    def ask(self) -> str:
        return self._next(self.answers.pop(0))

    def quiet(self) -> AbstractContextManager[Callable[[], object]]:
        return nullcontext(lambda: None)

    @staticmethod
    def _next(value: Any) -> str:
        if isinstance(value, BaseException):
            raise value
        return str(value)


def talk(chat: Any, *lines: Any, can_ask: bool = True, **options: Any) -> tuple[int, Repl, Notes]:
    answers = options.pop("answers", ())
    notes = Notes(can_ask)
    repl = Repl(chat, notes, Lines(*lines, answers=answers), **options)
    return repl.loop(), repl, notes
