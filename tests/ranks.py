"""Processes as ranks on this machine, over loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from conftest import ROOT

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.cluster.ranks import PORT_DISTANCE
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import load_network, named_parameters

SCRIPT = Path(__file__).parent / "ranks_script.py"


def free_ports(count: int) -> list[int]:
    """Ports that are free, and whose ports for messages are free, too."""
    found: list[int] = []
    held = []
    while len(found) < count:
        one = socket.create_server(("127.0.0.1", 0))
        held.append(one)
        port = one.getsockname()[1]
        try:
            held.append(socket.create_server(("127.0.0.1", port - PORT_DISTANCE)))
        except OSError:
            continue
        if port - PORT_DISTANCE > 1024:
            found.append(port - PORT_DISTANCE)
    for one in held:
        one.close()
    return found


class Launched:
    """The processes of all ranks. It ends those that are left."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, size: int = 2, ranks: Sequence[int] | None = None
    ) -> None:
        """Starts `python ARGUMENTS` once for each of the `ranks`, by default all. `folder` takes the host file."""
        self._folder, self.processes = folder, dict[int, subprocess.Popen[str]]()
        self._hosts().write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
        for rank in range(size) if ranks is None else ranks:
            self.start(rank, arguments)

    def _hosts(self) -> Path:
        return self._folder / "hosts.json"

    def start(self, rank: int, arguments: Sequence[str]) -> None:
        paths = f"{ROOT}:{ROOT / 'tests'}"
        self.processes[rank] = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(self._hosts()), "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
        )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()

    def ended(self, seconds: float = 240) -> dict[int, tuple[int, str, str]]:
        """Waits until all have ended: the exit code, standard output and standard error of each rank."""
        found = {}
        for rank, process in self.processes.items():
            out, err = process.communicate(timeout=seconds)
            found[rank] = process.returncode, out, err
        return found


def ended_of(command: Sequence[str], folder: Path, size: int = 2) -> dict[int, tuple[int, str, str]]:
    """Starts the ranks, and waits until all have ended: as `Launched.ended`."""
    with Launched(command, folder, size) as launched:
        return launched.ended()


def results(folder: Path, *arguments: str, size: int = 2) -> dict[str, Any]:
    """What rank 0 of `ranks_script.py` printed. All ranks must end well."""
    ended = ended_of([str(SCRIPT), *arguments], folder, size)
    assert all(code == 0 for code, _, _ in ended.values()), ended
    assert not any(out for rank, (_, out, _) in ended.items() if rank), "only rank 0 speaks"
    found: dict[str, Any] = json.loads(ended[0][1].splitlines()[-1])
    return found


def check(found: dict[str, Any], limit: float = 1e-4) -> None:
    """All checks of `ranks_script.py` hold, and rank 0 has its part of the weights."""
    assert found.pop("logits", 0) <= limit
    assert found.pop("kept") == found.pop("part") < found.pop("whole"), "a rank keeps its part, and what is not divided"
    del found["read"]
    assert found == dict.fromkeys(found, True)


def saved(model: Any, folder: Path) -> str:
    """The folder of a model with the tokenizer of the demo."""
    model.save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, folder / "model")
    return str(folder / "model")


class Alone:
    """A rank that reads its part in this process, and agrees with itself."""

    pipeline = False

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def agree(self, what: str, value: Any) -> None: ...

    def total(self, x: mx.array) -> mx.array:
        return x


def parts(folder: Path, size: int, **options: Any) -> list[dict[str, mx.array]]:
    """The weights of each rank."""
    given = [Alone(rank, size) for rank in range(size)]
    return [named_parameters(load_network(Exaone4ForCausalLM, folder, ranks=one, **options)) for one in given]  # type: ignore[arg-type]
