"""An open conversation as it is kept: its messages and their branches, its settings, and its file.

Notes:
- If a write fails, the conversation stays in memory, the view reports it, and the next write tries again.
- The view has a version, and its finished messages have a revision. Who waits for a change waits for another version.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from exaone4_mlx import Conversation
from exaone4_mlx.storage.branches import Tree
from exaone4_mlx.storage.turns import as_read, edited, reply_place, title_of
from exaone4_mlx.text.message import Message, turn_starts

from .settings import Settings

REVISIONS = itertools.count(int(time.time() * 1000))  # unique, also after a restart


class Busy(ValueError):
    """This conversation has a running turn."""


class Record:
    """An open conversation without its model. Its methods may be called from any thread."""

    def __init__(
        self, conversation: Conversation, settings: Settings, *, keeps: bool, save: Callable[[Any], None]
    ) -> None:
        """`keeps` says whether the conversation is written, which `save(self)` does."""
        conversation.messages = as_read(conversation.messages)
        conversation.branches = [one | {"messages": as_read(one["messages"])} for one in conversation.branches]
        self.conversation, self.settings, self.keeps = conversation, settings, keeps
        self._save = save
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._version, self._revision = 0, next(REVISIONS)
        self._tree = conversation.tree  # of the revision
        self._redo: list[Tree] = []  # what `undo` took back, the last one at the end
        self._unsaved: str | None = None
        self.used = time.monotonic()

    @property
    def id(self) -> str:
        return self.conversation.id

    @property
    def running(self) -> bool:
        """Whether a turn runs."""
        return False

    @property
    def revision(self) -> int:
        """A number that changes with every change of the finished messages."""
        return self._revision

    @property
    def version(self) -> int:
        """A number that changes with every change of the view."""
        return self._version

    @property
    def is_saved(self) -> bool:
        """Whether all of it is on disk."""
        return self._unsaved is None

    def wait(self, version: int, timeout: float) -> None:
        """Returns after a change since `version`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)

    # --- what is shown --------------------------------------------------------

    def save_reply(self, text: str, number: int | None = None) -> None:
        """Puts `text` in place of the last reply of a turn, which becomes a branch. The thought stays."""
        with self._lock:
            self._rest()
            tree = self.conversation.tree
            _, at = reply_place(tree.messages, number)
            made = tree.begun("edit", at)
            self._show(dataclasses.replace(made, messages=[*made.messages, edited(tree.messages[at], text)]))
            self._redo = []

    def switch(self, at: int, place: int) -> None:
        """Shows another branch at position `at`, counted after the system prompt. Raises ValueError without it."""
        with self._lock:
            self._show(self.conversation.tree.switched(at, place))
            self._redo = []

    def undo(self) -> str:
        """Takes back the last action. Returns the text that the user typed, if a message is taken back."""
        with self._lock:
            tree = self.conversation.tree
            before = tree.undone()
            self._show(before)
            self._redo.append(tree)
            removed = tree.messages[len(before.messages) :][:1] if last_action(tree) == "send" else []
            return "".join(str(message.get("text", message["content"])) for message in removed)

    def redo(self) -> None:
        """Takes back an `undo` that no other action followed."""
        with self._lock:
            if not self._redo:
                raise ValueError("there is nothing to redo")
            self._show(self._redo[-1])
            self._redo.pop()

    # --- its title, its permissions, its file ---------------------------------

    def rename(self, title: str) -> None:
        """Sets the user's title in memory. The file has it already, or gets it at the next write."""
        with self._lock:
            self.conversation.title, self.conversation.named = title, True
            self._touch()

    def entitle(self, title: str) -> None:
        """Sets a title in memory that is not the user's, where there is none of the user's. The file has it already."""
        with self._lock:
            if not self.conversation.named:
                self.conversation.title = title
                self._touch()

    def permit(self, always: Sequence[str]) -> None:
        """Replaces the permissions of tools that run without a question."""
        with self._lock:
            self.settings = self.settings.updated({"always": tuple(dict.fromkeys(always))})
            self.conversation.settings = self.settings.as_dict()
            if self.conversation.messages:
                self._write()

    def save(self) -> None:
        """Writes what an earlier write could not."""
        with self._lock:
            if self._unsaved is not None:
                self._write()

    # --- inside ---------------------------------------------------------------

    def _rest(self) -> None:
        """Raises `Busy` while a turn runs."""
        if self.running:
            raise Busy("a reply of this conversation is in progress")
        self.used = time.monotonic()

    def _show(self, tree: Tree) -> None:
        """Shows another state of the conversation."""
        self._rest()
        self.conversation.show(tree)
        self._write()
        self._touch(revised=True)

    def _grow(self, tree: Tree, system: Sequence[Message]) -> None:
        """Takes a longer conversation. Its first turn makes its title, unless it has one of the user's."""
        conversation = self.conversation
        conversation.show(tree, system)
        if not conversation.title or (not conversation.named and len(turn_starts(tree.messages)) == 1):
            conversation.title = title_of(tree.messages)

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
                self._revision, self._tree = next(REVISIONS), self.conversation.tree
            self._changed.notify_all()


def last_action(tree: Tree) -> str:
    """What Undo takes back, as one of `branches.ACTIONS`; "" for nothing."""
    return "" if (step := tree.last_step) is None else str(step["what"])
