"""`fit`: the memory that a model at a context length needs, told before anything of it is loaded.

What is peculiar here:
- Headers and config.json say it all: no weight is read and no array is made, so that any thread may ask.
- Caches are counted as they are allocated, whole buckets and reserves included, after a prompt of that length
  was read as `prefill` reads it. A conversation that came there in small steps may have grown the buffers of
  its global layers by half as much again; beyond max_position_embeddings they never grow.
- Caches have the dtype of the activations, which is what the weights' dtypes promote to.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import mlx.core as mx

from ..model.cache import RotatingKVCache, grown_capacity
from ..model.config import Exaone4Config
from ..model.files import Checkpoint
from ..model.folders import find_folder, read_json
from .checkpoint import HEAD
from .formats import Source
from .layouts import StoredTensor

STEP_SIZE = 2048  # tokens that prefill processes at a time: generation.decode.PREFILL_STEP_SIZE


@dataclass(frozen=True)
class Fit:
    """What a model needs for `context` tokens. Sizes are in bytes, lengths in tokens.

    A local layer's cache is its window and, apart, the rows held so as to go back and to append in place.
    `largest_context` is the longest one that fits into `memory_bytes`: 0 where not even the weights do.
    """

    context: int
    weights_bytes: int
    global_cache_bytes: int
    local_window_bytes: int
    local_reserve_bytes: int
    memory_bytes: int
    largest_context: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.global_cache_bytes + self.local_window_bytes + self.local_reserve_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_bytes


def fit(
    path_or_repo: str | Path, *, context: int | None = None, memory: int | None = None, revision: str | None = None
) -> Fit:
    """What a checkpoint needs, as it is stored: a folder, a hub id (which is downloaded), or "demo".

    `context` is in tokens, max_position_embeddings if not given; `memory` in bytes, `memory_of_this_machine()`
    if not given. What a step computes with, beside weights and caches, is not counted.

    Raises FileNotFoundError and ValueError as `load` does for what can be seen without reading weights, and
    ValueError for a context that the model does not reach.
    """
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory must be a positive whole number of bytes, not {memory!r}")
    folder = find_folder(path_or_repo, revision)
    config = Exaone4Config.from_file(folder / "config.json")
    context = config.max_position_embeddings if context is None else context
    _check_context(context, config)
    source = Source(Checkpoint(folder), read_json(folder / "config.json"))
    tensors = _loaded(source.tensors, config)
    weights_bytes = sum(_loaded_bytes(tensor, source) for tensor in tensors.values())
    dtype_size = activation_dtype(tensors).size
    memory = memory_of_this_machine() if memory is None else memory
    lengths = range(1, config.max_position_embeddings + 1)
    largest = bisect_right(lengths, memory - weights_bytes, key=lambda n: sum(cache_bytes(config, n, dtype_size)))
    return Fit(context, weights_bytes, *cache_bytes(config, context, dtype_size), memory, largest)


def cache_bytes(config: Exaone4Config, context: int, dtype_size: int = 2) -> tuple[int, int, int]:
    """Bytes of all caches after a prompt of `context` tokens: (global layers, local windows, local reserves).

    Their sum is the `nbytes` of the caches of `make_cache()`. `dtype_size` is in bytes: 2 for bfloat16.
    Raises ValueError for a context that the model does not reach.
    """
    _check_context(context, config)
    row_bytes = 2 * config.num_key_value_heads * config.head_dim * dtype_size  # a token's key and value in one layer
    seen = windows = reserves = 0  # rows, of all layers
    for layer, count in Counter(config.layers).items():
        if layer.window is None:
            seen += count * _allocated_rows(context, config.max_position_embeddings)
        else:
            window = min(context, layer.window)
            windows += count * window
            reserves += count * (_allocated_rows(context, RotatingKVCache(layer.window).max_rows) - window)
    return seen * row_bytes, windows * row_bytes, reserves * row_bytes


def activation_dtype(tensors: Mapping[str, StoredTensor]) -> mx.Dtype:
    """What a checkpoint computes in: what the dtypes of its embedding and its layers promote to.

    Where they differ this may be more than the first layer's cache has, and is right for all others.
    """
    parts = [tensor for name, tensor in tensors.items() if name.startswith(("model.embed_tokens.", "model.layers."))]
    return reduce(mx.result_type, {tensor.dtype for tensor in parts} or {mx.bfloat16})


def memory_of_this_machine() -> int:
    """Bytes that a model may have here: what Metal recommends as the most, or else the physical memory."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _allocated_rows(context: int, limit: int) -> int:
    """Rows of a buffer that grew, chunk by chunk, to hold `context` tokens, or the last of them that `limit` allows."""
    rows = 0
    while rows < min(context, limit):
        stop = min(context, (rows // STEP_SIZE + 1) * STEP_SIZE)  # the end of the first chunk that finds no room
        rows = min(grown_capacity(stop, rows, limit), limit)
    return rows


def _loaded(tensors: Mapping[str, StoredTensor], config: Exaone4Config) -> dict[str, StoredTensor]:
    """Without the extra tensors that `load` passes over."""
    extra = ("rotary_emb.inv_freq", HEAD) if config.tie_word_embeddings else ("rotary_emb.inv_freq",)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(extra)}


def _loaded_bytes(tensor: StoredTensor, source: Source) -> int:
    """In full precision where MLX has no such format; scales and biases in the dtype that they are given."""
    size = math.prod(tensor.shape)
    if tensor.is_foreign:
        return size * tensor.dtype.size
    if tensor.exact is None or tensor.exact.mode != "affine":
        return tensor.nbytes
    groups = size // tensor.exact.group_size
    return size * tensor.exact.bits // 8 + 2 * groups * source.scale_dtype(tensor.name).size


def _check_context(context: int, config: Exaone4Config) -> None:
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise ValueError(f"context must be a positive whole number of tokens, not {context!r}")
    if context > config.max_position_embeddings:
        raise ValueError(
            f"context {context} is more than the {config.max_position_embeddings} tokens that this model reaches "
            "(max_position_embeddings); ask for less"
        )
