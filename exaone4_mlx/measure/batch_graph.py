"""The graph of a decode step of several conversations: its nodes and Python's time, of our batch and of mlx-lm's.

Notes:
- As in `graph`, a function of `mx.fast` is one node, and each function here runs in a process of its own.
- mlx-lm's step is that of its `BatchGenerator`, without the log-probabilities that it computes beside each token.
"""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from .engines import BUILT_STEPS, Ours
from .graph import dispatching, narrow, one_node_each, replaced, zero_model
from .sizes import row_bytes

#: Takes the last token of each conversation, and gives the next ones.
Step = Callable[[list[mx.array]], list[mx.array]]


def count_batch(engine: str, config: Mapping[str, Any], dtype: str, is_quantized: bool, rows: int) -> dict[str, int]:
    """Nodes of one greedy step of `rows` conversations, and those of them that run a kernel."""
    model = zero_model(engine, narrow(config, config["layer_types"]), dtype, is_quantized)
    with one_node_each():
        step, tokens = _step(engine, model, rows)
        for _ in range(2):  # until the buffers have room for the next token
            tokens = step(tokens)
            mx.eval(tokens)
        tokens = [mx.array(token.tolist()) for token in tokens]
        text = io.StringIO()
        mx.export_to_dot(text, *step(tokens))
    nodes = Counter(re.findall(r'\[label ="(\w+)", shape=rectangle\]', text.getvalue()))
    return {"nodes": nodes.total(), "dispatching": dispatching(nodes)}


def batch_seconds(engine: str, config: Mapping[str, Any], dtype: str, is_quantized: bool, rows: int) -> float:
    """Seconds of this thread for the graph of one step: the median of BUILT_STEPS. Other programs do not count."""
    model = zero_model(engine, narrow(config, config["layer_types"]), dtype, is_quantized)
    fast = ("rms_norm", "rope", "scaled_dot_product_attention")
    with replaced({(mx.fast, name): lambda x, *others, **named: mx.stop_gradient(x) for name in fast}):
        step, tokens = _step(engine, model, rows)
        seconds = []
        for _ in range(BUILT_STEPS):
            started = time.thread_time()
            tokens = step(tokens)
            seconds.append(time.thread_time() - started)
    return median(seconds[2:])


def _step(engine: str, model: Any, rows: int) -> tuple[Step, list[mx.array]]:
    """A step of `rows` conversations that hold four tokens each, and their last tokens."""
    caches = [model.make_cache() for _ in range(rows)]
    for cache in caches:
        mx.eval(model(mx.array([[1] * 4]), cache))
    if engine == Ours.name:

        def ours(tokens: list[mx.array]) -> list[mx.array]:
            found = model.together([(token[None], cache) for token, cache in zip(tokens, caches, strict=True)])
            return [mx.argmax(logits[:, -1], axis=-1) for logits in found]

        return ours, [mx.array([1])] * rows
    merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]

    def theirs(tokens: list[mx.array]) -> list[mx.array]:
        return [mx.argmax(model(tokens[0][:, None], merged)[:, -1], axis=-1)]

    return theirs, [mx.array([1] * rows)]


def batch_bytes(
    config: Exaone4Config,
    weights_bytes: int,
    rows: int,
    depth: int,
    dtype_size: int = 2,
    kv: KVQuantization | None = None,
) -> float:
    """Bytes that a step reads for each of `rows` tokens: the weights once, and the caches of each conversation.

    Each conversation has `depth` tokens in its caches.
    """
    attended = sum(
        (depth if layer.window is None else min(depth, layer.window))
        * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
        for layer in config.layers
    )
    return weights_bytes / rows + attended
