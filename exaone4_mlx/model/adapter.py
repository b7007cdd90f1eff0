"""Adapters: changes of a model's weights, small enough to be kept and exchanged apart from the model.

Notes:
- `lora` adds `scale * x @ lora_a @ lora_b` to the output of a projection. `dora` then gives the weights of each output
  the length `m`. `full` has whole weights in place of the model's.
- Names and shapes are those of mlx-lm, whatever the format of the file. `adapter_file.py` reads and writes files.

Shapes: E inputs of a projection, F its outputs, r rank.
Sources: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353), mlx-lm's tuner.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import mlx.core as mx

from ..files.safetensors import check_finite
from .config import Exaone4Config

TYPES = ("lora", "dora", "full")
#: The projections of a layer.
KEYS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
ARRAY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter changes, with the meaning that mlx-lm gives the fields.

    `keys` are names of projections within a layer, or "lm_head". `num_layers` counts from the last layer; -1 means all.
    `dropout` is for training. `base` is the folder or hub id of the model that it was trained on, where that is known.
    Raises ValueError that names the field.
    """

    fine_tune_type: str = "lora"
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    num_layers: int = -1
    keys: tuple[str, ...] = KEYS
    base: str | None = None

    def __post_init__(self) -> None:
        if self.fine_tune_type not in TYPES:
            raise ValueError(f"fine_tune_type must be one of {', '.join(TYPES)}, not {self.fine_tune_type!r:.99}")
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank must be a whole number above 0, not {self.rank!r:.99}")
        if not is_number(self.scale):
            raise ValueError(f"scale must be a number, not {self.scale!r:.99}")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, not {self.dropout!r:.99}")
        if type(self.num_layers) is not int or self.num_layers < -1:
            raise ValueError(f"num_layers must be a whole number, or -1 for all layers, not {self.num_layers!r:.99}")
        if unknown := [key for key in self.keys if key not in (*KEYS, "lm_head")]:
            raise ValueError(f"an adapter is for {', '.join(KEYS)} and lm_head, not for {unknown[0]!r:.99}")

    def modules(self, config: Exaone4Config) -> list[str]:
        """The names of the projections that an adapter with these settings has, in a model of `config`."""
        depth = config.num_hidden_layers
        first = 0 if self.num_layers == -1 else depth - self.num_layers
        if first < 0:
            raise ValueError(f"num_layers is {self.num_layers}, and the model has {depth} layers")
        names = [f"model.layers.{i}.{key}" for i in range(first, depth) for key in KEYS if key in self.keys]
        return names + ["lm_head"] * ("lm_head" in self.keys)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter. `arrays` have mlx-lm's names: `model.layers.0.self_attn.q_proj.lora_a` [E, r], `.lora_b` [r, F] and,
    for DoRA, `.m` [F]; or, for `full`, the names of the model's parameters. `name` stands in errors.
    """

    config: AdapterConfig
    arrays: Mapping[str, mx.array]
    name: str = "the adapter"

    @property
    def modules(self) -> list[str]:
        """The names of the projections of a LoRA or DoRA."""
        return [name.removesuffix(".lora_a") for name in self.arrays if name.endswith(".lora_a")]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def with_base(self, base: str) -> Adapter:
        """The adapter with another name of its base."""
        return replace(self, config=replace(self.config, base=base))

    def check(self, config: Exaone4Config) -> None:
        """Raises ValueError that names the array, unless every array is for a model of `config`, with the rank given.

        The shapes of a `full` adapter are checked when it is put onto a model.
        """
        if self.config.fine_tune_type == "full":
            return
        shapes, rank = projection_shapes(config), self.config.rank
        parts = {"lora_a", "lora_b"} | ({"m"} if self.config.fine_tune_type == "dora" else set())
        found: dict[str, set[str]] = {}
        for name, array in self.arrays.items():
            match = ARRAY.fullmatch(name)
            module, part = (match["module"], match["part"]) if match else (name, "")
            if module not in shapes or part not in parts:
                raise ValueError(f"{self.name} has {name}, which {self._kind} of this model cannot have{self._base}")
            outputs, inputs = shapes[module]
            wanted = {"lora_a": (inputs, rank), "lora_b": (rank, outputs), "m": (outputs,)}[part]
            if array.shape != wanted:
                raise ValueError(
                    f"{self.name}: {name} has shape {array.shape}, and with rank {rank} this model needs {wanted}"
                    f"{self._base}"
                )
            found.setdefault(module, set()).add(part)
        if lacking := [f"{module}.{part}" for module in found for part in sorted(parts - found[module])]:
            raise ValueError(f"{self.name} lacks {lacking[0]}")
        if not found:
            raise ValueError(f"{self.name} has no arrays")

    def rows(self, module: str, weight: mx.array, start: int) -> tuple[mx.array, mx.array | None]:
        """Rows of a weight from `start` on, [rows, E] in float32 -> LoRA's change of them, and DoRA's gain [rows]."""
        columns = slice(start, start + len(weight))
        a, b = (self.arrays[f"{module}.{part}"].astype(mx.float32) for part in ("lora_a", "lora_b"))
        change = self.config.scale * b[:, columns].T @ a.T
        if self.config.fine_tune_type != "dora":
            return change, None
        return change, self.arrays[f"{module}.m"][columns] / mx.linalg.norm(weight + change, axis=1)

    @property
    def _kind(self) -> str:
        return {"lora": "a LoRA", "dora": "a DoRA", "full": "a full adapter"}[self.config.fine_tune_type]

    @property
    def _base(self) -> str:
        return f"; it was trained on {self.config.base}" if self.config.base else ""


def adapted_rows(given: Sequence[WeightedAdapter], name: str, weight: mx.array, start: int = 0) -> mx.array:
    """Rows of the parameter `name` from `start` on, in float32 -> the same rows with all adapters fused into them."""
    total = weight
    for adapter, share in given:
        if (whole := adapter.arrays.get(name)) is not None:  # of a full adapter
            total = total + share * (whole[start : start + len(weight)].astype(mx.float32) - weight)
        elif f"{(module := name.removesuffix('.weight'))}.lora_a" in adapter.arrays:
            change, gain = adapter.rows(module, weight, start)
            total = total + share * (change if gain is None else gain[:, None] * (weight + change) - weight)
    return total


def adapter_names(given: Sequence[WeightedAdapter]) -> str:
    return " and ".join(adapter.name for adapter, _ in given)


def cast_adapted(array: mx.array, dtype: mx.Dtype, name: str, given: Sequence[WeightedAdapter]) -> mx.array:
    """An array that the adapters changed, evaluated. Raises CheckpointError that names them if it is not finite."""
    cast = array.astype(dtype)
    check_finite(cast, f"{name} with {adapter_names(given)}", lambda: [array])
    return cast


def check_adapters(given: Sequence[WeightedAdapter], config: Exaone4Config) -> None:
    """Raises ValueError that names the adapter and the array, for one that a model of `config` cannot have."""
    for adapter, scale in given:
        if not is_number(scale):
            raise ValueError(f"the scale of {adapter.name} must be a number, not {scale!r:.99}")
        adapter.check(config)
        if adapter.config.fine_tune_type == "full" and len(given) > 1:
            raise ValueError(f"{adapter.name} has whole weights: it cannot be combined with another adapter")


def projection_shapes(config: Exaone4Config) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each projection that an adapter can change, by its name in the model."""
    hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    heads, key_heads = config.num_attention_heads * size, config.num_key_value_heads * size
    shapes = [(heads, hidden), (key_heads, hidden), (key_heads, hidden), (hidden, heads)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    found = {
        f"model.layers.{i}.{key}": shape
        for i in range(config.num_hidden_layers)
        for key, shape in zip(KEYS, shapes, strict=True)
    }
    return found if config.tie_word_embeddings else {**found, "lm_head": (config.vocab_size, hidden)}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


#: An adapter, and the number that multiplies its change: 0 is the model without it, 1 the adapter as it was trained.
WeightedAdapter = tuple[Adapter, float]
