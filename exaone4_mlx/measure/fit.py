"""`fit`: the memory that a model at a context length needs, told before anything of it is loaded.

What is peculiar here:
- Headers and config.json say it all: no weight is read and no array is made, so that any thread may ask. Without
  weight files the shapes follow from config.json alone.
- Caches are counted as they are allocated, whole buckets and reserves included, after a prompt of that length
  was read as `prefill` reads it. A conversation that came there in small steps may have grown the buffers of
  its global layers by half as much again; beyond max_position_embeddings they never grow.
- Caches have the dtype of the activations, which is what the weights' dtypes promote to, or the bits asked for.
- A draft model is counted as it is stored, with caches that slide in every layer.
- What a chunk of the prompt is computed with is no measurement but a bound: see `prefill_bytes`.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import mlx.core as mx

from ..checkpoint.formats import Source
from ..checkpoint.layouts import StoredTensor
from ..checkpoint.quantize import Quantization, read_quantization, stored_settings
from ..files.folders import BUILT_IN, find_folder, read_json
from ..files.format import size_text
from ..files.safetensors import INDEX_NAME, Checkpoint, read_dtype
from ..generation.speculate import DRAFT_STEP_SIZE, DRAFT_WINDOW
from ..model.cache import RotatingKVCache
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization, grown_capacity
from ..model.source import EMBEDDING, HEAD
from ..text.tokenizer import Tokenizer

STEP_SIZE = 2048  # tokens that prefill processes at a time: generation.decode.PREFILL_STEP_SIZE
#: Head sizes of Metal's fused attention for prompts: sdpa_full_supported_head_dim in
#: mlx/backend/metal/scaled_dot_product_attention.cpp.
FUSED_HEAD_DIMS = (64, 80, 128)
#: Of each number of a quantized cache, beside what it is unpacked to: where there is no kernel for it, MLX does it step
#: by step in integers of 32 bits (dequantize in mlx/ops.cpp).
UNPACKING_BYTES = 8
#: What holds weights, or lists them.
WEIGHT_FILES = ("*.safetensors", INDEX_NAME, "*.bin", "*.pt", "*.pth", "*.gguf")


@dataclass(frozen=True)
class Fit:
    """What a model needs for `context` tokens. Sizes are in bytes, lengths in tokens.

    A local layer's cache is its window and, apart, the rows held so as to go back and to append in place.
    `prefill_bytes` bounds what a chunk of the prompt is computed with, beside weights and caches. `draft_bytes` are
    weights and caches of the draft model, if there is one.
    `largest_context` is the longest one that fits into `memory_bytes`: 0 where not even the weights do.
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
        """All caches of the model, the draft's apart."""
        return self.global_cache_bytes + self.local_window_bytes + self.local_reserve_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.prefill_bytes + self.draft_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_bytes

    @property
    def arithmetic(self) -> str:
        """What the sum is made of, in words."""
        draft = f", {size_text(self.draft_bytes)} of draft model" if self.draft_bytes else ""
        return (
            f"{size_text(self.total_bytes)} ({size_text(self.weights_bytes)} of weights, "
            f"{size_text(self.cache_bytes)} of caches at {self.context:,} tokens, {size_text(self.prefill_bytes)} to "
            f"read the prompt{draft}), and a model may have {size_text(self.memory_bytes)} here"
        )

    def check_weights(self) -> None:
        """Raises MemoryError where the weights alone are more than the physical memory of this machine."""
        physical = physical_memory()
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
    """What a model needs: a folder, a config.json, a hub id (of which config.json alone is downloaded), or "demo".

    `context` is in tokens, max_position_embeddings if not given; `memory` in bytes, `memory_of_this_machine()`
    if not given. `dtype` and `q_bits` are `load`'s; without them the weights are as they are stored, or where there
    are no weight files, as config.json says. `metal` counts the prefill as on a Mac, or not; None as on this machine.
    `kv_bits` and what follows it quantize the caches, as for `Chat`. `draft_model` is a second model, a path or id as
    the first; its weights are cast as those, and not quantized.

    Raises FileNotFoundError and ValueError as `load` does for what can be seen without reading weights, and
    ValueError for a context that the model does not reach, for caches that cannot be quantized so, and for a draft
    model with another tokenizer.
    """
    check_request(context, memory)
    cast, quantization = read_dtype(dtype), None if q_bits is None else Quantization(q_bits)
    sizes = read_sizes(path_or_repo, revision)
    kv = KVQuantization.read(sizes.config, kv_bits, kv_bits_keys, kv_bits_values, kv_group_size, kv_layers)
    draft = None if draft_model is None else read_sizes(draft_model)
    if draft:
        check_draft(sizes, draft)
    return sizes.fit(context, memory, cast, quantization, metal, kv=kv, draft=draft)


@dataclass(frozen=True)
class Sizes:
    """What is known of a model before it is loaded: config, tensors by name, and the dtype of affine scales."""

    title: str  # for errors
    config: Exaone4Config
    tensors: Mapping[str, StoredTensor]
    scales: Mapping[str, mx.Dtype]
    folder: Path
    has_no_files: bool = False  # whether config.json alone tells them

    @property
    def is_quantized(self) -> bool:
        """Whether `load` takes it with no other bits than it has."""
        return any(tensor.exact for tensor in self.tensors.values())

    def fit(
        self,
        context: int | None = None,
        memory: int | None = None,
        cast: mx.Dtype | None = None,
        quantization: Quantization | None = None,
        metal: bool | None = None,
        *,
        kv: KVQuantization | None = None,
        draft: Sizes | None = None,
        prompt: int | None = None,
    ) -> Fit:
        """`fit` of this model, loaded with weights cast or quantized. Raises ValueError as it does.

        `prompt` is how many tokens of the context are read at most, all unless given; the rest is made one by one.
        """
        check_request(context, memory)
        config = self.config
        context = config.max_position_embeddings if context is None else context
        _check_context(context, config)
        if quantization and self.is_quantized:
            raise ValueError(f"{self.title} is quantized already; leave q_bits out")
        weights_bytes = self.weights_bytes(cast, quantization)
        dtype_size = activation_dtype(self.tensors, cast).size
        memory = memory_of_this_machine() if memory is None else memory
        drafted = draft and (draft.config, activation_dtype(draft.tensors, cast).size)
        draft_weights = draft.weights_bytes(cast) if draft else 0

        def of_draft(length: int) -> int:
            return draft_weights + draft_cache_bytes(drafted[0], length, drafted[1]) if drafted else 0

        def reading(length: int) -> int:  # the two read one after the other
            length = min(length, prompt or length)
            its = _reading_bytes(drafted[0], draft_windows(drafted[0]), length, drafted[1], metal) if drafted else 0
            return max(prefill_bytes(config, length, dtype_size, metal, kv), its)

        def needed(length: int) -> int:
            return sum(cache_bytes(config, length, dtype_size, kv)) + reading(length) + of_draft(length)

        largest = bisect_right(range(1, config.max_position_embeddings + 1), memory - weights_bytes, key=needed)
        caches = cache_bytes(config, context, dtype_size, kv)
        return Fit(context, weights_bytes, *caches, reading(context), of_draft(context), memory, largest)

    def weights_bytes(self, cast: mx.Dtype | None = None, quantization: Quantization | None = None) -> int:
        """Of all weights, loaded so."""
        return sum(self._loaded_bytes(tensor, cast, quantization) for tensor in self.tensors.values())

    def _loaded_bytes(self, tensor: StoredTensor, cast: mx.Dtype | None, quantization: Quantization | None) -> int:
        """In full precision where MLX has no such format; scales and biases in the dtype that they are given."""
        size = math.prod(tensor.shape)
        scale_dtype = cast or self.scales.get(tensor.name, tensor.dtype)
        if tensor.exact and tensor.exact.mode != "affine":
            return tensor.nbytes
        if tensor.exact:
            return _affine_bytes(size, tensor.exact, scale_dtype)
        if quantization and quantization.applies_to(tensor.name, tensor.shape):
            return _affine_bytes(size, quantization, scale_dtype)
        return size * scale_dtype.size


def read_sizes(path_or_repo: str | Path, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a config.json, a hub id (of which config.json alone is downloaded), or "demo".

    A folder without weight files, a repository whose weights are not all in the hub's cache, and a config.json by
    itself have the shapes that follow from the config. Raises FileNotFoundError and ValueError as `fit` does.
    """
    path, is_demo = Path(path_or_repo).expanduser(), str(path_or_repo) in BUILT_IN
    if path.is_file() and not is_demo:
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for hub ids; {path} is a local file")
        return _sizes_from_config(path)
    is_local = is_demo or path.is_dir()
    folder = find_folder(path_or_repo, revision, ("config.json",))
    config = Exaone4Config.from_file(folder / "config.json")
    try:
        checkpoint = Checkpoint(folder)
    except FileNotFoundError:
        if is_local and any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
            raise
        return _sizes_from_config(folder / "config.json")
    source = Source(checkpoint, read_json(folder / "config.json"))
    tensors = _loaded(source.tensors, config)
    affine = [name for name, tensor in tensors.items() if tensor.exact and tensor.exact.mode == "affine"]
    return Sizes(str(path_or_repo), config, tensors, {name: source.scale_dtype(name) for name in affine}, folder)


def check_draft(sizes: Sizes, draft: Sizes, tokenizer: Tokenizer | None = None) -> None:
    """Raises ValueError for a draft model whose ids are other texts: whose tokenizer or vocabulary differs.

    Tokenizers are compared where both are there; `tokenizer` is that of `sizes`, if it has been read. Chat templates
    may differ.
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


def weight_shapes(config: Exaone4Config) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's weights by name, those of a checkpoint in full precision."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, key_heads = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    block = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (key_heads, hidden),
        "self_attn.v_proj": (key_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "post_attention_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes if config.tie_word_embeddings else shapes | {HEAD: (config.vocab_size, hidden)}


def cache_bytes(
    config: Exaone4Config, context: int, dtype_size: int = 2, kv: KVQuantization | None = None
) -> tuple[int, int, int]:
    """Bytes of all caches after a prompt of `context` tokens: (global layers, local windows, local reserves).

    Their sum is the `nbytes` of the caches of `make_cache(kv)`. `dtype_size` is in bytes: 2 for bfloat16.
    Raises ValueError for a context that the model does not reach.
    """
    _check_context(context, config)
    seen = windows = reserves = 0
    for layer, count in Counter(config.layers).items():
        row = count * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
        if layer.window is None:
            seen += row * _capacities(context, config.max_position_embeddings)[-1]
        else:
            window = min(context, layer.window)
            windows += row * window
            reserves += row * (_capacities(context, RotatingKVCache(layer.window).max_rows)[-1] - window)
    return seen, windows, reserves


def draft_windows(config: Exaone4Config) -> tuple[int, ...]:
    """The window of each layer of a draft model, global ones included."""
    return tuple(min(layer.window or DRAFT_WINDOW, DRAFT_WINDOW) for layer in config.layers)


def draft_cache_bytes(config: Exaone4Config, context: int, dtype_size: int = 2) -> int:
    """Bytes of all caches of a draft model after `context` tokens, most of them of a prompt."""
    rows = 0
    for window in draft_windows(config):
        rows += _capacities(context, RotatingKVCache(window).max_rows, DRAFT_STEP_SIZE)[-1]
    return rows * row_bytes(config, dtype_size)


def prefill_bytes(
    config: Exaone4Config,
    context: int,
    dtype_size: int = 2,
    metal: bool | None = None,
    kv: KVQuantization | None = None,
) -> int:
    """Bytes that reading a prompt of `context` tokens takes at most, beside weights and caches.

    That is all that one layer makes of one chunk, as if nothing were freed before the layer's end: hidden states;
    queries, keys and values as they are projected, put side by side, normalized, scaled and rotated; what attention
    takes in; the MLP's gate and up, apart and side by side, and their product. With it go the masks of local layers,
    the buffers that two layers replace in this chunk, and the logits of the last position. Quantized keys and values
    are unpacked for one layer at a time.

    Metal's fused attention keeps no scores. Where it does not run (other backends, and head sizes not among
    FUSED_HEAD_DIMS) MLX makes the whole matrix [H, chunk, context], in the dtype of the activations, once: mask and
    softmax are written over it. A causal mask is then made of booleans, too.

    Without Metal's kernels norms and rotations go step by step in float32; how much of that is alive at once was
    measured. Peaks on MLX's CPU backend (0.32) are 45 to 95 % of the bound for 50 tokens and more. On Apple silicon
    it is not measured. Freed buffers that MLX keeps for reuse are not counted: it gives them back where memory is
    short.
    """
    _check_context(context, config)
    return _reading_bytes(config, [layer.window for layer in config.layers], context, dtype_size, metal, kv)


def _reading_bytes(
    config: Exaone4Config,
    windows: Collection[int | None],
    context: int,
    dtype_size: int,
    metal: bool | None = None,
    kv: KVQuantization | None = None,
) -> int:
    """`prefill_bytes` with layers of these windows."""
    chunk, hidden = min(context, STEP_SIZE), config.hidden_size
    heads, key_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = 8 * heads + 7 * key_heads + 3 * hidden  # elements for each token
    mlp = 6 * config.intermediate_size + 3 * hidden
    working = chunk * (hidden + attention + mlp) * dtype_size
    metal = mx.metal.is_available() if metal is None else metal
    if not metal:  # norms and rotations, in float32
        of_hidden, of_heads = (4, 2) if dtype_size == 4 else (10, 4)
        working += chunk * (of_hidden * hidden + of_heads * (heads + key_heads)) * 4
    scores = masks = replaced = unpacked = 0
    for window in set(windows):
        attended = context if window is None else min(context, window - 1 + chunk)
        if window is not None and context > window:
            masks += 3 * chunk * attended  # the comparisons with both ends, and both together
        if not has_fused_attention(config, metal):  # beside the scores a causal mask, and what it is made of
            scores = max(scores, chunk * attended * (config.num_attention_heads * dtype_size + 2))
        stored = kv and kv.of_layer(window)
        rows = _replaced_rows(context, window, config)
        replaced = max(replaced, rows * row_bytes(config, dtype_size, stored))
        if stored:
            parts = sum(bits is not None for bits in (stored.key_bits, stored.value_bits))
            packed = chunk * row_bytes(config, dtype_size, stored)  # this chunk's own, before they are written
            each = dtype_size if metal else dtype_size + UNPACKING_BYTES
            unpacked = max(unpacked, attended * parts * key_heads * each + packed)
    return working + scores + masks + unpacked + 2 * replaced + config.vocab_size * dtype_size


def activation_dtype(tensors: Mapping[str, StoredTensor], cast: mx.Dtype | None = None) -> mx.Dtype:
    """What a checkpoint computes in: what the dtypes of its embedding and its layers promote to, if need be `cast`.

    Where they differ this may be more than the first layer's cache has, and is right for all others.
    """
    parts = [tensor for name, tensor in tensors.items() if name.startswith(("model.embed_tokens.", "model.layers."))]
    # Formats whose scales are no floating-point numbers are unpacked to the dtype that MLX has for them.
    has_own = {tensor.name for tensor in parts if tensor.exact and tensor.exact.mode != "affine"}
    dtypes = {tensor.dtype if tensor.name in has_own else cast or tensor.dtype for tensor in parts}
    return reduce(mx.result_type, dtypes or {mx.bfloat16})


def has_fused_attention(config: Exaone4Config, metal: bool | None = None) -> bool:
    """Whether a prompt is read without its attention scores being kept: with `metal`, None for this machine's."""
    return (mx.metal.is_available() if metal is None else metal) and config.head_dim in FUSED_HEAD_DIMS


def memory_of_this_machine() -> int:
    """Bytes that a model may have here: what Metal recommends as the most, or else the physical memory."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return physical_memory()


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_request(context: int | None, memory: int | None) -> None:
    """Raises ValueError for what is no number of tokens, or of bytes."""
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise ValueError(f"context must be a positive whole number of tokens, not {context!r}")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory must be a positive whole number of bytes, not {memory!r}")


def _sizes_from_config(path: Path) -> Sizes:
    """By the shapes that follow from a config.json, in the dtype and the bits that it tells, or else bfloat16.

    Raises ValueError for a quantization that it does not tell the size of.
    """
    config, values = Exaone4Config.from_file(path), read_json(path)
    told = values.get("quantization") or values.get("quantization_config")
    if isinstance(told, Mapping) and "quant_method" in told:  # not MLX's
        method = told["quant_method"]
        raise ValueError(f"{path}: config.json alone does not tell how large {method!r} weights are; get them, too")
    dtype = read_dtype(values.get("dtype") or values.get("torch_dtype")) or mx.bfloat16
    shapes = weight_shapes(config)
    quantization = read_quantization(values)
    settings: dict[str, Quantization] = {}
    if quantization:
        layers = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
        settings = stored_settings(quantization, [layer for layer in layers if quantization.get(layer) is not False])
    tensors = {}
    for name, shape in shapes.items():
        chosen = settings.get(name.removesuffix(".weight"))
        exact = chosen if chosen and chosen.applies_to(name, shape) else None
        bits = exact.bits_per_weight(8 * dtype.size) if exact else 8 * dtype.size
        nbytes = int(math.prod(shape) * bits) // 8
        tensors[name] = StoredTensor(name, shape, dtype, (name,), nbytes, exact)
    return Sizes(str(path), config, tensors, {}, path.parent, has_no_files=True)


def _affine_bytes(size: int, quantization: Quantization, scale_dtype: mx.Dtype) -> int:
    """Of `size` weights with a scale and a bias for each group."""
    return size * quantization.bits // 8 + 2 * (size // quantization.group_size) * scale_dtype.size


def row_bytes(config: Exaone4Config, dtype_size: int, kv: KVQuantization | None = None) -> int:
    """Bytes of a token's key and value in one layer, quantized or not."""
    head = kv.row_bytes(config.head_dim, dtype_size) if kv else 2 * config.head_dim * dtype_size
    return config.num_key_value_heads * head


def _capacities(context: int, limit: int, step: int | None = None) -> list[int]:
    """Rows of the buffers that grow, chunk by chunk, to hold `context` tokens, or the last that `limit` allows."""
    rows, step = [0], step or STEP_SIZE
    while rows[-1] < min(context, limit):
        stop = min(context, (rows[-1] // step + 1) * step)  # the end of the first chunk that finds no room
        rows.append(min(grown_capacity(stop, rows[-1], limit), limit))
    return rows


def _replaced_rows(context: int, window: int | None, config: Exaone4Config) -> int:
    """The most rows that a layer holds beside its cache while a chunk is read.

    A global layer's buffer is copied into a longer one. A local layer's may be copied twice: it attends in one that is
    long for this chunk only.
    """
    if window is None:
        return _capacities(context, config.max_position_embeddings)[-2]
    cache = RotatingKVCache(window)
    return min(context, cache.needed_rows + STEP_SIZE) + min(context, cache.max_rows)


def _loaded(tensors: Mapping[str, StoredTensor], config: Exaone4Config) -> dict[str, StoredTensor]:
    """Without the extra tensors that `load` passes over."""
    extra = ("rotary_emb.inv_freq", HEAD) if config.tie_word_embeddings else ("rotary_emb.inv_freq",)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(extra)}


def _check_context(context: int, config: Exaone4Config) -> None:
    check_request(context, None)
    if context > config.max_position_embeddings:
        raise ValueError(
            f"context {context} is more than the {config.max_position_embeddings} tokens that this model reaches "
            "(max_position_embeddings); ask for less"
        )
