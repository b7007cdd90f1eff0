"""Recipes: a name -> the quantization of each weight.

Notes:
- A recipe is a rule about names and shapes, so the plan is complete before the work starts. 4bit-quality also takes the
  measured errors of the weights (`sensitivity.py`), where there are texts to calibrate on.
- Where the output head is tied to the embedding, the embedding counts as the head: every token uses all of it.
- The `mixed_*` recipes are mlx-lm's, which have no rule for a tied head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..checkpoint.quantize import DEFAULTS, Quantization
from ..checkpoint.share import EMBEDDING, HEAD

#: mlx-lm's: (low bits, high bits)
MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
QUALITY = "4bit-quality"
RECIPES = ("4bit", QUALITY, "8bit", "mxfp4", "nvfp4", "mxfp8", *MIXED)
#: Projections in the order in which a fifth bit reduces KL most per size. Measured on the demo: for each percent of
#: size v_proj reduced it by 21 %, o_proj by 12 %, k_proj by 2 %, and the others by about 1 %.
SENSITIVE = ("v_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "down_proj")
#: Bits that 4bit-quality chooses from by errors.
LADDER = (4, 5, 6, 8)
#: Default bits per weight of 4bit-quality.
QUALITY_BPW = 4.85


def settings_of(
    recipe: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    group_size: int | None = None,
    target_bpw: float | None = None,
    float_bits: int = 16,
    errors: Mapping[str, float] | None = None,
) -> dict[str, Quantization]:
    """The quantization of every weight that the recipe quantizes; the others stay in full precision.

    `shapes` are the shapes of all weights by name. `group_size` is for the affine recipes (default: 64).
    `target_bpw` is for 4bit-quality: bits per weight of the whole result (default: QUALITY_BPW, or the least possible
    value if that is more), and so are `errors`, which each projection causes at 4 bits. `float_bits` are the bits of
    scales, biases and unquantized weights. A `ConversionRequest` has checked the recipe and its options. Raises
    ValueError for a group size or a target that is not possible.
    """
    if recipe in DEFAULTS:
        bits, only_group_size = DEFAULTS[recipe]
        return uniform(Quantization(bits, only_group_size if group_size is None else group_size, recipe), shapes)
    group_size = 64 if group_size is None else group_size
    if recipe in MIXED:
        return _mixed(*MIXED[recipe], group_size, shapes)
    chosen = uniform(Quantization(8 if recipe == "8bit" else 4, group_size), shapes)
    return _spend(chosen, shapes, target_bpw, float_bits, errors) if recipe == QUALITY else chosen


def uniform(quantization: Quantization, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantization]:
    """The same quantization for every weight that it applies to."""
    return {name: quantization for name, shape in shapes.items() if quantization.applies_to(name, shape)}


def bits_per_weight(
    settings: Mapping[str, Quantization], shapes: Mapping[str, tuple[int, ...]], float_bits: int = 16
) -> float:
    """Bits per weight of the whole result, with scales and biases; unquantized weights have `float_bits`."""
    bits = sum(_bits(settings.get(name), shape, float_bits) for name, shape in shapes.items())
    return bits / sum(math.prod(shape) for shape in shapes.values())


def _bits(quantization: Quantization | None, shape: tuple[int, ...], float_bits: int) -> float:
    each = float_bits if quantization is None else quantization.bits_per_weight(float_bits)
    return math.prod(shape) * each


def _spend(
    settings: dict[str, Quantization],
    shapes: Mapping[str, tuple[int, ...]],
    target_bpw: float | None,
    float_bits: int,
    errors: Mapping[str, float] | None,
) -> dict[str, Quantization]:
    """Six bits for the output head, then more bits for one weight after another up to the target.

    With `errors` the first is the one that loses most error per bit, else the most sensitive kind.
    """
    head = HEAD if HEAD in shapes else EMBEDDING
    chosen = settings | ({head: replace(settings[head], bits=6)} if head in settings else {})
    least = bits_per_weight(chosen, shapes, float_bits)
    target = max(QUALITY_BPW, least) if target_bpw is None else target_bpw
    if not least <= target < math.inf:
        raise ValueError(f"4bit-quality needs at least {least:.3f} bits per weight, and target_bpw is {target}")
    others = [name for name in chosen if name not in (head, EMBEDDING)]
    left = (target - least) * sum(math.prod(shape) for shape in shapes.values())
    steps = _by_kind(others, _layer_count(shapes)) if errors is None else _by_error(others, shapes, errors)
    for name, before, bits in steps:
        raised = replace(chosen[name], bits=bits)
        more = _bits(raised, shapes[name], float_bits) - _bits(chosen[name], shapes[name], float_bits)
        if chosen[name].bits == before and more <= left:
            chosen[name] = raised
            left -= more
    return chosen


def _by_kind(names: Sequence[str], layers: int) -> list[tuple[str, int, int]]:
    """Steps of one weight from its bits to more bits: all to 5 bits, then all to 6."""
    ordered = sorted(names, key=lambda name: _preference(name, layers))
    return [(name, bits - 1, bits) for bits in (5, 6) for name in ordered]


def _by_error(
    names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], errors: Mapping[str, float]
) -> list[tuple[str, int, int]]:
    """The same steps by the error that each bit removes: the error is as the square of a step between two codes."""

    def removed(step: tuple[str, int, int]) -> float:
        name, *ends = step
        error, less = (errors[name] * (15 / (2**bits - 1)) ** 2 for bits in ends)
        return (error - less) / ((ends[1] - ends[0]) * math.prod(shapes[name]))

    return sorted(((name, *ends) for name in names for ends in pairwise(LADDER)), key=removed, reverse=True)


def _preference(name: str, layers: int) -> tuple[int, int, int]:
    """The sort key of a weight: by kind, then from the ends of the network inwards."""
    layer = int(re.findall(r"layers\.(\d+)\.", name)[0])
    kind = next(place for place, part in enumerate(SENSITIVE) if part in name)
    return kind, min(layer, layers - 1 - layer), -layer


def _mixed(low: int, high: int, group_size: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantization]:
    """mlx-lm's rule (after llama.cpp's Q4_K_M): more bits for v_proj, down_proj of some layers, and for lm_head."""
    layers = _layer_count(shapes)
    chosen = {}
    for name in uniform(Quantization(low, group_size), shapes):
        number = re.search(r"layers\.(\d+)\.", name)
        index = int(number[1]) if number else 0
        more = index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2
        raised = name == HEAD or (more and ("v_proj" in name or "down_proj" in name))
        chosen[name] = Quantization(high if raised else low, group_size)
    return chosen


def _layer_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(int(number) for name in shapes for number in re.findall(r"layers\.(\d+)\.", name))
