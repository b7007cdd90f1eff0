"""Projections with an adapter that is trained, and the gradient of a batch.

Notes:
- The names of the trained arrays, their first values and their mathematics are mlx-lm's. They are float32, whatever the
  model is.
- DoRA needs the length of each row of the changed weight. It follows from products with the thin matrices:
  |w + d|² = |w|² + 2 w·d + |d|². So no weight is dequantized in a step, and every number of bits works.
- Hidden states are gathered at the learned positions before the output head. Logits of all positions would be the
  largest array of a step.
- Gradient checkpointing wraps single blocks. It does not change the class of the blocks, as mlx-lm's does.

Shapes: B examples, L tokens, P learned positions of the batch, E hidden size or inputs, F outputs, r rank.
Sources: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..model.layer import run_layers
from ..model.network import Exaone4ForCausalLM

HEAD_POSITIONS = 1024  # whose logits are in memory at a time


class TrainedLinear(nn.Module):
    """A projection [.., E] -> [.., F] with a LoRA beside it, or with `dora` a DoRA."""

    def __init__(self, base: Any, rank: int, scale: float, dropout: float, dora: bool) -> None:
        super().__init__()
        lengths = row_lengths(base)
        inputs, outputs = input_size(base), lengths.shape[0]
        self.base = base
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank))
        self.lora_b = mx.zeros((rank, outputs))
        if dora:
            self.m = lengths
            self._squares = mx.square(lengths)  # a private name is no parameter

    def __call__(self, x: mx.array) -> mx.array:
        change = self.scale * ((self.dropout(x) @ self.lora_a) @ self.lora_b)
        if "m" not in self:
            return self.base(x) + change.astype(x.dtype)
        gain = self.m / mx.stop_gradient(self._lengths())  # as in the paper, section 4.3
        return (gain * (self.base(x) + change)).astype(x.dtype)

    def _lengths(self) -> mx.array:
        """The length of each row of the changed weight, [F]."""
        a, b = self.lora_a, self.scale * self.lora_b
        mixed = (self.base(a.T) * b).sum(axis=0)
        change = ((a.T @ a @ b) * b).sum(axis=0)
        return mx.sqrt(mx.maximum(self._squares + 2 * mixed + change, 1e-12))


def input_size(base: Any) -> int:
    """The inputs of a projection, also of a quantized one."""
    columns = base.weight.shape[1]
    return columns * 32 // base.bits if isinstance(base, nn.QuantizedLinear) else columns


def row_lengths(base: Any) -> mx.array:
    """The length of each row of a projection's weight, [F] in float32."""
    weight = base.weight
    if isinstance(base, nn.QuantizedLinear):
        weight = mx.dequantize(weight, base.scales, base.get("biases"), base.group_size, base.bits, base.mode)
    lengths = mx.linalg.norm(weight.astype(mx.float32), axis=1)
    mx.eval(lengths)
    return lengths


class CheckpointedBlock:
    """A block that is computed again for the gradient, in place of keeping what it computes."""

    def __init__(self, block: Any) -> None:
        self.block, self.window = block, block.window

    def __call__(self, x: mx.array, mask: Any, *more: Any) -> mx.array:
        def compute(parameters: Any, x: mx.array) -> mx.array:
            self.block.update(parameters)
            return self.block(x, mask, *more)

        checkpointed: Callable[..., mx.array] = mx.checkpoint(compute)
        return checkpointed(self.block.trainable_parameters(), x)


def loss_sum(
    model: Exaone4ForCausalLM, grad_checkpoint: bool, ids: mx.array, positions: mx.array, targets: mx.array
) -> mx.array:
    """The cross-entropy of the learned tokens, summed, in nats.

    `ids` are [B, L]. `positions` [P] are places in the flattened ids whose next token, in `targets` [P], is learned; a
    target of -1 is not counted.
    """
    blocks = [CheckpointedBlock(block) if grad_checkpoint else block for block in model.layers]
    hidden = model.model.norm(run_layers(blocks, model.model.embed_tokens(ids), None))  # B L E
    chosen = hidden.reshape(-1, hidden.shape[-1])[positions]  # P E

    def part(chosen: mx.array, targets: mx.array) -> mx.array:
        logits = model.logits(chosen[None])[0].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, mx.maximum(targets, 0))
        return mx.where(targets >= 0, losses, 0).sum()

    if len(positions) <= HEAD_POSITIONS:
        return part(chosen, targets)
    checkpointed = mx.checkpoint(part)
    total = mx.array(0.0)
    for start in range(0, len(positions), HEAD_POSITIONS):
        stop = start + HEAD_POSITIONS
        total = total + checkpointed(chosen[start:stop], targets[start:stop])
    return total
