"""What one call of `forward` passes to all layers, and collects from them.

Notes:
- Only the rotation depends on positions. Masks and windows depend on the index of a token, as in transformers.
- A padding token may attend to nothing, which would divide zero by zero. Its output is zero, as in torch's fused
  attention. (transformers' eager attention averages all values. It is the oracle of the attention weights only.)

Shapes: B batch, L new tokens, S attended tokens, H query heads, D head size, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from .cache import causal_mask, visible


@dataclass
class AttentionContext:
    """The inputs of all layers beyond the hidden states, and the outputs that they append.

    `positions` are those of the new tokens [B, L], or of the first one of each row [B]; None counts on from the cached
    tokens. `length` is the number of tokens of the whole sequence, if more of them will follow. `padding` [B, past + L]
    is false for padding.
    Tokens attend only to tokens with the same number in `segments` [B, L]. `hidden_states` and `attentions` collect the
    outputs of the layers, unless they are None.
    """

    positions: mx.array | None = None
    length: int = 0
    padding: mx.array | None = None
    segments: mx.array | None = None
    hidden_states: list[mx.array] | None = None
    attentions: list[mx.array] | None = None
    _fully_masked: dict[int | None, mx.array] = field(default_factory=dict)  # window -> [B, 1, L, 1]

    def mask(self, past: int, length: int, window: int | None) -> mx.array | str | None:
        """The mask of new tokens that attend to `past` rows and to themselves: as `causal_mask`, or [B, 1, L, S]."""
        if self.padding is None and self.segments is None:
            return causal_mask(past, length, window)
        seen = visible(past, length, window)
        if self.segments is not None:
            seen = seen & (self.segments[:, None, :, None] == self.segments[:, None, None, :])
        if self.padding is not None:
            seen = seen & self.padding[:, None, None, -(past + length) :]
            self._fully_masked[window] = ~seen.any(axis=-1, keepdims=True)
            seen = seen | self._fully_masked[window]
        return seen

    def positions_of(self, offset: int, length: int) -> tuple[int | mx.array, int]:
        """(the first position or all positions, tokens of the sequence) for `length` new tokens after `offset`."""
        return (offset, max(self.length, offset + length)) if self.positions is None else (self.positions, self.length)

    def zero_fully_masked(self, attended: mx.array, window: int | None) -> mx.array:
        """Attention outputs [B, H, L, D] or weights [B, H, L, S], with zeros for queries that attend to nothing."""
        masked = self._fully_masked.get(window)
        return attended if masked is None else mx.where(masked, mx.zeros((), attended.dtype), attended)
