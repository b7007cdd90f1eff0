"""The rotation frequencies of a RoPE configuration, as plain floats.

What is peculiar here:
- Nothing is an MLX array: an array made at import would belong to one thread's stream.
- A layer uses these frequencies or none at all; which, is `config.py`'s to say.
- Rules and defaults follow transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The further keys that each RoPE type must have.
REQUIRED_KEYS = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
#: Types that the documentation names and that are not implemented yet.
PLANNED_TYPES = ("linear", "dynamic", "yarn", "longrope")


@dataclass(frozen=True)
class RopeParameters:
    """One RoPE configuration, validated.

    `rope_theta` is the base of the wavelengths; the other numbers belong to the llama3 type and are
    None elsewhere. Lengths are in tokens.
    """

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    @classmethod
    def from_dict(cls, parameters: Mapping[str, Any], max_position_embeddings: int) -> RopeParameters:
        """Reads transformers 5's `rope_parameters` (or the older `rope_scaling` joined with `rope_theta`).

        Raises ValueError for a type that is not implemented, and for an unknown, missing or
        meaningless key: each of them would change the numbers.
        """
        values = dict(parameters)
        older_name = values.pop("type", None)
        rope_type = values.pop("rope_type", older_name) or "default"
        if older_name not in (None, rope_type):
            raise ValueError(f"RoPE is given as rope_type {rope_type!r} and as type {older_name!r}; keep one of them")
        if rope_type not in REQUIRED_KEYS:
            known = "is not implemented yet" if rope_type in PLANNED_TYPES else "is unknown"
            raise ValueError(f"rope_type {rope_type!r} {known}; implemented: {', '.join(REQUIRED_KEYS)}")
        if values.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
            raise ValueError("partial_rotary_factor other than 1 is not part of EXAONE 4")

        required = REQUIRED_KEYS[rope_type]
        if "original_max_position_embeddings" in required:
            values.setdefault("original_max_position_embeddings", max_position_embeddings)
        if unknown := sorted(set(values) - {"rope_theta", *required}):
            raise ValueError(f"unknown RoPE keys for type {rope_type!r}: {', '.join(unknown)}")
        if missing := [key for key in required if values.get(key) is None]:
            raise ValueError(f"RoPE type {rope_type!r} needs {', '.join(missing)}")
        if values.get("rope_theta") is None:
            values.pop("rope_theta", None)
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"RoPE key {key} must be a positive number, not {value!r}")
        if rope_type == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
            low, high = values["low_freq_factor"], values["high_freq_factor"]
            raise ValueError(f"low_freq_factor {low} must be below high_freq_factor {high}")
        return cls(rope_type=rope_type, **values)

    def scaling(self) -> dict[str, Any]:
        """The keys of this type beside `rope_theta`, as a config spells them: empty for the default type."""
        if self.rope_type == "default":
            return {}
        return {"rope_type": self.rope_type} | {key: getattr(self, key) for key in REQUIRED_KEYS[self.rope_type]}


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> list[float]:
    """Radians per token of each rotated pair: `head_dim / 2` floats, fastest first."""
    plain = [rope.rope_theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    return [_llama3(rope, frequency) for frequency in plain] if rope.rope_type == "llama3" else plain


def _llama3(rope: RopeParameters, frequency: float) -> float:
    """Llama 3's long-context rule: slow rotations are slowed by `factor`, fast ones kept, the middle blended."""
    assert rope.factor and rope.low_freq_factor and rope.high_freq_factor and rope.original_max_position_embeddings
    turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # full turns within the original length
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = min(1.0, max(0.0, kept))
    return frequency * (kept + (1 - kept) / rope.factor)
