"""`bench`: how fast a model runs on this machine, alone or against other engines with the same weights.

Notes:
- Seconds are valid for this machine only. The nodes of the graph of a step, Python's share of a step and the bytes that
  a token needs are valid for any machine.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cluster.ranks import Ranks
from ..files.folders import find_folder
from ..files.safetensors import read_dtype
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import load_network
from ..text.tokenizer import Tokenizer
from .engines import Engine, Ours, Samples, bits_per_weight, bytes_per_token, quantization_of, take_turns
from .graph import in_own_process
from .machine import describe_machine, memory_bandwidth
from .measurements import BenchRequest, Measurement, measurements
from .peers import MlxLm, Transformers

#: (measurements done, all of them) -> None
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BenchRow:
    """One figure of one engine: the median, the lowest and the highest measurement.

    `tokens` were read or generated, after `depth` others. `ratio` is our figure divided by the figure of this engine:
    the median of the pairs of neighbouring measurements. `peak_bytes` is MLX's peak, without what other engines hold.
    A token reads `bytes_per_token`, at `bandwidth_fraction` of the bandwidth of the machine.
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
    """The conditions of the figures. `load_average` is the number of busy processes in the minute before."""

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
    ranks: int = 1
    backend: str = ""  # that joins the ranks
    pipeline: tuple[int, ...] = ()  # the layers of each rank, if they have whole layers


@dataclass(frozen=True)
class Bench:
    conditions: Conditions
    rows: tuple[BenchRow, ...]


def bench(request: BenchRequest, progress: Progress | None = None, ranks: Ranks | None = None) -> Bench:
    """Measures what `request` lists. With `ranks` it runs in rank 0, while the others `follow` their `load_model`.

    Figures of other processes are left out with ranks: the time to start, the nodes, and Python's share with a GPU.
    Raises FileNotFoundError and ValueError before the first measurement: for a missing model, for a folder that a peer
    cannot read, and for lengths beyond the model's context.
    """
    model, folder = load_model(request, ranks)
    kv = KVQuantization.coerce(request.kv, model.config)
    tokenizer = Tokenizer.from_pretrained(folder)
    engines: list[Engine] = [Ours(model, tokenizer, folder, request.prefill_step_size, kv)]
    if "mlx-lm" in request.peers:
        engines.append(MlxLm(model, folder, request.prefill_step_size, read_dtype(request.dtype)))
    if "transformers" in request.peers:
        engines.append(Transformers(folder, dtype_name(model)))
    bandwidth = memory_bandwidth()
    conditions = _conditions(request, model, bandwidth, kv)

    rows: list[BenchRow] = []
    tests = list(measurements(request, tokenizer, model.config.vocab_size))
    for done, test in enumerate(tests):
        if progress:
            progress(done, len(tests) + 1)
        rows += _rows(test, take_turns(engines, test.measure, request.repeat), model, bandwidth, kv)
    if progress:
        progress(len(tests), len(tests) + 1)
    if ranks is None:
        rows += _rows_of_own_processes(engines, model, request.repeat, bandwidth)
    if progress:
        progress(len(tests) + 1, len(tests) + 1)
    return Bench(conditions, tuple(rows))


def load_model(request: BenchRequest, ranks: Ranks | None = None) -> tuple[Exaone4ForCausalLM, Path]:
    """The model of a request and its folder; of several ranks, the part of this one. Errors are those of `bench`."""
    folder = find_folder(request.model, request.revision)
    request.check_model(folder, Exaone4Config.from_file(folder / "config.json"))
    model = load_network(Exaone4ForCausalLM, folder, dtype=request.dtype, q_bits=request.q_bits, ranks=ranks)
    if request.adapter_path:
        model.set_adapters(request.adapter_path, request.adapter_scale)
    model.fused()
    return model, folder


def _rows_of_own_processes(
    engines: Sequence[Engine], model: Exaone4ForCausalLM, repeat: int, bandwidth: float
) -> Iterator[BenchRow]:
    names = [engine.name for engine in engines if engine.name != Transformers.name]
    seconds: dict[str, list[float]] = in_own_process("host_seconds", names, *_kind(model), repeat)
    host = Measurement({"Python's share of a step, as with a GPU": None}, "ms", lambda engine: None)
    yield from _rows(host, {name: Samples((found,), 0) for name, found in seconds.items()}, model, bandwidth)
    yield from _node_rows(model, names)


def _rows(
    test: Measurement,
    taken: Mapping[str, Samples],
    model: Exaone4ForCausalLM,
    bandwidth: float,
    kv: KVQuantization | None = None,
) -> Iterator[BenchRow]:
    for number, (name, length) in enumerate(test.lengths.items() if Ours.name in taken else ()):
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
            yield BenchRow(name, engine, test.unit, median, min(figures), max(figures), length, test.depth, **more)


def _node_rows(model: Exaone4ForCausalLM, engines: Sequence[str]) -> Iterator[BenchRow]:
    counts: dict[str, dict[str, int]] = {name: in_own_process("count_nodes", name, *_kind(model)) for name in engines}
    for test, ours in counts[Ours.name].items():
        for engine, found in counts.items():
            count, ratio = found[test], None if engine == Ours.name else ours / found[test]
            yield BenchRow(test, engine, "nodes", count, count, count, ratio=ratio, ratio_low=ratio, ratio_high=ratio)


def _kind(model: Exaone4ForCausalLM) -> tuple[dict[str, Any], str, bool, str | None]:
    """Config, dtype, whether it is quantized, and the kind of adapter that takes most nodes."""
    kinds = {adapter.config.fine_tune_type for adapter, _ in model.adapters}
    adapter = next((kind for kind in ("dora", "lora") if kind in kinds), None)
    return model.config.to_dict(), dtype_name(model), bool(quantization_of(model)), adapter


def _conditions(
    request: BenchRequest, model: Exaone4ForCausalLM, bandwidth: float, kv: KVQuantization | None
) -> Conditions:
    machine = describe_machine(["mlx", *request.peers, *(["torch"] if "transformers" in request.peers else [])])
    return Conditions(
        machine=machine.processor,
        cores=machine.cores,
        memory_bytes=machine.memory_limit_bytes,
        system=machine.system,
        device=machine.device,
        versions=machine.versions,
        model=" + ".join([request.model, *(adapter.name for adapter, _ in model.adapters)]),
        layers=model.config.num_hidden_layers,
        dtype=dtype_name(model),
        bits_per_weight=bits_per_weight(model),
        kv=str(kv or ""),
        prefill_step_size=request.prefill_step_size,
        repeat=request.repeat,
        load_average=os.getloadavg()[0],
        bandwidth_bytes_per_second=bandwidth,
        ranks=1 if model.ranks is None else model.ranks.size,
        backend="" if model.ranks is None else model.ranks.backend,
        pipeline=() if model.pipeline is None else model.pipeline.stage.layers,
    )


def dtype_name(model: Exaone4ForCausalLM) -> str:
    """The dtype in which a model computes."""
    return str(model.model.norm.weight.dtype).removeprefix("mlx.core.")
