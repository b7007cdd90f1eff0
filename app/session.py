"""One open conversation: its `Chat`, the running turn, and the view that its tabs show.

Notes:
- A turn runs in its own thread and does not depend on a page: a page that is loaded again finds it still running.
- Any number of tabs can show one conversation. They all show the same.
- The conversation is written when a turn begins, every few seconds, and when it ends. If a write fails, the reply goes
  on, the view reports it, and the next write tries again.
- The `Chat` and its caches can be released between turns (another model, memory). It is rebuilt from the messages.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from exaone4_mlx import Chat, Done, ToolCall, Turn

from .files import Attachment
from .messages import Message
from .settings import Settings
from .store import Conversation
from .turns import as_read, closed, edited, missing_results, title_of, turn_starts, user_message
from .work import View, Work

SAVE_SECONDS = 5.0
REVISIONS = itertools.count(int(time.time() * 1000))  # unique, also after a restart
END_SECONDS = 10.0  # the longest wait for a turn that was stopped


class Busy(ValueError):
    """This conversation has a running turn."""


class Session:
    """A conversation that is open. Its methods may be called from any thread."""

    def __init__(
        self,
        conversation: Conversation,
        settings: Settings,
        *,
        tools: Sequence[Callable[..., Any]],
        keeps: bool,
        chat_of: Callable[[Session], Chat],
        save: Callable[[Session], None],
        ended: Callable[[Session], None],
        step_size: Callable[[], int],
        measure: Callable[[Sequence[Message]], tuple[int, int]],
    ) -> None:
        """`tools` are the available tools; `keeps` says whether the conversation is written.

        `chat_of` makes the chat, `save` writes the conversation, `ended` is called at the end of a turn,
        `step_size` says how many prompt tokens are read between two looks at Stop, `measure` how many tokens
        messages have, and how many they may have.
        """
        conversation.messages = as_read(conversation.messages)
        self.conversation, self.settings, self.keeps = conversation, settings, keeps
        self._tools = tuple(tools)
        self._chat_of, self._save, self._ended = chat_of, save, ended
        self._step_size, self._measure = step_size, measure
        self._context: tuple[int, int] | None = None  # tokens used, and the limit, as long as there is no chat
        self._chat: Chat | None = None
        self._work: Work | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._version, self._revision = 0, next(REVISIONS)
        self._last = View([])  # counts and error of the last turn
        self._unsaved: str | None = None
        self.used = time.monotonic()

    @property
    def id(self) -> str:
        return self.conversation.id

    @property
    def running(self) -> bool:
        return self._work is not None

    @property
    def revision(self) -> int:
        """A number that changes with every change of the finished messages."""
        return self._revision

    @property
    def version(self) -> int:
        """A number that changes with every change of the view."""
        return self._version

    @property
    def has_caches(self) -> bool:
        return self._chat is not None

    @property
    def context_tokens(self) -> int:
        """The tokens of the conversation, as the next prompt will hold them; 0 without a chat."""
        return 0 if (chat := self._chat) is None else chat.context_tokens

    @property
    def is_saved(self) -> bool:
        """Whether all of it is on disk."""
        return self._unsaved is None

    # --- turns ----------------------------------------------------------------

    def send(self, text: str, attachments: Sequence[tuple[Attachment, int]], settings: Settings) -> None:
        """Begins a turn with the message `text`; `attachments` come with their size in tokens.

        Raises `Busy`, and ValueError for what cannot be sent.
        """
        with self._lock:
            chat = self._ready(settings)
            message = user_message(text, attachments)
            turn = chat.send(message, **self._options(settings))
            self.conversation.messages = [*chat.messages, message]
            self._begin(turn, self.conversation.messages, settings)

    def retry(self, settings: Settings) -> None:
        """Generates another reply to the last turn."""
        with self._lock:
            chat = self._ready(settings)
            turn = chat.retry(**self._options(settings))
            self._begin(turn, chat.messages[: turn_starts(chat.messages)[-1] + 1], settings)

    def edit(self, number: int, text: str, settings: Settings) -> None:
        """Replaces the text of a turn, counted from 0. Its files stay."""
        with self._lock:
            chat = self._ready(settings)
            starts = turn_starts(chat.messages)
            if not 0 <= number < len(starts):
                raise ValueError(f"there is no turn {number}")
            before = chat.messages[starts[number]]
            message = edited(before, text)
            turn = chat.edit(number, message, **self._options(settings))
            self._begin(turn, [*chat.messages[: starts[number]], message], settings)

    def undo(self) -> str:
        """Removes the last turn, and returns the text that the user typed."""
        with self._lock:
            chat = self._ready(self.settings)
            messages = chat.messages
            starts = turn_starts(messages)
            text = chat.undo()
            self._last = View([])
            self._keep(chat)
            self._touch(revised=True)
            return str(messages[starts[-1]].get("text", text))

    def stop(self) -> None:
        """Stops the running turn. The reply so far is kept."""
        with self._lock:
            if (work := self._work) is not None:
                work.stopped = True
                work.turn.cancel()
                self._touch()

    def answer(self, allowed: bool, call: int | None = None) -> None:
        """The user's answer about the call of this number, or about the waiting call.

        A second click, meant for the call before, must not allow this one: the page gives the number.
        """
        with self._lock:
            if (work := self._work) is not None and work.asking and call in (None, work.asking):
                work.allowed = allowed
                self._touch()

    def rename(self, title: str) -> None:
        """Sets the user's title in memory. The file has it already, or gets it at the next write."""
        with self._lock:
            self.conversation.title, self.conversation.named = title, True
            self._touch()

    def save(self) -> None:
        """Writes what an earlier write could not."""
        with self._lock:
            if self._unsaved is not None:
                self._write()

    def delete(self, file: Callable[[], None]) -> None:
        """Stops the running turn, calls `file` to delete the file, and writes no more. Raises what `file` raises."""
        self.stop()
        self.join(END_SECONDS)
        with self._lock:
            file()
            self.keeps, self._unsaved = False, None

    def release(self, wait: bool = True) -> None:
        """Releases the caches at the end of the running turn; without `wait` only if the session is idle."""
        if self._lock.acquire(blocking=wait):
            try:
                if self._work is None:
                    self._chat = self._context = None
                else:
                    self._work.lets_go = True
            finally:
                self._lock.release()

    def join(self, timeout: float) -> bool:
        """Waits for the end of the running turn. Returns whether it ended within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._work is None, timeout)

    # --- what is seen ---------------------------------------------------------

    def view(self) -> View:
        """The present view."""
        with self._lock:
            chat, work = self._chat, self._work
            tokens, limit = self._tokens()
            dropped = self.conversation.dropped if chat is None else chat.dropped
            if work is None:
                return View(
                    list(self.conversation.messages),
                    self._revision,
                    counts=self._last.counts,
                    first_token_seconds=self._last.first_token_seconds,
                    error=self._last.error,
                    context_tokens=tokens,
                    context_limit=limit,
                    dropped=dropped,
                    unsaved=self._unsaved,
                )
            counts = work.turn.so_far
            work.live.count(counts)
            coming = work.live.messages
            reply = work.turn.reply_so_far
            if reply is not None:
                tokens = reply.prompt_tokens + reply.thinking_tokens + reply.answer_tokens
            return View(
                list(work.history),
                self._revision,
                coming,
                running=True,
                asking=work.asking,
                place=work.turn.place,
                reading=work.reading,
                reading_left=work.reading_left,
                tool_runs=reply is None and missing_results(coming) > 0 and not work.asking,
                counts=counts,
                first_token_seconds=work.first_token_seconds,
                context_tokens=tokens,
                context_limit=limit,
                dropped=dropped,
                unsaved=self._unsaved,
            )

    def wait(self, version: int, timeout: float) -> None:
        """Returns after a change since `version`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)

    # --- inside ---------------------------------------------------------------

    def _tokens(self) -> tuple[int, int]:
        """The used tokens of the context, and the limit."""
        if self._chat is not None:
            return self._chat.context_tokens, self._chat.max_kv_size
        if self._context is None:
            messages, dropped = self.conversation.messages, self.conversation.dropped
            system = [message for message in messages[:1] if message["role"] == "system"]
            self._context = self._measure([*system, *messages[len(system) + dropped :]])
        return self._context

    def _ready(self, settings: Settings) -> Chat:
        """The chat, with the options of the settings."""
        if self._work is not None:
            raise Busy("a reply of this conversation is in progress")
        self.used = time.monotonic()
        if self._chat is None:
            self._chat = self._chat_of(self)
        chat = self._chat
        system = settings.system.strip() or None
        if chat.system_prompt != system:
            chat.system_prompt = system
        tools = tuple(tool for tool in self._tools if settings.allows(tool.__name__))
        if chat.tools != tools:
            chat.tools = tools
        chat.approve = self._approve if settings.ask else None
        return chat

    def _options(self, settings: Settings) -> dict[str, Any]:
        return settings.options() | {"prefill_step_size": self._step_size(), "progress": self._read}

    def _read(self, done: int, total: int) -> None:
        with self._lock:
            if self._work is not None:
                self._work.read(done, total)
                self._touch()

    def _begin(self, turn: Turn, history: Sequence[Message], settings: Settings) -> None:
        self.settings = settings
        self._work = Work(turn, history)
        if not self.conversation.title or (not self.conversation.named and len(turn_starts(history)) == 1):
            self.conversation.title = title_of(history)
        self.conversation.settings = settings.as_dict()
        try:
            self._write()
            self._touch(revised=True)
            threading.Thread(target=self._run, args=(self._work,), name="turn", daemon=True).start()
        except BaseException:
            self._work = None
            turn.close()
            raise

    def _run(self, work: Work) -> None:
        """Runs in the thread of a turn."""
        counts, error = None, None
        try:
            for event in work.turn:
                self._take(work, event)
                if isinstance(event, Done):
                    counts = event
        except BaseException as problem:  # of any kind: the thread ends here, and the turn with it
            error = f"{problem}" or type(problem).__name__
        with self._lock:
            self._last = View([], counts=counts, first_token_seconds=work.first_token_seconds, error=error)
            self._work = None
            try:
                if self._chat is not None:
                    self._keep(self._chat)
            finally:
                if work.lets_go:
                    self._chat = self._context = None
                self._touch(revised=True)
        self._ended(self)

    def _take(self, work: Work, event: object) -> None:
        with self._lock:
            if work.first_token_seconds is None and not isinstance(event, Done):
                work.first_token_seconds = time.monotonic() - work.started
            work.live.count(work.turn.so_far)  # of the round that ends, before the next begins
            work.live.add(event)
            if time.monotonic() - work.saved > SAVE_SECONDS:
                work.saved = time.monotonic()
                self.conversation.messages = [*work.history, *closed(work.live.messages)]
                self._write()
            self._touch()

    def _approve(self, call: ToolCall) -> bool:
        """Waits for the user's answer, in the thread of the turn."""
        with self._changed:
            if (work := self._work) is None:
                return False
            work.asked += 1
            work.asking, work.allowed = work.asked, None
            self._touch()
            self._changed.wait_for(lambda: work.word is not None)
            work.asking = 0
            self._touch()
            return work.word is True

    def _keep(self, chat: Chat) -> None:
        """Copies the chat's history into the conversation, and writes it."""
        self.conversation.messages, self.conversation.dropped = chat.messages, chat.dropped
        self._write()

    def _write(self) -> None:
        """Writes the conversation, or notes why it cannot. Memory still has it."""
        try:
            self._save(self)
            self._unsaved = None
        except Exception as error:  # of any kind: the turn continues
            self._unsaved = f"{error}" or type(error).__name__

    def _touch(self, revised: bool = False) -> None:
        """Notes a change of the view; with `revised` also of its finished messages."""
        with self._changed:
            self._version += 1
            if revised:
                self._revision = next(REVISIONS)
            self._changed.notify_all()
