"""A chat widget for notebooks.

Notes:
- The turns of the widget run in a thread of their own, so that the kernel can handle clicks on its buttons. MLX runs in
  the worker thread of the model, as for any `Chat`; the widget's thread never touches MLX.
- The conversation is ordinary output, and only the controls are widgets. So it is still there after a restart of the
  kernel, in the saved notebook, in an exported page, and where there are no widgets.
- ipywidgets is imported where it is used.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..conversation.chat import Chat
from ..conversation.turn import Turn
from ..tools.describe import name_of, schemas
from .conversation_view import Message, chat_markdown, chat_text, messages_html
from .html import small_html
from .live import LiveTurn, follow

#: A box with reversed direction begins scrolled to its end.
HISTORY_STYLE = "display:flex;flex-direction:column-reverse;max-height:480px;overflow:auto"
NO_CONTROLS = "The controls of chat_widget need ipywidgets in the notebook, and a running kernel: run this cell again."
WIDGET = "application/vnd.jupyter.widget-view+json"


def chat_widget(chat: Chat) -> ChatWidget:
    """A chat in a notebook: its history, a text box of several lines, buttons, and a switch for each tool.

    Tab and Enter send the text. Cells can run while the model replies. The Stop button works while no cell is running.
    The widget and `chat` share one history; the widget shows turns of `chat` that were made elsewhere after its next
    turn. `chat.approve` is called in a thread of the widget. The history is ordinary output: it stays after a restart
    of the kernel and in an exported page. Raises ValueError for an object that is not a `Chat`, and ImportError without
    ipywidgets.
    """
    if not isinstance(chat, Chat):
        raise ValueError(
            f"chat_widget takes a Chat, as in chat_widget(Chat(model, tokenizer)), not {type(chat).__name__!r}"
        )
    try:
        import ipywidgets  # noqa: F401
    except ImportError as error:
        raise ImportError("chat_widget needs ipywidgets: pip install 'exaone4_mlx[notebook]'") from error
    return ChatWidget(chat)


class ChatWidget:
    """A chat as output of a cell: its history, the reply in progress, and `box`, the controls (ipywidgets)."""

    def __init__(self, chat: Chat) -> None:
        import ipywidgets as w

        self.chat, self._all_tools = chat, tuple(chat.tools)
        self._busy = False
        self._handles: list[tuple[Any, Any]] = []  # of history and reply, for each time the widget was displayed
        self.text = w.Textarea(
            placeholder="Say something; Tab and Enter send it",
            rows=3,
            layout=w.Layout(flex="1 1 auto", width="auto", height="auto"),
        )
        self.send, self.stop, self.retry, self.go_on, self.undo, self.clear = (
            w.Button(description=name, tooltip=tooltip, icon=icon, layout=w.Layout(width="auto"))
            for name, tooltip, icon in (
                ("Send", "Send the text", "paper-plane"),
                ("Stop", "End the reply and keep its text", "stop"),
                ("Retry", "Generate the last reply again", "refresh"),
                ("Continue", "Go on with the last reply", "forward"),
                ("Undo", "Remove the last turn and edit its text", "undo"),
                ("Clear", "Delete the conversation", "trash"),
            )
        )
        self.send.on_click(lambda _: self._send())
        self.stop.on_click(lambda _: self.chat.cancel())
        self.retry.on_click(lambda _: self._retry())
        self.go_on.on_click(lambda _: self._continue())
        self.undo.on_click(lambda _: self._undo())
        self.clear.on_click(lambda _: self._clear())
        self.thinking = w.Checkbox(
            value=chat.options.thinking, description="Thinking", indent=False, layout=w.Layout(width="auto")
        )
        self.tools = [
            w.Checkbox(value=True, description=str(name_of(schema)), indent=False, layout=w.Layout(width="auto"))
            for schema in schemas(self._all_tools)
        ]
        switches = [self.thinking, *([w.HTML("<b>Tools</b>")] if self.tools else []), *self.tools]
        self.box = w.VBox(
            [
                w.HBox([self.text, w.VBox([self.send, self.stop])]),
                w.HBox([*switches], layout=w.Layout(flex_flow="row wrap", grid_gap="0 1.2em")),
                w.HBox([self.retry, self.go_on, self.undo, self.clear]),
            ]
        )
        self._show(chat.messages)

    # --- handlers -------------------------------------------------------------

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

    def _continue(self) -> None:
        with self._errors_shown():
            options = {name: value for name, value in self._options.items() if name != "thinking"}
            self._begin(self.chat.continue_reply(**options), self.chat.messages)

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
        live, problem = LiveTurn(turn), ""
        try:
            follow(turn, live, lambda: self._show_reply(live.html()))
        except Exception as error:  # no caller waits for this thread
            problem = f"{type(error).__name__}: {error}"
        self._busy = False
        self._show(self.chat.messages, problem)

    # --- display --------------------------------------------------------------

    def _ipython_display_(self) -> None:
        from IPython.display import display

        shown = (display(content, raw=True, display_id=True) for content in (self._history, _as_output(self._reply)))
        self._handles.append((next(shown), next(shown)))
        controls = self.box._repr_mimebundle_()
        display({WIDGET: controls[WIDGET], "text/plain": NO_CONTROLS}, raw=True)

    def _repr_html_(self) -> str:
        """For notebooks without IPython."""
        return self._history["text/html"] + small_html(NO_CONTROLS)

    def _show(self, messages: Sequence[Message], problem: str = "") -> None:
        """Updates all parts."""
        about = problem or chat_text(self.chat)
        html = f'<div style="{HISTORY_STYLE}"><div>{messages_html(messages)}</div></div>{small_html(about)}'
        self._history = {"text/html": html, "text/markdown": chat_markdown(self.chat), "text/plain": repr(self.chat)}
        for history, _ in self._handles:
            history.update(self._history, raw=True)
        self._show_reply("<div>…</div>" if self._busy else "")
        empty = not self.chat.turns
        for button, off in (
            (self.send, self._busy),
            (self.stop, not self._busy),
            (self.retry, self._busy or empty),
            (self.go_on, self._busy or empty),
            (self.undo, self._busy or empty),
            (self.clear, self._busy or empty),
        ):
            button.disabled = off

    def _show_reply(self, html: str) -> None:
        self._reply = html
        for _, reply in self._handles:
            reply.update(_as_output(html), raw=True)

    @contextlib.contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """Shows an error below the history instead of raising it."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            self._show(self.chat.messages, str(error))


def _as_output(html: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": ""}
