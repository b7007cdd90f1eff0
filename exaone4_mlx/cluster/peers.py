"""Connections between rank 0 and the other ranks: messages, signs of life, and the end of all ranks.

Notes:
- They are TCP connections of Python, beside those of `mx.distributed`. A wait in a collective operation of MLX has no
  timeout and does not say which rank is missing. Here a closed connection or a silence names the rank.
- A rank that is lost ends the process of each other rank. Nothing else ends a wait inside MLX.
- Rank 0 is connected to each other rank. The others are connected to rank 0 only, and learn from it who was lost.
- A message is a JSON object in one line. The network must be private: there is no encryption, as in MLX's ring.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

LOST = 75  # the exit code of ranks that another rank was lost to: EX_TEMPFAIL
INTERRUPTED = 130  # the exit code of all ranks after Ctrl-C
MOST_BEATS = 1.0  # seconds between two signs of life, or less with a short timeout
CAUSE_SECONDS = 1.0  # after an error of MLX, until another rank must have been found lost
MAX_LINE = 1 << 24  # bytes of a message

Message = dict[str, Any]


class Peer:
    """The connection to another rank. `inbox` has its messages in order."""

    def __init__(self, connection: socket.socket, rank: int, host: str) -> None:
        self.rank, self.host, self._connection = rank, host, connection
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.heard = time.monotonic()
        self.done = self.sent = 0  # pieces of work: those that it finished, and those that it got
        self.moved = self.heard  # when `done` last changed, or when there was nothing to do
        self.is_closed = self.leaves = False
        self._lock = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host})"

    def send(self, message: Message, waits: bool = True) -> None:
        """Sends a message. Without `waits` it is left out while another one is being sent."""
        if self._lock.acquire(blocking=waits):
            try:
                with contextlib.suppress(OSError):  # the reading thread finds the closed connection
                    self._connection.sendall(json.dumps(message).encode() + b"\n")
            finally:
                self._lock.release()

    def read(self, end: Callable[[str, int], None]) -> None:
        """Reads messages until the connection is closed. `end` gets why and how the other rank ends all ranks."""
        with contextlib.suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            while line := lines.readline(MAX_LINE):
                message = json.loads(line)
                self.heard = time.monotonic()
                if "end" in message:
                    end(message["end"], message.get("code", LOST))
                elif "beat" not in message:
                    self.inbox.put(message)
                elif message["beat"] != self.done:
                    self.done, self.moved = message["beat"], self.heard
        self.is_closed = True
        self._connection.close()

    @property
    def silent(self) -> float:
        """Seconds since its last sign of life; 0 for a connection that is closed."""
        return 0 if self.is_closed else time.monotonic() - self.heard

    def is_halted(self, timeout: float) -> bool:
        """Whether there is work, and it has not finished any for so long."""
        now = time.monotonic()
        if self.done >= self.sent:
            self.moved = now
        return now - self.moved > timeout


class Watchdog:
    """A thread that sends signs of life to `peers`, and ends this process if one of them is lost."""

    def __init__(self, timeout: float, end: Callable[[str, int], None] | None = None) -> None:
        self.timeout, self.peers, self.done = timeout, list[Peer](), 0
        self._end, self._ended = end or end_process, threading.Lock()
        self._deadline: tuple[float, str] | None = None
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, peer: Peer) -> None:
        self.peers.append(peer)
        threading.Thread(target=self._read, args=(peer,), name=f"rank {peer.rank}", daemon=True).start()

    @contextlib.contextmanager
    def limited(self, what: str) -> Iterator[None]:
        """The block may take the timeout. It is for calls of MLX that wait for all ranks."""
        self._deadline = time.monotonic() + self.timeout, what
        try:
            yield
        finally:
            self._deadline = None

    def end(self, reason: str, code: int = LOST) -> None:
        """Ends this process, and tells the other ranks to end. Without a reason, rank 0 has told this rank."""
        if self._ended.acquire(blocking=False):
            for peer in self.peers if reason else ():
                peer.send({"end": reason}, waits=False)
            self._end(reason, code)

    def end_by(self, error: BaseException) -> None:
        """Ends this process and the others by an error of this rank, unless another rank turns out to be the cause."""
        if isinstance(error, RuntimeError):  # of MLX, perhaps because another rank was lost
            time.sleep(CAUSE_SECONDS)
        self.end(" ".join(str(error).split()) or type(error).__name__)

    def _read(self, peer: Peer) -> None:
        # Rank 0 prints the reason. The others have told it theirs.
        peer.read(lambda reason, code: self.end(f"{peer}: {reason}" if peer.rank else "", code))
        self._check([peer])

    def _watch(self) -> None:
        while True:
            time.sleep(min(MOST_BEATS, self.timeout / 8))
            for peer in self.peers:
                peer.send({"beat": self.done}, waits=False)
            self._check(self.peers)
            if (deadline := self._deadline) and time.monotonic() > deadline[0]:
                self.end(f"{deadline[1]} took over {self.timeout:g} s")

    def _check(self, peers: Iterable[Peer]) -> None:
        """Ends this process if one of `peers` is lost. A rank that is silent may be the cause, and is named first."""
        halted = [str(peer) for peer in peers if peer.is_halted(self.timeout) and not peer.is_closed]
        timeout, silent = self.timeout, [peer for peer in self.peers if peer.silent > self.timeout / 2]
        closed = [f"{peer} ended, or its connection was lost" for peer in peers if peer.is_closed and not peer.leaves]
        if closed or any(peer.silent > timeout for peer in silent):
            long = [f"{peer} has been silent for {min(peer.silent, timeout):.0f} s" for peer in silent]
            self.end("; ".join([*(f"{text}: it is stopped or cannot be reached" for text in long), *closed]))
        elif halted and not silent:
            self.end(f"{halted[0]} has made no progress for {timeout:g} s")


#: Kills its parent after some seconds. It ends with its parent.
KILL_LATER = """
import os, signal, sys, time
parent, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == parent and time.monotonic() < until:
    time.sleep(0.1)
if os.getppid() == parent:
    sys.stderr.write("error: " + sys.argv[3] + chr(10))
    sys.stderr.flush()
    os.kill(parent, signal.SIGKILL)
"""


@contextlib.contextmanager
def killed_after(seconds: float, reason: str) -> Iterator[None]:
    """The block may take so long. It is for calls that hold Python's lock, so that no thread can watch them."""
    command = [sys.executable, "-S", "-E", "-c", KILL_LATER, str(os.getpid()), str(seconds), reason]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as helper:
        try:
            yield
        finally:
            helper.kill()


def end_process(reason: str, code: int = LOST) -> None:
    """Ends the process, with an error if there is a reason. It waits for no thread: one may be inside MLX for ever."""
    if reason:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"error: {reason}\n")
            sys.stderr.flush()
    os._exit(code)
