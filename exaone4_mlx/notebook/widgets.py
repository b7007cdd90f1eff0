"""For notebooks: a reply that grows in one output, a chat to type into, and looks inside the model.

What is peculiar here:
- One output is updated, as often as it pays: ten times a second at most, and drawing takes a tenth of the time at most,
  however long the reply gets.
- The interrupt button asks the reply to end, as `cancel()` does, in place of raising somewhere in the middle: what came
  is kept, everywhere, and nothing is left half done.
- The widget's turns run in a thread of their own, so that the kernel can hear its buttons. The model's work is done in
  its owner's thread, as for any `Chat`: this one never touches MLX.
- IPython, ipywidgets and matplotlib are imported where they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..conversation.chat import Chat
from ..conversation.turn import Turn, TurnEvent
from ..generation.generate import Reply
from ..text.events import Answer, Done, Thinking
from ..tools.call import ToolCall
from ..tools.describe import name_of, schemas
from ..tools.toolbox import ToolResult
from .introspect import (
    AttentionMaps,
    CacheDrawing,
    InspectedTokens,
    TokenTree,
    attention_maps,
    draw_cache,
    inspect_tokens,
    token_tree,
)
from .views import Message, chat_text, escaped, messages_html, reply_html, turn_html

if TYPE_CHECKING:
    from ipywidgets import VBox

__all__ = [
    "AttentionMaps",
    "CacheDrawing",
    "InspectedTokens",
    "TokenTree",
    "attention_maps",
    "chat_widget",
    "display_stream",
    "draw_cache",
    "inspect_tokens",
    "token_tree",
]

UPDATE_SECONDS = 0.1  # between two updates, at least
DRAWING_SHARE = 10  # and as many times as long as the last one took to make
HISTORY_HEIGHT = "480px"


# --- a reply that grows -------------------------------------------------------------


def display_stream(events: Iterable[TurnEvent]) -> Reply:
    """Shows a reply while it comes, in one output of the cell, and returns it.

    `events` are those of `stream_generate`, of a turn of a chat (tools' results among them), or any others that end
    with `Done`. The interrupt button of the notebook, like Ctrl-C, ends the reply: what came is shown, marked as cut,
    and returned with the finish_reason "cancelled"; a chat keeps it in its history. As the last line of a cell it is
    not shown twice; in another cell the reply shows what was shown here, with the results of tools.

    Raises RuntimeError outside of a notebook, before anything is computed, and what the events raise.
    """
    shell = _kernel_shell()
    live = LiveTurn(events)
    shown = _Output()
    shown.show(live)
    clock = Clock()
    reason = "error"
    try:
        with _interruptible(events):
            for event in events:
                live.add(event)
                if clock.is_time() or isinstance(event, (ToolCall, ToolResult)):
                    with clock.drawing():
                        shown.show(live)
    except KeyboardInterrupt:  # in what cannot be cancelled, or asks something, or at a second click
        reason = "cancelled"
    finally:
        if (close := getattr(events, "close", None)) is not None:
            close()
        live.end(reason)
        shown.show(live)
    reply = live.reply()
    object.__setattr__(reply, "_ipython_display_", _ShownAlready(live.content(), shell.execution_count))
    return reply


class LiveTurn:
    """What came of a turn until now: a reply, or several with results of tools between them."""

    def __init__(self, events: object) -> None:
        self._so_far: Callable[[], Done | None] = lambda: getattr(events, "so_far", None)
        self.messages: list[dict[str, Any]] = []
        self.done: Done | None = None
        self._came: list[TurnEvent] = []
        self._thoughts_before: tuple[int, float] | None = (0, 0.0)  # tokens and seconds in earlier rounds, if known

    def add(self, event: TurnEvent) -> None:
        if isinstance(event, Done):
            self.done = event
            return
        self._came.append(event)
        if isinstance(event, ToolResult):
            message = {"role": "tool", "content": event.content, "failed": event.failed, "seconds": event.seconds}
            self.messages.append(message)
            before = self._so_far()
            self._thoughts_before = None if before is None else (before.thinking_tokens, before.thinking_seconds)
            return
        if not isinstance(event, (Thinking, Answer, ToolCall)):
            return  # in the reply, and not in its picture
        if not self.messages or self.messages[-1]["role"] == "tool":
            self.messages.append({"role": "assistant", "content": ""})
        reply = self.messages[-1]
        was_thinking = not reply["content"] and "tool_calls" not in reply
        if isinstance(event, Thinking):
            reply["reasoning_content"] = reply.get("reasoning_content", "") + event.text
        elif isinstance(event, Answer):
            reply["content"] += event.text
        else:
            reply.setdefault("tool_calls", []).append({"name": event.name, "arguments": event.arguments})
        if was_thinking and "reasoning_content" in reply:
            self._count_thought(self._so_far())

    def end(self, reason: str) -> None:
        """Gives what has no end of its own this one."""
        if self.done is None:
            so_far = self._so_far() or Done("", 0, 0, 0, 0, 0.0, 0.0, 0.0, 0)
            self.done = dataclasses.replace(so_far, finish_reason=reason)
        if self.messages and self.messages[-1]["role"] == "assistant":
            if "reasoning_content" in self.messages[-1]:
                self._count_thought(self.done)
            self.messages[-1]["finish_reason"] = self.done.finish_reason

    def _count_thought(self, counts: Done | None) -> None:
        if counts is not None and self._thoughts_before is not None:
            tokens, seconds = self._thoughts_before
            self.messages[-1]["stats"] = {
                "thinking_tokens": counts.thinking_tokens - tokens,
                "thinking_seconds": counts.thinking_seconds - seconds,
            }

    def reply(self) -> Reply:
        assert self.done is not None
        return Reply.from_events([*self._came, self.done])  # type: ignore[list-item]  # results are passed over

    def html(self) -> str:
        """As it is shown: at the end, of one reply alone, as the reply itself."""
        if self.done is None:
            return messages_html(self.messages, under_way=True) if self.messages else "<div>…</div>"
        if not any(isinstance(event, ToolResult) for event in self._came):
            return reply_html(self.reply())
        return turn_html(self.messages, self.done)

    def content(self) -> dict[str, str]:
        """The same as what a front end is sent."""
        return {"text/html": self.html(), "text/plain": "…" if self.done is None else repr(self.reply())}


class Clock:
    """When the next update is due."""

    def __init__(self) -> None:
        self._last = -1e9
        self._pause = UPDATE_SECONDS

    def is_time(self) -> bool:
        return time.monotonic() - self._last >= self._pause

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Around an update, which sets the time of the next one."""
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._pause = max(UPDATE_SECONDS, DRAWING_SHARE * (self._last - began))


class _Output:
    """The one output, shown first and updated then."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, live: LiveTurn) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(live.content(), raw=True, display_id=True)
        else:
            self._handle.update(live.content(), raw=True)


class _ShownAlready:
    """Displays what a stream showed in the end, but not as the value of the cell that has shown it."""

    def __init__(self, content: dict[str, str], cell: int) -> None:
        self._content, self._cell = content, cell

    def __call__(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if getattr(get_ipython(), "execution_count", None) != self._cell:
            display(self._content, raw=True)


@contextlib.contextmanager
def _interruptible(events: object) -> Iterator[None]:
    """While this lasts an interrupt cancels the reply. A second one, or one while the program asks something, raises.

    Signals reach the main thread only; elsewhere, and where nothing can be cancelled, they do what they did.
    """
    cancel = getattr(events, "cancel", None)
    if cancel is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    cancelled = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal cancelled
        if cancelled or getattr(events, "reply_so_far", True) is None:  # between replies tools run, and may ask
            raise KeyboardInterrupt
        cancelled = True
        cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kernel_shell() -> Any:
    """The shell of the notebook's kernel. Raises RuntimeError where there is none."""
    try:
        from IPython import get_ipython
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        raise RuntimeError(
            "display_stream shows a reply in a notebook, and this is none; here, iterate the events and print them, or "
            "use generate()"
        )
    return shell


# --- a chat to type into ------------------------------------------------------------


def chat_widget(chat: Chat) -> VBox:
    """A chat in a notebook: its history, a box to type in (Enter sends), buttons, and a switch for each tool.

    The model replies while other cells wait their turn; Stop is heard as long as no cell is running. What is said in
    the widget is said in `chat`, and the other way round after the next turn. `chat.approve`, if there is one, is asked
    in another thread than the kernel's. Raises ValueError for what is no `Chat`, and ImportError without ipywidgets.
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
    """The widgets of a chat, and what they do."""

    def __init__(self, chat: Chat) -> None:
        import ipywidgets as w

        self.chat, self._all_tools = chat, tuple(chat.tools)
        self._busy = False
        self.history, self.live = w.HTML(), w.HTML()
        self.status = w.HTML()
        self.text = w.Text(placeholder="Say something; Enter sends it", layout=w.Layout(flex="1 1 auto", width="auto"))
        self.text.on_msg(self._heard)
        self.send, self.stop, self.retry, self.undo, self.clear = (
            w.Button(description=name, tooltip=told, icon=icon, layout=w.Layout(width="auto"))
            for name, told, icon in (
                ("Send", "Send what is in the box", "paper-plane"),
                ("Stop", "End the reply; what came is kept", "stop"),
                ("Retry", "Reply to the last turn again", "refresh"),
                ("Undo", "Take the last turn back, to say it otherwise", "undo"),
                ("Clear", "Forget the conversation", "trash"),
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
        # Upside down twice: a box that runs backwards stays at its end while it grows.
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

    # --- what a person does ---------------------------------------------------

    def _heard(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("event") == "submit":
            self._send()

    def _send(self) -> None:
        text = self.text.value
        if text.strip() and not self._busy:
            with self._told():
                turn = self.chat.send(text, **self._options)
                self._begin(turn, [*self.chat.messages, {"role": "user", "content": text}])
                self.text.value = ""

    def _retry(self) -> None:
        with self._told():
            messages = self.chat.messages
            last = max(place for place, message in enumerate(messages) if message["role"] == "user")
            self._begin(self.chat.retry(**self._options), messages[: last + 1])

    def _undo(self) -> None:
        with self._told():
            self.text.value = self.chat.undo()
            self._show(self.chat.messages)

    def _clear(self) -> None:
        with self._told():
            self.chat.reset()
            self._show(self.chat.messages)

    # --- a turn ---------------------------------------------------------------

    @property
    def _options(self) -> dict[str, Any]:
        """What the switches say."""
        chosen = tuple(tool for tool, box in zip(self._all_tools, self.tools, strict=True) if box.value)
        options: dict[str, Any] = {"thinking": self.thinking.value}
        return options if chosen == tuple(self.chat.tools) else {**options, "tools": chosen}

    def _begin(self, turn: Turn, before: Sequence[Message]) -> None:
        """Shows a turn while it comes, in another thread; `before` are the messages that it replies to."""
        self._busy = True
        self._show(before)
        threading.Thread(target=self._run, args=(turn,), name="chat_widget", daemon=True).start()

    def _run(self, turn: Turn) -> None:
        live, clock, problem = LiveTurn(turn), Clock(), ""
        try:
            for event in turn:
                live.add(event)
                if clock.is_time() or isinstance(event, (ToolCall, ToolResult)):
                    with clock.drawing():
                        self.live.value = live.html()
        except Exception as error:  # nobody waits for this thread
            problem = f"{type(error).__name__}: {error}"
        self._busy = False
        self._show(self.chat.messages, problem)

    # --- what is shown --------------------------------------------------------

    def _show(self, messages: Sequence[Message], problem: str = "") -> None:
        """Brings everything up to date; `live` shows what the history does not have yet."""
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
    def _told(self) -> Iterator[None]:
        """What is refused is told in the line below, and does not end here."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            self._show(self.chat.messages, str(error))
