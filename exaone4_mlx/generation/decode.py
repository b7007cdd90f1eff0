"""Prompt ids -> an endless stream of ids.

What is peculiar here:
- The stream never ends by itself: stop tokens, limits and text are the caller's business.
- The prompt is processed in chunks, so that its memory is bounded and its progress can be told.
- One step ahead: while the caller looks at a token, the next one is being computed. When the caller stops,
  the caches have seen one token that it never asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from ..model.cache import Cache
from ..model.network import Exaone4ForCausalLM

#: (prompt tokens processed, all prompt tokens) -> None
PrefillProgress = Callable[[int, int], None]

PREFILL_STEP_SIZE = 2048  # tokens; mlx-lm's default
CLEAR_EVERY = 256  # tokens between which freed buffers are given back


def prefill(
    model: Exaone4ForCausalLM,
    prompt_ids: Sequence[int],
    cache: list[Cache],
    step_size: int = PREFILL_STEP_SIZE,
    progress: PrefillProgress | None = None,
) -> mx.array:
    """Processes the prompt into `cache`, `step_size` tokens at a time; the logits after its last token, [1, V].

    `progress` is called before the first chunk and after each; an exception that it raises ends the work.
    """
    total = len(prompt_ids)
    if progress:
        progress(0, total)
    ids = mx.array(list(prompt_ids))[None]  # [1, L]
    for start in range(0, total, step_size):
        hidden = model.model(ids[:, start : start + step_size], cache)
        if start + step_size < total:
            mx.eval([layer.state for layer in cache])
            mx.clear_cache()
            if progress:
                progress(start + step_size, total)
    logits = model.logits(hidden[:, -1:])[:, -1]
    mx.eval(logits)
    if progress:
        progress(total, total)
    return logits


def decode(
    model: Exaone4ForCausalLM,
    logits: mx.array,
    cache: list[Cache],
    sample: Callable[[mx.array], mx.array],
) -> Iterator[int]:
    """The tokens that follow a prefill, for ever. `sample` takes logits [1, V] and returns a token [1]."""
    token = sample(logits)
    mx.async_eval(token)
    count = 0
    while True:
        following = sample(model(token[None], cache)[:, -1])
        mx.async_eval(following)
        yield int(token.item())  # type: ignore[arg-type]
        token = following
        count += 1
        if count % CLEAR_EVERY == 0:
            mx.clear_cache()
