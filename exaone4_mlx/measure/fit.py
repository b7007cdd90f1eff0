"""`fit`: the memory that a model with a context length needs, computed before anything of it is loaded.

Notes:
- Only headers and config.json are read: see `sizes`.
- Caches have the dtype of the activations, or the bits that `kv` sets.
- A draft model is counted in the dtype in which it is stored, with a sliding window in every layer.
- The bytes of reading a prompt are an upper bound: see `allocation.prefill_bytes`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.quantize import Quantization
from ..files.format import size_text
from ..files.safetensors import read_dtype
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from . import machine
from .allocation import cache_bytes, draft_cache_bytes, draft_windows, prefill_bytes
from .sizes import Sizes, check_draft, read_sizes


@dataclass(frozen=True)
class Fit:
    """The memory that a model needs for `context` tokens. Sizes are in bytes, lengths in tokens.

    The cache of a local layer is split into its window and the reserve: rows for going back, and for appending in
    place. `prefill_bytes` is an upper bound for reading a prompt. `draft_bytes` are weights and caches of the draft
    model, if there is one. `largest_context` is the longest context that fits into `memory_bytes`; 0 if the weights do
    not fit.
    """

    context: int
    weights_bytes: int
    global_cache_bytes: int
    local_window_bytes: int
    local_reserve_bytes: int
    prefill_bytes: int
    draft_bytes: int
    memory_bytes: int
    largest_context: int

    @property
    def cache_bytes(self) -> int:
        """All caches of the model, without those of the draft model."""
        return self.global_cache_bytes + self.local_window_bytes + self.local_reserve_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.prefill_bytes + self.draft_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_bytes

    @property
    def arithmetic(self) -> str:
        """The sum and its parts, in words."""
        draft = f", {size_text(self.draft_bytes)} of draft model" if self.draft_bytes else ""
        return (
            f"{size_text(self.total_bytes)} ({size_text(self.weights_bytes)} of weights, "
            f"{size_text(self.cache_bytes)} of caches at {self.context:,} tokens, {size_text(self.prefill_bytes)} to "
            f"read the prompt{draft}), and a model may have {size_text(self.memory_bytes)} here"
        )

    def check_weights(self) -> None:
        """Raises MemoryError if the weights alone exceed the physical memory of this machine."""
        physical = machine.physical_memory()
        if self.weights_bytes > physical:
            raise MemoryError(
                f"the weights have {size_text(self.weights_bytes)}, and this machine has {size_text(physical)} of "
                "memory"
            )


def fit(
    path_or_repo: str | Path,
    *,
    context: int | None = None,
    memory: int | None = None,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    metal: bool | None = None,
    kv_bits: int | None = None,
    kv_bits_keys: int | None = None,
    kv_bits_values: int | None = None,
    kv_group_size: int | None = None,
    kv_layers: str | None = None,
    draft_model: str | Path | None = None,
) -> Fit:
    """What a model needs: a folder, a config.json, a hub id (of which only config.json is downloaded), or "demo".

    `context` is in tokens; None means max_position_embeddings. `memory` is in bytes; None means what a model may use on
    this machine. `dtype` and `q_bits` are those of `load`; without them the weights are counted as they are stored, or
    without weight files as config.json says. `metal` counts the prefill as on a Mac, or as elsewhere; None means as on
    this machine. `kv_bits` and what follows it quantize the caches, as for `Chat`. `draft_model` is a path or id; its
    weights are cast as those of the model, and not quantized.

    Raises FileNotFoundError and ValueError as `load` does for what is visible without reading weights, and ValueError
    for a context beyond max_position_embeddings, for caches that cannot be quantized so, and for a draft model with
    another tokenizer.
    """
    check_request(context, memory)
    cast, quantization = read_dtype(dtype), None if q_bits is None else Quantization(q_bits)
    sizes = read_sizes(path_or_repo, revision)
    kv = KVQuantization.read(sizes.config, kv_bits, kv_bits_keys, kv_bits_values, kv_group_size, kv_layers)
    draft = None if draft_model is None else read_sizes(draft_model)
    if draft:
        check_draft(sizes, draft)
    return fit_sizes(sizes, context, memory, cast, quantization, metal, kv=kv, draft=draft)


def fit_sizes(
    sizes: Sizes,
    context: int | None = None,
    memory: int | None = None,
    cast: mx.Dtype | None = None,
    quantization: Quantization | None = None,
    metal: bool | None = None,
    *,
    kv: KVQuantization | None = None,
    draft: Sizes | None = None,
    prompt_tokens: int | None = None,
) -> Fit:
    """`fit` for sizes that are already read, with weights cast or quantized. Raises ValueError as `fit` does.

    `prompt_tokens` limits how many tokens of the context are read as a prompt; the rest is generated one by one.
    """
    check_request(context, memory)
    config = sizes.config
    context = config.max_position_embeddings if context is None else context
    _check_context(context, config)
    if quantization and sizes.is_quantized:
        raise ValueError(f"{sizes.title} is quantized already; leave q_bits out")
    weights_bytes, dtype_size = sizes.weights_bytes(cast, quantization), sizes.activation_dtype(cast).size
    memory = machine.memory_of_this_machine() if memory is None else memory
    draft_weights = draft.weights_bytes(cast) if draft else 0
    draft_dtype_size = draft.activation_dtype(cast).size if draft else 0

    def draft_bytes(length: int) -> int:
        return draft_weights + draft_cache_bytes(draft.config, length, draft_dtype_size) if draft else 0

    def reading(length: int) -> int:
        length = min(length, prompt_tokens or length)
        needed = prefill_bytes(config, length, dtype_size, metal, kv)
        if draft:  # the two models read the prompt one after the other
            windows = draft_windows(draft.config)
            needed = max(needed, prefill_bytes(draft.config, length, draft_dtype_size, metal, windows=windows))
        return needed

    def needed(length: int) -> int:
        return sum(cache_bytes(config, length, dtype_size, kv)) + reading(length) + draft_bytes(length)

    largest = bisect_right(range(1, config.max_position_embeddings + 1), memory - weights_bytes, key=needed)
    caches = cache_bytes(config, context, dtype_size, kv)
    return Fit(context, weights_bytes, *caches, reading(context), draft_bytes(context), memory, largest)


def check_request(context: int | None, memory: int | None) -> None:
    """Raises ValueError for what is not a number of tokens, or of bytes."""
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise ValueError(f"context must be a positive whole number of tokens, not {context!r}")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory must be a positive whole number of bytes, not {memory!r}")


def _check_context(context: int, config: Exaone4Config) -> None:
    if context > config.max_position_embeddings:
        raise ValueError(
            f"context {context} is more than the {config.max_position_embeddings} tokens that this model reaches "
            "(max_position_embeddings); ask for less"
        )
