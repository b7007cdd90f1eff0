"""The outputs of the `forward` of each network, under transformers' names.

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
    """Outputs that were not requested are None.

    `hidden_states`: the input of the first layer and the output of each layer, [B, L, E]. The last is normalized.
    `attentions`: the attention weights of each layer, [B, H, L, S]. S of a local layer is the number of cached rows.
    `past_key_values`: one cache for each layer, for the next call.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """All outputs but None, in order: transformers' `return_dict=False`."""
        values = (getattr(self, item.name) for item in fields(self))
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        """By name, or by index in `to_tuple()`."""
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
    """`logits`: [B, L, V], or of the requested positions."""


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
