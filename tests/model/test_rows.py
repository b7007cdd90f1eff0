"""Several conversations in one step of the model: each row equals the row alone, past the window, at any schedule."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_caches, random_ids, tiny_model

from exaone4_mlx.model import fused
from exaone4_mlx.model.cache import RotatingKVCache
from exaone4_mlx.model.kv import KVQuantization


def quantized(model: Any) -> Any:
    nn.quantize(model, group_size=32, bits=4)
    return model


def with_biases(model: Any) -> Any:
    for block in model.layers:
        for name in ("q_proj", "v_proj", "o_proj"):
            projection = getattr(block.self_attn, name)
            projection.bias = mx.arange(projection.weight.shape[0]) * 0.01
    return model


WIDE = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64}
KV = KVQuantization(8, 4, 32, "all")
#: name -> (the model, how its caches are quantized)
SHAPES: dict[str, tuple[Callable[[], Any], KVQuantization | None]] = {
    "hybrid": (tiny_model, None),
    "full attention": (lambda: tiny_model(sliding_window=None), None),
    "4 bits": (lambda: quantized(tiny_model(**WIDE)), None),
    "quantized caches": (lambda: tiny_model(**WIDE), KV),
    "biases": (lambda: with_biases(tiny_model()), None),
    "dynamic RoPE": (lambda: tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), None),
}


def schedule_differs(shape: str, seed: int, steps: int = 40) -> float:
    """The largest difference of logits between rows together and rows alone.

    Rows join and leave at random. In each step a row takes one token, or a chunk of up to 64.
    """
    make, kv = SHAPES[shape]
    model, rng = make(), random.Random(seed)
    form = model.fused()
    together: list[tuple[list[Any], list[Any]]] = []  # the caches of a row in the batch, and of the row alone
    worst = 0.0
    for _ in range(steps):
        if not together or (len(together) < 8 and rng.random() < 0.4):
            state = rng.getstate()
            ours = random_caches(model, rng, kv)
            rng.setstate(state)
            together.append((ours, random_caches(model, rng, kv)))
        elif rng.random() < 0.1:
            together.pop(rng.randrange(len(together)))
            continue
        lengths = [rng.choice((1, 1, 1, 1, rng.randrange(1, 65))) for _ in together]
        ids = [random_ids(length, rng.random()) for length in lengths]
        found = form.together([(row, ours) for row, (ours, _) in zip(ids, together, strict=True)])
        for logits, row, (_, alone) in zip(found, ids, together, strict=True):
            worst = max(worst, distance(logits, form(row, alone)))
        together = [pair for pair in together if pair[0][0].offset < 200]
    return worst


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_together_equal_each_row_alone(shape: str) -> None:
    assert schedule_differs(shape, 0, steps=8) < 1e-4


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("shape", SHAPES)
def test_thirty_random_schedules(shape: str, seed: int) -> None:
    assert schedule_differs(shape, seed) < 1e-4


def mask_of_another_row(patch: pytest.MonkeyPatch) -> None:
    original, first = fused.FusedModel._masks, dict[int, Any]()

    def masks(self: Any, cache: Any, length: int) -> Any:
        return first.setdefault(length, original(self, cache, length))

    patch.setattr(fused.FusedModel, "_masks", masks)


def shared_position(patch: pytest.MonkeyPatch) -> None:
    """RoPE rotates all rows by the position of the first one."""
    original = fused.Layer.before
    patch.setattr(
        fused.Layer, "before", lambda self, x, at, *more: original(self, x, mx.broadcast_to(at[:1], at.shape), *more)
    )


def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    original = RotatingKVCache.update

    def update(self: Any, keys: mx.array, values: mx.array) -> Any:
        found = original(self, keys, values)
        return tuple(part[:, :, 1:] for part in found) if self.offset > self.window and keys.shape[2] == 1 else found

    patch.setattr(RotatingKVCache, "update", update)


def values_of_the_next_row(patch: pytest.MonkeyPatch) -> None:
    original = fused.by_row

    def by_row(projections: Any, shapes: Any) -> Any:
        found, count = list(original(projections, shapes)), len(shapes)
        return (*found[: 2 * count], *found[2 * count + 1 :], found[2 * count])

    patch.setattr(fused, "by_row", by_row)


def output_rows_swapped(patch: pytest.MonkeyPatch) -> None:
    original = fused.by_token
    patch.setattr(fused, "by_token", lambda attended: original(attended[::-1]))


@pytest.mark.parametrize(
    "break_it",
    [mask_of_another_row, shared_position, window_off_by_one, values_of_the_next_row, output_rows_swapped],
    ids=lambda broken: broken.__name__,
)
def test_each_broken_rule_is_caught(break_it: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, one of them past the window: one token each, then a chunk each."""
    model = tiny_model()
    form = model.fused()
    lengths = (23, 4)
    ours, alone = ([model.make_cache() for _ in lengths] for _ in range(2))
    for caches in (ours, alone):
        for length, cache in zip(lengths, caches, strict=True):
            form(random_ids(length), cache)
    steps = [[random_ids(count, seed + count) for seed in (1, 2)] for count in (1, 3)]
    expected = [[form(ids, cache) for ids, cache in zip(step, alone, strict=True)] for step in steps]
    break_it(monkeypatch)
    broken = fused.FusedModel(model)
    with contextlib.suppress(ValueError):  # the masks of two rows may have different shapes
        found = [broken.together(list(zip(step, ours, strict=True))) for step in steps]
        pairs = [pair for two in zip(found, expected, strict=True) for pair in zip(*two, strict=True)]
        assert max(distance(a, b) for a, b in pairs) > 1e-2, "the comparison does not notice it"


def test_the_unbroken_rows_pass_the_same_comparison() -> None:
    with pytest.raises(AssertionError, match="does not notice"), pytest.MonkeyPatch.context() as patch:
        test_each_broken_rule_is_caught(lambda patch: None, patch)


def test_a_batch_in_one_cache_may_stand_beside_a_single_row() -> None:
    """`model.generate` of transformers' API has rows of one length in the same cache."""
    model = tiny_model()
    form = model.fused()
    pair, one = random_ids(12, 1, batch=2), random_ids(9, 2)
    ours, alone = ((model.make_cache(), model.make_cache()) for _ in range(2))
    expected = [form(pair, alone[0]), form(one, alone[1])]
    found = form.together([(pair, ours[0]), (one, ours[1])])
    assert [logits.shape for logits in found] == [(2, 12, 61), (1, 9, 61)]
    assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) < 1e-4


def test_each_row_checks_the_depth_of_its_caches() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="cache has 3 layers, and the model 4"):
        model.fused().together([(mx.array([[5]]), model.make_cache()), (mx.array([[5]]), model.make_cache()[:3])])
