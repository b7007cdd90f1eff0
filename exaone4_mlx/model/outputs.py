"""What the `forward` of each network returns, under transformers' names.

Shapes: B batch, L new tokens, S attended tokens, H query heads, E hidden size, V vocabulary, N labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from .cache import Cache


@dataclass(frozen=True)
class ModelOutput:
    """What was not asked for is None.

    `hidden_states`: what goes into the first layer and what comes out of each, [B, L, E], the last one normalized.
    `attentions`: the weights of each layer, [B, H, L, S]; a local layer with a cache has no more columns than it holds.
    `past_key_values`: one cache for each layer, to be passed to the next call.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """What is there, in order: transformers' `return_dict=False`."""
        values = (getattr(self, item.name) for item in fields(self))
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        """By name, or by place among what is there."""
        if isinstance(key, str):
            if key not in {item.name for item in fields(self)}:
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]


@dataclass(frozen=True)
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state`: [B, L, E], normalized."""

    last_hidden_state: mx.array
    past_key_values: Sequence[Cache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True)
class _LogitsWithPast(ModelOutput):
    loss: mx.array | None
    logits: mx.array
    past_key_values: Sequence[Cache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


class CausalLMOutputWithPast(_LogitsWithPast):
    """`logits`: [B, L, V], or of the positions that were asked for."""


class SequenceClassifierOutputWithPast(_LogitsWithPast):
    """`logits`: [B, N]."""


@dataclass(frozen=True)
class TokenClassifierOutput(ModelOutput):
    """`logits`: [B, L, N]."""

    loss: mx.array | None
    logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True)
class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits`: [B, L]."""

    loss: mx.array | None
    start_logits: mx.array
    end_logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
