"""Bytes that a decode step reads, and bytes per second that this machine moves."""

from __future__ import annotations

import math
import time

import mlx.core as mx

from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from .allocation import row_bytes
from .engines import nbytes
from .sizes import weight_shapes

BANDWIDTH_BYTES = 2**28  # of the array that is read and copied: more than the cache of any processor


def bytes_per_token(model: Exaone4ForCausalLM, depth: float, kv: KVQuantization | None = None) -> int:
    """Bytes that one decode step reads: stored weights, one row of the embedding, keys and values of `depth` tokens.

    With tied embeddings the head reads all rows, and the embedding reads one more. `kv` is the quantization of caches.
    """
    config, dtype_size = model.config, model.model.norm.weight.dtype.size
    embeddings = nbytes(model.model.embed_tokens)
    weights = nbytes(model) - (0 if config.tie_word_embeddings else embeddings)
    attended = 0.0
    for layer in config.layers:
        rows = depth if layer.window is None else min(depth, layer.window)
        attended += rows * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
    return int(weights + embeddings / config.vocab_size + attended)


def bits_per_weight(model: Exaone4ForCausalLM) -> float:
    """Bits per weight as stored, including scales and biases."""
    shapes = weight_shapes(model.config).values()
    return 8 * nbytes(model) / sum(math.prod(shape) for shape in shapes)


def memory_bandwidth() -> float:
    """The highest number of bytes per second that MLX moves here, in four sums and four copies of an array of 256 MiB.

    A sum reads the array; a copy (with one added) reads and writes it. On MLX's CPU backend both run on one core.
    """
    array = mx.ones(BANDWIDTH_BYTES // 4)
    mx.eval(array)
    best = 0.0
    for _ in range(4):
        for moved, work in ((1, mx.sum), (2, lambda a: a + 1)):
            started = time.perf_counter()
            mx.eval(work(array))
            best = max(best, moved * array.nbytes / (time.perf_counter() - started))
    del array
    mx.clear_cache()
    return best
