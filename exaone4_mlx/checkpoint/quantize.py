"""Quantization settings of MLX: which weights are quantized, and how.

Notes:
- mlx-lm's rule applies: every projection and the embedding are quantized if a row is a whole number of groups. So each
  project reads the other's folders.
- A quantized layer has three tensors: `weight` (packed uint32), `scales`, and, in affine mode only, `biases`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

#: mode -> (group sizes, bits) that MLX has kernels for
MODES = {
    "affine": ((32, 64, 128), (2, 3, 4, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}

#: mode -> (bits, group size)
DEFAULTS = {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}


@dataclass(frozen=True)
class Quantization:
    """Bits per weight and weights per scale."""

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ValueError(f"quantization mode {self.mode!r:.99} is unknown; there are {', '.join(MODES)}")
        groups, bits = MODES[self.mode]
        if type(self.bits) is not int or self.bits not in bits:
            raise ValueError(f"{self.mode} quantization has {_any_of(bits)} bits, not {self.bits!r:.99}")
        if type(self.group_size) is not int or self.group_size not in groups:
            raise ValueError(f"{self.mode} quantization has groups of {_any_of(groups)}, not {self.group_size!r:.99}")

    def applies_to(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the tensor of this name and shape is stored quantized."""
        return len(shape) == 2 and name.endswith(".weight") and shape[-1] % self.group_size == 0

    def bits_per_weight(self, float_bits: int = 16) -> float:
        """With the scale and bias of `float_bits` each per group in affine mode, or else the scale of 8 bits."""
        return self.bits + (2 * float_bits if self.mode == "affine" else 8) / self.group_size

    def tensors(self, name: str, weight: mx.array) -> list[tuple[str, mx.array]]:
        """The named tensors of one quantized weight [rows, columns], not yet evaluated."""
        return self.named(name, mx.quantize(weight, group_size=self.group_size, bits=self.bits, mode=self.mode))

    def named(self, name: str, parts: Sequence[mx.array]) -> list[tuple[str, mx.array]]:
        """Packed weight, scales and, in affine mode, biases under their names in a checkpoint."""
        layer = name.removesuffix(".weight")
        return [(f"{layer}.{part}", array) for part, array in zip(("weight", "scales", "biases"), parts, strict=False)]

    def dequantized(self, parts: Sequence[mx.array]) -> mx.array:
        """The weight [rows, columns] from packed weight, scales and, in affine mode, biases."""
        biases = parts[2] if self.mode == "affine" else None
        return mx.dequantize(parts[0], parts[1], biases, self.group_size, self.bits, self.mode)

    def as_dict(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def read_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The MLX quantization in a config.json, or None for a checkpoint in full precision.

    Raises ValueError for another form.
    """
    quantization = config.get("quantization") or config.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, dict):
        raise ValueError(f"quantization must be an object, not {quantization!r:.99}")
    for key in ("bits", "group_size"):
        if key not in quantization:
            raise ValueError(f"quantization lacks {key}")
    return quantization


def stored_settings(quantization: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Quantization]:
    """The settings of each of the quantized `layers` in the `quantization` of a config.json.

    A layer's own settings are under its name, as in mlx-lm's mixed recipes.
    """
    default = read_settings(quantization)
    own = {layer: quantization.get(layer) for layer in layers}
    return {
        layer: read_settings({"mode": default.mode} | given) if isinstance(given, dict) else default
        for layer, given in own.items()
    }


def quantization_keys(layers: Mapping[str, Quantization | None]) -> dict[str, Any]:
    """The keys of config.json for these layers, in mlx-lm's form: the settings of most, and those that differ by name.

    There are none where no layer is quantized.
    """
    quantized = {layer: settings for layer, settings in layers.items() if settings is not None}
    if not quantized:
        return {}
    default, _ = Counter(quantized.values()).most_common(1)[0]
    value = default.as_dict() | {layer: own.as_dict() for layer, own in quantized.items() if own != default}
    return {"quantization": value, "quantization_config": value}


def read_settings(settings: Mapping[str, Any]) -> Quantization:
    """Settings from a config.json. mlx-lm writes null for MLX's default."""
    mode = settings.get("mode") or "affine"
    bits, group_size = DEFAULTS.get(str(mode), (0, 0))
    return Quantization(settings.get("bits") or bits, settings.get("group_size") or group_size, mode)


def _any_of(values: tuple[int, ...]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
