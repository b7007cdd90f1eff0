"""A small process between this program and an MCP server, so that the server ends when the program does.

Notes:
- It runs as a script: `python -I -S mcp_guard.py COMMAND ARGUMENT …`, as the leader of its own process group.
- Its standard input is a pipe of the program. However the program ends, the pipe closes; then the server gets a moment
  to end by itself, and its process group is killed.
- A line of the server that is no JSON object is dropped. One that is too long ends the server.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 1.5  # the `mcp` package waits 2 s before it kills the group itself
MAX_LINE = 32 * 2**20  # bytes


def main(command: list[str]) -> None:
    if os.getpgid(0) != os.getpid():
        os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the child has the defaults: a handler does not pass an exec
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    threading.Thread(target=_requests, args=(child,), daemon=True).start()
    _answers(child)
    with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its output, and may be ending
        child.wait(GRACE_SECONDS)
    _end_group()


def _requests(child: "subprocess.Popen[bytes]") -> None:
    """Passes the program's requests on until its pipe closes. Then the server has a moment to end."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        while data := os.read(0, 65536):
            child.stdin.write(data)
            child.stdin.flush()
    with contextlib.suppress(OSError):
        child.stdin.close()
    until = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    _end_group()


def _answers(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdout is not None
    with contextlib.suppress(OSError), open(1, "wb", buffering=0, closefd=False) as out:
        parts: list[bytes] = []  # of a line
        while data := os.read(child.stdout.fileno(), 2**20):
            if b"\n" not in data:
                parts.append(data)
                if sum(map(len, parts)) > MAX_LINE:
                    os.write(2, f"it wrote a line of over {MAX_LINE // 2**20} MB\n".encode())
                    return
                continue
            *whole, rest = (b"".join(parts) + data).split(b"\n")
            parts = [rest]
            good = b"".join(line + b"\n" for line in whole if line.lstrip()[:1] in (b"{", b"["))
            while good:
                good = good[out.write(good) :]


def _end_group() -> None:
    """Ends all processes of the group: those that the server began, and this one."""
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
