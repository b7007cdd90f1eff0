"""The machines and the links of several ranks, measured, and the speed of a model that follows from them.

Notes:
- All ranks call `measure` together. Rank 0 gets the result.
- The speed is predicted from sizes and from measurements of this page alone: a token reads the part of a rank once, and
  takes two sums for each layer and one for its id. It is an upper bound: attention and Python take time, too.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..checkpoint.quantize import Quantization
from ..checkpoint.share import EMBEDDING
from ..cluster.ranks import Ranks
from .machine import describe_machine, memory_bandwidth
from .parts import ranked
from .sizes import Sizes

LINK_BYTES, LINK_ROUNDS = 1 << 25, 3  # of the bandwidth of a link; the best of the rounds counts
LATENCY_ROUNDS, SUMS = 20, 32
FIRST_JACCL = (26, 2)  # macOS with RDMA over Thunderbolt 5: Apple's technical note TN3205


@dataclass(frozen=True)
class RankMachine:
    """The machine of a rank. `rdma_devices` is None where macOS has no list of them."""

    rank: int
    host: str
    processor: str
    system: str
    macos: str
    versions: dict[str, str]
    memory_limit_bytes: int
    bandwidth: float  # of its memory, bytes per second
    rdma_devices: int | None


@dataclass(frozen=True)
class Link:
    """The connection of two ranks: seconds of a message of four bytes one way, and bytes per second one way."""

    first: int
    second: int
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Prediction:
    """The seconds of a token: a rank reads its part, and takes `sums` sums. `alone` is one machine without sums."""

    ranks: int
    read_seconds: float
    sums: int
    sum_seconds: float
    alone_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return 1 / (self.read_seconds + self.sums * self.sum_seconds)


@dataclass(frozen=True)
class ClusterReport:
    """What `measure` found. `sum_seconds` is of `sum_bytes` over all ranks."""

    backend: str
    machines: tuple[RankMachine, ...]
    links: tuple[Link, ...]
    sum_bytes: int
    sum_seconds: float
    prediction: Prediction | None

    @property
    def differences(self) -> list[str]:
        """The versions of a rank that are not those of rank 0."""
        first, *others = self.machines
        return [
            f"rank {other.rank} ({other.host}) has {name} {version}, and rank 0 {first.versions.get(name)}"
            for other in others
            for name, version in other.versions.items()
            if first.versions.get(name) != version and name != "Python"
        ]


def measure(ranks: Ranks, sizes: Sizes | None = None, width: int = 5120) -> ClusterReport | None:
    """Measures all ranks, the links between neighbours and a sum of `width` numbers in bfloat16: that of the model.

    Returns the report in rank 0, and None in the others. Raises ValueError for a model that cannot be divided so.
    """
    width = width if sizes is None else sizes.config.hidden_size
    if sizes is not None:
        ranked(sizes, ranks.size, None)  # raises for a model that cannot be divided so
    found = ranks.gather(dataclasses.asdict(_machine(ranks.rank)))
    pairs = [(rank, rank + 1) for rank in range(ranks.size - 1)]
    pairs += [(ranks.size - 1, 0)] if ranks.size > 2 else []
    links = []
    for first, second in pairs:
        ranks.agree(f"the link of {first} and {second}", {})
        one = _link(ranks, first, second) if ranks.rank in (first, second) else (0.0, 0.0)
        timed = ranks.gather(list(one))
        links += [Link(first, second, *timed[first])] if timed else []
    ranks.agree("the sums", {})
    seconds = _sum_seconds(ranks, width)
    if ranks.rank:
        return None
    machines = tuple(RankMachine(**machine) for machine in found)
    predicted = None
    if sizes is not None:
        predicted = predict(sizes, [machine.bandwidth for machine in machines], seconds)
    return ClusterReport(ranks.backend, machines, tuple(links), 2 * width, seconds, predicted)


def predict(
    sizes: Sizes, bandwidths: Sequence[float], sum_seconds: float, quantization: Quantization | None = None
) -> Prediction:
    """The seconds of a token on machines of these bandwidths of memory, whose sums take so long."""
    size, sums = len(bandwidths), 2 * sizes.config.num_hidden_layers + 1
    part, whole = (_read_bytes(ranked(sizes, count, quantization), quantization) for count in (size, 1))
    return Prediction(size, part / min(bandwidths), sums, sum_seconds, whole / bandwidths[0])


def _machine(rank: int) -> RankMachine:
    described = describe_machine(["mlx"])
    return RankMachine(
        rank,
        socket.gethostname(),
        described.processor,
        described.system,
        platform.mac_ver()[0],
        described.versions,
        described.memory_limit_bytes,
        memory_bandwidth(),
        _rdma_devices(),
    )


def _rdma_devices() -> int | None:
    """How many RDMA devices macOS lists."""
    if (program := shutil.which("ibv_devices")) is None or not platform.mac_ver()[0]:
        return None
    listed = subprocess.run([program], capture_output=True, text=True, check=False, timeout=10).stdout
    return sum(line.strip().startswith("rdma_") for line in listed.splitlines())


def _link(ranks: Ranks, first: int, second: int) -> tuple[float, float]:
    """Latency and bandwidth between two ranks: messages that go there and back."""

    def there_and_back(size: int) -> None:
        other, x = second if ranks.rank == first else first, mx.zeros(size // 4)
        steps: list[Callable[[], Any]] = [
            lambda: mx.distributed.send(x, other, group=ranks.group),
            lambda: mx.distributed.recv_like(x, other, group=ranks.group),
        ]
        for step in steps if ranks.rank == first else steps[::-1]:
            mx.eval(step())

    def seconds(size: int, rounds: int) -> list[float]:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            there_and_back(size)
            times.append((time.perf_counter() - started) / 2)
        return sorted(times)

    there_and_back(4)
    return seconds(4, LATENCY_ROUNDS)[LATENCY_ROUNDS // 2], LINK_BYTES / seconds(LINK_BYTES, LINK_ROUNDS)[0]


def _sum_seconds(ranks: Ranks, width: int) -> float:
    """Seconds of one of SUMS sums, each of which depends on the one before."""
    best = float("inf")
    for _ in range(LINK_ROUNDS):
        x = mx.zeros((1, 1, width), mx.bfloat16)
        mx.eval(ranks.total(x))
        started = time.perf_counter()
        for _ in range(SUMS):
            x = ranks.total(x)
        mx.eval(x)
        best = min(best, (time.perf_counter() - started) / SUMS)
    return best


def _read_bytes(sizes: Sizes, quantization: Quantization | None) -> int:
    """The bytes of weights that a token reads: all, but for an embedding that is not the output head."""
    skipped = () if sizes.config.tie_word_embeddings else (EMBEDDING,)
    kept = {name: tensor for name, tensor in sizes.tensors.items() if name not in skipped}
    return dataclasses.replace(sizes, tensors=kept).weights_bytes(None, quantization)


def jaccl_advice(report: ClusterReport) -> list[str]:
    """What is left to do for JACCL, which computes sums over Thunderbolt 5 with a shorter latency."""
    if report.backend == "jaccl":
        return []
    if any(not machine.macos for machine in report.machines):
        return ["JACCL needs Macs with Thunderbolt 5 in all ranks."]
    advice = []
    for machine in report.machines:
        if tuple(int(part) for part in machine.macos.split(".")[:2]) < FIRST_JACCL:
            advice.append(f"rank {machine.rank} ({machine.host}) has macOS {machine.macos}: JACCL needs 26.2.")
        elif not machine.rdma_devices:
            advice.append(
                f"rank {machine.rank} ({machine.host}) has no RDMA device: start it in Recovery, and run "
                "`rdma_ctl enable` in the Terminal there (Thunderbolt 5 only)."
            )
    cables = "a cable from each Mac to each other" if len(report.machines) > 2 else "a Thunderbolt 5 cable"
    return [
        *advice,
        f"Join them by {cables}, and write a host file: mlx.distributed_config --backend jaccl --over thunderbolt "
        "--hosts HOST,… --auto-setup --output-hostfile hosts.json; then mlx.launch --backend jaccl.",
    ]
