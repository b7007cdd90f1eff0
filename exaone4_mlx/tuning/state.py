"""The state of a run, in one file that is always whole: it is replaced in one step.

Notes:
- It holds the trained arrays, those with the best validation loss, the optimizer, and what was measured. The order of
  the data and the random numbers are functions of seed and step. So a resumed run ends with the same bytes.
- A state of other data, another model or other options is refused. Options that do not change the result may differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..files.folders import atomic_file
from ..files.safetensors import CheckpointError

STATE_NAME = "training_state.safetensors"
FILE_FORMAT = "exaone4_mlx training state, version 1"
#: Options that do not change the result.
FREE_OPTIONS = ("adapter_path", "resume", "save_every", "ignore_memory")

Arrays = dict[str, mx.array]


@dataclass
class TrainingProgress:
    """How far a run is: steps done, and (step, loss) of training and validation, in nats per learned token."""

    step: int = 0
    train_losses: list[tuple[int, float]] = field(default_factory=list)
    valid_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def best_step(self) -> int:
        """The step with the least validation loss, or the last one without validation."""
        return min(self.valid_losses, key=lambda pair: pair[1])[0] if self.valid_losses else self.step

    @property
    def validations_since_best(self) -> int:
        return sum(step > self.best_step for step, _ in self.valid_losses)


def write_state(
    file: Path, trained: Arrays, best: Arrays, optimizer: Any, progress: TrainingProgress, identity: Mapping[str, Any]
) -> None:
    """Writes the file, whole or not at all. `identity` is what a resumed run must have in common."""
    parts = {"trained": trained, "best": best, "optimizer": dict(tree_flatten(optimizer.state))}
    arrays = {f"{part}.{name}": array for part, named in parts.items() for name, array in named.items()}
    metadata = {"format": FILE_FORMAT, "progress": json.dumps(asdict(progress)), "identity": json.dumps(identity)}
    with atomic_file(file) as stream:
        mx.save_safetensors(stream, arrays, metadata)  # type: ignore[arg-type]


def read_state(file: Path, optimizer: Any, identity: Mapping[str, Any]) -> tuple[Arrays, Arrays, TrainingProgress]:
    """(trained arrays, best arrays, progress) of the file. Sets the state of the optimizer.

    The caller has checked that the file exists. Raises CheckpointError for a damaged file, and ValueError for another
    file and for that of another run.
    """
    try:
        loaded: Any = mx.load(str(file), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        mx.eval(arrays)
    except RuntimeError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if metadata.get("format") != FILE_FORMAT:
        raise ValueError(f"{file} is no state of a training")
    written = json.loads(metadata["identity"])
    now = json.loads(json.dumps(identity))
    if different := [name for name in now if written.get(name) != now[name]]:
        raise ValueError(
            f"{file} is the state of a run with another {' and '.join(different[:3])}: resume with the same "
            "model, data and options, or choose another adapter_path"
        )

    def part(name: str) -> Arrays:
        start = f"{name}."
        return {key.removeprefix(start): array for key, array in sorted(arrays.items()) if key.startswith(start)}

    optimizer.state = tree_unflatten(list(part("optimizer").items()))
    values = json.loads(metadata["progress"])
    for name in ("train_losses", "valid_losses"):
        values[name] = [(step, loss) for step, loss in values[name]]
    return part("trained"), part("best"), TrainingProgress(**values)
