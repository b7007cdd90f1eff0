"""How much each column of a projection matters: the second moment of its input, measured on texts.

Notes:
- A weight's error in a column counts as often as the column's input is large: the mean squared error of the outputs is
  the sum of the squared errors of the columns, each times the second moment of its input, if inputs are uncorrelated.
- llama.cpp's importance matrix is the same idea. Nothing is folded into norms, so it fits a network that normalizes
  after its projections.

Shapes: L tokens, E hidden size, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx

from ..model.cache import causal_mask
from ..model.layer import Layer, merge_heads
from ..model.network import Block

#: By their input, in data order.
PROJECTIONS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
TOO_LARGE = "the Hessian is not finite in float32: the hidden states are too large"


def block_importance(block: Block, inputs: Sequence[mx.array]) -> tuple[dict[str, mx.array], list[mx.array]]:
    """The importance [C] of the columns of each projection of a block by its weight's name, and the block's outputs.

    `inputs` are the hidden states [1, L, E] of the texts, each from its first token on.
    """
    layer, sums, outputs = Layer.of(block), [mx.array(0.0)] * 4, []
    for x in inputs:
        attended = layer.attention(x, causal_mask(0, x.shape[1], block.window), None)
        middle = layer.after_attention(x, attended)
        hidden = layer.mlp_hidden(middle)
        outputs.append(middle + block.post_feedforward_layernorm(block.mlp.down_proj(hidden)))
        states = x, merge_heads(attended), middle, hidden
        sums = [total + second_moment([y]) for total, y in zip(sums, states, strict=True)]
        mx.eval(sums, outputs[-1])
    shared = {name: one for names, one in zip(PROJECTIONS, sums, strict=True) for name in names}
    return {f"{name}.weight": one for name, one in shared.items()}, outputs


def second_moment(states: Iterable[mx.array]) -> mx.array:
    """The sum of squares [C] over the vectors of all states [..., C]."""
    total = mx.array(0.0)
    for state in states:
        total = total + mx.sum(mx.square(state.astype(mx.float32)).reshape(-1, state.shape[-1]), axis=0)
    return total
