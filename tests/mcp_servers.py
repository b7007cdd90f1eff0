"""Config files of the servers of `mcp_server_script.py`, and processes that serve over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("mcp_server_script.py")


def stdio(*arguments: str, **keys: Any) -> dict[str, Any]:
    """A server in a config file that is started as a process."""
    return {"command": sys.executable, "args": [str(SCRIPT), *arguments], **keys}


def config(folder: Path, **servers: dict[str, Any]) -> Path:
    file = folder / "mcp.json"
    file.write_text(json.dumps({"mcpServers": servers}))
    return file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(kind: str) -> Iterator[str]:
    """The URL of a server of this computer."""
    port = free_port()
    child = subprocess.Popen([sys.executable, str(SCRIPT), kind, str(port)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{'mcp' if kind == 'http' else 'sse'}"
    finally:
        child.kill()
        child.wait()


def processes_with(text: str) -> list[int]:
    """The processes whose command line has `text`, except this one."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, state, args in rows if text in args and not state.startswith("Z")]


def gone(text: str, seconds: float = 10.0) -> bool:
    """Whether no process has `text` in its command line any more, within `seconds`."""
    until = time.monotonic() + seconds
    while processes_with(text):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
