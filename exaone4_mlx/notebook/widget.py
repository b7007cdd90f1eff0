"""A chat widget for notebooks.

Notes:
- The turns of the widget run in a thread of their own, so that the kernel can handle clicks on its buttons. MLX runs in
  the worker thread of the model, as for any `Chat`; the widget's thread never touches MLX.
- ipywidgets is imported where it is used.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..conversation.chat import Chat
from ..conversation.turn import Turn
from ..tools.call import ToolCall, ToolResult
from ..tools.describe import name_of, schemas
from .conversation_view import Message, chat_text, messages_html
from .html import escaped
from .live import LiveTurn, UpdateTimer

if TYPE_CHECKING:
    from ipywidgets import VBox

HISTORY_HEIGHT = "480px"


def chat_widget(chat: Chat) -> VBox:
    """A chat in a notebook: its history, a text box (Enter sends), buttons, and a switch for each tool.

    Cells can run while the model replies. The Stop button works while no cell is running. The widget and `chat` share
    one history; the widget shows turns of `chat` that were made elsewhere after its next turn. `chat.approve` is called
    in a thread of the widget. Raises ValueError for an object that is not a `Chat`, and ImportError without ipywidgets.
    """
    if not isinstance(chat, Chat):
        raise ValueError(
            f"chat_widget takes a Chat, as in chat_widget(Chat(model, tokenizer)), not {type(chat).__name__!r}"
        )
    try:
        import ipywidgets  # noqa: F401
    except ImportError as error:
        raise ImportError("chat_widget needs ipywidgets: pip install 'exaone4_mlx[notebook]'") from error
    return cast("VBox", _ChatWidget(chat).box)


class _ChatWidget:
    """The widgets of a chat and their handlers."""

    def __init__(self, chat: Chat) -> None:
        import ipywidgets as w

        self.chat, self._all_tools = chat, tuple(chat.tools)
        self._busy = False
        self.history, self.live = w.HTML(), w.HTML()
        self.status = w.HTML()
        self.text = w.Text(placeholder="Say something; Enter sends it", layout=w.Layout(flex="1 1 auto", width="auto"))
        self.text.on_msg(self._on_message)
        self.send, self.stop, self.retry, self.undo, self.clear = (
            w.Button(description=name, tooltip=tooltip, icon=icon, layout=w.Layout(width="auto"))
            for name, tooltip, icon in (
                ("Send", "Send the text", "paper-plane"),
                ("Stop", "End the reply and keep its text", "stop"),
                ("Retry", "Generate the last reply again", "refresh"),
                ("Undo", "Remove the last turn and edit its text", "undo"),
                ("Clear", "Delete the conversation", "trash"),
            )
        )
        self.send.on_click(lambda _: self._send())
        self.stop.on_click(lambda _: self.chat.cancel())
        self.retry.on_click(lambda _: self._retry())
        self.undo.on_click(lambda _: self._undo())
        self.clear.on_click(lambda _: self._clear())
        self.thinking = w.Checkbox(
            value=chat.options.thinking, description="Thinking", indent=False, layout=w.Layout(width="auto")
        )
        self.tools = [
            w.Checkbox(value=True, description=str(name_of(schema)), indent=False, layout=w.Layout(width="auto"))
            for schema in schemas(self._all_tools)
        ]
        # A box with reversed direction stays scrolled to its end while it grows.
        scrolled = w.Box(
            [w.VBox([self.history, self.live], layout=w.Layout(flex="0 0 auto"))],
            layout=w.Layout(display="flex", flex_flow="column-reverse", max_height=HISTORY_HEIGHT, overflow="auto"),
        )
        switches = [self.thinking, *([w.HTML("<b>Tools</b>")] if self.tools else []), *self.tools]
        self.box = w.VBox(
            [
                scrolled,
                w.HBox([self.text, self.send, self.stop]),
                w.HBox([*switches], layout=w.Layout(flex_flow="row wrap", grid_gap="0 1.2em")),
                w.HBox([self.retry, self.undo, self.clear, self.status]),
            ]
        )
        self._show(chat.messages)

    # --- handlers -------------------------------------------------------------

    def _on_message(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("event") == "submit":
            self._send()

    def _send(self) -> None:
        text = self.text.value
        if text.strip() and not self._busy:
            with self._errors_shown():
                turn = self.chat.send(text, **self._options)
                self._begin(turn, [*self.chat.messages, {"role": "user", "content": text}])
                self.text.value = ""

    def _retry(self) -> None:
        with self._errors_shown():
            messages = self.chat.messages
            last = max(place for place, message in enumerate(messages) if message["role"] == "user")
            self._begin(self.chat.retry(**self._options), messages[: last + 1])

    def _undo(self) -> None:
        with self._errors_shown():
            self.text.value = self.chat.undo()
            self._show(self.chat.messages)

    def _clear(self) -> None:
        with self._errors_shown():
            self.chat.reset()
            self._show(self.chat.messages)

    # --- a turn ---------------------------------------------------------------

    @property
    def _options(self) -> dict[str, Any]:
        """The options that the switches set."""
        chosen = tuple(tool for tool, box in zip(self._all_tools, self.tools, strict=True) if box.value)
        options: dict[str, Any] = {"thinking": self.thinking.value}
        return options if chosen == tuple(self.chat.tools) else {**options, "tools": chosen}

    def _begin(self, turn: Turn, before: Sequence[Message]) -> None:
        """Shows a turn while it runs, in another thread; `before` are the messages before the reply."""
        self._busy = True
        self._show(before)
        threading.Thread(target=self._run, args=(turn,), name="chat_widget", daemon=True).start()

    def _run(self, turn: Turn) -> None:
        live, timer, problem = LiveTurn(turn), UpdateTimer(), ""
        try:
            for event in turn:
                live.add(event)
                if timer.is_due() or isinstance(event, (ToolCall, ToolResult)):
                    with timer.drawing():
                        self.live.value = live.html()
        except Exception as error:  # no caller waits for this thread
            problem = f"{type(error).__name__}: {error}"
        self._busy = False
        self._show(self.chat.messages, problem)

    # --- display --------------------------------------------------------------

    def _show(self, messages: Sequence[Message], problem: str = "") -> None:
        """Updates all widgets; `live` shows the reply in progress."""
        self.history.value = messages_html(messages)
        self.live.value = "<div>…</div>" if self._busy else ""
        empty = not self.chat.turns
        for button, off in (
            (self.send, self._busy),
            (self.stop, not self._busy),
            (self.retry, self._busy or empty),
            (self.undo, self._busy or empty),
            (self.clear, self._busy or empty),
        ):
            button.disabled = off
        self.status.value = f'<span style="opacity:.8">{escaped(problem or chat_text(self.chat))}</span>'

    @contextlib.contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """Shows an error in the status line instead of raising it."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            self._show(self.chat.messages, str(error))
