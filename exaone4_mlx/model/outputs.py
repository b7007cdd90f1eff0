"""The outputs of the `forward` of each network, under transformers' names.

Shapes: B batch, L new tokens, S attended tokens, H query heads, E hidden size, V vocabulary, N labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from .cache import Cache


@dataclass(frozen=True, eq=False)
class ModelOutput(Mapping[str, Any]):
    """A mapping of the outputs that were requested; as attributes, the others are None. An index counts them.

    `hidden_states`: the input of the first layer and the output of each layer, [B, L, E]. The last is normalized.
    `attentions`: the attention weights of each layer, [B, H, L, S]. S of a local layer is the number of cached rows.
    `past_key_values`: one cache for each layer, for the next call.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """All outputs but None, in order: transformers' `return_dict=False`."""
        return tuple(self.values())

    @property
    def _names(self) -> list[str]:
        return [item.name for item in fields(self) if getattr(self, item.name) is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __getitem__(self, key: int | slice | str) -> Any:
        """By name, or by index in `to_tuple()`. Raises KeyError or IndexError for an output that is not there."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)


@dataclass(frozen=True, eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state`: [B, L, E], normalized."""

    last_hidden_state: mx.array
    past_key_values: Sequence[Cache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class TokenClassifierOutput(ModelOutput):
    """`logits`: [B, L, N]."""

    loss: mx.array | None
    logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(frozen=True, eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits`: [B, L]."""

    loss: mx.array | None
    start_logits: mx.array
    end_logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
