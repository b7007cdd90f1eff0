"""How a model is tuned: one frozen value, checked before any work.

Notes:
- `TuningRequest` is the only list of options. `tune` takes its fields as keyword arguments, typed by `TuningOptions`;
  the command line derives its flags, defaults and help from the fields' metadata.
- Names are those of `mlx_lm.lora` where it has the option. A step is one update of the weights: it takes `batch_size`
  examples `grad_accumulation_steps` times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ..generation.options import check

KINDS = ("lora", "dora", "full")
SCHEDULES = ("cosine", "linear", "constant")
EPOCHS = 3  # without `iters` and `epochs`
LAYERS = 16  # tuned layers, as in mlx-lm
EVALUATIONS = 10  # of a run


class TuningOptions(TypedDict, total=False):
    """The fields of `TuningRequest` as keyword arguments."""

    adapter_path: str | Path | None
    fine_tune_type: str
    num_layers: int | None
    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...] | None
    iters: int | None
    epochs: float | None
    batch_size: int
    grad_accumulation_steps: int
    learning_rate: float
    lr_schedule: str
    warmup_steps: int | None
    max_grad_norm: float
    max_seq_length: int
    grad_checkpoint: bool
    all_turns: bool
    steps_per_eval: int | None
    val_batches: int
    patience: int | None
    save_every: int
    resume: bool
    ignore_memory: bool
    seed: int


def _option(default: Any, group: str, help: str, **argument: Any) -> Any:
    """A field with metadata: group, help, and keywords of argparse's `add_argument`."""
    return field(default=default, metadata={"group": group, "help": help, "argument": argument})


def _number(default: Any, group: str, help: str, kind: type = int) -> Any:
    return _option(default, group, help, type=kind, metavar="X" if kind is float else "N")


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """How a model is tuned. Raises ValueError for a value that is out of range, and for options that exclude others.

    `adapter_path` None writes nothing. `keys` are the projections with adapters (`self_attn.q_proj`); None means all.
    `num_layers` counts from the last layer; -1 means all. `max_grad_norm` 0 does not clip. `val_batches` -1 takes all.
    """

    adapter_path: str | Path | None = _option(None, "", "folder of the adapter (default: adapters)", metavar="FOLDER")
    fine_tune_type: str = _option(
        "lora", "adapter", "full trains the weights of the layers themselves (default: %(default)s)", choices=KINDS
    )
    num_layers: int | None = _number(None, "adapter", f"tuned layers, from the last; -1 for all (default: {LAYERS})")
    rank: int = _number(8, "adapter", "rank of the two matrices beside a projection (default: %(default)s)")
    scale: float = _number(20.0, "adapter", "factor of their product (default: %(default)s)", float)
    dropout: float = _number(0.0, "adapter", "dropout of their input (default: %(default)s)", float)
    keys: tuple[str, ...] | None = _option(
        None, "adapter", "projections with adapters, such as self_attn.q_proj (default: all)", nargs="+", metavar="NAME"
    )
    iters: int | None = _number(None, "training", "steps, each of which updates the weights once")
    epochs: float | None = _number(
        None, "training", f"passes over the data, in place of --iters (default: {EPOCHS})", float
    )
    batch_size: int = _number(4, "training", "examples computed together (default: %(default)s)")
    grad_accumulation_steps: int = _number(1, "training", "batches of one step (default: %(default)s)")
    learning_rate: float = _number(1e-4, "training", "highest learning rate of Adam (default: %(default)s)", float)
    lr_schedule: str = _option(
        "cosine",
        "training",
        "how the learning rate goes to zero, or constant (default: %(default)s)",
        choices=SCHEDULES,
    )
    warmup_steps: int | None = _number(
        None, "training", "steps in which the learning rate rises (default: a tenth of them, at most 100)"
    )
    max_grad_norm: float = _number(1.0, "training", "clip larger gradients; 0 for never (default: %(default)s)", float)
    max_seq_length: int = _number(
        2048, "data", "tokens of an example; a longer one loses its front (default: %(default)s)"
    )
    all_turns: bool = _option(False, "data", "one example of each turn of a conversation, with its thought")
    grad_checkpoint: bool = _option(False, "training", "compute the layers again for the gradient, to use less memory")
    steps_per_eval: int | None = _number(None, "validation", "steps between validations (default: a tenth of them)")
    val_batches: int = _number(25, "validation", "batches of a validation; -1 for all (default: %(default)s)")
    patience: int | None = _number(None, "validation", "stop after so many validations without a better loss")
    save_every: int = _number(100, "state", "steps between saves of the state (default: %(default)s)")
    resume: bool = _option(False, "state", "go on from the last state of an interrupted run")
    ignore_memory: bool = _option(False, "state", "train also where this machine has less memory than it needs")
    seed: int = _number(0, "state", "of new adapters, dropout and the order of the data (default: %(default)s)")

    def __post_init__(self) -> None:
        for name, values in (("fine_tune_type", KINDS), ("lr_schedule", SCHEDULES)):
            check(name, getattr(self, name), getattr(self, name) in values, f"one of {', '.join(values)}")
        positive = "rank batch_size grad_accumulation_steps save_every"
        for name in positive.split():
            check(name, value := getattr(self, name), _is_whole(value, 1), "a positive whole number")
        for name in ("iters", "steps_per_eval", "patience"):
            value = getattr(self, name)
            check(name, value, value is None or _is_whole(value, 1), "a positive whole number")
        for name in ("num_layers", "val_batches"):
            value = getattr(self, name)
            check(name, value, value in (None, -1) or _is_whole(value, 1), "a positive whole number, or -1 for all")
        check("warmup_steps", self.warmup_steps, self.warmup_steps is None or _is_whole(self.warmup_steps, 0),
               "a whole number")  # fmt: skip
        check("seed", self.seed, _is_whole(self.seed, 0) and self.seed < 2**32, "a whole number below 2^32")
        check("max_seq_length", self.max_seq_length, _is_whole(self.max_seq_length, 2), "a whole number above 1")
        check("learning_rate", self.learning_rate, _is_within(self.learning_rate, 0, 10), "above 0 and below 10")
        check("scale", self.scale, _is_within(self.scale, 0, 1e6), "a positive number")
        check("epochs", self.epochs, self.epochs is None or _is_within(self.epochs, 0, 1e6), "a positive number")
        check("dropout", self.dropout, self.dropout == 0 or _is_within(self.dropout, 0, 1), "from 0 to below 1")
        clip = self.max_grad_norm
        check("max_grad_norm", clip, clip == 0 or _is_within(clip, 0, math.inf), "a positive number, or 0")
        if self.keys is not None:
            object.__setattr__(self, "keys", tuple(self.keys))
        if self.iters is not None and self.epochs is not None:
            raise ValueError("iters and epochs exclude each other: give one of them")
        if self.resume and self.adapter_path is None:
            raise ValueError("resume needs adapter_path, the folder with the state")

    def steps(self, batches: int) -> int:
        """The steps of a run whose data has so many batches."""
        if self.iters is not None:
            return self.iters
        epochs = EPOCHS if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * batches / self.grad_accumulation_steps))

    def warmup(self, steps: int) -> int:
        return min(100, steps // 10) if self.warmup_steps is None else self.warmup_steps

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 1: a linear rise, then the schedule, which ends at zero."""
        warmup = self.warmup(steps)
        if step <= warmup:
            return self.learning_rate * step / (warmup + 1)
        if self.lr_schedule == "constant":
            return self.learning_rate
        done = (step - 1 - warmup) / max(1, steps - warmup)
        return self.learning_rate * (1 - done if self.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def evaluate_every(self, steps: int) -> int:
        return self.steps_per_eval or max(1, steps // EVALUATIONS)


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def _is_within(value: object, above: float, below: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < below
