"""`exaone4-mlx cluster check`: the machines and links of a host file, measured."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..cluster import TIMEOUT
from ..files.text import parse_json
from ..text.format import size_text
from .main import is_launched
from .output import show, show_json

if TYPE_CHECKING:
    from ..measure.links import ClusterReport

DESCRIPTION = (
    "Starts a process on each machine of a host file, measures machines and links, and predicts the speed of a model."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",), help="what to do")
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="the host file of mlx.launch")
    parser.add_argument(
        "--backend", choices=("ring", "jaccl", "jaccl-ring"), default="ring", help="default: %(default)s"
    )
    parser.add_argument(
        "--starting-port", type=int, default=32323, metavar="N", help="of mlx.launch; default: %(default)s"
    )
    parser.add_argument("--model", metavar="PATH", help="predict its speed: a folder, a config.json, a hub id, or demo")
    parser.add_argument("--rank-timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    if not is_launched():
        return _launch(options)
    from ..cluster.ranks import join_ranks
    from ..measure.links import measure
    from ..measure.sizes import read_sizes

    ranks = join_ranks(options.rank_timeout)
    if ranks is None:
        raise ValueError("cluster check needs several ranks: a host file with one host has none")
    try:
        report = measure(ranks, None if options.model is None else read_sizes(options.model))
    except Exception as error:
        if ranks.rank:
            ranks.watchdog.end_by(error)
        ranks.leave(error)
        raise
    ranks.leave()
    if report is None:
        return 0
    if options.json:
        show_json(dataclasses.asdict(report) | {"differences": report.differences})
    else:
        for line in _lines(report):
            show(line)
    return 1 if report.differences else 0


def _launch(options: argparse.Namespace) -> int:
    """Runs this command by mlx.launch on all hosts."""
    if options.hostfile is None:
        raise ValueError("--hostfile FILE is needed: mlx.distributed_config writes one")
    if not options.hostfile.is_file():
        raise FileNotFoundError(f"--hostfile: there is no file {options.hostfile}")
    hosts = parse_json(options.hostfile.read_bytes(), str(options.hostfile))
    hosts = hosts.get("hosts") if isinstance(hosts, dict) else hosts
    if not isinstance(hosts, list) or len(hosts) < 2:
        raise ValueError(f"{options.hostfile} must name two hosts or more: mlx.distributed_config writes such a file")
    beside = Path(sys.executable).parent / "mlx.launch"
    program = str(beside) if beside.is_file() else shutil.which("mlx.launch")
    if program is None:
        raise FileNotFoundError("mlx.launch, a program of the package mlx, is not installed")
    command = [sys.executable, "-m", "exaone4_mlx", "cluster", "check", "--rank-timeout", str(options.rank_timeout)]
    command += ["--model", options.model] if options.model else []
    command += ["--json"] if options.json else []
    launch = [program, "--hostfile", str(options.hostfile), "--backend", options.backend]
    launch += ["--starting-port", str(options.starting_port), "--", *command]
    return subprocess.run(launch, stdin=subprocess.DEVNULL, check=False).returncode


def _lines(report: ClusterReport) -> Iterator[str]:
    from ..measure.links import jaccl_advice

    for machine in report.machines:
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        yield (
            f"rank {machine.rank}  {machine.host}: {machine.processor}, {machine.macos or machine.system}, "
            f"{size_text(machine.memory_limit_bytes)} for models at {machine.bandwidth / 1e9:.3g} GB/s; {versions}"
        )
    for link in report.links:
        yield (
            f"link  {link.first} – {link.second} ({report.backend}): {link.latency * 1e6:.0f} µs, "
            f"{link.bandwidth / 1e9:.3g} GB/s"
        )
    yield f"a sum of {report.sum_bytes:,} bytes over all ranks: {report.sum_seconds * 1e6:.0f} µs"
    if found := report.prediction:
        reads, sums = 1e3 * found.read_seconds, 1e3 * found.sums * found.sum_seconds
        yield (
            f"predicted, not measured: at most {found.tokens_per_second:.3g} tokens/s ({reads:,.1f} ms to read weights "
            f"and {found.sums} sums in {sums:,.1f} ms); "
            f"{1 / found.alone_seconds:.3g} on rank 0 alone, if the model fits"
        )
    for difference in report.differences:
        yield f"update: {difference}"
    for advice in jaccl_advice(report):
        yield f"for JACCL: {advice}"
