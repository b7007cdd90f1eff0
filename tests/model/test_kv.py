"""Quantized caches: what was stored is what is attended, on every layer, in whatever pieces it came."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, distance, in_chunks, mostly_heavy, random_caches, random_ids, small_caches, tiny_model

from exaone4_mlx import Exaone4Config, PromptCache, Tokenizer
from exaone4_mlx.model import layer as layer_module
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.model.kv import KVQuantization, QuantizedKV

KINDS = {
    "8": KVQuantization(8, 8, 32, "all"),
    "4": KVQuantization(4, 4, 32, "all"),
    "keys 8, values 4": KVQuantization(8, 4, 32, "all"),
    "keys only": KVQuantization(4, None, 64, "all"),
    "values only": KVQuantization(None, 8, 64, "all"),
    "8, global": KVQuantization(8, 8, 64, "global"),
}
SHAPE: dict[str, Any] = {"head_dim": 64, "sliding_window": 7}


def of(head_dim: int, **changes: Any) -> Exaone4Config:
    return Exaone4Config.from_dict(TINY | {"head_dim": head_dim} | changes)


class RoundTrip:
    """A plain cache that is given what the quantized one would keep: the oracle."""

    def __init__(self, cache: Any, kv: KVQuantization | None) -> None:
        self._cache, self._kv = cache, kv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, keys: mx.array, values: mx.array) -> Any:
        kv = self._kv
        if kv is not None and kv.key_bits:
            keys = QuantizedKV.of(keys, kv.group_size, kv.key_bits).dequantized()
        if kv is not None and kv.value_bits:
            values = QuantizedKV.of(values, kv.group_size, kv.value_bits).dequantized()
        return self._cache.update(keys, values)


@pytest.mark.parametrize("kind", mostly_heavy(KINDS, 3))
@pytest.mark.parametrize("cuts", [[45], [1] * 45, [20, 1, 3, 1, 8, 12]], ids=["whole", "one by one", "mixed"])
def test_logits_are_those_of_a_plain_cache_given_what_is_stored(kind: str, cuts: list[int]) -> None:
    kv, rng = KINDS[kind], random.Random(kind)
    model = tiny_model(**SHAPE)
    ids = random_ids(45)
    plain = random_caches(model, rng)
    oracle = [
        RoundTrip(cache, kv.of_layer(layer.window)) for cache, layer in zip(plain, model.config.layers, strict=True)
    ]
    stored = in_chunks(model, ids, cuts, random_caches(model, rng, kv))
    assert distance(stored, in_chunks(model, ids, cuts, oracle)) < 1e-4
    assert distance(stored, model(ids)) > 1e-3, "nothing was quantized"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 7])
def test_any_chunking_stores_and_attends_the_same(kind: str, window: int | None) -> None:
    """Exactly: of one layer, since a rounding in a layer below may turn a number to the next of its grid."""
    kv, rng = KINDS[kind], random.Random(kind)
    keys, values = (mx.random.normal((1, 2, 60, 64), key=mx.random.key(i)) for i in range(2))
    for _ in range(4):
        cuts = [rng.choice([1, 1, 2, 5, 13, 30]) for _ in range(60)]
        cache = RotatingKVCache(window, 3, 2, kv) if window else KVCache(kv=kv)
        start = 0
        for size in cuts:
            if start + size > 60:
                break
            attended = cache.update(keys[:, :, start : start + size], values[:, :, start : start + size])
            start += size
            first = 0 if window is None else max(0, start - size - window + 1)
            for name, rows, x, bits in zip("kv", attended, (keys, values), (kv.key_bits, kv.value_bits), strict=True):
                whole = x[:, :, :start]
                if bits is not None:
                    assert isinstance(rows, QuantizedKV)
                    rows, whole = rows.dequantized(), QuantizedKV.of(whole, kv.group_size, bits).dequantized()
                assert mx.array_equal(rows, whole[:, :, first:]), f"{name} after {start} tokens, {size} at once"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 7])
def test_rewinding_and_snapshots_are_exact(kind: str, window: int | None) -> None:
    kv, rng = KINDS[kind], random.Random(kind)
    x = mx.random.normal((1, 2, 60, 64), key=mx.random.key(0))
    other = mx.random.normal((1, 2, 5, 64), key=mx.random.key(1))

    def new() -> Any:
        return RotatingKVCache(window, 3, 2, kv) if window else KVCache(kv=kv)

    def attended(cache: Any) -> list[mx.array]:
        return [layer_module.dequantized(rows) for rows in cache.update(other, other)]

    for _ in range(5):
        cache, fresh, length = new(), new(), rng.randrange(20, 60)
        for start in range(length):
            cache.update(x[:, :, start : start + 1], x[:, :, start : start + 1])
        snapshot = cache.snapshot()
        mx.eval(snapshot.arrays)
        back = rng.randint(0, min(3, cache.rewindable))
        fresh.update(x[:, :, : length - back], x[:, :, : length - back])
        expected = attended(fresh)
        cache.rewind(back)
        assert all(map(mx.array_equal, attended(cache), expected)), f"{length} tokens, {back} back"
        cache.restore(snapshot)
        cache.rewind(back)
        assert all(map(mx.array_equal, attended(cache), expected)), f"restored after {length}, {back} back"


def test_broken_rotation_of_scales_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant forgets to move the biases when a window compacts."""
    resize = KVCache(kv=KINDS["8"]).rows.resize.__func__  # type: ignore[attr-defined]

    def broken(self: Any, capacity: int, start: int, stop: int, parts: tuple[mx.array, ...]) -> None:
        resize(self, capacity, start, stop, parts)
        self.buffers[2] = mx.zeros_like(self.buffers[2])

    model, ids = tiny_model(**SHAPE), random_ids(45)
    right = in_chunks(model, ids, [1] * 45, random_caches(model, random.Random(0), KINDS["8"]))
    monkeypatch.setattr("exaone4_mlx.model.kv.KVBuffer.resize", broken)
    wrong = in_chunks(model, ids, [1] * 45, random_caches(model, random.Random(0), KINDS["8"]))
    assert distance(right, wrong) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_rows(kind: str) -> None:
    kv = KINDS[kind]
    model = tiny_model(**SHAPE, dtype=mx.bfloat16)
    cache = model.make_cache(kv)
    model(random_ids(100), cache)
    for one, layer in zip(cache, model.config.layers, strict=True):
        mine = kv.of_layer(layer.window)
        row = 2 * 64 * 2 if mine is None else mine.row_bytes(64, 2)
        assert one.nbytes == 2 * one.rows.capacity * row
    assert KVQuantization(8, 8, 64, "all").row_bytes(64, 2) * 16 == 2 * 64 * 2 * 8.5, "8.5 bits of 16"


def test_prefill_keeps_no_scores_of_a_quantized_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    attend = layer_module.attend_quantized
    monkeypatch.setattr(layer_module, "attend_quantized", lambda *a: seen.append(a[0].shape[2]) or attend(*a))
    model = tiny_model(**SHAPE)
    model(random_ids(40), cache := model.make_cache(KINDS["4"]))
    assert not seen
    model(random_ids(8), cache)
    assert seen == [8] * 4


def test_prompt_cache_of_quantized_caches_is_saved_and_read(tmp_path: Path, demo: tuple[Any, Tokenizer]) -> None:
    model = small_caches(tiny_model(**SHAPE), reserve=4, slack=3)
    kv = KINDS["keys 8, values 4"]
    cache = PromptCache(model, demo[1], kv=kv)
    prompt = random_ids(50)[0].tolist()
    cache.prefill(prompt)
    cache.save(tmp_path / "cache")
    again = PromptCache.load(tmp_path / "cache", model, demo[1], kv=kv)
    logits, cached = again.prefill([*prompt, 5])
    assert cached == 50
    assert mx.array_equal(logits, cache.prefill([*prompt, 5])[0])


@pytest.mark.parametrize(
    ("head_dim", "given", "message"),
    [
        (64, {"kv_bits": 3}, "kv_bits must be 8 or 4, not 3"),
        (64, {"kv_bits": 8.0}, "kv_bits must be 8 or 4, not 8.0"),
        (64, {"kv_bits_keys": True}, "kv_bits_keys must be 8 or 4"),
        (48, {"kv_bits": 8}, "head_dim 48 is not a multiple of 32"),
        (64, {"kv_bits": 8, "kv_group_size": 128}, "kv_group_size must be 32 or 64 with head_dim 64, not 128"),
        (64, {"kv_group_size": 64}, "kv_group_size 64 has no effect without kv_bits"),
        (64, {"kv_bits": 8, "kv_layers": "local"}, "kv_layers must be 'all' or 'global', not 'local'"),
    ],
)
def test_senseless_options_are_refused(head_dim: int, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVQuantization.read(of(head_dim), **given)


def test_options_are_read() -> None:
    assert KVQuantization.read(of(64)) is None
    assert KVQuantization.read(of(128), 8) == KVQuantization(8, 8, 64, "global")
    assert KVQuantization.read(of(96), 8, kv_bits_values=4) == KVQuantization(8, 4, 32, "global")
    assert KVQuantization.read(of(128), kv_bits_values=4, kv_group_size=128, kv_layers="all") == KVQuantization(
        None, 4, 128, "all"
    )
    everywhere = [KVQuantization.read(of(64, sliding_window=None), 8, kv_layers=which) for which in ("all", "global")]
    assert everywhere[0] == everywhere[1], "where all layers are global it is the same, for files of caches, too"
    local = of(64, layer_types=["sliding_attention"] * 4)
    with pytest.raises(ValueError, match="this model has no global layers: set kv_layers to 'all'"):
        KVQuantization.read(local, 8)
    assert KVQuantization.read(local, 8, kv_layers="all") == KVQuantization(8, 8, 64, "all")


def test_kv_is_a_number_of_bits_or_a_quantization() -> None:
    config = of(128)
    assert KVQuantization.coerce(None, config) is None
    resolved = KVQuantization(8, 8, 64, "global")
    for kv in (8, KVQuantization(8, 8), resolved):
        assert KVQuantization.coerce(kv, config) == resolved
    assert KVQuantization.coerce(KVQuantization(value_bits=4, layers="all"), config) == KVQuantization(
        None, 4, 64, "all"
    )
    for wrong in (True, 5, "8", 8.0):
        with pytest.raises(ValueError, match="kv must be 8, 4 or a KVQuantization"):
            tiny_model().make_cache(wrong)
    for bits, message in ({}, "needs key_bits or value_bits"), ({"key_bits": 3}, "key_bits must be 8 or 4, not 3"):
        with pytest.raises(ValueError, match=message):
            KVQuantization(**bits)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_goes_on_with_quantized_caches(kind: str) -> None:
    """As transformers' call: a padded batch, token by token, with attentions."""
    model, ids = tiny_model(**SHAPE), random_ids(20, batch=2)
    mask = mx.array([[0] * 3 + [1] * 17, [1] * 20])
    cache = model.make_cache(KINDS[kind])
    for stop in (12, *range(13, 21)):
        start = 0 if stop == 12 else stop - 1
        output = model.forward(
            ids[:, start:stop], mask[:, :stop], past_key_values=cache, output_attentions=stop % 2 == 0, use_cache=True
        )
    whole = model.forward(ids, mask, past_key_values=model.make_cache(KINDS[kind]), use_cache=True)
    assert distance(output.logits[1, -1], whole.logits[1, -1]) < 0.05, "the row without padding"


@pytest.mark.heavy
def test_reading_a_prompt_takes_no_more_than_with_plain_caches() -> None:
    """Of one layer at a time the rows are unpacked; and what is kept of all is less."""
    model = tiny_model(num_hidden_layers=12, sliding_window=None, layer_types=None, head_dim=64)
    ids = random_ids(1500)

    def peak(kv: KVQuantization | None) -> int:
        cache = model.make_cache(kv)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        for start in range(0, 1500, 100):
            mx.eval(model.model.prefill(ids[:, start : start + 100], cache, 1500), [one.buffers for one in cache])
        return mx.get_peak_memory() - before

    plain = peak(None)
    assert peak(KVQuantization(8, 8, 64, "all")) < 0.8 * plain
    assert peak(KVQuantization(8, 4, 64, "all")) < 0.7 * plain
