"""The loop of a chat in the terminal: reads a line, then sends a text or runs a command.

Notes:
- An error in a turn or a command is printed, and the conversation continues.
"""

from __future__ import annotations

import re
import traceback
from functools import partial
from typing import Any

from .commands import Leave, read_line, run_command
from .session import Input, Output, TerminalSession

SECONDS_TO_LEAVE = 2.0  # maximum time between two Ctrl-C that exit


class Repl(TerminalSession):
    """A session that runs until the user exits. `warned` collects warnings until they can be shown.

    Without `commands` every line is a text: what a program pipes in may begin with a slash.
    """

    def __init__(
        self, chat: Any, screen: Output, keys: Input, *, commands: bool = True, debug: bool = False, **settings: Any
    ) -> None:
        super().__init__(chat, screen, keys, **settings)
        self.warned: list[str] = []
        self._commands, self._debug = commands, debug

    def loop(self) -> int:
        """Runs until the end; returns 0, or 1 if something failed and there is no terminal to show it on."""
        failed = False
        last_ctrl_c = float("-inf")
        while True:
            try:
                self._do(self._read())
            except (EOFError, Leave):
                return int(failed and not self.screen.can_ask)
            except KeyboardInterrupt:
                if not self.screen.can_ask:
                    raise
                if self.clock() - last_ctrl_c <= SECONDS_TO_LEAVE:
                    return 0
                last_ctrl_c, self.editing = self.clock(), None
                self.screen.note("press Ctrl-C again, or Ctrl-D, to exit")
            except Exception as error:
                failed = True
                self._show_error(error)

    def _read(self) -> str:
        while self.warned:
            self.screen.note(f"warning: {self.warned.pop(0)}")
        _, text = self.editing or (0, "")
        return self.keys.read("think> " if self.chat.options.thinking else "> ", default=text)

    def _do(self, line: str) -> None:
        """Runs one line. Raises ValueError, before anything changes, for a line that cannot be run."""
        command, text = read_line(line) if self._commands else ("", line)
        editing, self.editing = self.editing, None
        if command:
            run_command(self, command, text)
        elif not text.strip():
            if editing is not None:
                self.screen.note("nothing was changed")
        elif editing is not None:
            self.take_turn(partial(self.chat.edit, editing[0], text))
        else:
            self.take_turn(partial(self.chat.send, text))

    def _show_error(self, error: Exception) -> None:
        if self._debug:
            self.screen.note("".join(traceback.format_exception(error)).rstrip())
        text = " ".join(str(error).split()) or type(error).__name__
        self.screen.error(re.sub(r"\b(undo|edit|reset|retry)\(\)", r"/\1", text))
