"""`exaone4-mlx bench`: the speed of a model on this machine."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text.format import size_text
from . import flags
from .help import counts
from .output import note, progress_bar, show, show_json

if TYPE_CHECKING:
    from ..measure.bench import Bench, BenchRow, Conditions
    from ..measure.measurements import BenchRequest
    from ..model.network import Exaone4ForCausalLM

DESCRIPTION = "Measures the speed of a model on this machine, alone or compared with other engines on the same weights."
PEERS = ("mlx-lm", "transformers")
HEADINGS = ("", "engine", "median", "lowest to highest", "ours / it", "lowest to highest", "peak memory",
            "read per token", "of the bandwidth")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="a folder, a hub id, or demo")
    flags.add_checkpoint_flags(parser)
    flags.add_q_bits_flag(parser, "quantize while loading, in groups of 64")
    flags.add_adapter_flags(parser)

    measured = parser.add_argument_group("measurements", "lengths in tokens; several are separated by commas")
    measured.add_argument(
        "-p",
        "--prompt-tokens",
        type=counts,
        default="512,4096",
        metavar="N,…",
        help="lengths of prompts (default: %(default)s)",
    )
    measured.add_argument(
        "-g",
        "--generation-tokens",
        dest="decode_tokens",
        type=int,
        default=128,
        metavar="N",
        help="tokens to generate per round (default: %(default)s)",
    )
    measured.add_argument(
        "-d",
        "--depths",
        type=counts,
        default="0,4096",
        metavar="N,…",
        help="tokens in the cache before that (default: %(default)s)",
    )
    measured.add_argument(
        "--repeat",
        type=int,
        default=3,
        metavar="N",
        help="rounds, after one more round to warm up (default: %(default)s)",
    )
    measured.add_argument(
        "--prefill-step-size",
        type=int,
        default=2048,
        metavar="N",
        help="prompt tokens per chunk (default: %(default)s)",
    )
    measured.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=PEERS,
        help="compare with this engine, in alternation; may be repeated",
    )

    flags.add_kv_flags(parser.add_argument_group("caches", "of this package; the caches of the peers stay as they are"))

    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=("markdown", "csv", "json"),
        default="markdown",
        help="format of the table (default: %(default)s)",
    )
    output.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the speeds")
    parser.set_defaults(load_part=_load_part, ranks=None)
    flags.add_rank_flags(parser)


def run(options: argparse.Namespace) -> int:
    from ..files.svg import INSTALL_MATPLOTLIB, has_matplotlib
    from ..measure.bench import bench
    from ..measure.speed_plot import write_speed_plot

    if options.plot is not None and options.plot.suffix.lower() != ".svg":
        raise ValueError(f"--plot draws an SVG: the name must end in .svg, not {options.plot.name}")
    if options.plot is not None and not options.plot.parent.is_dir():
        raise FileNotFoundError(f"--plot: there is no folder {options.plot.parent}")
    if options.plot is not None and not has_matplotlib():
        raise ModuleNotFoundError(f"--plot needs matplotlib: {INSTALL_MATPLOTLIB}")
    request = _request(options)
    with progress_bar("measuring", " tests") as progress:
        found = bench(request, progress, options.ranks)
    if options.format == "json":
        show_json(dataclasses.asdict(found))
    elif options.format == "csv":
        show(_csv(found))
    else:
        for line in _markdown(found):
            show(line)
    if options.plot is not None:
        write_speed_plot(options.plot, found)
        note(f"wrote {options.plot}")
    return 0


def _load_part(options: argparse.Namespace) -> Exaone4ForCausalLM:
    """The model in a rank other than 0."""
    from ..measure.bench import load_model

    return load_model(_request(options), options.ranks)[0]


def _request(options: argparse.Namespace) -> BenchRequest:
    from ..measure.measurements import BenchRequest
    from ..model.kv import KVQuantization

    return BenchRequest(
        options.model,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.decode_tokens,
        depths=options.depths,
        repeat=options.repeat,
        peers=tuple(dict.fromkeys(options.peer)),
        revision=options.revision,
        dtype=options.dtype,
        q_bits=options.q_bits,
        prefill_step_size=options.prefill_step_size,
        kv=KVQuantization.from_flags(**flags.kv_options(options)),
        **flags.adapter_options(options),
    )


def _csv(found: Bench) -> str:
    """One line per figure, with its conditions."""
    conditions = dataclasses.asdict(found.conditions)
    conditions["versions"] = "; ".join(f"{name} {version}" for name, version in found.conditions.versions.items())
    lines = [conditions | dataclasses.asdict(row) for row in found.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _markdown(found: Bench) -> Iterator[str]:
    """The conditions, the table, and how to read it. Empty columns are left out."""
    for condition in _conditions(found.conditions):
        yield f"- {condition}"
    yield ""
    lines = [_cells(row) for row in found.rows]
    columns = [column for column in zip(HEADINGS, *lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    rule = ["-" * width for width in widths]
    heading, *rest = zip(*columns, strict=True)
    for line in (heading, rule, *rest):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
    if len({row.engine for row in found.rows}) > 1:
        yield ""
        yield (
            "ours / it: our figure divided by this engine's, the median of alternating pairs. For tokens/s a ratio "
            "above 1 is better, for times and counts a ratio below 1."
        )


def _conditions(conditions: Conditions) -> Iterator[str]:
    c = conditions
    yield f"{c.model}: {c.layers} layers, computed in {c.dtype}, {c.bits_per_weight:.3g} bits per weight" + (
        c.kv and f"; {c.kv}"
    )
    if c.ranks > 1:
        how = f" with pipeline {','.join(map(str, c.pipeline))}" if c.pipeline else ""
        yield f"{c.ranks} ranks by {c.backend}{how}; memory and bytes, and the machine below, are those of rank 0"
    yield f"{c.machine}, {c.cores} cores, {size_text(c.memory_bytes)}, {c.system}; MLX on the {c.device.upper()}"
    yield ", ".join(f"{name} {version}" for name, version in c.versions.items())
    yield (
        f"{c.repeat} round{'s' if c.repeat > 1 else ''}, engines in alternation, after one warm-up round; "
        f"load average {c.load_average:.1f} before"
    )
    yield f"greedy; fixed random prompts, read {c.prefill_step_size:,} tokens at a time"
    yield (
        f"memory bandwidth {c.bandwidth_bytes_per_second / 1e9:.3g} GB/s: the best of sums and copies of 256 MiB in MLX"
    )
    if c.ranks == 1:
        yield "one token, whole process: the command line from start to end, with the folder as it is stored"


def _cells(row: BenchRow) -> tuple[str, ...]:
    def number(value: float) -> str:
        return f"{value:.0f}" if row.unit == "nodes" or value >= 1000 else f"{value:.3g}"

    def spread(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None or low == high else f"{low:.3g} to {high:.3g}"

    ends = "" if row.unit == "nodes" else f"{number(row.low)} to {number(row.high)}"
    return (
        title(row),
        row.engine,
        f"{number(row.median)} {'' if row.unit == 'nodes' else row.unit}".strip(),
        ends,
        _format_if(row.ratio, "{:.3g}"),
        spread(row.ratio_low, row.ratio_high),
        "" if row.peak_bytes is None else size_text(row.peak_bytes),
        "" if row.bytes_per_token is None else size_text(row.bytes_per_token),
        _format_if(row.bandwidth_fraction, "{:.0%}"),
    )


def _format_if(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def title(row: BenchRow) -> str:
    """The name of a measurement with its lengths."""
    lengths = "" if row.tokens is None else f", {row.tokens:,} tokens"
    return row.test + lengths + ("" if row.depth is None else f" at depth {row.depth:,}")
