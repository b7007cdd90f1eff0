"""Bytes that caches and a prompt need, computed from the config.

Notes:
- Caches are counted as they are allocated, with whole buckets and reserves, after `prefill` has read a prompt of that
  length. A conversation that reaches the length in small steps may have grown the buffers of its global layers by half
  as much again; they never grow beyond max_position_embeddings.
- `prefill_bytes` is an upper bound, not a measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import mlx.core as mx

from ..generation.options import PREFILL_STEP_SIZE
from ..generation.speculate import DRAFT_STEP_SIZE, DRAFT_WINDOW
from ..model.cache import RotatingKVCache
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization, grown_capacity

#: Head sizes of Metal's fused attention for prompts: sdpa_full_supported_head_dim in
#: mlx/backend/metal/scaled_dot_product_attention.cpp.
FUSED_HEAD_DIMS = (64, 80, 128)
#: Bytes of each number of a quantized cache while it is unpacked, beside the unpacked number: without a kernel, MLX
#: unpacks step by step in 32-bit integers (dequantize in mlx/ops.cpp).
UNPACKING_BYTES = 8


def cache_bytes(
    config: Exaone4Config, tokens: int, dtype_size: int = 2, kv: KVQuantization | None = None
) -> tuple[int, int, int]:
    """Bytes of all caches after a prompt of `tokens` tokens: (global layers, local windows, local reserves).

    Their sum is the `nbytes` of the caches of `make_cache(kv)`. `dtype_size` is in bytes: 2 for bfloat16.
    """
    seen = windows = reserves = 0
    for layer, count in Counter(config.layers).items():
        row = count * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
        if layer.window is None:
            seen += row * _capacities(tokens, config.max_position_embeddings)[-1]
        else:
            window = min(tokens, layer.window)
            windows += row * window
            reserves += row * (_capacities(tokens, RotatingKVCache(layer.window).max_rows)[-1] - window)
    return seen, windows, reserves


def row_bytes(config: Exaone4Config, dtype_size: int, kv: KVQuantization | None = None) -> int:
    """Bytes of the key and the value of one token in one layer."""
    head = kv.row_bytes(config.head_dim, dtype_size) if kv else 2 * config.head_dim * dtype_size
    return config.num_key_value_heads * head


def draft_windows(config: Exaone4Config) -> tuple[int, ...]:
    """The window of each layer of a draft model, global ones included."""
    return tuple(min(layer.window or DRAFT_WINDOW, DRAFT_WINDOW) for layer in config.layers)


def draft_cache_bytes(config: Exaone4Config, tokens: int, dtype_size: int = 2) -> int:
    """Bytes of all caches of a draft model after `tokens` tokens, most of them of a prompt."""
    rows = 0
    for window in draft_windows(config):
        rows += _capacities(tokens, RotatingKVCache(window).max_rows, DRAFT_STEP_SIZE)[-1]
    return rows * row_bytes(config, dtype_size)


def prefill_bytes(
    config: Exaone4Config,
    tokens: int,
    dtype_size: int = 2,
    metal: bool | None = None,
    kv: KVQuantization | None = None,
    *,
    windows: Collection[int | None] | None = None,
    step_size: int = PREFILL_STEP_SIZE,
) -> int:
    """An upper bound of the bytes that reading a prompt of `tokens` tokens needs, beside weights and caches.

    It counts all arrays that one layer makes for one chunk of `step_size` tokens, as if none were freed before the end
    of the layer: hidden states; queries, keys and values, projected, concatenated, normalized, scaled and rotated; the
    inputs of attention; gate and up of the MLP, separate and concatenated, and their product. It adds the masks of
    local layers, the buffers that two layers replace in this chunk, and the logits of the last position. Quantized keys
    and values are unpacked for one layer at a time. `windows` replaces the windows of the layers: `draft_windows` for
    a draft model.

    Metal's fused attention keeps no scores. Where it does not run (other backends, and head sizes not in
    FUSED_HEAD_DIMS), MLX makes the whole matrix [H, chunk, tokens] in the dtype of the activations once: it writes mask
    and softmax over it. It then also makes a causal mask of booleans.

    Without Metal's kernels, norms and rotations run step by step in float32; the number of arrays that are alive at
    once is measured. Peaks on MLX's CPU backend (0.32) are 45 to 95 % of the bound for 50 tokens and more. Not measured
    on Apple silicon. Freed buffers that MLX keeps for reuse are not counted: MLX frees them when memory is short.
    """
    windows = {layer.window for layer in config.layers} if windows is None else set(windows)
    chunk, hidden = min(tokens, step_size), config.hidden_size
    heads, key_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = 8 * heads + 7 * key_heads + 3 * hidden  # elements for each token
    mlp = 6 * config.intermediate_size + 3 * hidden
    working = chunk * (hidden + attention + mlp) * dtype_size
    metal = mx.metal.is_available() if metal is None else metal
    if not metal:  # norms and rotations, in float32
        of_hidden, of_heads = (4, 2) if dtype_size == 4 else (10, 4)
        working += chunk * (of_hidden * hidden + of_heads * (heads + key_heads)) * 4
    scores = masks = replaced = unpacked = 0
    for window in windows:
        attended = tokens if window is None else min(tokens, window - 1 + chunk)
        if window is not None and tokens > window:
            masks += 3 * chunk * attended  # the comparisons with both ends, and their conjunction
        if not has_fused_attention(config, metal):  # the scores, a causal mask, and the comparison that makes it
            scores = max(scores, chunk * attended * (config.num_attention_heads * dtype_size + 2))
        stored = kv and kv.of_layer(window)
        rows = _replaced_rows(tokens, window, config, step_size)
        replaced = max(replaced, rows * row_bytes(config, dtype_size, stored))
        if stored:
            parts = sum(bits is not None for bits in (stored.key_bits, stored.value_bits))
            packed = chunk * row_bytes(config, dtype_size, stored)  # this chunk's rows, before they are written
            each = dtype_size if metal else dtype_size + UNPACKING_BYTES
            unpacked = max(unpacked, attended * parts * key_heads * each + packed)
    return working + scores + masks + unpacked + 2 * replaced + config.vocab_size * dtype_size


def has_fused_attention(config: Exaone4Config, metal: bool | None = None) -> bool:
    """True if a prompt is read without keeping attention scores: with `metal`, or for None on this machine."""
    return (mx.metal.is_available() if metal is None else metal) and config.head_dim in FUSED_HEAD_DIMS


def _capacities(tokens: int, limit: int, step: int = PREFILL_STEP_SIZE) -> list[int]:
    """Rows of the buffers that grow, chunk by chunk, to hold `tokens` tokens, or the last ones that `limit` allows."""
    rows = [0]
    while rows[-1] < min(tokens, limit):
        stop = min(tokens, (rows[-1] // step + 1) * step)  # the end of the first chunk that does not fit
        rows.append(min(grown_capacity(stop, rows[-1], limit), limit))
    return rows


def _replaced_rows(tokens: int, window: int | None, config: Exaone4Config, step_size: int) -> int:
    """The largest number of rows that a layer holds beside its cache while a chunk is read.

    The buffer of a global layer is copied into a longer one. The buffer of a local layer may be copied twice: the layer
    attends in a buffer that is longer for this chunk only.
    """
    if window is None:
        return _capacities(tokens, config.max_position_embeddings, step_size)[-2]
    cache = RotatingKVCache(window)
    return min(tokens, cache.needed_rows + step_size) + min(tokens, cache.max_rows)
