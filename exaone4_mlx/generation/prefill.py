"""A prompt into caches, in chunks, which limits memory and lets the caller report progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from ..model.cache import Cache
from ..model.layer import Pause
from .decode import Model, checked
from .options import PREFILL_STEP_SIZE

CHECK_TOKENS, CHECK_SECONDS = 128, 0.3  # a prefill can be stopped after both
StepSize = int | Callable[[], int]  # tokens of a chunk


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
    step, checked = max(1, CHECK_TOKENS * len(cache) // length), time.perf_counter()

    def pause(layers: int, x: mx.array) -> None:
        nonlocal checked
        if layers % step:
            return
        mx.eval(x, [layer.buffers for layer in cache[layers - step : layers]])
        if time.perf_counter() - checked >= CHECK_SECONDS:
            checked = time.perf_counter()
            check(start + length * layers // len(cache))

    return pause


def prefill(model: Model, ids: Sequence[int], cache: list[Cache], step_size: int = PREFILL_STEP_SIZE) -> mx.array:
    """Processes `ids` into `cache`. Returns the logits after the last token, [1, V]. Raises NonFiniteLogits."""
    for _, last in prefill_chunks(model, ids, cache, step_size):
        hidden = last
    return checked(model.logits(hidden)[:, -1])
