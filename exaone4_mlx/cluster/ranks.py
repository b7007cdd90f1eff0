"""This process as one of several ranks that `mlx.launch` started: who they are, and what they agree on before work.

Notes:
- Rank 0 speaks to the user, decides and draws the tokens. The others follow: `generation/follow.py`.
- The ranks connect to rank 0 before `mx.distributed.init`, which waits without a timeout for a rank that never comes.
- Collective operations run in the order in which they are evaluated, and all ranks must have the same order, or they
  would wait for each other for ever. So whatever contains one is evaluated as soon as it is built (`Ranks.queued`).
- Ranks leave together, after a last sum: a rank that left first would take the connection from one that still reads.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.folders import physical_memory
from . import TIMEOUT
from .peers import CAUSE_SECONDS, INTERRUPTED, LOST, MAX_LINE, Message, Peer, Watchdog, killed_after

PORT_DISTANCE = 1000  # between the port of rank 0 in MLX's file and that of its messages
RETRY_SECONDS = 0.2
MOST_NAMED = 3  # differences in one error


@dataclass(frozen=True)
class Place:
    """What `mlx.launch` tells a process: its rank, the backend, and the address (host, port) of each rank."""

    rank: int
    backend: str
    addresses: tuple[tuple[str, int], ...]

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> Place | None:
        """The place of this process; None if it is alone. Raises ValueError for a backend that is not supported."""
        if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
            raise ValueError("ranks of MPI are not supported: start them by mlx.launch --backend ring or jaccl")
        if "MLX_RANK" not in environment:
            return None
        rank = int(environment["MLX_RANK"])
        if "MLX_JACCL_COORDINATOR" in environment and "MLX_IBV_DEVICES" in environment:
            size = len(json.loads(Path(environment["MLX_IBV_DEVICES"]).read_text()))
            first = _address(environment["MLX_JACCL_COORDINATOR"])
            return cls(rank, "jaccl", (first, *[(f"host {i}", 0) for i in range(1, size)])) if size > 1 else None
        if "MLX_HOSTFILE" not in environment:
            raise ValueError("MLX_RANK is set without MLX_HOSTFILE: start ranks by mlx.launch --backend ring or jaccl")
        text = Path(environment["MLX_HOSTFILE"]).read_text().strip()
        hosts = json.loads(text) if text else []
        return cls(rank, "ring", tuple(_address(host[0]) for host in hosts)) if len(hosts) > 1 else None


class Ranks:
    """The ranks of one model. `group` is the group of `mx.distributed`; it exists after `join`.

    `pipeline` says that each rank has some layers: so many in each, or for True as many as its memory allows.
    """

    group: Any
    pipeline: bool | Sequence[int] = False

    def __init__(self, place: Place, timeout: float = TIMEOUT, end: Callable[[str, int], None] | None = None) -> None:
        self.rank, self.size, self._place = place.rank, len(place.addresses), place
        self.watchdog = Watchdog(timeout, end)
        self.before_leaving: list[Callable[[], None]] = []  # they end work that goes on in other threads
        self._queued: tuple[int, Any] = (0, [])  # the thread that built it, and what it built last

    def __repr__(self) -> str:
        return f"Ranks(rank {self.rank} of {self.size})"

    @property
    def name(self) -> str:
        """Of the files of this rank: rank0of2."""
        return f"rank{self.rank}of{self.size}"

    @property
    def peers(self) -> list[Peer]:
        return self.watchdog.peers

    def join(self) -> Ranks:
        """Connects to the other ranks. Raises TimeoutError that names those that did not come."""
        self.watchdog.start()
        if self.rank == 0:
            self._accept()
        else:
            self.watchdog.add(self._connect())
        others = ", ".join(f"rank {r} ({host})" for r, (host, _) in enumerate(self._place.addresses) if r != self.rank)
        seconds = self.watchdog.timeout
        with killed_after(seconds, f"{others} did not start MLX's {self.backend} backend within {seconds:g} s"):
            self.group = mx.distributed.init(strict=True, backend=self._place.backend)
        return self

    def agree(self, what: str, value: Mapping[str, Any]) -> None:
        """Waits until all ranks have come here. Raises ValueError for values that differ from those of rank 0.

        The error is raised in rank 0; it ends the others.
        """
        found = self.gather({"at": what, "value": value})
        for peer, other in zip(self.peers, found[1:], strict=False):
            if other["at"] != what:
                raise ValueError(f"{peer} is at {other['at']!r}, and rank 0 at {what!r}: it runs another command")
            own, there = json.loads(json.dumps(value)), other["value"]
            names = [name for name in own | there if own.get(name) != there.get(name)]
            if names:
                text = "; ".join(f"{name} {there.get(name)} there, {own.get(name)} here" for name in names[:MOST_NAMED])
                raise ValueError(f"{peer} differs from rank 0 in {what}: {text}")
        if self.rank == 0:
            self.tell({"agreed": what})
        else:
            self.receive("agreed")

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, which are JSON values, by rank; nothing in the ranks other than 0."""
        if self.rank:
            self.peers[0].send({"value": value})
            return []
        return [value, *(peer.inbox.get()["value"] for peer in self.peers)]

    def exchange(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, by rank. All ranks call it at the same point of their work."""
        found = self.gather(value)
        self.tell({"all": found})
        return list(self.receive("all")["all"]) if self.rank else found

    @cached_property
    def memory(self) -> list[int]:
        """The bytes of memory of the machine of each rank: see `exchange`."""
        return self.exchange(physical_memory())

    @property
    def backend(self) -> str:
        return self._place.backend

    def receive(self, *kinds: str) -> Message:
        """The next message of rank 0, which is of one of these kinds."""
        message = self.peers[0].inbox.get()
        if not any(kind in message for kind in kinds):
            raise ValueError(f"rank 0 sent {list(message)}, not {' or '.join(kinds)}")
        return message

    def tell(self, message: Message, is_work: bool = False) -> None:
        """Sends a message of rank 0 to all others. The watchdog expects them to finish work."""
        for peer in self.peers if self.rank == 0 else ():
            peer.sent += is_work
            peer.send(message)

    def total(self, x: mx.array) -> mx.array:
        """The sum over all ranks."""
        return mx.distributed.all_sum(x, group=self.group)

    def in_order(self) -> None:
        """Call it before anything with a collective operation is built: the last one then runs before it.

        Streams belong to threads. Another thread waits for the work of the last one.
        """
        thread, queued = self._queued
        if thread != threading.get_ident():
            mx.eval(queued)

    def queued(self, *built: Any) -> None:
        """Queues what was built, whether it will be read or not."""
        mx.async_eval(*built)
        self._queued = threading.get_ident(), built

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the work of all ranks. After an `error` of rank 0 the others end at once."""
        if isinstance(error, RuntimeError):
            time.sleep(CAUSE_SECONDS)  # the watchdog ends this process if another rank is the cause
        for peer in self.peers:
            peer.leaves = True
            if error is not None:
                peer.send({"end": str(error), "code": INTERRUPTED if isinstance(error, KeyboardInterrupt) else LOST})
        if error is not None:
            return
        for end_work in self.before_leaving:
            end_work()
        if self.rank == 0:
            self.tell({"leave": True})
        with self.watchdog.limited("the last sum"):
            mx.eval(self._queued[1])
            mx.eval(self.total(mx.zeros(1)))

    def _accept(self) -> None:
        """Takes the connections of all other ranks."""
        missing = dict(enumerate(self._place.addresses[1:], start=1))
        until = time.monotonic() + self.watchdog.timeout
        host, port = self._place.addresses[0]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, _message_port(port)), family=family, backlog=self.size) as server:
            while missing:
                server.settimeout(max(0.01, until - time.monotonic()))
                try:
                    connection, _ = server.accept()
                    connection.settimeout(max(0.01, until - time.monotonic()))
                    hello = json.loads(_line(connection))
                    rank = hello["rank"]
                except TimeoutError:
                    names = ", ".join(f"rank {rank} ({host[0]})" for rank, host in missing.items())
                    raise TimeoutError(f"{names} did not come within {self.watchdog.timeout:g} s") from None
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # not a rank
                if rank in missing:
                    del missing[rank]
                    self.watchdog.add(Peer(connection, rank, str(hello["host"])))
        self.peers.sort(key=lambda peer: peer.rank)

    def _connect(self) -> Peer:
        """Connects to rank 0, which may start later."""
        host, port = self._place.addresses[0]
        until = time.monotonic() + self.watchdog.timeout
        while True:
            try:
                connection = socket.create_connection((host, _message_port(port)), timeout=self.watchdog.timeout)
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"rank 0 ({host}, port {_message_port(port)}) did not answer within "
                        f"{self.watchdog.timeout:g} s: {error.strerror or error}"
                    ) from None
                time.sleep(RETRY_SECONDS)
        peer = Peer(connection, 0, host)
        peer.send({"rank": self.rank, "host": socket.gethostname()})
        return peer


def join_ranks(timeout: float = TIMEOUT, pipeline: bool | Sequence[int] = False) -> Ranks | None:
    """This process among the ranks of `mlx.launch`, connected; None if it is alone.

    By default each rank has a part of each layer: some heads, and some rows of the MLP. With `pipeline` it has whole
    layers: as many as a list says for each rank, or for True by its part of the memory of all. Rank 0 has the last.

    `timeout` is in seconds. A rank that ends, that is silent or that makes no progress for so long ends the processes
    of the others with exit code 75, and an error that names it. Raises TimeoutError that names a rank that did not
    come, and ValueError for a backend other than ring and jaccl.
    """
    if not 1 <= timeout < float("inf"):
        raise ValueError(f"the timeout of ranks must be a number of seconds from 1, not {timeout!r}")
    if (place := Place.of_process()) is None:
        return None
    ranks = Ranks(place, timeout)
    ranks.pipeline = pipeline
    return ranks.join()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _message_port(port: int) -> int:
    return port + PORT_DISTANCE if port + PORT_DISTANCE < 1 << 16 else port - PORT_DISTANCE


def _line(connection: socket.socket) -> bytes:
    """The first line of a connection, byte by byte: what follows it belongs to the reading thread."""
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_LINE:
        if not (byte := connection.recv(1)):
            raise OSError("closed")
        line += byte
    return line
