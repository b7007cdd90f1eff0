"""One open conversation: its `Chat`, the running turn, and the view that its tabs show.

Notes:
- A turn runs in its own thread and does not depend on a page: a page that is loaded again finds it still running.
- Any number of tabs can show one conversation. They all show the same.
- The conversation is written when a turn begins, every few seconds, and when it ends. If a write fails, the reply goes
  on.
- The `Chat` and its caches can be released between turns (another model, memory). It is rebuilt from the messages.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from exaone4_mlx import Chat, Conversation, Done, ToolCall, Turn
from exaone4_mlx.files.attachments import Attachment
from exaone4_mlx.storage.branches import Tree
from exaone4_mlx.storage.forms import one_line
from exaone4_mlx.storage.turns import closed, edited, reply_place, turn_place, user_message
from exaone4_mlx.text.message import Message

from .record import Record, last_action
from .settings import Settings
from .tools import origin, permission
from .work import View, Work

SAVE_SECONDS = 5.0
END_SECONDS = 10.0  # the longest wait for a turn that was stopped


class Session(Record):
    """A conversation that is open, with its model. Its methods may be called from any thread."""

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
        label: Callable[[], str] = str,
    ) -> None:
        """`tools` are the available tools; `keeps` says whether the conversation is written.

        `chat_of` makes the chat, `save` writes the conversation, `ended` is called at the end of a turn,
        `step_size` says how many prompt tokens are read between two looks at Stop, `measure` how many tokens
        messages have, and how many they may have, `label` what the model is called.
        """
        super().__init__(conversation, settings, keeps=keeps, save=save)
        self.tools = tuple(tools)
        self._chat_of, self._ended = chat_of, ended
        self._step_size, self._measure, self._label = step_size, measure, label
        self._context: tuple[int, int] | None = None  # tokens used, and the limit, as long as there is no chat
        self._chat: Chat | None = None
        self._work: Work | None = None
        self._last = View([])  # counts and error of the last turn

    @property
    def running(self) -> bool:
        return self._work is not None

    @property
    def has_caches(self) -> bool:
        return self._chat is not None

    @property
    def context_tokens(self) -> int:
        """The tokens of the conversation, as the next prompt will hold them; 0 without a chat."""
        return 0 if (chat := self._chat) is None else chat.context_tokens

    # --- turns ----------------------------------------------------------------

    def send(self, text: str, attachments: Sequence[tuple[Attachment, int]], settings: Settings) -> None:
        """Begins a turn with the message `text`; `attachments` come with their size in tokens.

        Raises `Busy`, and ValueError for what cannot be sent.
        """
        with self._lock:
            chat = self._ready(settings)
            message = user_message(text, attachments)
            turn = chat.send(message, **self._options(settings))
            tree = self.conversation.tree
            self._begin(turn, chat, tree.begun("send", len(tree.messages)), [message], settings)

    def retry(self, settings: Settings, number: int | None = None) -> None:
        """Generates another reply to a turn, counted from 0, or to the last. The old reply becomes a branch."""
        with self._lock:
            chat, tree = self._ready(settings), self.conversation.tree
            number, at = turn_place(tree.messages, number)
            turn = chat.edit(number, tree.messages[at], **self._options(settings))
            self._begin(turn, chat, tree.begun("retry", at + 1), [], settings)

    def edit(self, number: int, text: str, settings: Settings) -> None:
        """Sends another text in place of a turn, counted from 0. Its files stay, and the old turn becomes a branch."""
        with self._lock:
            chat, tree = self._ready(settings), self.conversation.tree
            number, at = turn_place(tree.messages, number)
            message = edited(tree.messages[at], text)
            turn = chat.edit(number, message, **self._options(settings))
            self._begin(turn, chat, tree.begun("edit", at), [message], settings)

    def continue_reply(self, settings: Settings, text: str | None = None, number: int | None = None) -> None:
        """Continues the last reply of a turn, from `text` if it is given. The reply as it was becomes a branch."""
        with self._lock:
            chat, tree = self._ready(settings), self.conversation.tree
            number, at = reply_place(tree.messages, number)
            options = {name: value for name, value in self._options(settings).items() if name != "thinking"}
            turn = chat.continue_reply(text, turn=number, **options)
            self._begin(turn, chat, tree.begun("continue", at), [], settings)

    def stop(self) -> None:
        """Stops the running turn. The reply so far is kept."""
        with self._lock:
            if (work := self._work) is not None:
                work.stopped = True
                work.turn.cancel()
                self._touch()

    def answer(self, allowed: bool, call: int | None = None, always: bool = False) -> None:
        """The user's answer about the call of this number, or about the first that waits.

        An answer to a call that does not wait any more changes nothing. `always` allows the tool in this conversation.
        """
        with self._lock:
            if (work := self._work) is None or not (asking := work.asking) or call not in (None, *asking):
                return
            number = call or min(asking)
            work.answers[number] = allowed
            if allowed and always:
                name = work.calls[number - 1]
                named = [permission(one) for one in work.chat.tools if getattr(one, "__name__", "") == name]
                self.permit([*self.settings.always, *named])
            self._touch()

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
            chat, work, conversation = self._chat, self._work, self.conversation
            seen = self._last if work is None else work.view()
            tokens, limit = self._tokens()
            tree = self._tree if work is None else work.tree
            return dataclasses.replace(
                seen,
                messages=list(conversation.messages) if work is None else seen.messages,
                revision=self._revision,
                context_tokens=seen.context_tokens or tokens,
                context_limit=limit,
                dropped=conversation.dropped if chat is None else chat.dropped,
                unsaved=self._unsaved,
                forks=tree.forks,
                undo=last_action(tree),
                redo=last_action(self._redo[-1]) if self._redo else "",
            )

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
        self._rest()
        if (chat := self._chat) is None:
            chat = self._chat_of(self)
            chat.set_messages(self.conversation.messages)
            if chat.context_tokens > chat.prompt_limit:  # else a larger context shows the model everything again
                chat.set_messages(self.conversation.messages, self.conversation.dropped)
            self._chat = chat
        system = settings.system.strip() or None
        if chat.system_prompt != system:
            chat.system_prompt = system
        tools = tuple(tool for tool in self.tools if settings.allows(tool.__name__))
        if chat.tools != tools:
            chat.tools = tools
        chat.approve = self._approve if settings.ask else None
        return chat

    def _show(self, tree: Tree) -> None:
        """Shows another state of the conversation. The caches keep what is the same at its beginning."""
        super()._show(tree)
        self._last, self._context = View([]), None
        if self._chat is not None:
            try:
                self._chat.set_messages(self.conversation.messages, tree.dropped)
            except ValueError:  # of a file that a person wrote; it is said once something is sent
                self._chat = None

    def _options(self, settings: Settings) -> dict[str, Any]:
        return settings.options() | {"prefill_step_size": self._step_size(), "progress": self._read}

    def _read(self, done: int, total: int) -> None:
        with self._lock:
            if self._work is not None:
                self._work.read(done, total)
                self._touch()

    def _begin(self, turn: Turn, chat: Chat, tree: Tree, said: Sequence[Message], settings: Settings) -> None:
        """Runs a turn after the messages of `tree` and what the user `said`."""
        tools = [tool.__name__ for tool in self.tools if settings.allows(tool.__name__)]
        values = settings.values() | {"system": one_line(settings.system), "tools": tools}
        made = {
            "model": self._label(),
            "settings": {name: values[name] for name in values if name not in ("sampling", "always")},
        }
        work = self._work = Work(turn, chat, tree, said, made)
        work.asks = lambda name: self._asks(work, name)
        self.settings, self.conversation.settings, self._redo = settings, settings.as_dict(), []
        try:
            self._add(work, [])
            self._write()
            self._touch(revised=True)
            threading.Thread(target=self._run, args=(work,), name="turn", daemon=True).start()
        except BaseException:
            self._work = None
            self.conversation.show(tree.undone(), work.system)
            turn.close()
            raise

    def _add(self, work: Work, reply: Sequence[Message]) -> None:
        """Adds what is said, and what there is of the reply. Until then a retry leaves the old reply in its place."""
        if work.said or reply:
            self._grow(work.grown(reply), work.system)

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
                self._keep(work, "cancelled" if error is None else "error")
            finally:
                if work.lets_go:
                    self._chat = self._context = None
                self._touch(revised=True)
        self._ended(self)

    def _keep(self, work: Work, reason: str) -> None:
        """Takes the replies of a turn that has ended, and writes the conversation."""
        if (messages := work.chat.messages) != work.before:
            self._add(work, messages[len(work.history) :])
        elif work.said:  # the chat has taken the turn back, because nothing came of it
            self._add(work, [{"role": "assistant", "content": "", "finish_reason": reason}])
            work.chat.set_messages(self.conversation.messages, self.conversation.dropped)
        else:
            self.conversation.show(work.tree.undone(), work.system)
        self._write()

    def _take(self, work: Work, event: object) -> None:
        with self._lock:
            work.take(event)
            if time.monotonic() - work.saved > SAVE_SECONDS:
                work.saved = time.monotonic()
                self._add(work, closed(work.live.messages))
                self._write()
            self._touch()

    def _approve(self, call: ToolCall) -> bool:
        """Waits for the user's answer, in the thread of the turn."""
        with self._changed:
            if (work := self._work) is None:
                return False
            number, work.asked = work.next_call, len(work.calls)
            self._touch()
            self._changed.wait_for(lambda: number not in work.asking)
            self._touch()
            return not work.stopped and work.answers.get(number, self._asks(work, call.name) is None)

    def _asks(self, work: Work, name: str) -> tuple[str, str] | None:
        """Where a tool of the turn that asks comes from; None for one that runs without a question."""
        found = [tool for tool in work.chat.tools if getattr(tool, "__name__", "") == name]
        return origin(found[0]) if found and permission(found[0]) not in self.settings.always else None
