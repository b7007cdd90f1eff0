"""The sizes of a model before it is loaded: bytes of its weights, of its caches, and of reading a prompt.

Notes:
- Only headers and config.json are read. No weight is read and no array is made, so that any thread may call this.
- Without weight files the shapes follow from config.json.
- Caches are counted as they are allocated, with whole buckets and reserves, after `prefill` has read a prompt of that
  length. A conversation that reaches the length in small steps may have grown the buffers of its global layers by half
  as much again; they never grow beyond max_position_embeddings.
- `prefill_bytes` is an upper bound, not a measurement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import mlx.core as mx

from ..checkpoint.formats import Source
from ..checkpoint.layouts import StoredTensor
from ..checkpoint.quantize import Quantization, read_quantization, stored_settings
from ..checkpoint.share import EMBEDDING, HEAD
from ..files.folders import BUILT_IN, find_folder, read_json
from ..files.safetensors import INDEX_NAME, Checkpoint, CheckpointError, read_dtype
from ..generation.draft import DRAFT_STEP_SIZE, DRAFT_WINDOW
from ..generation.options import PREFILL_STEP_SIZE
from ..model.cache import RotatingKVCache
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization, grown_capacity
from ..model.pretrained import check_layers

#: Files that hold weights or list them.
WEIGHT_FILES = ("*.safetensors", INDEX_NAME, "*.bin", "*.pt", "*.pth", "*.gguf")
#: Head sizes of Metal's fused attention for prompts: sdpa_full_supported_head_dim in
#: mlx/backend/metal/scaled_dot_product_attention.cpp.
FUSED_HEAD_DIMS = (64, 80, 128)
#: Bytes of each number of a quantized cache while it is unpacked, beside the unpacked number: without a kernel, MLX
#: unpacks step by step in 32-bit integers (dequantize in mlx/ops.cpp).
UNPACKING_BYTES = 8


@dataclass(frozen=True)
class Sizes:
    """A model before it is loaded: config, tensors by name, and the dtype of affine scales by tensor name."""

    title: str  # for errors
    config: Exaone4Config
    tensors: Mapping[str, StoredTensor]
    scales: Mapping[str, mx.Dtype]
    folder: Path
    has_no_files: bool = False  # True where the tensors follow from config.json alone

    @property
    def is_quantized(self) -> bool:
        """True if `load` cannot quantize the model again."""
        return any(tensor.exact for tensor in self.tensors.values())

    def weights_bytes(self, cast: mx.Dtype | None = None, quantization: Quantization | None = None) -> int:
        """Bytes of all weights after loading, cast or quantized."""
        return sum(self._loaded_bytes(tensor, cast, quantization) for tensor in self.tensors.values())

    def _loaded_bytes(self, tensor: StoredTensor, cast: mx.Dtype | None, quantization: Quantization | None) -> int:
        """A format that MLX does not have is loaded in full precision. Scales and biases have the dtype of the cast."""
        size = math.prod(tensor.shape)
        scale_dtype = cast or self.scales.get(tensor.name, tensor.dtype)
        if tensor.exact and tensor.exact.mode != "affine":
            return tensor.nbytes
        if tensor.exact:
            return _affine_bytes(size, tensor.exact, scale_dtype)
        if quantization and quantization.applies_to(tensor.name, tensor.shape):
            return _affine_bytes(size, quantization, scale_dtype)
        return size * scale_dtype.size

    def activation_dtype(self, cast: mx.Dtype | None = None) -> mx.Dtype:
        """The dtype that the dtypes of embedding and layers promote to, after a cast.

        If the dtypes differ, the cache of the first layer may have a smaller dtype. All other layers have this one.
        """
        parts = [t for name, t in self.tensors.items() if name.startswith(("model.embed_tokens.", "model.layers."))]
        # Formats whose scales are not floating-point numbers are unpacked to the dtype that MLX defines for them.
        has_own = {tensor.name for tensor in parts if tensor.exact and tensor.exact.mode != "affine"}
        dtypes = {tensor.dtype if tensor.name in has_own else cast or tensor.dtype for tensor in parts}
        return reduce(mx.result_type, dtypes or {mx.bfloat16})


def read_sizes(path_or_repo: str | Path, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a config.json, a hub id (only its config.json is downloaded), or "demo".

    The shapes follow from the config for a folder without weight files, for a repository whose weights are not all in
    the cache of the hub, and for a config.json. Raises FileNotFoundError and ValueError as `fit` does.
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
    check_layers(source.tensors, config, folder)
    for name, shape in weight_shapes(config).items():
        if name in source.tensors and source.tensors[name].shape != shape:
            raise CheckpointError(f"{source.file(name)}: {name} has shape {source.tensors[name].shape}, not {shape}")
    # `load` ignores these extra tensors.
    extra = ("rotary_emb.inv_freq", HEAD) if config.tie_word_embeddings else ("rotary_emb.inv_freq",)
    tensors = {name: tensor for name, tensor in source.tensors.items() if not name.endswith(extra)}
    affine = [name for name, tensor in tensors.items() if tensor.exact and tensor.exact.mode == "affine"]
    return Sizes(str(path_or_repo), config, tensors, {name: tensors[name].scale_dtype for name in affine}, folder)


def _sizes_from_config(path: Path) -> Sizes:
    """The sizes that follow from a config.json, in its dtype and bits; without a dtype in bfloat16.

    Raises ValueError for a quantization whose size config.json does not define.
    """
    config, values = Exaone4Config.from_file(path), read_json(path)
    given = values.get("quantization") or values.get("quantization_config")
    if isinstance(given, Mapping) and "quant_method" in given:  # not MLX's
        method = given["quant_method"]
        raise ValueError(f"{path}: config.json alone does not tell how large {method!r:.99} weights are; get them, too")
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


def weight_shapes(config: Exaone4Config) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a checkpoint in full precision, by name."""
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


def _affine_bytes(size: int, quantization: Quantization, scale_dtype: mx.Dtype) -> int:
    """Bytes of `size` weights with a scale and a bias per group."""
    return size * quantization.bits // 8 + 2 * (size // quantization.group_size) * scale_dtype.size


# --- caches and prompts -------------------------------------------------------------------------------------------


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
