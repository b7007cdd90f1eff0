"""The laws of the caches (DESIGN §4), on random lengths, windows and chunk sizes."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest
from conftest import distance, in_chunks, mostly_heavy, random_caches, random_ids, tiny_model

from exaone4_mlx.model.cache import KVCache, RotatingKVCache, causal_mask

SEEDS = range(12)


def random_cuts(length: int, rng: random.Random) -> list[int]:
    """Chunk sizes that add up to `length`, single tokens and long ones among them."""
    cuts = []
    while sum(cuts) < length:
        cuts.append(min(rng.choice([1, 1, 2, 5, 13, 40]), length - sum(cuts)))
    return cuts


@pytest.mark.parametrize("seed", mostly_heavy(SEEDS, 2))
def test_any_chunking_gives_the_same_logits(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, sliding_window=rng.randrange(1, 17))
    ids = random_ids(rng.randrange(1, 90), seed)
    whole = model(ids)
    for cache in (model.make_cache(), random_caches(model, rng)):
        assert distance(in_chunks(model, ids, random_cuts(ids.shape[1], rng), cache), whole) < 1e-4
    one_by_one = in_chunks(model, ids, [1] * ids.shape[1], random_caches(model, rng))
    assert distance(one_by_one, whole) < 1e-4


@pytest.mark.parametrize("seed", mostly_heavy(SEEDS, 3))
def test_chunking_in_bfloat16_changes_no_clear_decision(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, dtype=mx.bfloat16)
    ids = random_ids(60, seed)
    whole = model(ids).astype(mx.float32)
    chunked = in_chunks(model, ids, random_cuts(60, rng), random_caches(model, rng)).astype(mx.float32)
    best_two = mx.sort(whole, axis=-1)[..., -2:]
    clear = (best_two[..., 1] - best_two[..., 0]) > 2.0  # beyond what rounding of logits of scale ten can turn
    same = mx.argmax(whole, axis=-1) == mx.argmax(chunked, axis=-1)
    assert mx.all(same | ~clear).item()
    assert mx.sum(clear).item() > 5


@pytest.mark.parametrize("window", [1, 2, 5])
def test_local_layer_sees_exactly_the_last_window_tokens(window: int) -> None:
    """With one local layer, a changed token shows in the next `window` positions and nowhere later."""
    model = tiny_model(
        num_hidden_layers=1, sliding_window=window, layer_types=["sliding_attention"], sliding_window_pattern="L"
    )
    ids = random_ids(20)
    changed = mx.array([[*ids[0, :6].tolist(), (ids[0, 6].item() + 1) % 61, *ids[0, 7:].tolist()]])
    difference = mx.max(mx.abs(model(ids) - model(changed)), axis=-1)[0]
    assert [i for i in range(20) if difference[i].item() > 1e-6] == list(range(6, 6 + window))


@pytest.mark.parametrize("seed", mostly_heavy(SEEDS, 2))
def test_rewinding_equals_never_having_seen_the_tokens(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, sliding_window=rng.randrange(2, 12))
    ids, other = random_ids(80, seed), random_ids(9, seed + 1000)
    for _ in range(6):
        cache = random_caches(model, rng)
        length = rng.randrange(1, 80)
        in_chunks(model, ids[:, :length], random_cuts(length, rng), cache)
        back = rng.randint(0, min(layer.rewindable for layer in cache))
        for layer in cache:
            layer.rewind(back)
        continued = model(other, cache)
        fresh = model(mx.concatenate([ids[:, : length - back], other], axis=1))[:, length - back :]
        assert distance(continued, fresh) < 1e-4, f"{length} tokens, {back} back"


@pytest.mark.parametrize("compacted_rows", [0, -1])
def test_after_any_number_of_tokens_the_whole_reserve_can_be_rewound(
    compacted_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant keeps one row less when it compacts: a known design does, and loses keys."""
    needed = RotatingKVCache.needed_rows.fget
    monkeypatch.setattr(RotatingKVCache, "needed_rows", property(lambda self: needed(self) + compacted_rows))

    def always_rewindable() -> bool:
        for chunk in (1, 3, 7, 30):
            cache = RotatingKVCache(window=5, rewind_capacity=4, slack=3)
            for _ in range(40):
                cache.update(mx.zeros((1, 1, chunk, 2)), mx.zeros((1, 1, chunk, 2)))
                if cache.rewindable < min(4, cache.offset):
                    return False
        return True

    assert always_rewindable() == (compacted_rows == 0)


def test_rewinding_too_far_is_an_error_and_changes_nothing() -> None:
    cache = RotatingKVCache(window=4, rewind_capacity=2, slack=2)
    for _ in range(20):
        cache.update(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="cannot rewind 3 tokens: this cache has processed 20 and can remove 2"):
        cache.rewind(3)
    assert cache.offset == 20
    full = KVCache()
    full.update(mx.zeros((1, 1, 20, 2)), mx.zeros((1, 1, 20, 2)))
    with pytest.raises(ValueError, match="cannot rewind 21"):
        full.trim(21)


def test_memory_is_what_the_window_the_reserve_and_the_slack_add_up_to() -> None:
    cache = RotatingKVCache(window=100, rewind_capacity=20, slack=30)
    row = 2 * 3 * 8 * 4  # keys and values, heads, head size, bytes
    for chunk in (1, 500, 1, 90, 700):
        cache.update(mx.zeros((1, 3, chunk, 8)), mx.zeros((1, 3, chunk, 8)))
    assert cache.nbytes == (99 + 20 + 30) * row, "a long chunk must not leave a longer buffer behind"

    full = KVCache(max_length=1000)
    full.update(mx.zeros((1, 3, 257, 8)), mx.zeros((1, 3, 257, 8)))
    assert full.nbytes == 512 * row, "whole buckets of 256 rows"
    full.update(mx.zeros((1, 3, 600, 8)), mx.zeros((1, 3, 600, 8)))
    assert full.nbytes == 1000 * row, "never more than the longest context, unless it is needed"


def test_short_conversation_does_not_pay_for_the_whole_window() -> None:
    cache = RotatingKVCache(window=4096)
    cache.update(mx.zeros((1, 1, 20, 8)), mx.zeros((1, 1, 20, 8)))
    assert cache.rows.capacity == 256


def test_appending_a_token_writes_in_place() -> None:
    """A view that outlives the step would cost a copy of the whole buffer at the next one."""
    rows, size = 4096, 64
    row = mx.zeros((1, 8, 1, size))

    def peak_of_a_step(keep_a_view: bool) -> int:
        cache = KVCache(rows)
        cache.update(mx.zeros((1, 8, rows - 10, size)), mx.zeros((1, 8, rows - 10, size)))
        mx.eval(cache.buffers)
        kept = []
        for _ in range(3):
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            keys, values = cache.update(row, row)
            mx.eval(mx.sum(keys) + mx.sum(values))
            if keep_a_view:
                kept.append(keys)
                mx.eval(keys)
            del keys, values
            mx.eval(cache.buffers)
        return mx.get_peak_memory() - before

    buffer_bytes = 8 * rows * size * 4
    assert peak_of_a_step(keep_a_view=False) < buffer_bytes / 4
    assert peak_of_a_step(keep_a_view=True) > buffer_bytes / 2, "the test would not notice a copy"


def test_masks_are_arrays_only_where_they_must_be() -> None:
    assert causal_mask(past=50, length=1) is None
    assert causal_mask(past=50, length=4) == "causal"
    assert causal_mask(past=4, length=4, window=8) == "causal"
    mask = causal_mask(past=2, length=3, window=3)
    assert isinstance(mask, mx.array)
    assert mask.tolist() == [
        [True, True, True, False, False],
        [False, True, True, True, False],
        [False, False, True, True, True],
    ]


def test_senseless_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="window 0"):
        RotatingKVCache(window=0)
