"""The rotation frequencies of every RoPE type, as plain floats.

Notes:
- No MLX arrays: an array that is made at import belongs to one thread's stream.
- A layer uses these frequencies, or no RoPE at all. `config.py` decides which.
- `dynamic` and `longrope` change their frequencies when a sequence is longer than the original length. Keys that are
  already cached keep their rotation.
- Rules and defaults follow transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ORIGINAL = "original_max_position_embeddings"

#: type -> (required keys, optional keys), beside rope_theta. The default of the original length is
#: max_position_embeddings.
KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (ORIGINAL,)),
    "yarn": (
        ("factor", ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor", ORIGINAL), ("factor", "attention_factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
}
LISTS = ("short_factor", "long_factor")
LARGEST = 1e30  # of a factor or another number
MSCALES = ("mscale", "mscale_all_dim")  # 0 means absent, as in transformers


@dataclass(frozen=True)
class RopeParameters:
    """A validated RoPE configuration with all defaults.

    `rope_theta` is the base of the wavelengths. Rotated queries and keys are both multiplied by `attention_factor`,
    which is 1 except for yarn and longrope. Lengths are in tokens. `short_factor` and `long_factor` have one number
    for each rotated pair. A field that the type does not use is None.
    """

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float = 1.0
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    @classmethod
    def from_dict(cls, parameters: Mapping[str, Any], max_position_embeddings: int) -> RopeParameters:
        """Reads transformers 5's `rope_parameters` (or the older `rope_scaling` with `rope_theta` added).

        Raises ValueError for an unknown type, and for an unknown, missing or invalid key: each would change the
        numbers.
        """
        values = dict(parameters)
        older_name = values.pop("type", None)
        rope_type = values.pop("rope_type", older_name) or "default"
        if older_name not in (None, rope_type):
            raise ValueError(f"RoPE has rope_type {rope_type!r} and type {older_name!r}; remove one of them")
        if not isinstance(rope_type, str) or rope_type not in KEYS:
            raise ValueError(f"rope_type {rope_type!r} is unknown; known: {', '.join(KEYS)}")
        if values.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
            raise ValueError("partial_rotary_factor other than 1 is not part of EXAONE 4")

        required, optional = KEYS[rope_type]
        values = {key: value for key, value in values.items() if value is not None}
        if unknown := sorted(set(values) - {"rope_theta", *required, *optional}):
            raise ValueError(f"unknown RoPE keys for type {rope_type!r}: {', '.join(map(str, unknown))}")
        if ORIGINAL in required:
            values.setdefault(ORIGINAL, max_position_embeddings)
        if missing := [key for key in required if key not in values]:
            raise ValueError(f"RoPE type {rope_type!r} needs {', '.join(missing)}")
        values = {key: _checked(key, value) for key, value in values.items() if value != 0 or key not in MSCALES}
        if rope_type in FILL:
            FILL[rope_type](values, max_position_embeddings)
        return cls(rope_type=rope_type, **values)

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.rope_type in ("dynamic", "longrope")

    def check_head_dim(self, head_dim: int) -> None:
        """Raises ValueError unless there is one factor for each of the `head_dim / 2` pairs."""
        for key in LISTS:
            factors = getattr(self, key)
            if factors is not None and len(factors) != head_dim // 2:
                raise ValueError(
                    f"RoPE key {key} has {len(factors)} numbers, but head_dim {head_dim} has {head_dim // 2} pairs"
                )
        if self.rope_type == "dynamic" and head_dim < 4:
            raise ValueError(f"RoPE type 'dynamic' needs a head_dim of 4 or more, not {head_dim}")

    def scaling(self) -> dict[str, Any]:
        """The keys of this type beside `rope_theta`, as in a config. Empty for the default type."""
        if self.rope_type == "default":
            return {}
        keys = [key for part in KEYS[self.rope_type] for key in part]
        if self.rope_type == "dynamic":
            keys.remove(ORIGINAL)  # it equals max_position_embeddings, and transformers warns about the key
        values = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return {"rope_type": self.rope_type} | {k: list(v) if k in LISTS else v for k, v in values.items()}


def _checked(key: str, value: Any) -> Any:
    """The value of a key, in its type. Raises ValueError for an invalid value."""
    if key == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"RoPE key truncate must be true or false, not {value!r}")
        return value
    if key in LISTS:
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(map(_is_positive, value)):
            raise ValueError(f"RoPE key {key} must be a list of positive numbers, not {value!r}")
        return tuple(map(float, value))
    if not _is_positive(value) or (key == ORIGINAL and value != int(value)):
        kind = "whole number" if key == ORIGINAL else "number"
        raise ValueError(f"RoPE key {key} must be a positive {kind}, not {value!r}")
    return int(value) if key == ORIGINAL else value


def is_number(value: Any) -> bool:
    """Whether it is a number that float32 holds, also after multiplications."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_positive(value: Any) -> bool:
    return is_number(value) and value >= 1 / LARGEST


def _fill_dynamic(values: dict[str, Any], longest: int) -> None:
    if values.get(ORIGINAL, longest) != longest:
        warnings.warn(
            f"RoPE type 'dynamic' stretches beyond max_position_embeddings ({longest}), as in transformers: "
            f"{ORIGINAL} {values[ORIGINAL]} has no effect",
            stacklevel=2,
        )
    values[ORIGINAL] = longest


def _fill_yarn(values: dict[str, Any], longest: int) -> None:
    values.setdefault("beta_fast", 32.0)
    values.setdefault("beta_slow", 1.0)
    values.setdefault("truncate", True)
    if values["beta_fast"] < values["beta_slow"]:
        raise ValueError(
            f"RoPE key beta_fast {values['beta_fast']} must not be below beta_slow {values['beta_slow']} "
            "(defaults: 32 and 1)"
        )
    if values.get("rope_theta", RopeParameters.rope_theta) == 1:
        raise ValueError("RoPE type 'yarn' needs a rope_theta other than 1")
    both = "mscale" in values and "mscale_all_dim" in values
    numerator, denominator = (values["mscale"], values["mscale_all_dim"]) if both else (1.0, 0.0)

    def growth(scale: float) -> float:
        return 1.0 if values["factor"] <= 1 else 0.1 * scale * math.log(values["factor"]) + 1

    values.setdefault("attention_factor", growth(numerator) / growth(denominator))


def _fill_longrope(values: dict[str, Any], longest: int) -> None:
    original = values[ORIGINAL]
    values.setdefault("factor", longest / original)
    if "attention_factor" not in values and values["factor"] > 1 and original == 1:
        raise ValueError(f"RoPE type 'longrope' needs an attention_factor where {ORIGINAL} is 1")
    stretched = values["factor"] > 1 and original > 1
    default = math.sqrt(1 + math.log(values["factor"]) / math.log(original)) if stretched else 1.0
    values.setdefault("attention_factor", default)


def _fill_llama3(values: dict[str, Any], longest: int) -> None:
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    if low >= high:
        raise ValueError(f"low_freq_factor {low} must be below high_freq_factor {high}")


#: type -> function (values, max_position_embeddings) that adds the defaults of the type to the values
FILL = {"dynamic": _fill_dynamic, "yarn": _fill_yarn, "longrope": _fill_longrope, "llama3": _fill_llama3}


def inverse_frequencies(rope: RopeParameters, head_dim: int, length: int = 0) -> list[float]:
    """Radians per token of each rotated pair: `head_dim / 2` floats, fastest first.

    `length` is the number of tokens of the whole sequence. It has an effect if `depends_on_length`.
    """
    plain = _geometric(rope.rope_theta, head_dim)
    if rope.rope_type == "linear":
        return [frequency / rope.factor for frequency in plain]  # type: ignore[operator]
    if rope.rope_type == "dynamic":
        return _dynamic(rope, head_dim, length)
    if rope.rope_type == "yarn":
        return _yarn(rope, head_dim, plain)
    if rope.rope_type == "longrope":
        assert rope.short_factor and rope.long_factor and rope.original_max_position_embeddings
        factors = rope.long_factor if length > rope.original_max_position_embeddings else rope.short_factor
        return [frequency / factor for frequency, factor in zip(plain, factors, strict=True)]
    if rope.rope_type == "llama3":
        return [_llama3(rope, frequency) for frequency in plain]
    return plain


def _geometric(theta: float, head_dim: int) -> list[float]:
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


def _dynamic(rope: RopeParameters, head_dim: int, length: int) -> list[float]:
    """NTK-aware scaling (bloc97, emozilla): beyond the original length, the base grows with the length."""
    assert rope.factor and rope.original_max_position_embeddings
    longer = max(length, rope.original_max_position_embeddings) / rope.original_max_position_embeddings
    growth = rope.factor * longer - (rope.factor - 1)
    return _geometric(rope.rope_theta * growth ** (head_dim / (head_dim - 2)), head_dim)


def _yarn(rope: RopeParameters, head_dim: int, plain: list[float]) -> list[float]:
    """YaRN (arXiv 2309.00071): fast pairs keep their frequencies, slow pairs are stretched."""
    assert rope.factor and rope.beta_fast and rope.beta_slow and rope.original_max_position_embeddings

    def pair_of(times: float) -> float:
        """The index of the pair that rotates this number of times within the original length."""
        radians = 2 * math.pi * times / rope.original_max_position_embeddings  # type: ignore[operator]
        return -head_dim * math.log(radians) / (2 * math.log(rope.rope_theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    stretched = [min(1.0, max(0.0, (i - first) / (last - first))) for i in range(head_dim // 2)]
    return [f * (1 - share) + f / rope.factor * share for f, share in zip(plain, stretched, strict=True)]


def _llama3(rope: RopeParameters, frequency: float) -> float:
    """Llama 3's long-context rule: slow pairs are slowed by `factor`, fast pairs are kept, others are interpolated."""
    assert rope.factor and rope.low_freq_factor and rope.high_freq_factor and rope.original_max_position_embeddings
    turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # full turns within the original length
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = min(1.0, max(0.0, kept))
    return frequency * (kept + (1 - kept) / rope.factor)
