"""What `forward` tells the layers beyond the plain call.

What is peculiar here:
- Positions count for the rotation only. Masks and windows go by the place of a token, as in transformers.
- A padding token that sees nothing at all would divide zero by zero. It takes nothing in, as in torch's attention
  (and not everything alike, as in transformers' eager one, which is the oracle of the weights only).

Shapes: B batch, L new tokens, S attended tokens, H query heads, D head size, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from .cache import causal_mask, visible


@dataclass
class AttentionContext:
    """What one call of `forward` adds to the plain call, for all layers; and what it gathers from them.

    `positions` [B, L] are those of the new tokens, where they do not simply go on; `length` is that of the whole
    sequence, where there is more of it to come. `padding` [B, past + L] is true for what is no padding. Tokens see
    those of their own number in `segments` [B, L] only.
    """

    positions: mx.array | None = None
    length: int = 0
    padding: mx.array | None = None
    segments: mx.array | None = None
    hidden_states: list[mx.array] | None = None
    attentions: list[mx.array] | None = None
    _fully_masked: dict[int | None, mx.array] = field(default_factory=dict)  # window -> [B, 1, L, 1]: sees nothing

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
        """The positions of `length` new tokens after `offset`, the first or all, and the length of the sequence."""
        return (offset, max(self.length, offset + length)) if self.positions is None else (self.positions, self.length)

    def zero_fully_masked(self, taken: mx.array, window: int | None) -> mx.array:
        """What each query takes in, [B, H, L, D], or the weights of it, [B, H, L, S]: zero where it sees nothing."""
        masked = self._fully_masked.get(window)
        return taken if masked is None else mx.where(masked, mx.zeros((), taken.dtype), taken)
