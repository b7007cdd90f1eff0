"""The state that all tabs share: the model, the open conversations, the tools, and the folder on disk.

Notes:
- Gradio's session hash identifies a tab. When a tab is closed or reloaded, its turn runs on for a few seconds, so that
  the reloaded page finds it.
- A conversation is open while a tab shows it, while its turn runs, or while it is not written. It is open at most
  once, so that it has one history.
- Locks are taken in one order: a session's, then the state's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exaone4_mlx import Conversation, ConversationStore, mcp_tools
from exaone4_mlx.files.attachments import Attachment, read_file
from exaone4_mlx.measure.model_jobs import ModelJobs
from exaone4_mlx.storage.forms import one_line
from exaone4_mlx.storage.transcript import from_text

from .engine import ChatEngine, end
from .i18n import Words
from .session import END_SECONDS, Session
from .settings import PERMISSIONS, Settings
from .titles import Titles

GRACE_SECONDS = 10.0  # that a turn continues without a tab that shows it
SAMPLE = 20_000  # characters of a file by which its tokens are estimated
MAX_ATTACHMENTS = 50  # files that are kept read
MAX_OPEN = 200  # conversations of clients that never disconnect


@dataclass
class Tab:
    """One browser tab, or one client of the API."""

    session: Session
    words: Words
    narrow: bool = False  # a phone
    list_number: int = 0  # of the last answer to its list
    list_rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # those that its list has, by id


def uploaded(path: str) -> Path:
    """The path of an uploaded file. Raises ValueError for a file from elsewhere."""
    place = Path(path).resolve()
    if not place.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise ValueError("only uploaded files can be read")
    return place


class AppState:
    """One object for the app. Its methods may be called from any thread."""

    def __init__(
        self,
        engine: ChatEngine,
        store: ConversationStore,
        *,
        tools: Sequence[Callable[..., Any]] = (),
        servers: Sequence[Any] = (),
        api_tools: bool = False,
        settings: Settings | None = None,
        makes_titles: bool = False,
        jobs: ModelJobs | None = None,
    ) -> None:
        """`settings` are those of a new conversation; `makes_titles` says whether the model makes titles.

        `servers` are MCP servers, which the user switches on; `api_tools` allows programs to use tools.
        `jobs` download and convert models; their folder is beside the conversations unless given.
        """
        self.engine, self.store, self.tools, self.settings = engine, store, tuple(tools), settings or Settings()
        self.jobs = jobs or ModelJobs(store.folder.parent / "models")
        self.servers, self._own_tools = {server.name: server for server in servers}, tuple(tools)
        self.api_tools = api_tools
        self._tabs: dict[str, Tab] = {}
        self._attachments: dict[str, tuple[Attachment, int]] = {}  # by path
        self._sessions: dict[str, Session] = {}  # those that are open, by the conversation's id
        self._list_changes = itertools.count(1)
        self.listed = 0  # a number that changes with the list of conversations
        self._lock = threading.RLock()
        self._titles = Titles(engine, lambda: bool(self.running), self._entitle) if makes_titles else None
        if self._titles is not None:
            engine.unloading = functools.partial(self._titles.cancel, END_SECONDS)
        engine.sessions = lambda: list(self._sessions.values())

    @property
    def open_tabs(self) -> int:
        return len(self._tabs)

    @property
    def tool_names(self) -> list[str]:
        return [tool.__name__ for tool in self.tools]

    @property
    def running_servers(self) -> list[str]:
        return [name for name, server in self.servers.items() if server.runs]

    def switch_server(self, name: str, on: bool) -> None:
        """Starts or ends an MCP server. Raises ValueError for one that does not work."""
        try:
            if on:
                self.servers[name].start()
            else:
                self.servers[name].stop()
        finally:
            taken = [tool.__name__ for tool in self._own_tools]
            self.tools = (*self._own_tools, *mcp_tools(self.servers.values(), taken))
            for session in list(self._sessions.values()):
                session.tools = self.tools
            self._list_changed()  # every tab gets a frame

    # --- tabs and conversations -----------------------------------------------

    def tab(self, key: str, conversation: str = "", *, keeps: bool = True, language: str = "en") -> Tab:
        """The tab of a session hash. A new one opens `conversation`, if there is one, or begins another.

        Without `keeps` its conversations are not written to disk.
        """
        with self._lock:
            if (tab := self._tabs.get(key)) is not None:
                return tab
        session = None
        if conversation and keeps:
            with contextlib.suppress(OSError, ValueError):
                session = self.session(conversation)
        session = session or self.new_session(keeps=keeps)
        with self._lock:
            if (tab := self._tabs.get(key)) is None:
                tab = self._tabs[key] = Tab(self._sessions.setdefault(session.id, session), Words(language))
        if not keeps:
            self._bound()
        return tab

    def has(self, key: str) -> bool:
        """Whether the tab of this key is open."""
        return key in self._tabs

    def attachment(self, path: str, cancelled: Callable[[], bool] = lambda: False) -> tuple[Attachment, int]:
        """An uploaded file and its number of tokens. Raises ValueError if it cannot be read, or is `cancelled`."""
        place = uploaded(path)
        if (known := self._attachments.get(path)) is None:
            attachment = read_file(place, cancelled=cancelled)
            known = self._attachments[path] = attachment, self._token_count(attachment)
            while len(self._attachments) > MAX_ATTACHMENTS:
                self._attachments.pop(next(iter(self._attachments)))
        return known

    def _token_count(self, attachment: Attachment) -> int:
        """The number of tokens of a file. Raises ValueError for one that no conversation can hold."""
        text, encode, limit = attachment.text, self.engine.loaded.tokenizer.encode, self.engine.loaded.context
        if len(text) > SAMPLE:
            estimate = len(encode(text[:SAMPLE])) * len(text) // SAMPLE
            if estimate > 2 * limit:
                raise ValueError(
                    f"{attachment.name} has about {estimate:,} tokens, and a conversation holds {limit:,}; split it"
                )
        return len(encode(text))

    def leave(self, key: str) -> None:
        """A tab was closed, or is loaded again."""
        with self._lock:
            tab = self._tabs.pop(key, None)
        if tab is None:
            return
        timer = threading.Timer(GRACE_SECONDS if tab.session.keeps else 0.0, self._tidy, [tab.session])
        timer.daemon = True
        timer.start()

    def show(self, tab: Tab, session: Session) -> None:
        """Shows another conversation in a tab. The reply of the previous one continues, unless no tab can show it."""
        with self._lock:
            before, tab.session = tab.session, self._sessions.setdefault(session.id, session)
        if before is not tab.session:
            if not before.keeps:
                before.stop()
            self._forget(before)

    def session(self, id: str) -> Session:
        """The session of a conversation, open once a tab shows it. Raises the errors of `ConversationStore`."""
        return self._sessions.get(id) or self._made(self.store.read(id))

    def new_session(self, *, keeps: bool = True, settings: Settings | None = None) -> Session:
        """A new conversation. It is written with its first turn, unless `keeps` is false.

        Permissions to run without a question are not taken over from another one.
        """
        settings = (settings or self.settings).updated({"always": ()})
        return self._made(Conversation.new(settings=settings.as_dict()), keeps)

    def _made(self, conversation: Conversation, keeps: bool = True) -> Session:
        settings = self.settings.restored(conversation.settings)
        if conversation.messages and conversation.messages[0]["role"] == "system":
            settings = settings.updated({"system": conversation.messages[0]["content"]})
        return Session(
            conversation,
            settings,
            tools=self.tools,
            keeps=keeps,
            chat_of=self.engine.chat,
            label=lambda: self.engine.label,
            save=self._write,
            ended=self._ended,
            step_size=lambda: self.engine.step_size,
            measure=self.engine.measure,
        )

    def import_upload(self, path: str, name: str) -> Session:
        """Adds the conversation of an uploaded file. Raises the errors of `import_file`."""
        return self.import_file(uploaded(path).read_bytes(), name)

    def import_file(self, data: bytes, name: str) -> Session:
        """Adds the conversation of a file, without its permissions. Raises ValueError and OSError."""
        conversation = from_text(data, name)
        conversation.settings = {key: one for key, one in conversation.settings.items() if key not in PERMISSIONS}
        written = self.store.write(conversation)
        self._list_changed()
        return self.session(written.id)

    @property
    def running(self) -> set[str]:
        """The ids of the conversations with a reply in progress."""
        return {id for id, session in list(self._sessions.items()) if session.running}

    def _list_changed(self) -> None:
        self.listed = next(self._list_changes)

    def pin(self, id: str, pinned: bool) -> None:
        """Keeps a conversation above the others in the list, or no longer. Raises the errors of `ConversationStore`."""
        self.store.pin(id, pinned)
        self._list_changed()

    def rename(self, id: str, title: str) -> None:
        """Renames a conversation. Raises ValueError for an empty title."""
        session = self._sessions.get(id)
        try:
            self.store.rename(id, title)
        except FileNotFoundError:  # it is written with its first turn
            if session is None:
                raise
        if session is not None:
            session.rename(one_line(title))
        self._list_changed()

    def restore(self, id: str) -> str:
        """Takes a deleted conversation back. Returns its id. Raises FileNotFoundError if it is not there any more."""
        restored = self.store.restore(id)
        self._list_changed()
        return restored

    def delete(self, id: str) -> None:
        """Deletes a conversation. Tabs that show it get a new one. Raises the errors of `ConversationStore`."""
        if (session := self._sessions.get(id)) is None:
            self.store.delete(id)
            self._list_changed()
            return
        session.delete(lambda: self.store.delete(session.id))
        self._list_changed()
        with self._lock:
            self._close(session.id, session)
            tabs = [tab for tab in self._tabs.values() if tab.session is session]
        for tab in tabs:
            self.show(tab, self.new_session(settings=session.settings))

    def _write(self, session: Session) -> None:
        if self._titles is not None and session.running:
            self._titles.cancel()
        if not session.keeps:
            return
        before = session.id
        if label := self.engine.label:
            session.conversation.model = label
        session.conversation = self.store.write(session.conversation)
        with self._lock:  # where another program had written the file, its copy has another id
            self._close(before, session)
            self._sessions.setdefault(session.id, session)
        self._list_changed()

    def _ended(self, session: Session) -> None:
        """A turn has ended: releases what it held, and tries failed writes again."""
        self._list_changed()
        for one in {session, *self._sessions.values()}:
            self._forget(one)
        self.engine.make_room(session)
        if self._titles is not None:
            self._titles.begin(session)

    def _entitle(self, session: Session, title: str) -> None:
        """Takes a title that the model made."""
        self.store.entitle(session.id, title)
        session.entitle(title)
        self._list_changed()

    def _tidy(self, session: Session) -> None:
        """Stops the turn of a conversation that no tab shows any more."""
        if not self._looked_at(session):
            session.stop()
            self._forget(session)

    def _looked_at(self, session: Session) -> bool:
        with self._lock:
            return any(tab.session is session for tab in self._tabs.values())

    def _forget(self, session: Session) -> None:
        """Closes a conversation that no tab shows, once its turn has ended and it is written."""
        session.save()
        with self._lock:
            if self._looked_at(session) or session.running:
                return
            if session.is_saved:
                self._close(session.id, session)
        session.release()

    def _close(self, id: str, session: Session) -> None:
        if self._sessions.get(id) is session:
            del self._sessions[id]

    def _bound(self) -> None:
        """Closes the oldest clients of the API if there are too many."""
        with self._lock:
            clients = [key for key, tab in self._tabs.items() if not tab.session.keeps]
            oldest = [key for key in clients[: max(0, len(clients) - MAX_OPEN)] if not self._tabs[key].session.running]
            gone = [self._tabs.pop(key).session for key in oldest]
        for session in gone:
            self._forget(session)

    def stop_all(self, timeout: float = 5.0) -> None:
        """Stops all running turns and waits until they are written. Jobs go on when the app starts again."""
        if self._titles is not None:
            self._titles.cancel(timeout)
        self.jobs.close()
        end(list(self._sessions.values()), timeout)
