"""The model in use: what loads it, replaces it, makes chats with it, and makes room for their caches.

Notes:
- The caches of idle conversations are limited in number and bytes. The least recently used are released first. What was
  read for them is in a prefix store, so that a conversation that is opened again continues from there.
- A model is replaced in its own thread. A page that stops to follow the progress ends nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from exaone4_mlx import Chat, Exaone4ForCausalLM, Fit, KVQuantization, PrefixStore, Tokenizer, fit
from exaone4_mlx.measure.library import LocalModel, find_models
from exaone4_mlx.text.message import Message

from .models import Choice, Draft, Loading, choices, memory_in_use, step_size
from .record import Busy
from .session import Session

MAX_CACHES = 8  # conversations at rest that keep their caches
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


class ChatEngine:
    """One object for the app. Its methods may be called from any thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        folders: Sequence[Path] = (),
        given: str = "",
        kv: Mapping[str, Any] | None = None,
        drafting: Mapping[str, Any] | None = None,
        draft: Draft | None = None,
        prefixes: PrefixStore | None = None,
        ignores_memory: bool = False,
        shared: str = "",
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        """`folders` is where models are looked for; `kv` says how caches are quantized, and `drafting` how tokens are
        drafted, as for `Chat`; `draft` is for every model with its tokenizer. `prefixes` are for all conversations, and
        limited to the memory that the model leaves. With `ignores_memory` models are loaded that are too large. A model
        that is `shared` is not replaced: the text says with whom. `adapters` are arguments of `load`, for the model
        `given` alone.
        """
        self.prefixes = PrefixStore() if prefixes is None else prefixes
        self._prefix_bytes = self.prefixes.max_bytes
        self.prefixes.max_bytes = min(self._prefix_bytes, loaded.fit.store_bytes)
        #: The open conversations. The state sets it.
        self.sessions: Callable[[], Sequence[Session]] = tuple
        #: Ends other work on the model before it is released. The state sets it.
        self.unloading: Callable[[], None] = lambda: None
        self._loaded: LoadedModel | None = loaded
        self._used = (loaded.choice.path, loaded.fit)  # of the model that was in use last
        self._loading: Loading | None = None
        self.coming = ""  # the path of the model that is being loaded
        self.failure = ""  # why the last switch failed
        self._folders, self._given = tuple(folders), given or loaded.choice.path
        self._kv, self._drafting, self._draft = dict(kv or {}), dict(drafting or {}), draft
        self._ignores_memory, self._shared = ignores_memory, shared
        self._adapters = dict(adapters or {})
        self._switching = threading.Lock()

    @property
    def loaded(self) -> LoadedModel:
        """The model in use. Raises ValueError while another takes its place and both have no room."""
        if (loaded := self._loaded) is None:
            coming = "a model is being loaded; try again when it is ready"
            raise ValueError(coming if self._switching.locked() else "no model is loaded; choose one in the settings")
        return loaded

    @property
    def label(self) -> str:
        """What a person calls the model in use; empty while there is none."""
        return "" if (loaded := self._loaded) is None else loaded.choice.label

    @property
    def path(self) -> str:
        return "" if (loaded := self._loaded) is None else loaded.choice.path

    @property
    def context(self) -> int:
        """The largest number of tokens of a conversation; 0 while there is no model."""
        return 0 if (loaded := self._loaded) is None else loaded.context

    @property
    def warnings(self) -> tuple[str, ...]:
        return () if (loaded := self._loaded) is None else loaded.warnings

    @property
    def step_size(self) -> int:
        return self.loaded.step_size

    def models(self) -> list[Choice]:
        """The available models."""
        return choices(self._given, self._folders)

    def local_models(self) -> list[LocalModel]:
        return find_models(self._given, self._folders)

    def needs(self, path: str, context: int | None = None) -> Fit:
        """The memory that a model needs. Of a model of the hub it downloads config.json. Errors are those of `fit`."""
        loaded = self._loaded
        given: dict[str, Any] = {"max_kv_size": context, "kv": KVQuantization.from_flags(**self._kv)}
        if loaded is not None and path == loaded.choice.path and loaded.model.ranks is not None:
            given["ranks"] = loaded.model.ranks
        if self._draft is not None:
            with contextlib.suppress(ValueError):  # of another tokenizer: that model goes without
                return fit(path, draft_model=self._draft.path, **given)
        return fit(path, **given)

    def uses(self, model: LocalModel) -> bool:
        """Whether a model is in use, drafts, or is being loaded."""
        paths = {self._used[0], self.coming, self._draft.path if self._draft else ""} - {""}
        folders = [Path(path).expanduser() for path in paths]
        return model.path in paths or any(
            model.folder and one.exists() and one.samefile(model.folder) for one in folders
        )

    @contextlib.contextmanager
    def without_switch(self) -> Iterator[None]:
        """No model is loaded during the block. Raises `Busy` while one is."""
        if not self._switching.acquire(blocking=False):
            raise Busy("another model is being loaded")
        try:
            yield
        finally:
            self._switching.release()

    def begin(self, path: str, context: int | None = None) -> tuple[threading.Thread, list[Exception]]:
        """Begins to load another model, or to give the one in use another context: its thread, and where its error is.

        Where both models have room, the one in use answers until the other is ready; otherwise its turns are ended
        first, and it is loaded again if the other fails. Raises `Busy`, and ValueError for a shared model. The error is
        of `fit` or `load`, or a MemoryError where the weights alone are more than the memory.
        """
        if self._shared and path != self.path:
            raise ValueError(f"{self._shared} the same model; start it with another --model")
        if not self._switching.acquire(blocking=False):
            raise Busy("another model is being loaded")
        errors: list[Exception] = []
        self.coming, self.failure = path, ""

        def work() -> None:
            try:
                self._replace(path, context)
            except Exception as error:
                errors.append(error)
                self.failure = f"{error}" or type(error).__name__
            finally:
                self._loading, self.coming = None, ""
                self._switching.release()

        thread = threading.Thread(target=work, name="switch", daemon=True)
        thread.start()
        return thread, errors

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of the coming model that are read, of how many; 0 of 0 before the first."""
        return (0, 0) if (loading := self._loading) is None else (loading.done, loading.total)

    def switch(self, path: str, context: int | None = None) -> Iterator[tuple[int, int]]:
        """`begin`, and yields the progress until the end, whose error it raises."""
        thread, errors = self.begin(path, context)
        while thread.is_alive():
            if self._loading is not None:
                yield self.progress
            thread.join(LOOK_SECONDS)
        if errors:
            raise errors.pop()

    def _replace(self, path: str, context: int | None) -> None:
        here = Path(path).expanduser().is_dir() or path in (self._given, self._used[0])
        if not here and path not in {choice.path for choice in self.models()}:  # looks into every folder
            raise FileNotFoundError(f"there is no folder {path}; download a model of the hub first")
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
        loading = self._loading = Loading(path, **(self._adapters if path == self._given else {}))
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
        self.prefixes.max_bytes = min(self._prefix_bytes, loaded.fit.store_bytes)
        self._release_all()

    def _unload(self) -> None:
        """Stops all turns, and releases the model."""
        self._loaded = None  # from here on none begins
        self.unloading()
        self._release_all()
        end(self.sessions(), UNLOAD_SECONDS)
        self._release_all()

    def _release_all(self) -> None:
        for session in self.sessions():
            session.release()
        self.prefixes.clear()
        gc.collect()
        mx.clear_cache()

    def chat(self, session: Session) -> Chat:
        """A chat for a session on the model in use. Releases other caches if they need the room."""
        loaded = self.loaded
        self._release_for(session, loaded)
        drafting = dict(self._drafting)
        if loaded.draft is not None:
            drafting["draft_model"] = loaded.draft.model
        elif not drafting.get("prompt_lookup"):
            drafting.clear()  # the draft model is for others
        return Chat(
            loaded.model,
            loaded.tokenizer,
            overflow="drop_oldest",
            max_kv_size=min(loaded.context, loaded.model.config.max_position_embeddings),
            kv=KVQuantization.read(loaded.model.config, **self._kv),
            prefix_store=self.prefixes,
            **drafting,
        )

    def measure(self, messages: Sequence[Message]) -> tuple[int, int]:
        """The number of tokens of messages, and the limit."""
        if (loaded := self._loaded) is None:
            return 0, 0
        ids: list[int] = []
        if any(message["role"] == "user" for message in messages):
            with contextlib.suppress(ValueError):  # of a file that a person wrote; said once something is sent
                ids = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        return len(ids), loaded.context

    def make_room(self, session: Session) -> None:
        """Releases caches of conversations at rest if this one needs the room."""
        if (loaded := self._loaded) is not None:
            self._release_for(session, loaded)

    def _release_for(self, session: Session, loaded: LoadedModel) -> None:
        resting = sorted(self.sessions(), key=lambda other: other.used, reverse=True)
        needs = loaded.fit
        row = needs.global_cache_bytes / max(needs.max_kv_size, 1)
        local, weights = needs.local_window_bytes + needs.local_reserve_bytes, needs.weights_bytes
        if loaded.draft is not None:
            weights += loaded.draft.weights_bytes
            local += max(0, needs.draft_bytes - loaded.draft.weights_bytes)
        room = (needs.memory_bytes - weights) / 2 - self.prefixes.nbytes - row * session.context_tokens - local
        kept = 1
        for other in resting:
            if other is session or other.running or not other.has_caches:
                continue
            room -= row * other.context_tokens + local
            kept += 1
            if kept > MAX_CACHES or room < 0:
                other.release(wait=False)


def end(sessions: Iterable[Session], timeout: float) -> None:
    """Stops all running turns and waits until they are written, at most `timeout` seconds."""
    until = time.monotonic() + timeout
    sessions = list(sessions)
    for session in sessions:
        session.stop()
    for session in sessions:
        session.join(max(0.0, until - time.monotonic()))
