"""The machine at hand: its processor, its memory and the versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .. import __version__


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


def memory_of_this_machine() -> int:
    """Bytes that a model may use here: Metal's recommended maximum, or without Metal the physical memory."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return physical_memory()


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
