"""The state that all tabs share: the model, the open conversations, the tools, and the folder on disk.

Notes:
- Gradio's session hash identifies a tab. When a tab is closed or reloaded, its turn runs on for a few seconds, so that
  the reloaded page finds it.
- A conversation is open while a tab shows it, while its turn runs, or while it is not written. It is open at most
  once, so that it has one history.
- The caches of idle conversations are limited in number and bytes. The least recently used are released first.
- Locks are taken in one order: a session's, then the state's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from exaone4_mlx import Chat, Exaone4ForCausalLM, Fit, KVQuantization, Tokenizer, fit

from .files import Attachment, read_file
from .i18n import Words
from .messages import Message
from .models import Choice, Draft, Loading, choices, memory_in_use, step_size
from .session import Busy, Session
from .settings import PERMISSIONS, Settings
from .store import Conversation, Store, one_line
from .transcript import from_text

GRACE_SECONDS = 10.0  # that a turn continues without a tab that shows it
MAX_CACHES = 8  # conversations at rest that keep their caches
SAMPLE = 20_000  # characters of a file by which its tokens are estimated
MAX_ATTACHMENTS = 50  # files that are kept read
MAX_OPEN = 200  # conversations of clients that never disconnect
LOOK_SECONDS = 0.2  # between two reports of the progress of loading
UNLOAD_SECONDS = 60.0  # that a model waits for its replies to end before another takes its place


@dataclass(frozen=True)
class LoadedModel:
    """The model in use, its tokens per prefill step, and the largest number of tokens of a conversation (`context`)."""

    choice: Choice
    model: Exaone4ForCausalLM
    tokenizer: Tokenizer
    fit: Fit
    step_size: int = 512
    draft: Draft | None = None
    warnings: tuple[str, ...] = ()  # of this model, for the user

    @property
    def context(self) -> int:
        return self.fit.max_kv_size


@dataclass
class Tab:
    """One browser tab, or one client of the API."""

    session: Session
    words: Words
    narrow: bool = False  # a phone
    query: str = ""  # the text of the search in the list
    title: str = ""  # of the conversation, as it was shown last
    listed: tuple[Any, ...] = ()  # the state of the conversation when the list was shown last


class AppState:
    """One object for the app. Its methods may be called from any thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        store: Store,
        *,
        tools: Sequence[Callable[..., Any]] = (),
        settings: Settings | None = None,
        folders: Sequence[Path] = (),
        given: str = "",
        kv: Mapping[str, Any] | None = None,
        drafting: Mapping[str, Any] | None = None,
        draft: Draft | None = None,
        ignores_memory: bool = False,
    ) -> None:
        """`settings` are those of a new conversation; `folders` is where models are looked for.

        `kv` says how caches are quantized, and `drafting` how tokens are drafted, as for `Chat`; `draft` is for every
        model with its tokenizer. With `ignores_memory` models are loaded that are too large.
        """
        self.store, self.tools, self.settings = store, tuple(tools), settings or Settings()
        self._loaded: LoadedModel | None = loaded
        self._used = (loaded.choice.path, loaded.fit)  # of the model that was in use last
        self._loading: Loading | None = None
        self._folders, self._given = tuple(folders), given or loaded.choice.path
        self._kv, self._drafting, self._draft = dict(kv or {}), dict(drafting or {}), draft
        self._ignores_memory = ignores_memory
        self._tabs: dict[str, Tab] = {}
        self._attachments: dict[str, tuple[Attachment, int]] = {}  # by path
        self._sessions: dict[str, Session] = {}  # those that are open, by the conversation's id
        self._lock = threading.RLock()
        self._switching = threading.Lock()

    @property
    def loaded(self) -> LoadedModel:
        """The model in use. Raises ValueError while another takes its place and both have no room."""
        if (loaded := self._loaded) is None:
            coming = "a model is being loaded; try again when it is ready"
            raise ValueError(coming if self._switching.locked() else "no model is loaded; choose one in the settings")
        return loaded

    @property
    def open_tabs(self) -> int:
        return len(self._tabs)

    @property
    def tool_names(self) -> list[str]:
        return [tool.__name__ for tool in self.tools]

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
        place = Path(path).resolve()
        if not place.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            raise ValueError("only uploaded files can be attached")
        if (known := self._attachments.get(path)) is None:
            attachment = read_file(place, cancelled=cancelled)
            known = self._attachments[path] = attachment, self._token_count(attachment)
            while len(self._attachments) > MAX_ATTACHMENTS:
                self._attachments.pop(next(iter(self._attachments)))
        return known

    def _token_count(self, attachment: Attachment) -> int:
        """The number of tokens of a file. Raises ValueError for one that no conversation can hold."""
        text, encode, limit = attachment.text, self.loaded.tokenizer.encode, self.loaded.context
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
        """The session of a conversation, open once a tab shows it. Raises the errors of `Store.read`."""
        return self._sessions.get(id) or self._made(self.store.read(id))

    def new_session(self, *, keeps: bool = True, settings: Settings | None = None) -> Session:
        """A new conversation. It is written with its first turn, unless `keeps` is false."""
        settings = settings or self.settings
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
            chat_of=self._chat,
            save=self._write,
            ended=self._ended,
            step_size=lambda: self.loaded.step_size,
            measure=self._measure,
        )

    def import_file(self, data: bytes, name: str) -> Session:
        """Adds the conversation of a file, without its permissions. Raises ValueError and OSError."""
        conversation = from_text(data, name)
        conversation.settings = {key: one for key, one in conversation.settings.items() if key not in PERMISSIONS}
        return self.session(self.store.write(conversation).id)

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

    def delete(self, id: str) -> None:
        """Deletes a conversation. Tabs that show it get a new one. Raises the errors of `Store.delete`."""
        if (session := self._sessions.get(id)) is None:
            self.store.delete(id)
            return
        session.delete(lambda: self.store.delete(session.id))
        with self._lock:
            self._close(session.id, session)
            tabs = [tab for tab in self._tabs.values() if tab.session is session]
        for tab in tabs:
            self.show(tab, self.new_session())

    def _write(self, session: Session) -> None:
        if not session.keeps:
            return
        before = session.id
        if (loaded := self._loaded) is not None:
            session.conversation.model = loaded.choice.label
        session.conversation = self.store.write(session.conversation)
        with self._lock:  # where another program had written the file, its copy has another id
            self._close(before, session)
            self._sessions.setdefault(session.id, session)

    def _ended(self, session: Session) -> None:
        """A turn has ended: releases what it held, and tries failed writes again."""
        for one in {session, *self._sessions.values()}:
            self._forget(one)
        if (loaded := self._loaded) is not None:
            self._make_room(session, loaded)

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
        """Stops all running turns and waits until they are written."""
        until = time.monotonic() + timeout
        sessions = list(self._sessions.values())
        for session in sessions:
            session.stop()
        for session in sessions:
            session.join(max(0.0, until - time.monotonic()))

    # --- the model ------------------------------------------------------------

    def models(self) -> list[Choice]:
        """The available models."""
        return choices(self._given, self._folders)

    def needs(self, path: str, context: int | None) -> Fit:
        """The memory that a model needs, before it is loaded. Downloads nothing. Errors are those of `fit`."""
        here = Path(path).expanduser().is_dir() or path in (self._given, self._used[0])
        if not here and path not in {choice.path for choice in self.models()}:  # looks into every folder
            raise FileNotFoundError(f"there is no folder {path}; a model of the hub is downloaded with --model {path}")
        kv = KVQuantization.from_flags(**self._kv)
        if self._draft is not None:
            with contextlib.suppress(ValueError):  # of another tokenizer: that model goes without
                return fit(path, max_kv_size=context, draft_model=self._draft.path, kv=kv)
        return fit(path, max_kv_size=context, kv=kv)

    def switch(self, path: str, context: int | None = None) -> Iterator[tuple[int, int]]:
        """Loads another model, or gives the one in use another context; yields (bytes read, bytes in all).

        Where both have room, the one in use answers until the other is ready; otherwise its turns are ended first,
        and it is loaded again if the other fails. Whoever stops to look on ends nothing by that.
        Raises `Busy`, what `fit` and `load` raise, and MemoryError where the weights alone are more than the memory.
        """
        if not self._switching.acquire(blocking=False):
            raise Busy("another model is being loaded")
        errors: list[Exception] = []

        def work() -> None:
            try:
                self._replace(path, context)
            except Exception as error:
                errors.append(error)
            finally:
                self._loading = None
                self._switching.release()

        thread = threading.Thread(target=work, name="switch", daemon=True)
        thread.start()
        while thread.is_alive():
            if (loading := self._loading) is not None:
                yield loading.done, loading.total
            thread.join(LOOK_SECONDS)
        if errors:
            raise errors.pop()

    def _replace(self, path: str, context: int | None) -> None:
        needs = self.needs(path, context)
        if self._loaded is not None and path == self._loaded.choice.path:
            self._use(dataclasses.replace(self._loaded, fit=needs))
            return
        if not self._ignores_memory:
            needs.check_weights()
        if self._loaded is not None and memory_in_use() + needs.total_bytes > needs.memory_bytes:
            self._unload()
        try:
            self._load(path, needs)
        except Exception as error:
            if self._loaded is not None:
                raise
            before, its_needs = self._used
            try:
                self._load(before, its_needs)
            except Exception as again:
                raise ValueError(f"{error}; and {before} cannot be loaded again: {again}") from error
            raise

    def _load(self, path: str, needs: Fit) -> None:
        loading = self._loading = Loading(path)
        model, tokenizer = loading.result()
        label = next((choice.label for choice in self.models() if choice.path == path), path)
        warnings, draft = list(loading.warnings), None
        if self._draft is not None and self._draft.suits(tokenizer):
            draft = self._draft
        elif self._draft is not None:
            warnings.append(f"the draft model {self._draft.path} has another tokenizer, so this model goes without one")
        step = step_size(model, tokenizer)
        self._use(LoadedModel(Choice(label, path), model, tokenizer, needs, step, draft, tuple(warnings)))

    def _use(self, loaded: LoadedModel) -> None:
        self._loaded, self._used = loaded, (loaded.choice.path, loaded.fit)
        self._release_all()

    def _unload(self) -> None:
        """Stops all turns, and releases the model."""
        self._loaded = None  # from here on none begins
        self._release_all()
        self.stop_all(UNLOAD_SECONDS)
        self._release_all()

    def _release_all(self) -> None:
        for session in list(self._sessions.values()):
            session.release()
        gc.collect()
        mx.clear_cache()

    def _chat(self, session: Session) -> Chat:
        """A chat for a session on the model in use. Releases other caches if they need the room."""
        loaded = self.loaded
        self._make_room(session, loaded)
        drafting = dict(self._drafting)
        if loaded.draft is not None:
            drafting["draft_model"] = loaded.draft.model
        elif not drafting.get("prompt_lookup"):
            drafting.clear()  # the draft model is for others
        return Chat(
            loaded.model,
            loaded.tokenizer,
            messages=session.conversation.messages,
            overflow="drop_oldest",
            max_kv_size=min(loaded.context, loaded.model.config.max_position_embeddings),
            kv=KVQuantization.read(loaded.model.config, **self._kv),
            **drafting,
        )

    def _measure(self, messages: Sequence[Message]) -> tuple[int, int]:
        """The number of tokens of messages, and the limit."""
        if (loaded := self._loaded) is None:
            return 0, 0
        ids: list[int] = []
        if any(message["role"] == "user" for message in messages):
            with contextlib.suppress(ValueError):  # of a file that a person wrote; said once something is sent
                ids = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        return len(ids), loaded.context

    def _make_room(self, session: Session, loaded: LoadedModel) -> None:
        resting = sorted(self._sessions.values(), key=lambda other: other.used, reverse=True)
        needs = loaded.fit
        row = needs.global_cache_bytes / max(needs.max_kv_size, 1)
        local, weights = needs.local_window_bytes + needs.local_reserve_bytes, needs.weights_bytes
        if loaded.draft is not None:
            weights += loaded.draft.weights_bytes
            local += max(0, needs.draft_bytes - loaded.draft.weights_bytes)
        room = (needs.memory_bytes - weights) / 2 - row * session.context_tokens - local
        kept = 1
        for other in resting:
            if other is session or other.running or not other.has_caches:
                continue
            room -= row * other.context_tokens + local
            kept += 1
            if kept > MAX_CACHES or room < 0:
                other.release(wait=False)
