"""GPTQ: what rounding one column of a weight does to the layer's outputs is made up for in the columns to come.

What is peculiar here:
- A block is worked on in the order in which data pass it, on the hidden states that the quantized layers before
  it give. Projections that read the same input share one Hessian, which is dropped as soon as they are done.
- Groups are those of the stored row, and their scales and biases are fixed beforehand, by error search; columns
  are visited in descending order of their input's energy. So the result is plain affine, without a permutation.
- The Hessian is factored once and never inverted: H = (A + 1) D (A + 1)^T with A strictly triangular. A column is
  rounded after the errors of those before it, times A, were added. QuIP shows that these are GPTQ's numbers.
- Queries, keys, and the outputs of attention and MLP are normalized after the projection, so nothing is scaled
  into the weights here: there is no norm before them to take it back.

Shapes: B batch, L tokens, E hidden size, R rows, C columns, N groups in a row, T columns rounded in one go.
Sources: GPTQ (arXiv 2210.17323); QuIP (arXiv 2307.13304), section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.quantize import Quantization
from ..model.cache import causal_mask
from ..model.network import Block
from .search import check_affine, pack_codes, quantize_mse

DAMPING = 0.01  # of the Hessian's mean diagonal
HEAD_DAMPING = 1.0  # for an output head that is tied to the embedding: a row's plain error matters too
COLUMNS = 128  # T


def gptq(
    weight: mx.array,
    hessian: mx.array,
    bits: int,
    group_size: int,
    *,
    damping: float = DAMPING,
    dtype: mx.Dtype | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Quantizes a weight [R, C] so that its outputs change little for inputs x of which `hessian` is sum x x^T [C, C].

    Returns packed codes (uint32 [R, C * bits / 32]), scales and biases [R, C / group_size] in `dtype` (the weight's
    if not given), evaluated, laid out as by `mx.quantize`. `damping`, a share of the Hessian's mean diagonal, is
    added to its diagonal; where that does not make it positive definite, ten times as much, and so on.

    Raises ValueError where a row is not a whole number of groups, for bits that MLX does not pack, and for a Hessian
    of another shape or with entries that are not finite.
    """
    check_affine(weight, bits, group_size)
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"a weight of shape {weight.shape} has no Hessian of shape {hessian.shape}")
    return _Solver(*_by_energy(hessian), damping)(weight, bits, group_size, dtype)


def quantize_block(
    block: Block,
    inputs: Sequence[mx.array],
    settings: Mapping[str, Quantization],
    *,
    dtype: mx.Dtype | None = None,
    damping: float = DAMPING,
) -> list[mx.array]:
    """Quantizes one block's projections for its `inputs` [B, L, E], and returns its outputs, not yet evaluated.

    `settings` tells how each projection is stored, by its name in the block ("self_attn.q_proj"); others stay as
    they are. Each becomes an `nn.QuantizedLinear` whose scales and biases are rounded to `dtype` (the weight's if
    not given) and have the dtype of the block. Formats other than affine are MLX's own, without compensation.

    Every text begins at its first token: there are no caches. Raises ValueError as `gptq` does.
    """
    attention, mlp = block.self_attn, block.mlp
    masks = [causal_mask(0, x.shape[1], attention.window) for x in inputs]
    packs: list[tuple[nn.Module, str, nn.Module]] = []

    def quantize(part: str, names: Sequence[str], states: Iterable[mx.array]) -> None:
        chosen = {name: settings[f"{part}.{name}"] for name in names if f"{part}.{name}" in settings}
        packs.extend(_quantized(block[part], chosen, states, damping, dtype))

    quantize("self_attn", ("q_proj", "k_proj", "v_proj"), inputs)
    layer = block.ready()
    attended = [_evaluated(layer.attended(x, mask, None)) for x, mask in zip(inputs, masks, strict=True)]  # B L H*D
    quantize("self_attn", ("o_proj",), attended)
    middle = [
        _evaluated(x + block.post_attention_layernorm(attention.o_proj(a)))
        for x, a in zip(inputs, attended, strict=True)
    ]  # B L E
    del attended

    quantize("mlp", ("gate_proj", "up_proj"), middle)
    layer = block.ready()
    quantize("mlp", ("down_proj",), (layer.inner(x) for x in middle))  # B L intermediate size: all would be too large
    outputs = [x + block.post_feedforward_layernorm(mlp.down_proj(layer.inner(x))) for x in middle]
    for module, name, layer in packs:
        setattr(module, name, layer)
    return outputs


def _quantized(
    module: nn.Module,
    settings: Mapping[str, Quantization],
    states: Iterable[mx.array],
    damping: float,
    dtype: mx.Dtype | None,
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Quantizes projections that read the same `states`: (module, name, layer to be put there) of each.

    Until then the module holds their unpacked weights, which MLX multiplies faster on a processor.
    """
    layers = []
    solver = None
    for name, how in settings.items():
        linear = getattr(module, name)
        layer = nn.QuantizedLinear.from_linear(linear, how.group_size, how.bits, how.mode)  # lazy: not computed yet
        if how.mode == "affine":
            solver = solver or _Solver(*_by_energy(_hessian(states)), damping)
            parts = solver(linear.weight, how.bits, how.group_size, dtype)
            layer.weight, layer.scales, layer.biases = parts[0], *(p.astype(linear.weight.dtype) for p in parts[1:])
        stored = [layer[part] for part in ("weight", "scales", "biases") if part in layer]
        linear.weight = how.dequantized(stored).astype(linear.weight.dtype)
        mx.eval(layer.parameters(), linear.weight)
        layers.append((module, name, layer))
    return layers


class _Solver:
    """A factored Hessian, and what it does to any weight that reads these inputs."""

    def __init__(self, order: mx.array, energy: mx.array, hessian: mx.array, damping: float) -> None:
        self.order, self.energy = order, energy  # columns by rising energy, energy of each
        self.lower = _cholesky(hessian, damping)  # C C, in that order

    def __call__(
        self, weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        _, scales, biases = quantize_mse(weight, bits, group_size, self.energy, dtype)
        steps, starts = scales.astype(mx.float32).T, biases.astype(mx.float32).T  # N R
        groups = self.order // group_size
        columns = weight.astype(mx.float32).T[self.order]  # C R
        diagonal = mx.diag(self.lower)[:, None]
        wanted, codes = columns, []
        for stop in range(columns.shape[0], 0, -COLUMNS):
            begin = max(0, stop - COLUMNS)
            mine = groups[begin:stop]
            factor = self.lower[begin:stop, begin:stop] / diagonal[begin:stop].T
            rounded, errors = _rounded(
                columns[begin:stop], wanted[begin:], factor, steps[mine], starts[mine], 2**bits - 1
            )
            codes.append(rounded)
            wanted = wanted[:begin] + (self.lower[begin:stop, :begin].T @ errors) / diagonal[:begin]
            mx.eval(rounded, wanted)
        ordered = mx.concatenate(codes[::-1])[mx.argsort(self.order)].T  # R C
        parts = pack_codes(ordered, bits), scales, biases
        mx.eval(parts)
        return parts


def _rounded(
    columns: mx.array, wanted: mx.array, factor: mx.array, steps: mx.array, starts: mx.array, levels: int
) -> tuple[mx.array, mx.array]:
    """Rounds columns, the last one first: codes and errors [T, R] of `columns` [T, R], for what is `wanted` of them."""
    codes, errors = [], []
    for i in reversed(range(columns.shape[0])):
        step = mx.where(steps[i] == 0, 1.0, steps[i])
        code = mx.clip(mx.round((wanted[i] - starts[i]) / step), 0, levels)
        error = columns[i] - (code * steps[i] + starts[i])
        wanted = wanted[:i] + factor[i, :i, None] * error
        codes.append(code.astype(mx.uint8))
        errors.append(error)
    return mx.stack(codes[::-1]), mx.stack(errors[::-1])


def _hessian(states: Iterable[mx.array]) -> mx.array:
    """Sum of x x^T over the vectors of all states [B, L, C], float32 [C, C]."""
    total = mx.array(0.0)
    for state in states:
        x = state.reshape(-1, state.shape[-1]).astype(mx.float32)
        total = mx.addmm(total, x.T, x)  # in one buffer
        mx.eval(total)
    return total


def _by_energy(hessian: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Columns in the order of rising energy, the energy of each, and the Hessian in that order, evaluated.

    Apart from its factoring, so that the caller's Hessian can be let go in between.
    """
    if not mx.all(mx.isfinite(hessian)).item():
        raise ValueError("the Hessian has entries that are not finite: so had the inputs")
    energy = mx.diag(hessian)
    order = mx.argsort(energy)
    ordered = hessian.astype(mx.float32)[order[:, None], order[None]]
    mx.eval(order, energy, ordered)
    return order, energy, ordered


def _cholesky(hessian: mx.array, damping: float) -> mx.array:
    """The lower factor of the damped Hessian."""
    size = hessian.shape[0]
    mean = float(mx.mean(mx.diag(hessian)))
    along, ones = mx.arange(size), mx.ones((size, 1))
    while True:
        # Inputs that are all zero say nothing: plain rounding.
        added = damping * mean if mean > 0 else 1.0
        damped = hessian.at[along, along].add(added)
        lower = mx.linalg.cholesky(damped, stream=mx.cpu)
        # LAPACK stops halfway where a matrix is not positive definite, and MLX does not tell.
        difference = mx.max(mx.abs(lower @ (lower.T @ ones) - damped @ ones))
        if (difference <= 1e-3 * mx.max(mx.abs(damped @ ones))).item() and mx.all(mx.diag(lower) > 0).item():
            return lower
        damping = max(10 * damping, 1e-6)


def _evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x
