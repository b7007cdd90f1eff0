"""A reply that grows in one output of a notebook.

Notes:
- One output is updated, at most ten times per second. Drawing takes at most a tenth of the time, however long the reply
  is. While a prompt is read there are no events: then a thread draws.
- Where no output can be updated (marimo, a script, a terminal), only the finished reply is shown, as the value of its
  cell.
- The interrupt button cancels the reply, as `cancel()` does, and raises no KeyboardInterrupt. The text
  so far is kept.
- IPython is imported where it is used.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ..text.events import Done
from ..text.live_messages import LiveMessages
from ..text.message import Message, Reply, TurnEvent
from ..tools.call import ToolCall, ToolResult
from .conversation_view import messages_html, reply_html, turn_html

UPDATE_SECONDS = 0.1  # between two updates, at least
DRAWING_SHARE = 10  # the pause after an update is at least this many times its drawing time


def display_stream(events: Iterable[TurnEvent]) -> Reply:
    """Shows a reply while it is generated, in one output of the cell, and returns it.

    `events` are those of `stream_generate`, of a turn of a chat (with the results of tools), or others that end with
    `Done`. The interrupt button of the notebook, like Ctrl-C, ends the reply. The text so far is shown, marked as cut,
    and returned with the finish_reason "cancelled"; a chat keeps it in its history. A reply that is the value of this
    cell is not shown twice. In another cell it shows the same content, with the results of tools. Outside of Jupyter
    nothing is shown meanwhile. Raises errors of the events.
    """
    shell = _kernel_shell()
    live = LiveTurn(events)
    shown = _LiveOutput()

    def draw() -> None:
        if shell is not None:
            shown.show(live)

    draw()
    reason = "error"
    try:
        with _interruptible(events):
            follow(events, live, draw)
    except KeyboardInterrupt:  # the events have no cancel, a tool asks the user, or it is a second interrupt
        reason = "cancelled"
    finally:
        if (close := getattr(events, "close", None)) is not None:
            close()
        live.end(reason)
        draw()
    reply = live.reply()
    if shell is None:
        object.__setattr__(reply, "_repr_html_", partial(str, live.html()))  # which marimo and others look for
    else:
        object.__setattr__(reply, "_ipython_display_", _ShownAlready(live.content(), shell.execution_count))
    return reply


def follow(events: Iterable[TurnEvent], live: LiveTurn, draw: Callable[[], None]) -> None:
    """Gives the events to `live`, and calls `draw` when an update is due, also while a prompt is read."""
    timer, lock, ended = UpdateTimer(), threading.Lock(), threading.Event()

    def watch() -> None:
        while not ended.wait(UPDATE_SECONDS):
            with lock:
                progress = getattr(events, "prompt_progress", None)
                if progress not in (None, live.prompt_progress) and timer.is_due() and not ended.is_set():
                    live.prompt_progress = progress
                    with timer.drawing():
                        draw()

    # The context says to which cell an output belongs.
    threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True).start()
    try:
        for event in events:
            with lock:
                live.add(event)
                if timer.is_due() or isinstance(event, (ToolCall, ToolResult)):
                    with timer.drawing():
                        draw()
    finally:
        with lock:
            ended.set()


class LiveTurn:
    """A turn in progress: one reply, or several with results of tools between them."""

    def __init__(self, events: object) -> None:
        self._so_far: Callable[[], Done | None] = lambda: getattr(events, "so_far", None)
        self._live = LiveMessages()
        self.done: Done | None = None
        self.prompt_progress: tuple[int, int] | None = None  # while a prompt is read
        self._events: list[TurnEvent] = []

    @property
    def messages(self) -> list[Message]:
        return self._live.messages

    def add(self, event: TurnEvent) -> None:
        self.prompt_progress = None
        if isinstance(event, Done):
            self.done = event
            return
        self._events.append(event)
        self._live.add(event)
        self._live.count(self._so_far())

    def end(self, reason: str) -> None:
        """Ends the turn; events without `Done` get this finish reason."""
        counts = self._so_far()
        if self.done is None:
            self.done = dataclasses.replace(counts or Done("", 0, 0, 0, 0, 0.0, 0.0, 0.0, 0), finish_reason=reason)
        if counts is not None or not self._has_results:  # else the thoughts of earlier rounds are not known
            self._live.count(self.done)
        self._live.end(self.done.finish_reason)

    @property
    def _has_results(self) -> bool:
        return any(isinstance(event, ToolResult) for event in self._events)

    def reply(self) -> Reply:
        assert self.done is not None
        return Reply.from_events([*self._events, self.done])

    def html(self) -> str:
        """The HTML of the turn. A complete turn of one reply looks like the reply."""
        if self.done is None:
            shown = messages_html(self.messages, in_progress=True) if self.messages else ""
            return shown + ("" if shown and self.prompt_progress is None else f"<div>{self._waiting()}</div>")
        if not self._has_results:
            return reply_html(self.reply())
        return turn_html(self.messages, self.done)

    def content(self) -> dict[str, str]:
        """The content by MIME type, for a front end."""
        return {"text/html": self.html(), "text/plain": self._waiting() if self.done is None else repr(self.reply())}

    def _waiting(self) -> str:
        if self.prompt_progress is None:
            return "…"
        done, total = self.prompt_progress
        return f"Reading the prompt: {done:,} of {total:,} tokens …"


class UpdateTimer:
    """Decides when the next update is due."""

    def __init__(self) -> None:
        self._last = -1e9
        self._pause = UPDATE_SECONDS

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= self._pause

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Measures an update, and sets the pause until the next one."""
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._pause = max(UPDATE_SECONDS, DRAWING_SHARE * (self._last - began))


class _LiveOutput:
    """One output, which is displayed once and then updated."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, live: LiveTurn) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(live.content(), raw=True, display_id=True)
        else:
            self._handle.update(live.content(), raw=True)


class _ShownAlready:
    """Displays the final content of a stream, except in the cell that has already shown it."""

    def __init__(self, content: dict[str, str], cell: int) -> None:
        self._content, self._cell = content, cell

    def __call__(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if getattr(get_ipython(), "execution_count", None) != self._cell:
            display(self._content, raw=True)


@contextlib.contextmanager
def _interruptible(events: object) -> Iterator[None]:
    """While the block runs, an interrupt cancels the reply. A second one, or one while a tool runs, raises.

    Only the main thread gets signals. In other threads, and for events without `cancel`, nothing changes.
    """
    cancel = getattr(events, "cancel", None)
    if cancel is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    cancelled = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal cancelled
        tool_runs = getattr(events, "reply_so_far", True) is None  # and may ask the user
        if cancelled or tool_runs:
            raise KeyboardInterrupt
        cancelled = True
        cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kernel_shell() -> Any:
    """The shell of the notebook's kernel, or None outside of Jupyter."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return None if type(shell).__name__ == "TerminalInteractiveShell" else shell
