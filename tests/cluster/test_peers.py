"""A rank that is lost ends the others, with its name."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import ROOT, mostly_heavy, until
from ranks import Launched

from exaone4_mlx.cluster.peers import LOST, Peer, Watchdog

TIMEOUT = 10  # seconds; a busy machine may let a process wait for some
ENDLESS = ["-m", "exaone4_mlx.generate", "--model", "demo", "--prompt", "x", "--dtype", "float32"]
ENDLESS += ["--max-tokens", "3000", "--min-tokens", "3000", "--rank-timeout", str(TIMEOUT)]
KILLED, SILENT = "ended, or its connection was lost", "has been silent for "


Moment = tuple[signal.Signals, int, str, float, int]


def moments(size: int) -> list[Moment]:
    """Random moments: the fault, the rank, when it happens (SECONDS after the start, or after CHARACTERS of a reply), and
    the number of ranks. So they are before and within the reply on slow and fast machines.
    """
    rng = random.Random(7)
    faults = [(fault, rank) for rank in range(size) for fault in (signal.SIGKILL, signal.SIGSTOP)]
    found: list[Moment] = [(*one, "seconds", rng.uniform(0, 2 * size), size) for one in faults]
    return found + [(*one, "characters", rng.randint(1, 150), size) for one in faults]


def after(launched: Launched, unit: str, count: float) -> None:
    """Waits for a moment of `generate` or `chat`."""
    if unit == "seconds":
        time.sleep(count)
    else:
        stream = launched.processes[0].stdout
        assert stream is not None and len(stream.read(int(count))) == count


def check_end(launched: Launched, fault: signal.Signals, rank: int, starts: bool = False) -> None:
    """Sends a signal to a rank. The others must end, and name it: rank 0, or where it is lost all others."""
    assert all(one.poll() is None for one in launched.processes.values()), "the moment is before the end"
    launched.processes[rank].send_signal(fault)
    others = {number: one for number, one in launched.processes.items() if number != rank}
    before = "did not come within", "did not answer within", "did not start MLX's ring"  # it was lost before
    for number, other in others.items():
        _, error = other.communicate(timeout=4 * TIMEOUT)
        if number == 0 or rank == 0 or "error: " in error:
            assert f"rank {rank} (" in error, (number, error)
        if not any(text in error for text in before):
            # A rank that is stopped while it starts may be killed by its own process that watches calls of MLX.
            said = SILENT if fault is signal.SIGSTOP else KILLED
            assert (number and rank) or said in error or (starts and KILLED in error), error
            assert other.returncode == LOST


@pytest.mark.parametrize("moment", mostly_heavy([*moments(2), *moments(3)], 1), ids=str)
def test_a_lost_rank_ends_the_others_with_its_name(tmp_path: Path, moment: Moment) -> None:
    """Two ranks have heads, three have layers."""
    fault, rank, unit, count, size = moment
    command = [word if word != "x" else "word " * 1500 for word in ENDLESS] if unit == "seconds" else ENDLESS
    with Launched([*command, *(["--pipeline", "3,3,2"] if size > 2 else [])], tmp_path, size) as launched:
        after(launched, unit, count)
        check_end(launched, fault, rank, starts=unit == "seconds")
    assert [file.name for file in tmp_path.iterdir()] == ["hosts.json"], "nothing else is written"


FAULTS = [(fault, rank) for fault in (signal.SIGKILL, signal.SIGSTOP) for rank in (0, 1)]


@pytest.mark.heavy
@pytest.mark.parametrize(("fault", "rank"), FAULTS, ids=str)
def test_a_lost_rank_ends_a_chat(tmp_path: Path, fault: signal.Signals, rank: int) -> None:
    command = ["-m", "exaone4_mlx.chat", "--model", "demo", *ENDLESS[ENDLESS.index("--dtype") :]]
    with Launched(command, tmp_path) as launched:
        stdin = launched.processes[0].stdin
        assert stdin is not None
        stdin.write("x\n")
        stdin.flush()
        after(launched, "characters", 20)
        check_end(launched, fault, rank)


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/models", timeout=10):
        return True
    return False


@pytest.mark.heavy
@pytest.mark.parametrize("characters", [0, 2000], ids=["idle", "in a reply"])
@pytest.mark.parametrize(("fault", "rank"), FAULTS, ids=str)
def test_a_lost_rank_ends_a_server(tmp_path: Path, fault: signal.Signals, rank: int, characters: int) -> None:
    pytest.importorskip("uvicorn", reason="the server needs the extra `server`")
    command = ["-m", "exaone4_mlx.serve", "--model", "demo", "--dtype", "float32", "--rank-timeout", str(TIMEOUT)]
    with Launched(command, tmp_path) as launched:
        error = launched.processes[0].stderr
        assert error is not None
        address = next(line.split()[3] for line in error if line.startswith("EXAONE is at "))
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 3000, "min_tokens": 3000}
        with contextlib.ExitStack() as opened:
            if characters:
                request = urllib.request.Request(
                    f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                until(lambda: answers(address))
                reply = opened.enter_context(urllib.request.urlopen(request, timeout=60))
                assert len(reply.read(characters)) == characters
            check_end(launched, fault, rank)


@pytest.mark.heavy
def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    command = [*ENDLESS[:-1], "1"]
    with Launched(command, tmp_path, ranks=[0]) as launched:
        code, _, error = launched.ended()[0]
    assert code == 1 and error == "error: rank 1 (127.0.0.1) did not come within 1 s\n"
    with Launched(command, tmp_path, ranks=[1]) as launched:
        code, _, error = launched.ended()[1]
    assert code == 1 and error.startswith("error: rank 0 (127.0.0.1, port ") and "within 1 s" in error


def test_a_call_that_holds_the_lock_of_python_is_ended() -> None:
    """As `mx.distributed.init` does: no thread runs meanwhile."""
    script = "import ctypes\nfrom exaone4_mlx.cluster.peers import killed_after\n"
    script += "with killed_after(0.5, 'rank 3 is slow'): ctypes.PyDLL(None).sleep(60)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == -signal.SIGKILL and done.stderr == "error: rank 3 is slow\n"


@pytest.mark.heavy
def test_ctrl_c_ends_all_and_keeps_the_reply(tmp_path: Path) -> None:
    with Launched(ENDLESS, tmp_path) as launched:
        first = launched.processes[0]
        assert first.stdout is not None
        text = first.stdout.read(1)
        for process in launched.processes.values():  # as a terminal does
            process.send_signal(signal.SIGINT)
        ended = launched.ended()
    assert text and ended[0][0] == 130 and ", stopped |" in ended[0][2]
    assert ended[1] == (0, "", "")


@pytest.fixture
def pair() -> Iterator[Callable[[float], tuple[Watchdog, socket.socket, list[str]]]]:
    """Makes a watchdog with one peer, the other end of its connection, and a list of reasons to end the process."""
    ends = []

    def make(timeout: float = 1.0) -> tuple[Watchdog, socket.socket, list[str]]:
        reasons: list[str] = []
        watchdog = Watchdog(timeout, lambda reason, code: reasons.append(reason))
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
        peer = Peer(ours, 3, "mac3")
        watchdog.add(peer)
        watchdog.start()
        ends.append((theirs, peer))
        return watchdog, theirs, reasons

    yield make
    for theirs, peer in ends:
        theirs.close()
        until(lambda peer=peer: peer.is_closed)


@pytest.mark.heavy
def test_silence_is_found(pair: Any) -> None:
    _, _, reasons = pair()
    until(lambda: bool(reasons))
    assert reasons == ["rank 3 (mac3) has been silent for 1 s: it is stopped or cannot be reached"]


@pytest.mark.heavy
def test_a_rank_without_progress_is_found_and_one_without_work_is_not(pair: Any) -> None:
    watchdog, theirs, reasons = pair()
    for _ in range(12):
        theirs.sendall(b'{"beat": 0}\n')
        time.sleep(0.1)
    assert not reasons
    watchdog.peers[0].sent = 1
    for _ in range(20):
        theirs.sendall(b'{"beat": 0}\n')
        time.sleep(0.1)
    assert reasons == ["rank 3 (mac3) has made no progress for 1 s"]


def test_a_silent_rank_is_named_before_those_that_wait_for_it() -> None:
    """One that waits makes no progress, or it ends after a timeout of its own."""
    reasons: list[str] = []
    watchdog = Watchdog(2, lambda reason, code: reasons.append(reason))
    watchdog.peers = waits, silent = [Peer(Mock(), rank, f"mac{rank}") for rank in (3, 4)]
    waits.sent, waits.moved, silent.heard = 1, waits.moved - 3, silent.heard - 1.8
    watchdog._check(watchdog.peers)
    assert not reasons, "until the silent one is lost"
    waits.is_closed = True
    watchdog._check([waits])
    silence = "rank 4 (mac4) has been silent for 2 s: it is stopped or cannot be reached"
    assert reasons == [f"{silence}; rank 3 (mac3) ended, or its connection was lost"]


def test_a_rank_that_fails_tells_why(pair: Any) -> None:
    _, theirs, reasons = pair(30)
    theirs.sendall(b'{"end": "no memory"}\n')
    until(lambda: bool(reasons))
    assert reasons == ["rank 3 (mac3): no memory"]


def test_after_ctrl_c_in_rank_0_the_others_end_without_an_error() -> None:
    ended: list[tuple[str, int]] = []
    watchdog = Watchdog(30, lambda *end: ended.append(end))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        peer = Peer(server.accept()[0], 0, "mac0")
        watchdog.add(peer)
        theirs.sendall(b'{"end": "KeyboardInterrupt", "code": 130}\n')
        until(lambda: bool(ended))
    assert ended == [("", 130)]
    until(lambda: peer.is_closed)


def test_a_rank_that_leaves_is_not_lost(pair: Any) -> None:
    watchdog, theirs, reasons = pair(30)
    watchdog.peers[0].leaves = True
    theirs.close()
    until(lambda: watchdog.peers[0].is_closed)
    assert not reasons


@pytest.mark.heavy
def test_a_call_of_mlx_that_takes_too_long_is_named(pair: Any) -> None:
    watchdog, theirs, reasons = pair()
    with watchdog.limited("the last sum"):
        for _ in range(15):
            theirs.sendall(b'{"beat": 0}\n')
            time.sleep(0.1)
    assert reasons == ["the last sum took over 1 s"]
