"""Logits and labels -> the loss that transformers computes for each head, in float32.

Notes:
- A mean is over the labels that are not ignored. If all are ignored, it is 0. transformers returns NaN.
- Question answering clamps a position beyond the text and ignores it.

Shapes: B batch, L tokens, V vocabulary, N labels.
Source: transformers' `loss/loss_utils.py`.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

IGNORED = -100  # the label of an ignored token


def causal_lm_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Logits [B, L, V] and labels [B, L]: the mean cross-entropy of each next token whose label is not -100."""
    if logits.shape[1] == 1:
        return mx.zeros(())  # there is no next token
    return _cross_entropy(logits[:, :-1], labels[:, 1:])


def token_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Logits [B, L, N] and labels [B, L]: the mean cross-entropy over the labels that are not -100."""
    return _cross_entropy(logits, labels)


def sequence_loss(logits: mx.array, labels: mx.array, problem_type: str) -> mx.array:
    """Logits [B, N] and labels: [B] for one label, [B, N] for any number, [B] or [B, N] for a regression."""
    if problem_type == "single_label_classification":
        return _cross_entropy(logits, labels)
    logits, labels = logits.astype(mx.float32), labels.astype(mx.float32)
    if problem_type == "regression":
        return nn.losses.mse_loss(logits, labels.reshape(logits.shape), reduction="mean")
    return nn.losses.binary_cross_entropy(logits, labels, with_logits=True, reduction="mean")


def span_loss(start_logits: mx.array, end_logits: mx.array, start: mx.array, end: mx.array) -> mx.array:
    """Logits [B, L] and positions [B]: the mean of both cross-entropies.

    A position is clamped to 0 … L. The position L is ignored.
    """
    length = start_logits.shape[1]
    start, end = mx.clip(start, 0, length), mx.clip(end, 0, length)
    return (_cross_entropy(start_logits, start, length) + _cross_entropy(end_logits, end, length)) / 2


def _cross_entropy(logits: mx.array, labels: mx.array, ignored: int = IGNORED) -> mx.array:
    """Logits [..., N] and labels [...]: the mean over the labels that are not `ignored`."""
    counted = labels != ignored
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), mx.where(counted, labels, 0))
    return mx.where(counted, losses, 0).sum() / mx.maximum(counted.sum(), 1)
