"""The error that rounding each weight causes: the measure by which the recipe 4bit-quality spends its bits.

Notes:
- One weight at a time is rounded, and its block runs with it on the original's hidden states. The error is that of the
  block's outputs, relative to them. It ranks the demo's weights nearly as their KL does, and needs no run of the rest.
- One block and the hidden states of a few texts are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.quantize import Quantization
from ..model.pretrained import OpenCheckpoint, Progress
from .layerwise import LayerwiseModel, run_block

TOKENS = 2048  # about as many of the texts are read; the demo gets the bits of 8,192, but for 2 of 57 weights


def block_errors(
    opened: OpenCheckpoint,
    sequences: Sequence[Sequence[int]],
    quantization: Quantization,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Weight name -> mean relative squared error of its block's outputs, for each projection that can be quantized.

    Every so many of the `sequences` are read, up to about TOKENS tokens in all. `progress(done, total)` counts layers.
    """
    model = LayerwiseModel(opened.source, opened.config, unpacked=True)
    states = model.embed(sequences[:: max(1, sum(map(len, sequences)) // TOKENS)])
    errors = {}
    for number in range(opened.config.num_hidden_layers):
        block = model.block(number)
        exact = run_block(block, states)
        for name, linear in block.named_modules():
            full = f"model.layers.{number}.{name}.weight"
            if isinstance(linear, nn.Linear) and quantization.applies_to(full, linear.weight.shape):
                kept = linear.weight
                stored = [array for _, array in quantization.tensors(full, kept)]
                linear.weight = quantization.dequantized(stored)
                errors[full] = _error(run_block(block, states), exact)
                linear.weight = kept
        states = exact
        mx.clear_cache()
        if progress:
            progress(number + 1, opened.config.num_hidden_layers)
    return errors


def _error(outputs: Sequence[mx.array], exact: Sequence[mx.array]) -> float:
    shares = []
    for x, y in zip(outputs, exact, strict=True):
        error, power = mx.sum(mx.square(x - y), axis=-1), mx.sum(mx.square(y), axis=-1)
        shares.append(mx.where(power == 0, 0.0, error / power).reshape(-1))
    return float(mx.mean(mx.concatenate(shares)))
