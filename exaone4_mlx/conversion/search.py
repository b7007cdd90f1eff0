"""Affine quantization by error search: weights -> packed codes, and a scale and a bias for each group.

Notes:
- `mx.quantize` spans a group from its minimum to its maximum. The search clips both ends by fractions of a step, in
  a few combinations. Each gives codes, and the codes give the scale and bias of least squared error.
- Scale and bias are rounded to the weights' dtype before the final codes are chosen, so the codes compensate it.
- The result of `mx.quantize` is the last candidate, so no group has a larger error.
- Rows are quantized in slices that fit into a CPU's cache: this is twice as fast and needs little memory.

Shapes: R rows, C columns, N groups in a row, G weights in a group.
"""

from __future__ import annotations

import mlx.core as mx

from ..checkpoint.quantize import Quantization

SLICE_WEIGHTS = 1 << 17  # weights of a slice

#: By how many steps the low and the high end are clipped: a greedy choice among 144 pairs, for Gaussian and
#: Laplacian weights at 4 bits. These seven and two refits reach 21.79 dB on Gaussian weights in groups of 64 (minimum
#: and maximum: 20.81; sixteen pairs and three refits: 21.81).
CLIP_CANDIDATES = ((0.25, 0.25), (0.75, 0.0), (0.0, 0.5), (0.5, 0.0), (0.25, 0.5), (0.5, 0.25), (0.0, 0.75))
#: bits -> steps that are added to both ends: fewer steps in the range need more clipping.
CLIP_OFFSETS = {2: 0.25, 3: 0.25, 4: 0.0, 5: -0.125, 6: -0.25, 8: -0.25}
REFITS = 2

TINY = 1e-36  # a smaller half range counts as zero
LEAST_IMPORTANCE = 1e-4  # of the group's mean, so that every weight counts


def quantize_mse(
    weight: mx.array, bits: int, group_size: int, importance: mx.array | None = None, dtype: mx.Dtype | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Quantizes a weight [R, C] with little squared error, weighted by the `importance` [C] of its columns if given.

    Returns packed codes (uint32 [R, C * bits / 32]), scales and biases [R, C / group_size] in `dtype` (default: the
    weight's), evaluated, in the layout of `mx.quantize`. No group has a larger error than with `mx.quantize`. Raises
    ValueError where a row is not a whole number of groups, and for bits that MLX does not pack.
    """
    check_affine(weight, bits, group_size)
    rows = max(1, SLICE_WEIGHTS // weight.shape[1])
    parts = []
    for start in range(0, weight.shape[0], rows):
        codes, scales, biases = _grid(weight[start : start + rows], bits, group_size, importance, dtype or weight.dtype)
        parts.append((pack_codes(codes, bits), scales, biases))
        mx.eval(parts[-1])
    codes, scales, biases = (mx.concatenate(list(slices)) for slices in zip(*parts, strict=True))
    mx.eval(codes, scales, biases)
    return codes, scales, biases


def _grid(
    weight: mx.array, bits: int, group_size: int, importance: mx.array | None, dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array]:
    """As `quantize_mse`, at once, not evaluated and not packed: codes (float32 [R, C]), scales and biases [R, N]."""
    levels = 2**bits - 1
    x = weight.astype(mx.float32).reshape(weight.shape[0], -1, group_size)  # R N G
    high, low = mx.max(x, axis=-1, keepdims=True), mx.min(x, axis=-1, keepdims=True)
    middle = high * 0.5 + low * 0.5
    half = high * 0.5 - low * 0.5  # of the range, R N 1
    half = mx.where(half > TINY, half, 1.0)
    x = (x - middle) / half  # -1 to 1
    share = None if importance is None else _shares(importance, group_size)
    sum_x = mx.sum(x if share is None else x * share, axis=-1, keepdims=True)

    scale, bias, gain = mx.zeros_like(half), mx.zeros_like(half), mx.full(half.shape, -mx.inf)
    for at_low, at_high in CLIP_CANDIDATES:
        ends = (2 * (edge + CLIP_OFFSETS[bits]) / levels for edge in (at_low, at_high))
        first, last = (sign * (1 - end) for sign, end in zip((-1, 1), ends, strict=True))
        s, b, g = _refit(_codes(x, (last - first) / levels, (last + first) / 2, levels), x, sum_x, share)
        better = g > gain
        scale, bias, gain = mx.where(better, s, scale), mx.where(better, b, bias), mx.maximum(g, gain)
    for _ in range(REFITS):
        scale, bias, _gain = _refit(_codes(x, scale, bias, levels), x, sum_x, share)

    _, scales, biases = mx.quantize(weight.astype(dtype), group_size=group_size, bits=bits)
    candidates = [(scale * half, (bias - scale * (levels / 2)) * half + middle), (scales[..., None], biases[..., None])]
    largest = mx.finfo(dtype).max
    steepest = 0.99 * largest / levels  # no product of a code and a scale overflows
    codes, error = x, mx.full(half.shape, mx.inf)
    for raw_scale, raw_bias in candidates:
        stored_scale = mx.clip(raw_scale, -steepest, steepest).astype(dtype)
        stored_bias = mx.clip(raw_bias, -largest, largest).astype(dtype)
        s = stored_scale.astype(mx.float32) / half
        b = (stored_bias.astype(mx.float32) - middle) / half + s * (levels / 2)
        c = _codes(x, s, b, levels)
        squares = mx.square(c * s + b - x)
        e = mx.sum(squares if share is None else squares * share, axis=-1, keepdims=True)
        better = e < error  # false for NaN
        codes = mx.where(better, c, codes)
        scales = mx.where(better, stored_scale, scales[..., None])[..., 0]
        biases = mx.where(better, stored_bias, biases[..., None])[..., 0]
        error = mx.where(better, e, error)
    return (codes + levels / 2).reshape(weight.shape), scales, biases


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """Codes [R, C] of `bits` bits each -> MLX's packing, uint32 [R, C * bits / 32]: one stream, low bits first."""
    lanes = codes.astype(mx.uint32).reshape(codes.shape[0], -1, 32)
    words = []
    for start in range(0, 32 * bits, 32):
        word = mx.zeros(lanes.shape[:-1], dtype=mx.uint32)
        for lane in range(start // bits, (start + 31) // bits + 1):
            shift = lane * bits - start  # negative for a code that begins in the word before
            word = word | (lanes[..., lane] << shift if shift >= 0 else lanes[..., lane] >> -shift)
        words.append(word)
    return mx.stack(words, axis=-1).reshape(codes.shape[0], -1)


def check_affine(weight: mx.array, bits: int, group_size: int) -> None:
    """Raises ValueError for a shape, bits or a group size that affine quantization does not have."""
    Quantization(bits, group_size)
    if weight.ndim != 2 or weight.shape[1] % group_size:
        raise ValueError(f"a weight of shape {weight.shape} is not rows of whole groups of {group_size}")


def _codes(x: mx.array, scale: mx.array | float, bias: mx.array | float, levels: int) -> mx.array:
    """The nearest codes, counted from the middle: -levels / 2 to levels / 2."""
    inverse = 1 / scale if isinstance(scale, float) else 1 / mx.where(scale == 0, 1.0, scale)
    return mx.clip(mx.round((x - bias) * inverse + levels / 2), 0, levels) - levels / 2


def _refit(
    codes: mx.array, x: mx.array, sum_x: mx.array, share: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """Scale and bias of least squared error for these codes, and the explained sum of squares, [R, N, 1]."""
    weighted = codes if share is None else codes * share
    total = x.shape[-1]  # the sum of a group's shares
    sum_c = mx.sum(weighted, axis=-1, keepdims=True)
    spread = mx.sum(weighted * codes, axis=-1, keepdims=True) - sum_c * sum_c / total
    joint = mx.sum(weighted * x, axis=-1, keepdims=True) - sum_c * sum_x / total
    scale = joint / mx.maximum(spread, 1e-6)
    return scale, (sum_x - scale * sum_c) / total, scale * joint


def _shares(importance: mx.array, group_size: int) -> mx.array:
    """Importance of columns [C] -> weights [N, G] whose mean is one in each group."""
    x = importance.astype(mx.float32).reshape(-1, group_size)
    mean = mx.mean(x, axis=-1, keepdims=True)
    x = mx.where(mean > 0, x / mx.where(mean > 0, mean, 1.0), 1.0) + LEAST_IMPORTANCE
    return x / mx.mean(x, axis=-1, keepdims=True)
