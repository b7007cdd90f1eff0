"""`exaone4-mlx bench`: how fast a model is here."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import main as cli

if TYPE_CHECKING:
    from ..measure.bench import Bench, BenchRow, Conditions

HELP = "measure how fast a model is here"
DESCRIPTION = "Measures how fast a model is on this machine, by itself or beside others that run the same weights."
PEERS = ("mlx-lm", "transformers")
HEADINGS = ("", "engine", "median", "lowest to highest", "ours / it", "lowest to highest", "peak memory",
            "read per token", "of the bandwidth")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="a folder, a hub id, or demo")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights (default: keep theirs)"
    )
    parser.add_argument("--q-bits", type=int, metavar="N", help="quantize while loading, in groups of 64")

    measured = parser.add_argument_group("what is measured", "lengths in tokens, several separated by commas")
    measured.add_argument(
        "-p", "--prompt-tokens", type=_counts, default="512,4096", metavar="N,…", help="prompts (default: %(default)s)"
    )
    measured.add_argument(
        "-g", "--generation-tokens", type=int, default=128, metavar="N", help="made at a time (default: %(default)s)"
    )
    measured.add_argument(
        "-d", "--depths", type=_counts, default="0,4096", metavar="N,…", help="read before that (default: %(default)s)"
    )
    measured.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="rounds, and one more to warm up (default: %(default)s)"
    )
    measured.add_argument(
        "--prefill-step-size",
        type=int,
        default=2048,
        metavar="N",
        help="prompt tokens per chunk (default: %(default)s)",
    )
    measured.add_argument(
        "--peer", action="append", default=[], choices=PEERS, help="run this beside, in turns; may be repeated"
    )

    cli.add_kv_arguments(parser.add_argument_group("caches", "ours; the peers' stay as they are"))

    output = parser.add_argument_group("output")
    output.add_argument(
        "--format", choices=("markdown", "csv", "json"), default="markdown", help="of the table (default: %(default)s)"
    )
    output.add_argument("--plot", type=Path, metavar="FILE.svg", help="a picture of the speeds, too")
    output.add_argument("--debug", action="store_true", help="show tracebacks")


def _counts(text: str) -> tuple[int, ...]:
    """Numbers that are separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, and no numbers separated by commas") from None


def run(options: argparse.Namespace) -> int:
    from ..files.svg import INSTALL_MATPLOTLIB, has_matplotlib
    from ..measure.bench import bench
    from ..measure.measurements import BenchRequest
    from ..measure.speed_plot import write_speed_plot

    if options.plot is not None and options.plot.suffix.lower() != ".svg":
        raise ValueError(f"--plot draws an SVG; call the file .svg, not {options.plot.name}")
    if options.plot is not None and not options.plot.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.plot.parent} to draw the plot in")
    if options.plot is not None and not has_matplotlib():
        raise ModuleNotFoundError(f"--plot needs matplotlib: {INSTALL_MATPLOTLIB}")
    request = BenchRequest(
        options.model,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.generation_tokens,
        depths=options.depths,
        repeat=options.repeat,
        peers=tuple(dict.fromkeys(options.peer)),
        revision=options.revision,
        dtype=options.dtype,
        q_bits=options.q_bits,
        prefill_step_size=options.prefill_step_size,
        kv=cli.kv_options(options),
    )
    with cli.progress_bar("measuring", " tests") as progress:
        found = bench(request, progress)
    if options.format == "json":
        cli.print_json(dataclasses.asdict(found))
    elif options.format == "csv":
        cli.tell(_csv(found))
    else:
        for line in _markdown(found):
            cli.tell(line)
    if options.plot is not None:
        write_speed_plot(options.plot, found)
        cli.say(f"drew {options.plot}")
    return 0


def _csv(found: Bench) -> str:
    """A line for each figure, with its conditions."""
    conditions = dataclasses.asdict(found.conditions)
    conditions["versions"] = "; ".join(f"{name} {version}" for name, version in found.conditions.versions.items())
    lines = [conditions | dataclasses.asdict(row) for row in found.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _markdown(found: Bench) -> Iterator[str]:
    """What was measured with, a table, and how to read it. Columns that would be empty are left out."""
    for told in _told(found.conditions):
        yield f"- {told}"
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
            "ours / it: our figure to this engine's, the median of pairs taken in turn. Of tokens/s more than 1 is "
            "better, of times and counts less."
        )


def _told(conditions: Conditions) -> Iterator[str]:
    c = conditions
    yield f"{c.model}: {c.layers} layers, computed in {c.dtype}, {c.bits_per_weight:.3g} bits per weight" + (
        c.kv and f"; {c.kv}"
    )
    yield f"{c.machine}, {c.cores} cores, {cli.size_text(c.memory_bytes)}, {c.system}; MLX on the {c.device.upper()}"
    yield ", ".join(f"{name} {version}" for name, version in c.versions.items())
    yield (
        f"{c.repeat} round{'s' if c.repeat > 1 else ''}, engines in turn, after one that does not count; "
        f"load average {c.load_average:.1f} before"
    )
    yield f"greedy; random prompts, always the same, read {c.prefill_step_size:,} tokens at a time"
    yield (
        f"memory bandwidth {c.bandwidth_bytes_per_second / 1e9:.3g} GB/s: MLX's best of sums and copies of an array of "
        "256 MiB"
    )
    yield "one token, whole process: from the start of the command line to its end, of the folder as it is stored"


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
        _told_if(row.ratio, "{:.3g}"),
        spread(row.ratio_low, row.ratio_high),
        "" if row.peak_bytes is None else cli.size_text(row.peak_bytes),
        "" if row.bytes_per_token is None else cli.size_text(row.bytes_per_token),
        _told_if(row.bandwidth_fraction, "{:.0%}"),
    )


def _told_if(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def title(row: BenchRow) -> str:
    """What a row measures, with its lengths."""
    lengths = "" if row.tokens is None else f", {row.tokens:,} tokens"
    return row.test + lengths + ("" if row.depth is None else f" at depth {row.depth:,}")
