"""A prompt into caches, in chunks, and the states of caches that are kept of it.

Notes:
- A reply that decodes waits for one long piece at most. So a chunk of a prompt is a long piece, and takes about
  CHUNK_SECONDS while other replies are in progress.
- Chunks limit memory, report progress and let other replies take their steps.
- A draft model reads the prompt, too. Its speed is measured by itself.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

import mlx.core as mx

from ..model.cache import Cache, Snapshot
from ..model.layer import Pause
from .decode import Model, TokenStream, checked
from .options import PREFILL_STEP_SIZE

CHECK_TOKENS, CHECK_SECONDS = 128, 0.3  # a prefill can be stopped after both
CHUNK_SECONDS = 0.2
FIRST_CHUNK = 64  # tokens of a chunk before any was measured
MAX_CHECKPOINTS = 16  # of all conversations that share a pool
MAX_CHECKPOINT_BYTES = 2 << 30  # of all of them together; one checkpoint of the 32B has 0.8 GB in bfloat16
StepSize = int | Callable[[], int]  # tokens of a chunk
T = TypeVar("T")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix of two sequences."""
    a, b = (a, b) if type(a) is type(b) else (list(a), list(b))  # a list never equals a tuple
    low, high = 0, min(len(a), len(b))
    while low < high:  # equal slices compare faster than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def prefill_chunks(
    model: Model,
    ids: Sequence[int],
    cache: list[Cache],
    step_size: StepSize = PREFILL_STEP_SIZE,
    check: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, mx.array]]:
    """Processes `ids` into `cache`, `step_size` tokens at a time. `check` is called as `pauses` says.

    After each chunk it yields the number of processed tokens and the hidden state of the last one, [1, 1, E]. Each
    chunk but the last one is evaluated.
    """
    done, whole_length = 0, cache[0].offset + len(ids)
    while done < len(ids):
        start, size = done, step_size if isinstance(step_size, int) else step_size()
        chunk = mx.array(list(ids[start : start + size]))[None]  # [1, L]
        hidden = model.prefill(chunk, cache, whole_length, check and pauses(start, chunk.size, cache, check))
        done += chunk.size
        if done < len(ids):
            mx.eval([layer.buffers for layer in cache])
            mx.clear_cache()
        yield done, hidden


def pauses(start: int, length: int, cache: Sequence[Cache], check: Callable[[int], None]) -> Pause | None:
    """Evaluates a chunk of `length` tokens in parts of a few layers, each as much work as CHECK_TOKENS tokens.

    Calls `check(done)` between them, where `done` is `start` and the work since then in tokens. An exception of it
    leaves the chunk in some layers of `cache` only. Chunks of fewer tokens would round differently.
    """
    if length <= CHECK_TOKENS:
        return None
    step, done, checked = max(1, CHECK_TOKENS * len(cache) // length), 0, time.perf_counter()

    def pause(layers: int, x: mx.array) -> None:
        nonlocal done, checked
        if layers - done < step:
            return
        mx.eval(x, [layer.buffers for layer in cache[done:layers]])
        done = layers
        if time.perf_counter() - checked >= CHECK_SECONDS:
            checked = time.perf_counter()
            check(start + length * layers // len(cache))

    return pause


def prefill(model: Model, ids: Sequence[int], cache: list[Cache], step_size: int = PREFILL_STEP_SIZE) -> mx.array:
    """Processes `ids` into `cache`. Returns the logits after the last token, [1, V]. Raises NonFiniteLogits."""
    for _, last in prefill_chunks(model, ids, cache, step_size):
        hidden = last
    return checked(model.logits(hidden)[:, -1])


class HasCheckpoints(Protocol):
    """A prompt cache, as far as a pool knows it."""

    checkpoints: list[CacheCheckpoint]


@dataclass(frozen=True, eq=False)
class CacheCheckpoint:
    """The state of every layer after `length` tokens. `conversation` is the prompt cache that it belongs to."""

    length: int
    layers: tuple[Snapshot, ...]
    conversation: weakref.ref[HasCheckpoints]

    @property
    def nbytes(self) -> int:
        return sum(snapshot.nbytes for snapshot in self.layers)


class CheckpointPool:
    """Limits many conversations' checkpoints. It removes the least recently used first, the newest of each last."""

    def __init__(self, max_count: int = MAX_CHECKPOINTS, max_bytes: int = MAX_CHECKPOINT_BYTES) -> None:
        self.max_count, self.max_bytes = max_count, max_bytes
        self._used: list[weakref.ref[CacheCheckpoint]] = []  # least recently used first

    @property
    def checkpoints(self) -> list[CacheCheckpoint]:
        """The existing checkpoints, least recently used first."""
        return [checkpoint for ref in self._used if (checkpoint := ref()) is not None]

    @property
    def nbytes(self) -> int:
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    def use(self, checkpoint: CacheCheckpoint) -> None:
        """Adds a checkpoint, or marks it as used again, and removes others to stay within the limits."""
        all_used = [*(other for other in self.checkpoints if other is not checkpoint), checkpoint]
        self._used = [weakref.ref(used) for used in all_used]
        newest = {id(used.conversation()): used for used in all_used}
        victims = sorted(all_used, key=lambda used: newest[id(used.conversation())] is used)
        count, size = len(victims), sum(used.nbytes for used in victims)
        for victim in victims:
            if count <= self.max_count and size <= self.max_bytes:
                break
            if (conversation := victim.conversation()) is not None:
                conversation.checkpoints[:] = [kept for kept in conversation.checkpoints if kept is not victim]
            count, size = count - 1, size - victim.nbytes


class Piece(Enum):
    """What a job yields where other jobs may run: how long its next piece takes, a step or a chunk of a prompt."""

    SHORT, LONG = "step", "chunk"


class Batch:
    """What replies share: the streams that take their steps together, and the size of the chunks of their prompts."""

    def __init__(self) -> None:
        self.streams: list[TokenStream] = []
        self.has_others = False  # whether a job is in progress or waits beside the one that runs
        self._speeds: dict[str, float] = {}  # tokens per second of the last chunk, by who reads it

    def chunk_size(self, limit: int, reader: str = "model") -> int:
        """The tokens of the next chunk, at most `limit`. A draft model is another reader than its model."""
        speed = self._speeds.get(reader)
        size = FIRST_CHUNK if speed is None else max(1, int(speed * CHUNK_SECONDS))
        return min(limit, size) if self.has_others else limit

    def measured(self, tokens: int, seconds: float, reader: str = "model") -> None:
        self._speeds[reader] = tokens / max(seconds, 1e-6)

    def timed(self, steps: Generator[int, None, T]) -> Generator[Piece, None, T]:
        """Runs `steps`, which yields the tokens of each chunk, or 0 after other work, as long pieces.

        Returns what it returns.
        """
        while True:
            started = time.perf_counter()
            try:
                tokens = next(steps)
            except StopIteration as end:
                return end.value
            if tokens:
                self.measured(tokens, time.perf_counter() - started)
            yield Piece.LONG
