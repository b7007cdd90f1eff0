"""GPTQ: the columns of a weight are rounded one by one, and later columns compensate the error in the layer's outputs.

Notes:
- The projections of a block are quantized in data order, on the hidden states of the quantized layers before them.
  Projections with the same input share one Hessian, which is freed as soon as they are done.
- Each weight is first moved so that its outputs for these states are nearer to the original's for its own, whose
  hidden states run along. So a layer also corrects the errors of the layers before it (GPTAQ).
- Groups are consecutive columns, in descending order of their inputs' energy, and so are the columns of a group. The
  search for a group's scale and bias begins at its compensated columns, and weighs each by the part of its input that
  the columns after it cannot compensate. The result is plain affine, without a permutation.
- Then each group is visited again, `SWEEPS` times: with all other groups fixed, its scale and bias have least error for
  its codes, and then each code for the others. No visit increases the error of the outputs.
- The Hessian is factored once and never inverted: H = (A + 1) D (A + 1)^T with A strictly triangular. A column is
  rounded after the errors of the earlier columns, times A, were added. QuIP shows that this equals GPTQ.
- No scaling is folded into the weights: queries, keys, and the outputs of attention and MLP are normalized after the
  projection, and no norm before it could undo a scaling.

Shapes: B batch, L tokens, E hidden size, R rows, C columns, N groups in a row, G columns of a group.
Sources: GPTQ (arXiv 2210.17323); QuIP (arXiv 2307.13304), section 4; QuantEase (arXiv
2309.01885) for the sweeps; GPTAQ (arXiv 2504.02692).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.quantize import Quantization
from ..model.cache import causal_mask
from ..model.layer import Layer, merge_heads
from ..model.network import Block
from .importance import PROJECTIONS, TOO_LARGE
from .search import check_affine, pack_codes, quantize_mse

DAMPING = 0.01  # of the Hessian's mean diagonal
HEAD_DAMPING = 1.0  # for a head that is tied to the embedding, where the plain error of a row matters too
SWEEPS = 3
MAX_DAMPING = 1e6  # before a Hessian is refused


def gptq(
    weight: mx.array,
    hessian: mx.array,
    bits: int,
    group_size: int,
    *,
    damping: float = DAMPING,
    dtype: mx.Dtype | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Quantizes a weight [R, C] with little change of its outputs for inputs x, where `hessian` is sum x x^T [C, C].

    Returns packed codes (uint32 [R, C * bits / 32]), scales and biases [R, C / group_size] in `dtype` (default: the
    weight's), evaluated, in the layout of `mx.quantize`. `damping`, a share of the Hessian's mean diagonal, is added
    to its diagonal, and multiplied by ten until the sum is positive definite.

    Raises ValueError where a row is not a whole number of groups, for bits that MLX does not pack, and for a Hessian
    of another shape, with entries that are not finite, or that no damping makes positive definite.
    """
    check_affine(weight, bits, group_size)
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"a weight of shape {weight.shape} has no Hessian of shape {hessian.shape}")
    return _Solver(hessian, None, group_size, damping)(weight, bits, dtype)


def quantize_block(
    block: Block,
    inputs: Sequence[mx.array],
    settings: Mapping[str, Quantization],
    *,
    originals: Sequence[mx.array] | None = None,
    dtype: mx.Dtype | None = None,
    damping: float = DAMPING,
) -> list[mx.array]:
    """Quantizes one block's projections for its `inputs` [B, L, E], and returns its outputs, not yet evaluated.

    `originals` are the inputs of this block in the original (default: the same), whose outputs each projection is
    fitted to.

    `settings` are by name of the projection in the block ("self_attn.q_proj"); projections without one are not
    quantized. Each quantized one becomes an `nn.QuantizedLinear`; its scales and biases are rounded to `dtype`
    (default: the weight's) and have the dtype of the block. Modes other than affine use `mx.quantize`.

    Every text begins at its first token: there are no caches. Raises ValueError as `gptq` does.
    """
    original, originals = deepcopy(block), inputs if originals is None else originals
    masks = [causal_mask(0, x.shape[1], block.window) for x in inputs]
    packs: list[tuple[nn.Module, str, nn.Module]] = []

    def quantize(names: Sequence[str], states: Iterable[mx.array], exact: Iterable[mx.array]) -> None:
        module = block[names[0].partition(".")[0]]
        chosen = {name.partition(".")[2]: settings[name] for name in names if name in settings}
        packs.extend(_quantized(module, chosen, zip(states, exact, strict=True), damping, dtype))

    def attended(layer: Layer, states: Sequence[mx.array]) -> list[mx.array]:  # B H L D
        return [_evaluated(layer.attention(x, mask, None)) for x, mask in zip(states, masks, strict=True)]

    def middle(layer: Layer, states: Sequence[mx.array], mixed: Sequence[mx.array]) -> list[mx.array]:  # B L E
        return [_evaluated(layer.after_attention(x, a)) for x, a in zip(states, mixed, strict=True)]

    layer, exact_layer = Layer.of(block), Layer.of(original)
    qkv, output, gate_up, down = PROJECTIONS
    quantize(qkv, inputs, originals)
    mixed, exact = attended(layer, inputs), attended(exact_layer, originals)
    quantize(output, map(merge_heads, mixed), map(merge_heads, exact))
    inputs, originals = middle(layer, inputs, mixed), middle(exact_layer, originals, exact)
    del mixed, exact

    quantize(gate_up, inputs, originals)
    quantize(down, map(layer.mlp_hidden, inputs), map(exact_layer.mlp_hidden, originals))  # the states are not kept
    outputs = [layer.after_mlp(x) for x in inputs]
    for module, name, packed in packs:
        setattr(module, name, packed)
    return outputs


def _quantized(
    module: nn.Module,
    settings: Mapping[str, Quantization],
    states: Iterable[tuple[mx.array, mx.array]],
    damping: float,
    dtype: mx.Dtype | None,
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Quantizes projections of the same inputs, `states` and the original's: (module, name, quantized layer) of each.

    Until the caller puts the layer there, the module has the unpacked weights, which MLX multiplies faster on a CPU.
    """
    layers = []
    solver = None
    for name, how in settings.items():
        linear = getattr(module, name)
        layer = nn.QuantizedLinear.from_linear(linear, how.group_size, how.bits, how.mode)  # lazy: not evaluated
        if how.mode == "affine":
            if solver is None or solver.group_size != how.group_size:
                solver = _Solver(*_moments(states), how.group_size, damping)
            parts = solver(linear.weight, how.bits, dtype)
            layer.weight, layer.scales, layer.biases = parts[0], *(p.astype(linear.weight.dtype) for p in parts[1:])
        stored = [layer[part] for part in ("weight", "scales", "biases") if part in layer]
        linear.weight = how.dequantized(stored).astype(linear.weight.dtype)
        mx.eval(layer.parameters(), linear.weight)
        layers.append((module, name, layer))
    return layers


class _Solver:
    """A factored Hessian; a call quantizes a weight that has these inputs."""

    def __init__(self, hessian: mx.array, cross: mx.array | None, group_size: int, damping: float) -> None:
        self.group_size = group_size
        self.order = _by_energy(hessian, group_size)
        rows, columns = self.order[:, None], self.order[None]
        self.hessian, self.lower = _cholesky(hessian.astype(mx.float32)[rows, columns], damping)  # C C, in that order
        self.cross = None if cross is None else cross[rows, columns]

    def __call__(self, weight: mx.array, bits: int, dtype: mx.Dtype | None) -> tuple[mx.array, mx.array, mx.array]:
        dtype, size = dtype or weight.dtype, self.group_size
        columns = self._corrected(weight.astype(mx.float32).T[self.order])  # C R
        diagonal = mx.diag(self.lower)[:, None]
        targets, groups = columns, []
        spans = [slice(stop - size, stop) for stop in range(columns.shape[0], 0, -size)]
        for own in spans:
            _, *grid = quantize_mse(targets[own].T, bits, size, mx.square(diagonal[own, 0]), dtype)
            step, start = (part[:, 0].astype(mx.float32) for part in grid)
            factor = self.lower[own, own] / diagonal[own].T
            codes, errors = _rounded(columns[own], targets[own], factor, step, start, 2**bits - 1)
            groups.append((codes, step, start))
            rest = slice(own.start)
            targets = targets[rest] + (self.lower[own, rest].T @ errors) / diagonal[rest]
            mx.eval(groups[-1], targets)
        quantized = mx.concatenate([_dequantized(*group) for group in reversed(groups)])
        pull = self.hessian @ (columns - quantized)  # C R
        del columns, targets, quantized
        for _ in range(SWEEPS):
            for number, own in enumerate(spans):
                before = _dequantized(*groups[number])
                groups[number] = _refined(self.hessian[own, own], pull[own], *groups[number], 2**bits - 1, dtype)
                pull = pull - self.hessian[:, own] @ (_dequantized(*groups[number]) - before)
                mx.eval(groups[number], pull)
        groups.reverse()  # as in the order
        codes = mx.concatenate([group[0] for group in groups])[mx.argsort(self.order)].T  # R C
        steps, starts = (mx.stack([group[part] for group in groups], axis=1) for part in (1, 2))  # R N
        place = mx.argsort(self.order[::size] // size)
        parts = pack_codes(codes, bits), steps[:, place].astype(dtype), starts[:, place].astype(dtype)
        mx.eval(parts)
        return parts

    def _corrected(self, columns: mx.array) -> mx.array:
        """Columns [C, R] whose outputs for the inputs x are nearer to the original's for its inputs."""
        if self.cross is None:
            return columns
        half = mx.linalg.solve_triangular(self.lower, self.cross @ columns, stream=mx.cpu)
        return columns + mx.linalg.solve_triangular(self.lower.T, half, upper=True, stream=mx.cpu)


def _dequantized(codes: mx.array, step: mx.array, start: mx.array) -> mx.array:
    return codes * step + start  # G R


def _rounded(
    columns: mx.array, targets: mx.array, factor: mx.array, step: mx.array, start: mx.array, levels: int
) -> tuple[mx.array, mx.array]:
    """Codes and errors [G, R] of a group's `columns` [G, R], last column first. `targets` are the compensated ones."""
    codes, errors = [], []
    divisor = mx.where(step == 0, 1.0, step)
    for i in reversed(range(columns.shape[0])):
        code = mx.clip(mx.round((targets[i] - start) / divisor), 0, levels)
        error = columns[i] - (code * step + start)
        targets = targets[:i] + factor[i, :i, None] * error
        codes.append(code.astype(mx.uint8))
        errors.append(error)
    return mx.stack(codes[::-1]), mx.stack(errors[::-1])


def _refined(
    hessian: mx.array, pull: mx.array, codes: mx.array, step: mx.array, start: mx.array, levels: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array]:
    """Codes [G, R], steps and starts [R] of one group with less error, while the other groups are fixed.

    `pull` [G, R] are this group's rows of H times the errors of all columns, which is half the gradient.
    """
    before, x = _dequantized(codes, step, start), codes.astype(mx.float32)
    product = hessian @ x
    xx, x1, ones = mx.sum(x * product, axis=0), mx.sum(product, axis=0), mx.sum(hessian)
    px, p1 = mx.sum(pull * x, axis=0), mx.sum(pull, axis=0)
    determinant = xx * ones - x1 * x1
    usable = determinant > 1e-6 * xx * ones  # false where all codes are equal
    divisor = mx.where(usable, determinant, 1.0)
    new_step = (step + (px * ones - p1 * x1) / divisor).astype(dtype).astype(mx.float32)
    new_start = (start + (p1 * xx - px * x1) / divisor).astype(dtype).astype(mx.float32)
    a, b = new_step - step, new_start - start
    gain = 2 * (a * px + b * p1) - (a * a * xx + 2 * a * b * x1 + b * b * ones)
    better = usable & (gain > 0)  # false for NaN; the rounding to dtype may lose what was gained
    step, start = mx.where(better, new_step, step), mx.where(better, new_start, start)
    pull = pull - hessian @ (_dequantized(x, step, start) - before)
    found = []
    for i in reversed(range(x.shape[0])):
        width = step * hessian[i, i]
        code = mx.clip(mx.round(x[i] + mx.where(width == 0, 0.0, pull[i] / width)), 0, levels)
        pull = pull[:i] - hessian[i, :i, None] * ((code - x[i]) * step)
        found.append(code.astype(mx.uint8))
    return mx.stack(found[::-1]), step, start


def _moments(states: Iterable[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
    """Sums of x x^T and x (y - x)^T, float32 [C, C], over the vectors x of all states and y of the original's."""
    hessian, cross = mx.array(0.0), mx.array(0.0)
    for state, original in states:
        x, y = (part.reshape(-1, part.shape[-1]).astype(mx.float32) for part in (state, original))
        hessian, cross = mx.addmm(hessian, x.T, x), mx.addmm(cross, x.T, y - x)  # in one buffer each
        mx.eval(hessian, cross)
    return hessian, cross


def _by_energy(hessian: mx.array, group_size: int) -> mx.array:
    """Columns by ascending energy, in groups by ascending energy."""
    if not mx.all(mx.isfinite(hessian)).item():
        raise ValueError(TOO_LARGE)
    energy = mx.diag(hessian).reshape(-1, group_size)  # N G
    groups = mx.argsort(mx.mean(energy, axis=1))
    return (group_size * groups[:, None] + mx.argsort(energy, axis=1)[groups]).reshape(-1)


def _cholesky(hessian: mx.array, damping: float) -> tuple[mx.array, mx.array]:
    """The damped Hessian and its lower factor."""
    size = hessian.shape[0]
    mean = float(mx.mean(mx.diag(hessian)))
    along, ones = mx.arange(size), mx.ones((size, 1))
    while True:
        # Without any input energy this becomes plain rounding.
        added = damping * mean if mean > 0 else 1.0
        damped = hessian.at[along, along].add(added)
        lower = mx.linalg.cholesky(damped, stream=mx.cpu)
        # LAPACK stops early where a matrix is not positive definite, and MLX reports no error.
        difference = mx.max(mx.abs(lower @ (lower.T @ ones) - damped @ ones))
        if (difference <= 1e-3 * mx.max(mx.abs(damped @ ones))).item() and mx.all(mx.diag(lower) > 0).item():
            return damped, lower
        if not (damping := max(10 * damping, 1e-6)) < MAX_DAMPING:
            raise ValueError("the Hessian is no sum of x x^T, or its entries are too large for float32")


def _evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x
