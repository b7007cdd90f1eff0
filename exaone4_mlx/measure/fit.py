"""`fit`: the memory that a model with a context length needs, computed before anything of it is loaded.

Notes:
- Only headers and config.json are read: see `sizes`.
- Caches have the dtype of the activations, or the bits that `kv` sets.
- A draft model is counted in the dtype in which it is stored, with a sliding window in every layer.
- The bytes of reading a prompt are an upper bound: see `sizes.prefill_bytes`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.quantize import Quantization
from ..cluster.ranks import Ranks
from ..files.folders import physical_memory
from ..files.safetensors import read_dtype
from ..generation.prefix_store import MAX_BYTES
from ..generation.request import check_kv_size
from ..model.kv import KVQuantization
from ..model.pretrained import memory_of_this_machine as memory_of_this_machine
from ..text.format import size_text
from ..text.tokenizer import Tokenizer
from .parts import ranked
from .sizes import Sizes, cache_bytes, draft_cache_bytes, draft_windows, prefill_bytes, read_sizes

MAX_GIGABYTES = 1e6  # a larger number is a number of bytes
#: The part of a Mac's memory that Metal recommends for a model, about: it differs by machine and macOS.
METAL_PART = 0.75
#: MiB: Metal's limit is suggested in multiples of LIMIT_STEP, and LIMIT_SPARE is left to the system.
LIMIT_STEP, LIMIT_SPARE = 512, 3072


@dataclass(frozen=True)
class Fit:
    """The memory that a model needs for `batch_size` conversations of `max_kv_size` tokens. Sizes are in bytes.

    The cache of a local layer is split into its window and the reserve: rows for going back, and for appending in
    place. `prefill_bytes` is an upper bound for reading a prompt: one is read at a time. `draft_bytes` are weights and
    caches of the draft model, if there is one; `prompt_cache_bytes` is the limit of a `PrefixStore`, and
    `adapter_bytes` is the sum of `adapted_bytes`. `largest_context` is the longest context of each conversation that
    fits into `memory_bytes`; 0 if the weights do not fit. Checkpoints are not counted: those of all conversations
    together have at most 2 GiB.
    """

    max_kv_size: int
    weights_bytes: int
    global_cache_bytes: int
    local_window_bytes: int
    local_reserve_bytes: int
    prefill_bytes: int
    draft_bytes: int
    memory_bytes: int
    largest_context: int
    prompt_cache_bytes: int = 0
    batch_size: int = 1
    adapter_bytes: int = 0

    @property
    def cache_bytes(self) -> int:
        """All caches of the model, without those of the draft model."""
        return self.global_cache_bytes + self.local_window_bytes + self.local_reserve_bytes

    @property
    def total_bytes(self) -> int:
        own = self.weights_bytes + self.adapter_bytes + self.cache_bytes + self.prefill_bytes
        return own + self.draft_bytes + self.prompt_cache_bytes

    @property
    def store_bytes(self) -> int:
        """The limit of a prefix store by default: what is left of the memory, at least an eighth, at most MAX_BYTES."""
        return min(MAX_BYTES, max(self.memory_bytes - self.total_bytes, self.memory_bytes // 8))

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_bytes

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part by name, and of the sum; what not every model has is there where it is not 0."""
        more = {"draft model, its caches": self.draft_bytes, "adapters": self.adapter_bytes}
        more["earlier prompts"] = self.prompt_cache_bytes
        return {
            "weights": self.weights_bytes,
            "global cache": self.global_cache_bytes,
            "local windows": self.local_window_bytes,
            "rewind reserve and slack": self.local_reserve_bytes,
            "prefill transient": self.prefill_bytes,
            **{name: count for name, count in more.items() if count},
            "total": self.total_bytes,
        }

    @property
    def arithmetic(self) -> str:
        """The sum and its parts, in words."""
        draft = f", {size_text(self.draft_bytes)} of draft model" if self.draft_bytes else ""
        store = f", {size_text(self.prompt_cache_bytes)} of earlier prompts" if self.prompt_cache_bytes else ""
        adapters = f", {size_text(self.adapter_bytes)} of adapters" if self.adapter_bytes else ""
        count = f"{self.batch_size} × " if self.batch_size > 1 else ""
        return (
            f"{size_text(self.total_bytes)} ({size_text(self.weights_bytes)} of weights, "
            f"{size_text(self.cache_bytes)} of caches at {count}{self.max_kv_size:,} tokens, "
            f"{size_text(self.prefill_bytes)} to read the prompt{adapters}{draft}{store}), and a model may have "
            f"{size_text(self.memory_bytes)} here"
        )

    def check_weights(self) -> None:
        """Raises MemoryError if the weights alone exceed the physical memory of this machine."""
        physical = physical_memory()
        if self.weights_bytes > physical:
            raise MemoryError(
                f"the weights have {size_text(self.weights_bytes)}, and this machine has {size_text(physical)} of "
                "memory"
            )


def fit(
    path_or_repo: str | Path,
    *,
    max_kv_size: int | None = None,
    memory: float | None = None,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    metal: bool | None = None,
    kv: int | KVQuantization | None = None,
    draft_model: str | Path | None = None,
    ranks: int | Ranks = 1,
    prompt_cache_bytes: int = 0,
    batch_size: int = 1,
) -> Fit:
    """What a model needs: a folder, a config.json, a hub id (only its config.json is downloaded), or "demo".

    `max_kv_size` is in tokens; None means max_position_embeddings. `memory` is that of the machine in GB (1e9 bytes);
    Metal gives a model about three quarters of it. None means this machine. `dtype` and `q_bits` are those of `load`;
    without them the weights are counted as they are stored, or without weight files as config.json says. `metal` counts
    memory and prefill as on a Mac, or as elsewhere; None means as on this machine. `kv` quantizes the caches, as for
    `Chat`. `draft_model` is a path or id; its weights are cast as those of the model, and not quantized. With
    several `ranks` it is what rank 0 needs, which has the most: see `load(…, group=)`. With those that `join_ranks()`
    returned it is what this one needs.
    `prompt_cache_bytes` is the limit of a `PrefixStore`.
    `batch_size` is the number of conversations that have caches at the same time.

    Raises FileNotFoundError and ValueError as `load` does for what is visible without reading weights, and ValueError
    for a max_kv_size beyond max_position_embeddings, an invalid `kv`, and a draft model with another tokenizer.
    """
    if type(prompt_cache_bytes) is not int or prompt_cache_bytes < 0:
        raise ValueError(f"prompt_cache_bytes must be a number of bytes, not {prompt_cache_bytes!r}")
    memory_bytes, cast = read_memory(memory, metal), read_dtype(dtype)
    quantization = None if q_bits is None else Quantization(q_bits)
    whole = read_sizes(path_or_repo, revision)
    check_kv_size(max_kv_size, whole.config)
    kv, sizes = KVQuantization.coerce(kv, whole.config), ranked(whole, ranks, quantization)
    draft = None if draft_model is None else read_sizes(draft_model)
    if draft:
        check_draft(sizes, draft)
    return fit_sizes(
        sizes,
        max_kv_size,
        memory_bytes,
        cast,
        quantization,
        metal,
        kv=kv,
        draft=draft,
        prompt_cache_bytes=prompt_cache_bytes,
        batch_size=batch_size,
    )


def fit_sizes(
    sizes: Sizes,
    max_kv_size: int | None = None,
    memory_bytes: int | None = None,
    cast: mx.Dtype | None = None,
    quantization: Quantization | None = None,
    metal: bool | None = None,
    *,
    kv: KVQuantization | None = None,
    draft: Sizes | None = None,
    prompt_tokens: int | None = None,
    prompt_cache_bytes: int = 0,
    batch_size: int = 1,
    adapter_bytes: int = 0,
) -> Fit:
    """`fit` for sizes that are already read, with weights cast or quantized.

    `kv` is complete, as `coerce` returns it. `prompt_tokens` limits how many tokens are read as a prompt; the rest is
    generated one by one. Raises ValueError for a quantized model that is to be quantized again.
    """
    config = sizes.config
    longest = config.max_position_embeddings
    max_kv_size = longest if max_kv_size is None else max_kv_size
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a positive whole number of conversations, not {batch_size!r}")
    if quantization and sizes.is_quantized:
        raise ValueError(f"{sizes.title} is quantized already; leave q_bits out")
    weights_bytes, dtype_size = sizes.weights_bytes(cast, quantization), sizes.activation_dtype(cast).size
    if memory_bytes is None and metal and not mx.metal.is_available():  # as a Mac of the same memory
        memory_bytes = round(physical_memory() * METAL_PART)
    memory_bytes = memory_of_this_machine() if memory_bytes is None else memory_bytes
    draft_weights = draft.weights_bytes(cast) if draft else 0
    draft_dtype_size = draft.activation_dtype(cast).size if draft else 0

    def draft_bytes(tokens: int) -> int:
        return draft_weights + batch_size * draft_cache_bytes(draft.config, tokens, draft_dtype_size) if draft else 0

    def caches_of(tokens: int) -> tuple[int, int, int]:
        seen, windows, reserves = cache_bytes(config, tokens, dtype_size, kv)
        return batch_size * seen, batch_size * windows, batch_size * reserves

    def reading(tokens: int) -> int:
        tokens = min(tokens, prompt_tokens or tokens)
        needed = prefill_bytes(config, tokens, dtype_size, metal, kv)
        if draft:  # the two models read the prompt one after the other
            windows = draft_windows(draft.config)
            needed = max(needed, prefill_bytes(draft.config, tokens, draft_dtype_size, metal, windows=windows))
        return needed

    def needed(tokens: int) -> int:
        return sum(caches_of(tokens)) + reading(tokens) + draft_bytes(tokens)

    left = memory_bytes - weights_bytes - adapter_bytes - prompt_cache_bytes
    largest = bisect_right(range(1, longest + 1), left, key=needed)
    return Fit(
        max_kv_size,
        weights_bytes,
        *caches_of(max_kv_size),
        reading(max_kv_size),
        draft_bytes(max_kv_size),
        memory_bytes,
        largest,
        prompt_cache_bytes,
        batch_size,
        adapter_bytes,
    )


def read_memory(gigabytes: float | None, metal: bool | None = None) -> int | None:
    """The bytes that a model may use on a machine with so many GB, with Metal or without it (default: as here).

    Raises ValueError for a value that is not a positive number, or that is a number of bytes.
    """
    if gigabytes is None:
        return None
    if type(gigabytes) not in (int, float) or not 1 <= gigabytes * 1e9 < float("inf"):
        raise ValueError(f"memory must be a positive number of gigabytes, not {gigabytes!r}")
    if gigabytes >= MAX_GIGABYTES:
        raise ValueError(f"memory must be in gigabytes (1e9 bytes), and {gigabytes!r} is more than any machine has")
    return round(gigabytes * 1e9 * (METAL_PART if uses_metal(metal) else 1))


def more_metal_memory(needed: int) -> Iterator[str]:
    """The command that raises Metal's memory limit, on a Mac that has enough physical memory."""
    limit = math.ceil(needed / 2**20 / LIMIT_STEP) * LIMIT_STEP
    if mx.metal.is_available() and limit + LIMIT_SPARE < physical_memory() / 2**20:
        yield f"sudo sysctl iogpu.wired_limit_mb={limit} raises the memory limit of models"


def uses_metal(metal: bool | None) -> bool:
    return mx.metal.is_available() if metal is None else metal


def check_draft(sizes: Sizes, draft: Sizes, tokenizer: Tokenizer | None = None) -> None:
    """Raises ValueError for a draft model with another vocabulary or tokenizer, whose ids stand for other texts.

    Compares the tokenizers if both exist. `tokenizer` is the one of `sizes`, if it is loaded. Chat templates may
    differ.
    """
    if draft.config.vocab_size != sizes.config.vocab_size:
        raise ValueError(
            f"the draft model {draft.title} has a vocabulary of {draft.config.vocab_size} tokens, and {sizes.title} "
            f"one of {sizes.config.vocab_size}: take one of the same family"
        )
    if not all((folder / "tokenizer.json").is_file() for folder in (sizes.folder, draft.folder)):
        return
    both = (tokenizer or Tokenizer.from_pretrained(sizes.folder), Tokenizer.from_pretrained(draft.folder))
    one, other = (read.fingerprints["tokenizer"] for read in both)
    if one != other:
        raise ValueError(
            f"the draft model {draft.title} has another tokenizer than {sizes.title}, so that the same ids are other "
            "texts: take one of the same family"
        )
