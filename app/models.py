"""The list of available models, and loading one of them in the background.

Notes:
- A model is loaded in its own thread, which clears its streams before it ends: MLX's CPU backend (0.32) may abort the
  process otherwise. `load` evaluates every array, so that other threads can use them.
- `Loading` returns its result once and keeps no reference, so that the model can be freed.
"""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from exaone4_mlx import Chat, Done, Exaone4ForCausalLM, Tokenizer, load
from exaone4_mlx.measure.library import LocalModel, find_models

STEPS = (32, 64, 128, 256, 512, 1024, 2048)
STEP_SECONDS = 0.5
EXIT_SECONDS = 2.0  # that the end of the process waits for a model that is being loaded

ModelAndTokenizer = tuple[Exaone4ForCausalLM, Tokenizer]


@dataclass(frozen=True)
class Draft:
    """A model that drafts for the one in use."""

    path: str
    model: Exaone4ForCausalLM
    tokenizer: Tokenizer

    @property
    def weights_bytes(self) -> int:
        return sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))

    def suits(self, tokenizer: Tokenizer) -> bool:
        """Whether the same ids are the same texts."""
        return self.tokenizer.fingerprints["tokenizer"] == tokenizer.fingerprints["tokenizer"]


@dataclass(frozen=True)
class Choice:
    """A model to choose: `label` is what a person sees, `path` what `load` takes."""

    label: str
    path: str


def choices(given: str, folders: Sequence[Path] = ()) -> list[Choice]:
    """The models at hand, as `find_models` lists them, with the size of their weights and their bits."""
    found = find_models(given, folders)
    names = Counter(model.name for model in found)
    return [Choice(_label(model, model.name if names[model.name] == 1 else model.path), model.path) for model in found]


def memory_in_use() -> int:
    """Bytes of all MLX arrays alive in this process."""
    return mx.get_active_memory()


def step_size(model: Exaone4ForCausalLM, tokenizer: Tokenizer) -> int:
    """Prompt tokens that this machine reads in about half a second: the number between two checks for Stop.

    Measured with a short prompt, after another has warmed the model up.
    """
    chat = Chat(model, tokenizer, settle=False)
    for text in ("Hello", "one two three four five " * 25):
        *_, done = chat.send(text, max_tokens=1)
        chat.reset()
    assert isinstance(done, Done)
    speed = done.prompt_tokens / max(done.prefill_seconds, 1e-6)
    return next((step for step in STEPS if step > speed * STEP_SECONDS / 2), STEPS[-1])


class Loading:
    """A model that is being loaded. `done` of `total` bytes are read; both are 0 until the first is."""

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        dtype: mx.Dtype | str | None = None,
        q_bits: int | None = None,
        **others: Any,
    ) -> None:
        """Starts at once. Options are those of `load`, and so are the errors, which `result` raises."""
        self.done = self.total = 0
        #: What a user should know of a model that was loaded. `load` warns of the same.
        self.warnings: list[str] = []
        self._loaded: ModelAndTokenizer | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        options = {"revision": revision, "dtype": dtype, "q_bits": q_bits, **others}
        self._thread = threading.Thread(target=self._run, args=(path, options), name="loading", daemon=True)
        atexit.register(self._abandon)
        self._thread.start()

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end, at most `timeout` seconds. Returns whether loading has ended, also with an error."""
        self._thread.join(timeout)
        return self.finished

    def result(self) -> ModelAndTokenizer:
        """Waits. Returns the model and its tokenizer once, or raises the error of the loading."""
        self._thread.join()
        loaded, self._loaded = self._loaded, None
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            if loaded is None:
                raise RuntimeError("the result of this loading was handed over already")
            return loaded
        finally:
            del error  # its traceback holds this frame

    def _run(self, path: str, options: dict[str, Any]) -> None:
        try:
            self._loaded = load(path, **options, progress=self._progress)
            self.warnings += _warnings(*self._loaded)
        except BaseException as error:
            self._error = error
        if not self._abandoned:
            atexit.unregister(self._abandon)
        mx.clear_streams()

    def _progress(self, done: int, total: int) -> None:
        if self._abandoned:
            raise SystemExit
        self.done, self.total = done, total

    def _abandon(self) -> None:
        """The process ends: the model is not needed."""
        self._abandoned = True
        self._thread.join(EXIT_SECONDS)


def _warnings(model: Exaone4ForCausalLM, tokenizer: Tokenizer) -> Iterator[str]:
    # Not recorded from `load`'s own: warnings.catch_warnings changes the filters of all threads, and two that
    # overlap can leave them changed for good.
    if tokenizer.vocab_size > model.config.vocab_size:
        yield (
            f"the tokenizer knows {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "text that uses the others cannot be processed"
        )


def _label(model: LocalModel, name: str) -> str:
    """The name, and the size of the weights if it is known."""
    if (size := model.weights_bytes) is None or model.folder is None:
        return name
    facts = [f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"]
    return f"{name} ({', '.join(facts + [f'{model.bits} bits'] * bool(model.bits))})"
