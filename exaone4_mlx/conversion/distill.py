"""Distillation: tunes scales, biases and norm weights of a quantized model towards the original's predictions.

Notes:
- The codes do not change. The tuned values are a few percent of the model, and its size stays the same.
- The original model is not loaded: its final hidden states and its output matrix give its predictions.
- The forward pass rounds the tuned values to their stored dtype, and the gradient ignores the rounding. So the loss is
  that of the stored model.
- A weight is unpacked, in float32, where it is multiplied, and again in the backward pass: MLX multiplies packed
  weights slowly on a CPU, and all unpacked layers together would be larger than the original.
- A tenth of the texts is held out and selects the best step. If no step is better, the start is the result.

Shapes: L tokens of one text, E hidden size, V vocabulary, R rows, C columns, N groups in a row.
Sources: mlx-lm's DWQ (LEARNED_QUANTS.md) for the idea; straight-through gradients are arXiv 1308.3432.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Adam
from mlx.utils import tree_flatten, tree_unflatten

from ..model.cache import causal_mask
from ..model.network import Block, Exaone4ForCausalLM
from .plan import NORM

#: name -> array
Parameters = dict[str, mx.array]
#: The token ids of a text, and the original's final hidden states [L, E].
Text = tuple[list[int], mx.array]

LEARNING_RATE = 5e-4  # the largest change of a parameter in a step, relative to it
BATCH_SIZE = 8  # texts
EPOCHS = 2
CHECKS = 8  # evaluations of the held-out texts
POSITIONS = 256  # whose logits are in memory at a time


def distill(
    model: Exaone4ForCausalLM,
    sequences: Sequence[Sequence[int]],
    targets: Sequence[mx.array],
    head: mx.array,
    *,
    steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Parameters:
    """Tunes a quantized `model` by Adam on KL(original ‖ model) over the full vocabulary, in float32.

    `targets[i]` are the original's final hidden states [L, E], after its final norm, for the ids `sequences[i]`;
    `head` is its output matrix [V, E]. A step takes `batch_size` texts; by default each text is used twice.
    `progress(done, total)` counts steps.

    Updates the model, and returns the scales and biases of its affine layers and the norm weights by name, in their
    dtypes. The KL on the held-out tenth of the texts never increases. Raises ValueError for fewer than two texts, for
    targets of other shapes, and for a model without affine layers.
    """
    texts = _texts(sequences, targets, head)
    student = _Student(model, head)
    rng = random.Random(seed)
    rng.shuffle(texts)
    count = max(1, len(texts) // 10)
    held_out, texts = texts[:count], texts[count:]
    steps = math.ceil(EPOCHS * len(texts) / batch_size) if steps is None else steps

    offsets = student.start()
    best, least = offsets, mean_divergence(student, offsets, held_out)
    optimizer = Adam(partial(_rate, learning_rate, steps), betas=[0.9, 0.98], eps=1e-12, bias_correction=True)
    queue: list[Text] = []
    for step in range(1, steps + 1):
        while len(queue) < batch_size:
            queue += rng.sample(texts, len(texts))
        batch, queue = queue[:batch_size], queue[batch_size:]
        offsets = optimizer.apply_gradients(_gradient(student, offsets, batch), offsets)
        mx.eval(offsets, optimizer.state)
        if step % max(1, steps // CHECKS) == 0 or step == steps:
            divergence = mean_divergence(student, offsets, held_out)
            if divergence < least:  # false for NaN
                best, least = offsets, divergence
        if progress:
            progress(step, steps)
    tuned = student.stored(best)
    mx.eval(tuned)
    model.update(tree_unflatten(list(tuned.items())))
    return tuned


def mean_divergence(student: _Student, offsets: Parameters, texts: Sequence[Text]) -> float:
    """KL(original ‖ student) in nats per token."""
    total = 0.0
    for ids, target in texts:
        total += float(student.divergence(offsets, ids, target))
    return total / sum(len(ids) for ids, _ in texts)


class _Student:
    """The quantized network in float32, as a function of the tuned parameters.

    The parameters are relative offsets of each scale, bias and norm weight, and start at zero. A bias is parametrized
    by the middle of its group's range, which does not depend on the scale: Adam treats parameters independently.
    """

    def __init__(self, model: Exaone4ForCausalLM, head: mx.array) -> None:
        self.config = model.config
        self.head = head.astype(mx.float32)
        self.parameters: Parameters = dict(tree_flatten(model.parameters()))
        self.blocks = [Block(model.config, layer) for layer in model.config.layers]
        self.quantized = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        }
        self.affine = [name for name, module in self.quantized.items() if module.mode == "affine"]
        self.norms = [name for name in self.parameters if name.endswith(NORM)]
        if not self.affine:
            raise ValueError("the model has no layer in affine quantization, so it has no scales to tune")

    def start(self) -> Parameters:
        """Offsets of zero: the model as it is."""
        names = [f"{layer}.{part}" for layer in self.affine for part in ("scales", "biases")] + self.norms
        return {name: mx.zeros(self.parameters[name].shape) for name in names}

    def values(self, offsets: Parameters) -> Parameters:
        """Scales, biases and norm weights in float32, rounded to their stored dtype."""
        values = {}
        for name in self.norms:
            values[name] = self._rounded(name, self.parameters[name].astype(mx.float32) * (1 + offsets[name]))
        for layer in self.affine:
            scales, biases = f"{layer}.scales", f"{layer}.biases"
            scale, bias = (self.parameters[name].astype(mx.float32) for name in (scales, biases))
            levels = 2 ** self.quantized[layer].bits - 1
            values[scales] = self._rounded(scales, scale * (1 + offsets[scales]))
            # The factor makes an offset of the middle as large as one of the scale halfway to the ends.
            shift = (scale - values[scales]) * (levels / 2) + scale * (levels / 4) * offsets[biases]
            values[biases] = self._rounded(biases, bias + shift)
        return values

    def stored(self, offsets: Parameters) -> Parameters:
        """The same values in the dtypes of the model."""
        return {name: value.astype(self.parameters[name].dtype) for name, value in self.values(offsets).items()}

    def divergence(self, offsets: Parameters, ids: Sequence[int], target: mx.array) -> mx.array:
        """KL(original ‖ student) in nats, summed over one text."""
        values = self.values(offsets)
        x = self._weight(values, "model.embed_tokens", mx.array(list(ids)))[None]  # 1 L E
        for number in range(len(self.blocks)):
            own = {name: value for name, value in values.items() if name.startswith(f"model.layers.{number}.")}
            x = mx.checkpoint(partial(self._block, number))(own, x)
        x = mx.fast.rms_norm(x, values["model.norm.weight"], self.config.rms_norm_eps)[0]  # L E
        head = self._weight(values, "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head")
        total = mx.array(0.0)
        for start in range(0, len(ids), POSITIONS):
            stop = start + POSITIONS
            total = total + mx.checkpoint(self._divergence)(head, x[start:stop], target[start:stop])
        return total

    def _block(self, number: int, own: Parameters, x: mx.array) -> mx.array:
        block, prefix = self.blocks[number], f"model.layers.{number}."
        weights = {}
        for name, _ in tree_flatten(block.parameters()):
            full = prefix + name
            weights[name] = own[full] if full in own else self._weight(own, full.removesuffix(".weight"))
        block.update(tree_unflatten(list(weights.items())))
        return block(x, causal_mask(0, x.shape[1], block.window), None)

    def _divergence(self, head: mx.array, hidden: mx.array, target: mx.array) -> mx.array:
        log_p = _log_softmax(target.astype(mx.float32) @ self.head.T)
        log_q = _log_softmax(hidden @ head.T)
        return mx.sum(mx.exp(log_p) * (log_p - log_q))

    def _weight(self, values: Parameters, layer: str, rows: mx.array | None = None) -> mx.array:
        """A layer's weight [R, C] in float32, or the chosen rows of it."""
        names = [name for part in ("weight", "scales", "biases") if (name := f"{layer}.{part}") in self.parameters]
        parts = [values.get(name, self.parameters[name]) for name in names]
        if rows is not None:
            parts = [part[rows] for part in parts]
        if layer not in self.quantized:
            return parts[0].astype(mx.float32)
        how = self.quantized[layer]
        biases = parts[2] if len(parts) > 2 else None
        return mx.dequantize(parts[0], parts[1], biases, how.group_size, how.bits, how.mode).astype(mx.float32)

    def _rounded(self, name: str, value: mx.array) -> mx.array:
        stored = value.astype(self.parameters[name].dtype).astype(mx.float32)
        return value + mx.stop_gradient(stored - value)


def _texts(sequences: Sequence[Sequence[int]], targets: Sequence[mx.array], head: mx.array) -> list[Text]:
    if len(sequences) != len(targets):
        raise ValueError(f"{len(sequences)} texts cannot have {len(targets)} targets")
    if len(sequences) < 2:
        raise ValueError("distillation needs at least two texts, and holds one of them out")
    for number, (ids, target) in enumerate(zip(sequences, targets, strict=True)):
        if target.shape != (len(ids), head.shape[1]) or not ids:
            raise ValueError(f"text {number} of {len(ids)} tokens cannot have a target of shape {target.shape}")
    return [(list(ids), target) for ids, target in zip(sequences, targets, strict=True)]


def _gradient(student: _Student, offsets: Parameters, batch: Sequence[Text]) -> Parameters:
    """The gradient of the mean over the batch's tokens. One text is in memory at a time."""
    tokens = sum(len(ids) for ids, _ in batch)
    total = {name: mx.zeros(offset.shape) for name, offset in offsets.items()}
    for ids, target in batch:
        gradient = mx.grad(student.divergence)(offsets, ids, target)
        total = {name: total[name] + gradient[name] / tokens for name in total}
        mx.eval(total)
    return total


def _rate(highest: float, steps: int, step: mx.array) -> mx.array:
    """Linear warm-up over a tenth of the steps, then cosine decay to zero. `step` counts from zero."""
    rising = mx.minimum((step + 1) / max(1.0, steps / 10), 1.0)
    return highest * rising * 0.5 * (1 + mx.cos(math.pi * step / steps))


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
