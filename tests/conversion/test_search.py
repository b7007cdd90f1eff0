"""Error search: MLX's packing, and less error than with minimum and maximum."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from exaone4_mlx.conversion.search import pack_codes, quantize_mse

BITS = (2, 3, 4, 5, 6, 8)


def gaussian(rows: int, columns: int, seed: int = 0, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return (mx.random.normal((rows, columns), key=mx.random.key(seed)) * 0.02).astype(dtype)


def squared_errors(
    weight: mx.array, parts: tuple[mx.array, ...], bits: int, group_size: int, importance: mx.array | None = None
) -> mx.array:
    """The squared error of each group, in float32."""
    codes, *grid = parts
    restored = mx.dequantize(codes, *(part.astype(mx.float32) for part in grid), group_size, bits)
    squares = mx.square(restored - weight.astype(mx.float32))
    if importance is not None:
        squares = squares * importance
    return mx.sum(squares.reshape(weight.shape[0], -1, group_size), axis=-1)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_that_of_mlx(bits: int) -> None:
    codes = mx.random.randint(0, 2**bits, (3, 128), key=mx.random.key(1))
    ones = mx.ones((3, 2))
    assert mx.array_equal(mx.dequantize(pack_codes(codes, bits), ones, 0 * ones, 64, bits), codes)
    if bits != 8:
        shifted = pack_codes(mx.roll(codes, 1, axis=1), bits)
        assert not mx.array_equal(mx.dequantize(shifted, ones, 0 * ones, 64, bits), codes)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_no_group_is_worse_than_with_mlx_and_the_sum_is_better(bits: int, group_size: int) -> None:
    weight = gaussian(64, 512)
    ours = squared_errors(weight, quantize_mse(weight, bits, group_size), bits, group_size)
    theirs = squared_errors(weight, mx.quantize(weight, group_size, bits), bits, group_size)
    assert mx.all(ours <= theirs * 1.0001), "a group is worse than min/max"
    gain = 10 * math.log10((mx.sum(theirs) / mx.sum(ours)).item())
    assert gain >= (0.7 if bits <= 4 or group_size < 128 else 0.6), (
        f"only {gain:.2f} dB better than mx.quantize at {bits} bits, groups of {group_size}"
    )


def test_four_bits_reach_the_documented_signal_to_noise_ratio() -> None:
    weight = gaussian(256, 1024)
    noise = mx.sum(squared_errors(weight, quantize_mse(weight, 4, 64), 4, 64)).item()
    assert 10 * math.log10(mx.sum(mx.square(weight.astype(mx.float32))).item() / noise) > 21.7


def test_important_columns_have_less_error() -> None:
    weight, importance = gaussian(64, 256), mx.where(mx.arange(256) % 8 == 0, 100.0, 1.0)
    weighted = [
        mx.sum(squared_errors(weight, quantize_mse(weight, 4, 64, given), 4, 64, importance)).item()
        for given in (None, importance)
    ]
    assert weighted[1] < 0.8 * weighted[0]


def test_equal_importance_changes_nothing() -> None:
    weight = gaussian(8, 128)
    plain, even = quantize_mse(weight, 4, 64), quantize_mse(weight, 4, 64, mx.ones(128) * 7)
    errors = [mx.sum(squared_errors(weight, parts, 4, 64)).item() for parts in (plain, even)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_zero_importance_drops_no_column() -> None:
    weight = gaussian(8, 128)
    for importance in (mx.zeros(128), mx.where(mx.arange(128) < 100, 0.0, 1.0)):
        errors = squared_errors(weight, quantize_mse(weight, 4, 64, importance), 4, 64)
        assert mx.all(errors < mx.sum(mx.square(weight.astype(mx.float32).reshape(8, 2, 64)), axis=-1))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("bits", BITS)
def test_degenerate_groups_stay_finite_and_close(bits: int, dtype: mx.Dtype) -> None:
    largest = mx.finfo(dtype).max
    noise = gaussian(1, 64, dtype=mx.float32)[0]
    rows = {
        "zeros": mx.zeros(64),
        "all equal": mx.full((64,), 0.37),
        "one outlier": mx.where(mx.arange(64) == 5, 100.0, noise),
        "huge": noise / mx.max(mx.abs(noise)) * largest,
        "both ends": mx.where(mx.arange(64) % 2 == 0, largest, -largest),
        "subnormal": noise / mx.max(mx.abs(noise)) * (1e-40 if dtype != mx.float16 else 1e-7),
        "negative": -mx.abs(noise) - 1,
    }
    weight = mx.stack(list(rows.values())).astype(dtype)
    codes, scales, biases = quantize_mse(weight, bits, 64)
    assert scales.dtype == biases.dtype == dtype
    restored = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), 64, bits)
    exact = weight.astype(mx.float32)
    span = mx.max(exact, axis=-1) * 0.5 - mx.min(exact, axis=-1) * 0.5
    error = mx.max(mx.abs(restored * 0.5 - exact * 0.5), axis=-1)  # halved, so that the largest floats do not overflow
    for name, far, wide in zip(rows, error.tolist(), span.tolist(), strict=True):
        assert math.isfinite(far), f"{name}: {far}"
        assert far <= wide + 1e-7, f"{name}: off by {2 * far}, and it spans {2 * wide}"
    assert mx.array_equal(restored[:2], exact[:2]), "zeros and all-equal groups are exact"


def test_slices_of_any_size_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gaussian(40, 128)
    whole = quantize_mse(weight, 4, 64)
    monkeypatch.setattr("exaone4_mlx.conversion.search.SLICE_WEIGHTS", 1)
    assert all(mx.array_equal(a, b) for a, b in zip(whole, quantize_mse(weight, 4, 64), strict=True))


@pytest.mark.parametrize(
    ("shape", "bits", "group_size", "message"),
    [
        ((4, 96), 4, 64, r"shape \(4, 96\) is not rows of whole groups of 64"),
        ((64,), 4, 64, r"shape \(64,\)"),
        ((4, 64), 7, 64, "not 7"),
        ((4, 64), 4, 16, "not 16"),
    ],
)
def test_shapes_bits_and_groups_that_mlx_lacks_are_refused(
    shape: tuple[int, ...], bits: int, group_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_mse(mx.zeros(shape), bits, group_size)
