"""Layers with new weights, drawn as transformers draws them, for training from the start."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .config import Exaone4Config


def new_linear(config: Exaone4Config, inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A projection with new weights: normal, with the standard deviation `initializer_range`."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = mx.random.normal((outputs, inputs), scale=config.initializer_range)
    if bias:
        layer.bias = mx.zeros(outputs)
    return layer


def new_embedding(config: Exaone4Config) -> nn.Embedding:
    """Token embeddings with new weights. The padding token's embedding is zero."""
    layer = nn.Embedding(config.vocab_size, config.hidden_size)
    layer.weight = mx.random.normal((config.vocab_size, config.hidden_size), scale=config.initializer_range)
    if config.pad_token_id is not None:
        layer.weight = mx.where(mx.arange(config.vocab_size)[:, None] == config.pad_token_id, 0, layer.weight)
    return layer
