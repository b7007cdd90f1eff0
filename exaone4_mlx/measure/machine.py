"""The machine at hand: its processor, its memory with the bandwidth, and the versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .. import __version__
from .fit import memory_of_this_machine

BANDWIDTH_BYTES = 2**28  # of the array that is read and copied: more than the cache of any processor


@dataclass(frozen=True)
class Machine:
    """What computes here. `memory_limit_bytes` is what a model may use of `memory_bytes`."""

    versions: dict[str, str]
    system: str
    processor: str
    cores: int
    device: str
    memory_bytes: int
    memory_limit_bytes: int


def describe_machine(packages: Sequence[str]) -> Machine:
    """Describes this machine, with the versions of Python, exaone4_mlx and `packages`."""
    info, limit = mx.device_info(), memory_of_this_machine()
    ours = {"exaone4_mlx": __version__, "Python": platform.python_version()}
    return Machine(
        versions=ours | {package: _version(package) for package in packages},
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=str(info.get("device_name") or platform.processor()),
        cores=os.cpu_count() or 1,
        device="gpu" if mx.default_device() == mx.gpu else "cpu",
        memory_bytes=int(info.get("memory_size", limit)),
        memory_limit_bytes=limit,
    )


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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
