"""How fast a model is on the machine at hand, by itself and beside others that run the same weights.

What is peculiar here:
- Engines take turns, and who begins changes each time, so that what else the machine does falls on all alike. A
  ratio is one of neighbours in time.
- Beside seconds, which hold for this machine only, stands what holds for any: the nodes of a step's graph, Python's
  share of a step, the bytes that a token needs.
- Nodes are counted as a GPU has them, where each function of `mx.fast` is one; on the CPU it falls apart into many.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..files.folders import find_folder
from ..files.safetensors import read_dtype
from ..generation.options import PREFILL_STEP_SIZE
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.load import load_model
from ..model.network import Exaone4ForCausalLM
from ..model.source import open_checkpoint
from ..text.tokenizer import Tokenizer
from .engines import Engine, MlxLm, Ours, Transformers, build_seconds, check_installed, nbytes, quantization_of
from .fit import memory_of_this_machine, row_bytes, weight_shapes

#: (measurements done, all of them) -> None
Progress = Callable[[int, int], None]

BANDWIDTH_BYTES = 2**28  # of the array that is read and copied: more than any processor's cache holds
MESSAGE_NUMBERS = (100, 5)  # in the messages of the conversation: what comes second is short, what came is reused
#: Primitives that only look at an array in another way: no kernel runs for them.
VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze",
    "StopGradient", "Transpose", "Unflatten", "View",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is to be measured. Lengths are in tokens; `revision`, `dtype` and `q_bits` are `load`'s.

    Prompts of each of `prompt_tokens` are read; `decode_tokens` are made after prompts of each of `depths`. Each
    figure is taken `repeat` times, and once before for warming up. `peers` are run beside ours. `kv` holds the `kv_`
    options of `generate`: how our caches are quantized; the peers' are not.
    Raises ValueError for what cannot be measured.
    """

    model: str
    prompt_tokens: tuple[int, ...] = (512, 4096)
    decode_tokens: int = 128
    depths: tuple[int, ...] = (0, 4096)
    repeat: int = 3
    peers: tuple[str, ...] = ()
    revision: str | None = None
    dtype: str | None = None
    q_bits: int | None = None
    prefill_step_size: int = PREFILL_STEP_SIZE
    kv: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, flag, least in (("prompt_tokens", "-p", 1), ("depths", "-d", 0)):
            if wrong := [value for value in getattr(self, name) if value < least]:
                raise ValueError(f"{name} ({flag}) must be {least} or more, not {wrong[0]}")
        for name, flag in (
            ("decode_tokens", "-g"),
            ("repeat", "--repeat"),
            ("prefill_step_size", "--prefill-step-size"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({flag}) must be 1 or more, not {getattr(self, name)}")
        read_dtype(self.dtype)
        for peer in self.peers:
            check_installed(peer)

    def check_model(self, folder: Path, config: Exaone4Config) -> None:
        """Raises ValueError for lengths that the model does not reach, and for peers that cannot read it."""
        longest = max(*self.prompt_tokens, *(depth + self.decode_tokens + 2 for depth in self.depths))
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"{longest} tokens are more than the model's context of {config.max_position_embeddings}: "
                "ask for shorter prompts (-p) and depths (-d)"
            )
        quantized = self.q_bits is not None or any(
            t.exact for t in open_checkpoint(folder, Exaone4ForCausalLM).source.tensors.values()
        )
        if "transformers" in self.peers and quantized:
            raise ValueError("transformers reads weights in full precision only, not MLX's quantized ones")


@dataclass(frozen=True)
class Row:
    """One figure of one engine: the median of what was measured, and the lowest and highest.

    `tokens` says how many were read or made, after `depth` others. `ratio` is our figure to this engine's, the
    median of the pairs taken in turn. `peak_bytes` is MLX's peak, less what other engines hold. What a token needs to
    read, `bytes_per_token`, passes at `bandwidth_fraction` of the speed that the machine has for it.
    """

    test: str
    engine: str
    unit: str
    median: float
    low: float
    high: float
    tokens: int | None = None
    depth: int | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    peak_bytes: int | None = None
    bytes_per_token: int | None = None
    bandwidth_fraction: float | None = None


@dataclass(frozen=True)
class Conditions:
    """What the figures hold for. `load_average` is how many processes were busy in the minute before."""

    machine: str
    cores: int
    memory_bytes: int
    system: str
    device: str
    versions: Mapping[str, str]
    model: str
    layers: int
    dtype: str
    bits_per_weight: float
    kv: str
    prefill_step_size: int
    repeat: int
    load_average: float
    bandwidth_bytes_per_second: float


@dataclass(frozen=True)
class Bench:
    conditions: Conditions
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Measurement:
    """What is measured in one go: `measure` gives seconds for each of `lengths`, None where an engine cannot.

    `lengths` are tokens by name; what has no such length has None.
    """

    lengths: Mapping[str, int | None]
    unit: str  # "tokens/s", "ms" or "s"
    measure: Callable[[Engine], Sequence[float] | None]
    depth: int | None = None

    def figure(self, name: str, seconds: float) -> float:
        if self.unit == "tokens/s":
            return (self.lengths[name] or 0) / seconds
        return 1000 * seconds if self.unit == "ms" else seconds


@dataclass(frozen=True)
class Taken:
    """What one engine gave for one test: seconds by name, of each turn; and the highest of MLX's peaks."""

    seconds: tuple[Sequence[float], ...]
    peak_bytes: int


def bench(request: Request, progress: Progress | None = None) -> Bench:
    """Measures what is asked for.

    Raises FileNotFoundError and ValueError, before the first measurement, for what is not there, for a folder that a
    peer cannot read, and for lengths beyond the model's context.
    """
    folder = find_folder(request.model, request.revision)
    config = Exaone4Config.from_file(folder / "config.json")
    request.check_model(folder, config)
    kv = KVQuantization.read(config, **request.kv)
    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_model(folder, dtype=request.dtype, q_bits=request.q_bits)
    engines: list[Engine] = [Ours(model, tokenizer, folder, request.prefill_step_size, kv)]
    if "mlx-lm" in request.peers:
        engines.append(MlxLm(model, folder, request.prefill_step_size, read_dtype(request.dtype)))
    if "transformers" in request.peers:
        engines.append(Transformers(folder, dtype_name(model)))
    bandwidth = memory_bandwidth()
    conditions = _conditions(request, model, bandwidth, kv)

    rows: list[Row] = []
    tests = list(_tests(request, tokenizer, config.vocab_size))
    for done, test in enumerate(tests):
        if progress:
            progress(done, len(tests) + 1)
        rows += _rows(test, take_turns(engines, test.measure, request.repeat), model, bandwidth, kv)
    if progress:
        progress(len(tests), len(tests) + 1)
    names = [engine.name for engine in engines if engine.name != Transformers.name]
    seconds: dict[str, list[float]] = _apart("host_seconds", names, *_kind(model), request.repeat)
    host = Measurement({"Python's share of a step, as with a GPU": None}, "ms", lambda engine: None)
    rows += _rows(host, {name: Taken((found,), 0) for name, found in seconds.items()}, model, bandwidth)
    rows += _node_rows(model, names)
    if progress:
        progress(len(tests) + 1, len(tests) + 1)
    return Bench(conditions, tuple(rows))


# --- what is measured -----------------------------------------------------------------------------------------


def _tests(request: Request, tokenizer: Tokenizer, vocab_size: int) -> Iterator[Measurement]:
    for length in request.prompt_tokens:
        ids = random_ids(length, vocab_size)
        yield Measurement({"prefill": length}, "tokens/s", partial(_prefill, ids))
    for depth in request.depths:
        ids = random_ids(max(depth, 1), vocab_size)  # nothing can be made of no token at all
        count = request.decode_tokens
        yield Measurement({"decode": count}, "tokens/s", partial(_decode, ids, count), depth)
    yield Measurement({"Python's share of a step": None}, "ms", _build)
    messages = [random_message(count) for count in MESSAGE_NUMBERS]
    names = ("first token, new conversation", "first token, second turn")
    lengths = {name: len(tokenizer.encode(message)) for name, message in zip(names, messages, strict=True)}
    yield Measurement(lengths, "s", lambda engine: engine.conversation(messages))
    yield Measurement({"one token, whole process": None}, "s", _start)


def _prefill(ids: Sequence[int], engine: Engine) -> list[float]:
    return [engine.prefill(ids)]


def _decode(ids: Sequence[int], count: int, engine: Engine) -> list[float]:
    return [engine.decode(ids, count)]


def _build(engine: Engine) -> list[float] | None:
    seconds = engine.build()
    return None if seconds is None else [seconds]


def _start(engine: Engine) -> list[float] | None:
    """From the start of the engine's command line to its end. Raises RuntimeError with what it said if it fails."""
    command = engine.command("Hello")
    if command is None:
        return None
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr.strip()[-300:]}")
    return [seconds]


def random_ids(length: int, vocab_size: int) -> list[int]:
    """Always the same random tokens."""
    source = random.Random(f"{length} tokens")
    return [source.randrange(vocab_size) for _ in range(length)]


def random_message(count: int) -> str:
    """Always the same random numbers, for a user to say."""
    source = random.Random(f"{count} numbers")
    return " ".join(str(source.randrange(1000)) for _ in range(count))


def take_turns(
    engines: Sequence[Engine], measure: Callable[[Engine], Sequence[float] | None], repeat: int
) -> dict[str, Taken]:
    """Measures all engines `repeat` times, in turn, the last one first in every other round.

    A first round, for warming up, does not count. Engines that cannot are left out.
    """
    able = [engine for engine in engines if measure(engine) is not None]
    rounds: dict[str, list[Sequence[float]]] = {engine.name: [] for engine in able}
    peaks = dict.fromkeys(rounds, 0)
    for turn in range(repeat):
        for engine in able if turn % 2 == 0 else reversed(able):
            mx.clear_cache()  # none profits from buffers that another one left
            others = mx.get_active_memory() - engine.weights_bytes
            mx.reset_peak_memory()
            seconds = measure(engine)
            assert seconds is not None
            rounds[engine.name].append(seconds)
            peaks[engine.name] = max(peaks[engine.name], mx.get_peak_memory() - others)
    return {name: Taken(tuple(zip(*taken, strict=True)), peaks[name]) for name, taken in rounds.items()}


def _rows(
    test: Measurement,
    taken: Mapping[str, Taken],
    model: Exaone4ForCausalLM,
    bandwidth: float,
    kv: KVQuantization | None = None,
) -> Iterator[Row]:
    for number, (name, length) in enumerate(test.lengths.items()):
        ours = [test.figure(name, seconds) for seconds in taken[Ours.name].seconds[number]]
        for engine, found in taken.items():
            figures = [test.figure(name, seconds) for seconds in found.seconds[number]]
            median = statistics.median(figures)
            more: dict[str, Any] = {}
            if engine != Ours.name:
                ratios = [a / b for a, b in zip(ours, figures, strict=True)]
                more |= {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
            if test.unit == "tokens/s" and engine != Transformers.name:
                more["peak_bytes"] = found.peak_bytes
            if test.depth is not None:
                own = kv if engine == Ours.name else None
                needed = bytes_per_token(model, test.depth + (length or 0) / 2, own)
                more |= {"bytes_per_token": needed, "bandwidth_fraction": median * needed / bandwidth}
            yield Row(name, engine, test.unit, median, min(figures), max(figures), length, test.depth, **more)


# --- bytes ----------------------------------------------------------------------------------------------------


def bytes_per_token(model: Exaone4ForCausalLM, depth: float, kv: KVQuantization | None = None) -> int:
    """Bytes that one decode step has to read: weights as stored, one embedding, keys and values of `depth` tokens.

    Of tied embeddings all rows are read, as the head, and one more as the embedding. `kv` says how caches are stored.
    """
    config, dtype_size = model.config, model.model.norm.weight.dtype.size
    embeddings = nbytes(model.model.embed_tokens)
    weights = nbytes(model) - (0 if config.tie_word_embeddings else embeddings)
    attended = 0.0
    for layer in config.layers:
        rows = depth if layer.window is None else min(depth, layer.window)
        attended += rows * row_bytes(config, dtype_size, kv and kv.of_layer(layer.window))
    return int(weights + embeddings / config.vocab_size + attended)


def memory_bandwidth() -> float:
    """Bytes per second that MLX moves at best here: the most of sums and copies of an array of 256 MiB, four each.

    A sum reads the array, a copy (with one added) reads and writes it. On MLX's CPU backend both run on one core.
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


# --- the graph of one step ------------------------------------------------------------------------------------


def _node_rows(model: Exaone4ForCausalLM, engines: Sequence[str]) -> Iterator[Row]:
    counts: dict[str, dict[str, int]] = {name: _apart("count_nodes", name, *_kind(model)) for name in engines}
    for test, ours in counts[Ours.name].items():
        for engine, found in counts.items():
            count, ratio = found[test], None if engine == Ours.name else ours / found[test]
            yield Row(test, engine, "nodes", count, count, count, ratio=ratio, ratio_low=ratio, ratio_high=ratio)


def _kind(model: Exaone4ForCausalLM) -> tuple[dict[str, Any], str, bool]:
    return model.config.to_dict(), dtype_name(model), bool(quantization_of(model))


def _apart(function: str, *arguments: Any) -> Any:
    """A function of this module in a process of its own: what is compiled there keeps stand-ins for ever."""
    asked = json.dumps(arguments)
    code = f"import json; from exaone4_mlx import bench; print(json.dumps(bench.{function}(*json.loads({asked!r}))))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{function}{tuple(arguments[:1])} failed: {ended.stderr.strip()[-300:]}")
    return json.loads(ended.stdout)


def host_seconds(
    engines: Sequence[str], config: Mapping[str, Any], dtype: str, is_quantized: bool, repeat: int
) -> dict[str, list[float]]:
    """How long Python takes to build the graph of one decode step, in each of `repeat` turns, by engine.

    Each function of `mx.fast` is one node, as on GPUs, and nothing is evaluated in between: here the device is the
    processor that Python runs on, and would take its caches away. So the model can be narrow. This process must do
    nothing else.
    """

    def build(engine: Any) -> list[float]:
        return [build_seconds(engine.model, evaluates=False)]

    shape = _narrow(config, config["layer_types"])
    narrow: list[Any] = [
        SimpleNamespace(name=name, weights_bytes=0, model=_loaded(name, shape, dtype, is_quantized)) for name in engines
    ]
    fast = ("rms_norm", "rope", "scaled_dot_product_attention")
    with standing_in({(mx.fast, name): lambda x, *others, **named: mx.abs(x) for name in fast}):
        taken = take_turns(narrow, build, repeat)
    return {name: list(found.seconds[0]) for name, found in taken.items()}


def count_nodes(engine: str, config: Mapping[str, Any], dtype: str, is_quantized: bool) -> dict[str, int]:
    """Graph nodes of one decode step of a model like this, and of each kind of its layers.

    The model is narrow, since widths make no difference; those of a layer are what one layer more adds. This process
    must do nothing else: see `one_node_each`.
    """

    def nodes(layer_types: Sequence[str]) -> Counter[str]:
        model = _loaded(engine, _narrow(config, layer_types), dtype, is_quantized)  # before dequantizing has a stand-in
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


def _narrow(config: Mapping[str, Any], layer_types: Sequence[str]) -> Exaone4Config:
    """A model with these layers, and little in each."""
    return Exaone4Config.from_dict(
        {name: value for name, value in config.items() if name not in ("sliding_window_pattern", "pad_token_id")}
        | {"num_hidden_layers": len(layer_types), "layer_types": layer_types}
        | {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "bos_token_id": 1, "eos_token_id": 2}
        | {"num_attention_heads": 8, "num_key_value_heads": 4}
        | {"sliding_window": config["sliding_window"] and 64}  # more than are read, as a long window is
    )


def _loaded(engine: str, config: Exaone4Config, dtype: str, is_quantized: bool) -> Any:
    """A model of this shape whose weights are zeros, as loading leaves it."""
    zeros = {name: mx.zeros(shape, read_dtype(dtype)) for name, shape in weight_shapes(config).items()}
    if engine == Ours.name:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()))
            mx.save_safetensors(f"{folder}/model.safetensors", zeros)
            return load_model(Path(folder), q_bits=4 if is_quantized else None)
    from mlx_lm.models import exaone4

    arguments: Any = exaone4.ModelArgs
    model: Any = exaone4.Model(arguments.from_dict(config.to_dict()))
    model.load_weights(list(zeros.items()))
    if is_quantized:
        nn.quantize(model)
    mx.eval(model.parameters())
    return model


def step_nodes(model: Callable[[mx.array, Any], mx.array], cache: Sequence[Any]) -> Counter[str]:
    """The primitives of one greedy decode step, counted by name. To be called within `one_node_each`.

    `model(ids, cache)` gives logits. `cache` is empty, and has room for eight tokens.
    """
    token = mx.array([[1]])
    for ids in (mx.array([[1, 1, 1, 1]]), token, token):  # until buffers are made that the next token fits into
        mx.eval(model(ids, cache))
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.argmax(model(token, cache)[:, -1], axis=-1))
    return Counter(re.findall(r'\[label ="(\w+)", shape=rectangle\]', graph.getvalue()))


def dispatching(nodes: Mapping[str, int]) -> int:
    """How many of these are computed by a kernel."""
    return sum(count for name, count in nodes.items() if name not in VIEWS)


@contextmanager
def one_node_each() -> Iterator[None]:
    """Makes one node of each call of `mx.fast`, of quantized products and of `mx.dequantize`, as GPUs have it.

    The stand-ins have the right shapes and depend on the right arrays, and compute nothing that makes sense. What is
    compiled meanwhile keeps them: a process that has been here must not run a model afterwards.
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

    stand_ins: dict[tuple[Any, str], Callable[..., mx.array]] = {
        (mx.fast, "rms_norm"): like_first,
        (mx.fast, "rope"): like_first,
        (mx.fast, "scaled_dot_product_attention"): like_first,
        (mx, "quantized_matmul"): product,
        (mx, "dequantize"): dequantize,
    }
    with standing_in(stand_ins):
        yield


@contextmanager
def standing_in(functions: Mapping[tuple[Any, str], Callable[..., mx.array]]) -> Iterator[None]:
    """Puts functions in the places of others, each a module and a name."""
    real = {place: getattr(*place) for place in functions}
    try:
        for place, function in functions.items():
            setattr(*place, function)
        yield
    finally:
        for place, function in real.items():
            setattr(*place, function)


# --- the machine ----------------------------------------------------------------------------------------------


def _conditions(request: Request, model: Exaone4ForCausalLM, bandwidth: float, kv: KVQuantization | None) -> Conditions:
    packages = ["mlx", *request.peers, *(["torch"] if "transformers" in request.peers else [])]
    return Conditions(
        machine=str(mx.device_info().get("device_name") or platform.processor()),
        cores=os.cpu_count() or 1,
        memory_bytes=memory_of_this_machine(),
        system=f"{platform.system()} {platform.release()}",
        device="gpu" if mx.default_device() == mx.gpu else "cpu",
        versions={"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages},
        model=request.model,
        layers=model.config.num_hidden_layers,
        dtype=dtype_name(model),
        bits_per_weight=bits_per_weight(model),
        kv=str(kv or ""),
        prefill_step_size=request.prefill_step_size,
        repeat=request.repeat,
        load_average=os.getloadavg()[0],
        bandwidth_bytes_per_second=bandwidth,
    )


def dtype_name(model: Exaone4ForCausalLM) -> str:
    """What a model computes in."""
    return str(model.model.norm.weight.dtype).removeprefix("mlx.core.")


def bits_per_weight(model: Exaone4ForCausalLM) -> float:
    """As they are stored, scales and biases counted."""
    shapes = weight_shapes(model.config).values()
    return 8 * nbytes(model) / sum(math.prod(shape) for shape in shapes)
