"""Manners with memory on Metal, while replies are made.

What is peculiar here:
- What is in use is kept from being paged out, up to what Metal recommends. MLX's limit is one for the process: the
  first reply sets it, and the last of those made at once puts back what was there.
- Of freed buffers MLX keeps no more than the next chunk of a prompt can use, so that other programs have the rest.
- None of it was measured on Apple silicon.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

KEPT_BYTES = 2 << 30  # of freed buffers: a chunk of 2,048 tokens of the 32B takes about as much

_lock = threading.Lock()
_replies = 0
_before = (0, 0)  # wired limit, cache limit


@contextmanager
def metal_memory() -> Iterator[None]:
    """Sets the limits for as long as the block runs. Elsewhere than on Metal it does nothing."""
    if not mx.metal.is_available():
        yield
        return
    _enter()
    try:
        yield
    finally:
        mx.synchronize()
        _leave()


def _enter() -> None:
    global _replies, _before
    with _lock:
        if not _replies:
            wired = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
            _before = wired, mx.set_cache_limit(KEPT_BYTES)
        _replies += 1


def _leave() -> None:
    global _replies
    with _lock:
        _replies -= 1
        if not _replies:
            mx.set_wired_limit(_before[0])
            mx.set_cache_limit(_before[1])
