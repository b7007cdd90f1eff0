"""The graph of one decode step: its nodes, and the time that Python takes to build it.

Notes:
- Nodes are counted as a GPU runs them, where each function of `mx.fast` is one node. The CPU backend splits these
  functions into many nodes.
- `host_seconds` and `count_nodes` replace functions of MLX, and compiled functions keep the replacements. So each runs
  in a process of its own: see `in_own_process`.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..files.safetensors import read_dtype
from ..model.adapter import Adapter, AdapterConfig, projection_shapes
from ..model.config import Exaone4Config
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import load_network
from .engines import Ours, build_seconds, take_turns
from .sizes import weight_shapes

#: Primitives that make a view of an array: no kernel runs for them.
VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze",
    "StopGradient", "Transpose", "Unflatten", "View",
}  # fmt: skip


def in_own_process(function: str, *arguments: Any, module: str = __name__) -> Any:
    """Calls a function of a module in a new process. Raises RuntimeError with its error message if it fails."""
    given = json.dumps(arguments)
    code = f"import json; from {module} import {function}; print(json.dumps({function}(*json.loads({given!r}))))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{function}{tuple(arguments[:1])} failed: {ended.stderr.strip()[-300:]}")
    return json.loads(ended.stdout)


def host_seconds(
    engines: Sequence[str], config: Mapping[str, Any], dtype: str, is_quantized: bool, adapter: str | None, repeat: int
) -> dict[str, list[float]]:
    """The seconds that Python takes to build the graph of one decode step, in each of `repeat` rounds, by engine.

    Each function of `mx.fast` is one node, as on GPUs. Nothing is evaluated between the steps: on the CPU backend an
    evaluation would evict Python's data from the caches of the processor. So the model can be narrow. `adapter` is as
    for `count_nodes`.
    """

    def build(engine: Any) -> list[float]:
        return [build_seconds(engine.model, evaluates=False)]

    shape = narrow(config, config["layer_types"])
    models: list[Any] = [
        SimpleNamespace(name=name, weights_bytes=0, model=zero_model(name, shape, dtype, is_quantized, adapter))
        for name in engines
    ]
    fast = ("rms_norm", "rope", "scaled_dot_product_attention")
    # One node with one input, which mx.compile does not join with its neighbours.
    with replaced({(mx.fast, name): lambda x, *others, **named: mx.stop_gradient(x) for name in fast}):
        samples = take_turns(models, build, repeat)
    return {name: list(found.seconds[0]) for name, found in samples.items()}


def count_nodes(
    engine: str, config: Mapping[str, Any], dtype: str, is_quantized: bool, adapter: str | None = None
) -> dict[str, int]:
    """Graph nodes of one decode step of a model with this config, and of each kind of its layers.

    `adapter` is "lora" or "dora" for an adapter on all projections. The model is narrow, since widths do not change the
    number. The nodes of a layer are those that one more layer adds.
    """

    def nodes(layer_types: Sequence[str]) -> Counter[str]:
        # Quantizing needs the real `mx.dequantize`.
        model = zero_model(engine, narrow(config, layer_types), dtype, is_quantized, adapter)
        with one_node_each():
            return step_nodes(model, model.make_cache())

    step = nodes(config["layer_types"])
    counts = {"graph nodes of a step": step.total(), "dispatching nodes of a step": dispatching(step)}
    local, full = "sliding_attention", "full_attention"
    if local in config["layer_types"]:
        kinds = ([local, full], [local, local, full], [local, full, full])
        least, rope, plain = (dispatching(nodes(layer_types)) for layer_types in kinds)
        counts["dispatching nodes of a RoPE layer"] = rope - least
        counts["dispatching nodes of a global layer"] = plain - least
    else:
        counts["dispatching nodes of a layer"] = dispatching(nodes([full] * 2)) - dispatching(nodes([full]))
    return counts


def narrow(config: Mapping[str, Any], layer_types: Sequence[str]) -> Exaone4Config:
    """A config with these layers and small dimensions."""
    return Exaone4Config.from_dict(
        {name: value for name, value in config.items() if name not in ("sliding_window_pattern", "pad_token_id")}
        | {"num_hidden_layers": len(layer_types), "layer_types": layer_types}
        | {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "bos_token_id": 1, "eos_token_id": 2}
        | {"num_attention_heads": 8, "num_key_value_heads": 4}
        | {"sliding_window": config["sliding_window"] and 64}  # longer than the prompt, as a real window is
    )


def zero_model(engine: str, config: Exaone4Config, dtype: str, is_quantized: bool, adapter: str | None = None) -> Any:
    """A loaded model of this shape whose weights are zeros."""
    zeros = {name: mx.zeros(shape, read_dtype(dtype)) for name, shape in weight_shapes(config).items()}
    if engine == Ours.name:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()))
            mx.save_safetensors(f"{folder}/model.safetensors", zeros)
            network = load_network(Exaone4ForCausalLM, Path(folder), q_bits=4 if is_quantized else None)
            network.set_adapters([] if adapter is None else _uniform_adapter(adapter, config))
            return network.fused()
    from mlx_lm.models import exaone4

    arguments: Any = exaone4.ModelArgs
    model: Any = exaone4.Model(arguments.from_dict(config.to_dict()))
    model.load_weights(list(zeros.items()))
    if is_quantized:
        nn.quantize(model)
    if adapter is not None:
        from mlx_lm.tuner.utils import linear_to_lora_layers

        settings = {"rank": 8, "scale": 1.0, "dropout": 0.0}
        linear_to_lora_layers(model, len(model.layers), settings, use_dora=adapter == "dora")
        model.eval()
    mx.eval(model.parameters())
    return model


def _uniform_adapter(kind: str, config: Exaone4Config) -> Adapter:
    """An adapter on all projections of the layers. Of zeros, DoRA's norms would be zero."""
    settings, shapes = AdapterConfig(kind), projection_shapes(config)
    arrays: dict[str, mx.array] = {}
    for name in settings.modules(config):
        outputs, inputs = shapes[name]
        arrays |= {
            f"{name}.lora_a": mx.ones((inputs, settings.rank)),
            f"{name}.lora_b": mx.ones((settings.rank, outputs)),
        }
        if kind == "dora":
            arrays[f"{name}.m"] = mx.ones(outputs)
    return Adapter(settings, arrays)


def step_nodes(model: Callable[[mx.array, Any], mx.array], cache: Sequence[Any]) -> Counter[str]:
    """Counts the primitives of one greedy decode step by name. Call it inside `one_node_each`.

    `model(ids, cache)` returns logits. `cache` is empty and has room for eight tokens.
    """
    token = mx.array([[1]])
    for ids in (mx.array([[1, 1, 1, 1]]), token, token):  # until the buffers have room for the next token
        mx.eval(model(ids, cache))
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.argmax(model(token, cache)[:, -1], axis=-1))
    return Counter(re.findall(r'\[label ="(\w+)", shape=rectangle\]', graph.getvalue()))


def dispatching(nodes: Mapping[str, int]) -> int:
    """The number of nodes that run a kernel."""
    return sum(count for name, count in nodes.items() if name not in VIEWS)


@contextmanager
def one_node_each() -> Iterator[None]:
    """Makes one node of each call of `mx.fast`, of quantized products and of `mx.dequantize`, as on GPUs.

    The results have the right shapes and depend on the right arrays; their values are meaningless. Functions that are
    compiled inside keep the replacements, so the process must not run a model afterwards.
    """

    def like_first(x: mx.array, *others: Any, **named: Any) -> mx.array:
        arrays = [value for value in (*others, *named.values()) if isinstance(value, mx.array)]
        return mx.depends([x], arrays)[0] if arrays else mx.depends([x], [x])[0]

    def product(
        x: mx.array,
        w: mx.array,
        scales: mx.array,
        biases: mx.array | None = None,
        transpose: bool = True,
        group_size: int | None = None,
        bits: int = 4,
        mode: str = "affine",
    ) -> mx.array:
        out = w.shape[-2] if transpose else w.shape[-1] * 32 // bits
        return like_first(mx.broadcast_to(mx.array(0, x.dtype), (*x.shape[:-1], out)), x, w, scales, biases)

    def dequantize(w: mx.array, scales: mx.array, biases: mx.array | None = None, *how: Any, **named: Any) -> mx.array:
        bits = named.get("bits") or how[1]
        dtype = scales.dtype if biases is not None else mx.bfloat16
        shape = (*w.shape[:-1], w.shape[-1] * 32 // bits)
        return like_first(mx.broadcast_to(mx.array(0, dtype), shape), w, scales, biases)

    replacements: dict[tuple[Any, str], Callable[..., mx.array]] = {
        (mx.fast, "rms_norm"): like_first,
        (mx.fast, "rope"): like_first,
        (mx.fast, "scaled_dot_product_attention"): like_first,
        (mx, "quantized_matmul"): product,
        (mx, "dequantize"): dequantize,
    }
    with replaced(replacements):
        yield


@contextmanager
def replaced(functions: Mapping[tuple[Any, str], Callable[..., mx.array]]) -> Iterator[None]:
    """Replaces functions, each given by its module and its name, while the block runs."""
    real = {place: getattr(*place) for place in functions}
    try:
        for place, function in functions.items():
            setattr(*place, function)
        yield
    finally:
        for place, function in real.items():
            setattr(*place, function)
