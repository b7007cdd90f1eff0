"""Prompt caches: reused tokens give the logits of a cold start, and a file is correct or is not used."""

# ruff: noqa: F811 (pytest fixtures are imported and named as arguments)

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import ROOT, distance, mostly_heavy, tiny_model
from mlx.utils import tree_flatten
from turns import TURN, cold, ids, small_model, tokenizer  # noqa: F401

from exaone4_mlx import PromptCache, Tokenizer
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.generation import cache_file, prefill, prompt_cache
from exaone4_mlx.generation.cache_file import weights_digest
from exaone4_mlx.generation.prefill import CheckpointPool, common_prefix
from exaone4_mlx.model.cache import RotatingKVCache

# --- reuse --------------------------------------------------------------------


@pytest.mark.parametrize("seed", mostly_heavy(range(12), 2))
def test_any_sequence_of_prompts_gives_the_logits_of_a_cold_start(seed: int, tokenizer: Tokenizer) -> None:
    rng = random.Random(seed)
    model = small_model(seed, rng.randrange(6), rng.randrange(1, 6), sliding_window=rng.randrange(1, 9))
    cache = PromptCache(model, tokenizer, CheckpointPool(max_count=rng.choice([0, 1, 3, 16])))
    prompt: list[int] = []
    reused = 0
    for _ in range(25):
        kept = prompt[: rng.randrange(len(prompt) + 1)] if rng.random() < 0.5 else prompt
        prompt = [*kept, TURN, *ids(rng.randrange(1, 30), rng.randrange(10**6))][-180:]
        logits, cached = cache.prefill(prompt, rng.choice([1, 5, 64]))
        assert cache.ids == prompt
        assert distance(logits, cold(model, prompt)) < 1e-4
        reused += cached
        if rng.random() < 0.3:
            history = [*prompt[: rng.randrange(1, len(prompt) + 1)], *ids(20, rng.randrange(10**6))]
            for _ in cache.settle(history, 7):
                if rng.random() < 0.2:
                    break  # dropped: the processed tokens stay
    assert reused > 0


@pytest.mark.parametrize("broken", [False, True])
def test_only_the_common_prefix_of_two_prompts_is_reused(
    broken: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant reuses two tokens too many."""
    if broken:
        longer = lambda a, b: min(common_prefix(a, b) + 2, len(a), len(b))  # noqa: E731
        monkeypatch.setattr(prompt_cache, "common_prefix", longer)
    model = small_model()
    cache = PromptCache(model, tokenizer)
    cache.prefill([TURN, *ids(40), 3, 4, 5])
    prompt = [TURN, *ids(40), 6, 8, 9]
    assert (distance(cache.prefill(prompt)[0], cold(model, prompt)) < 1e-4) != broken


def test_a_thought_of_any_length_is_removed(tokenizer: Tokenizer) -> None:
    """After a reply with a thought, the next prompt differs from the caches directly after the last prompt."""
    model = small_model(reserve=4)
    cache = PromptCache(model, tokenizer)
    prompt = [TURN, *ids(50)]
    cache.prefill(prompt)
    thought_and_answer = ids(60, 1)
    model(mx.array([thought_and_answer]), cache.layers)
    cache.ids += thought_and_answer
    following = [*prompt, *ids(5, 2), TURN, *ids(8, 3)]
    logits, cached = cache.prefill(following)
    assert cached == len(prompt)
    assert distance(logits, cold(model, following)) < 1e-4


def test_a_long_message_can_be_replaced_without_processing_the_history(tokenizer: Tokenizer) -> None:
    cache = PromptCache(small_model(reserve=4), tokenizer)
    history = [TURN, *ids(40)]
    cache.prefill([*history, TURN, *ids(30, 1)])
    cache.prefill([*history, *ids(3, 2), TURN, *ids(30, 3)])
    _, cached = cache.prefill([*history, *ids(3, 2), TURN, *ids(30, 4)])
    assert cached == len(history) + 3


def test_the_same_prompt_again_processes_one_token(tokenizer: Tokenizer) -> None:
    model = small_model()
    cache = PromptCache(model, tokenizer)
    prompt = [TURN, *ids(50)]
    first, _ = cache.prefill(prompt)
    again, cached = cache.prefill(prompt)
    assert cached == len(prompt) - 1
    assert distance(first, again) < 1e-4


def test_after_settle_only_new_tokens_are_processed(tokenizer: Tokenizer) -> None:
    model = small_model()
    cache = PromptCache(model, tokenizer)
    cache.prefill([TURN, *ids(50)])
    history = [TURN, *ids(50), *ids(20, 1)]
    steps = list(cache.settle(history, step_size=8))
    assert steps == [51, 59, 67, 71], "the cached tokens, and then chunks of eight"
    assert cache.prefill([*history, TURN, *ids(6, 2)])[1] == len(history)


def test_a_model_without_windows_needs_no_checkpoints(tokenizer: Tokenizer) -> None:
    model = tiny_model(sliding_window=None)
    cache = PromptCache(model, tokenizer)
    cache.prefill([TURN, *ids(50)])
    cache.prefill([TURN, *ids(50), TURN, *ids(90, 1)])
    assert cache.checkpoints == []
    assert cache.prefill([TURN, *ids(20), TURN])[1] == 21


def test_progress_starts_with_the_reused_tokens(tokenizer: Tokenizer) -> None:
    cache = PromptCache(small_model(), tokenizer)
    cache.prefill([TURN, *ids(20)])
    calls: list[tuple[int, int]] = []
    cache.prefill([TURN, *ids(20), TURN, *ids(9, 1)], 4, lambda done, total: calls.append((done, total)))
    assert calls[0] == (21, 31)
    assert calls[-1] == (31, 31)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.parametrize("failing_layer", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_of_a_step_leaves_correct_caches(
    failing_layer: int, error: type[BaseException], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    cache = PromptCache(model, tokenizer)
    prompt = [TURN, *ids(30)]
    cache.prefill(prompt)

    def fail(*args: Any) -> Any:
        raise error("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(cache.layers[failing_layer], "update", fail)
        with pytest.raises(error, match="in the middle"):
            cache.prefill([*prompt, *ids(9, 1)])
    logits, _ = cache.prefill([*prompt, *ids(9, 2)])
    assert distance(logits, cold(model, [*prompt, *ids(9, 2)])) < 1e-4


@pytest.mark.parametrize(("slack", "kept"), [(40, 61), (3, 21)])
def test_a_prefill_can_be_stopped_within_a_chunk(
    slack: int, kept: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks before it stay. Where a window cannot go back so far, the last checkpoint stays."""
    monkeypatch.setattr(prefill, "CHECK_TOKENS", 4)
    monkeypatch.setattr(prefill, "CHECK_SECONDS", 0)
    model = small_model(slack=slack)
    cache = PromptCache(model, tokenizer)
    prompt = [TURN, *ids(100)]
    cache.prefill(prompt[:21])
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if done > 61:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cache.prefill(prompt, 20, stop)
    assert 61 < calls[-1] < 81, "within the third chunk"
    assert calls == sorted(calls)
    assert len(cache.ids) == kept
    assert {layer.offset for layer in cache.layers} == {kept}
    assert distance(cache.prefill(prompt, 20)[0], cold(model, prompt)) < 1e-4


def test_common_prefix() -> None:
    rng = random.Random(0)
    for _ in range(500):
        a = [rng.randrange(2) for _ in range(rng.randrange(12))]
        b = [rng.randrange(2) for _ in range(rng.randrange(12))]
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == common_prefix(tuple(a), b) == expected, (a, b)


# --- bounds -------------------------------------------------------------------


def test_the_number_of_checkpoints_is_limited_over_all_conversations(tokenizer: Tokenizer) -> None:
    model, pool = small_model(), CheckpointPool(max_count=4)
    caches = [PromptCache(model, tokenizer, pool) for _ in range(3)]
    for k in range(5):
        for i, cache in enumerate(caches):
            cache.prefill([TURN, *ids(20 * (k + 1), i)])
            assert len(pool.checkpoints) == sum(len(c.checkpoints) for c in caches) <= 4
    assert [len(cache.checkpoints) for cache in caches] == [1, 1, 2], "the newest of each conversation is removed last"
    del caches[2], cache
    gc.collect()
    assert len(pool.checkpoints) == 2, "a deleted conversation deletes its checkpoints"


def test_the_bytes_of_checkpoints_are_limited(tokenizer: Tokenizer) -> None:
    model = small_model()
    one = PromptCache(model, tokenizer)
    one.prefill([TURN, *ids(50)])
    size = one.checkpoints[0].nbytes
    assert size == 3 * (7 - 1 + 4) * 2 * 2 * 16 * 4, "three windows and reserves of keys and values, and no global rows"
    pool = CheckpointPool(max_bytes=2 * size)
    cache = PromptCache(model, tokenizer, pool)
    for k in range(1, 6):
        cache.prefill([TURN, *ids(50 * k)])
        assert pool.nbytes <= 2 * size
    assert len(cache.checkpoints) == 2


@pytest.mark.parametrize("key_heads", [1, 2])
def test_a_checkpoint_is_a_copy_of_nbytes_bytes(key_heads: int, tokenizer: Tokenizer) -> None:
    """A slice would keep the whole buffer alive, and so would an array that was assigned a whole slice."""
    cache = RotatingKVCache(window=50, rewind_capacity=10, slack=4000)
    cache.update(mx.zeros((1, key_heads, 3000, 64)), mx.zeros((1, key_heads, 3000, 64)))
    mx.eval(cache.buffers)
    before = mx.get_active_memory()
    snapshot = cache.snapshot()
    mx.eval(snapshot.arrays)
    assert snapshot.nbytes == 2 * key_heads * 59 * 64 * 4
    assert abs(mx.get_active_memory() - before - snapshot.nbytes) < 10_000
    for _ in range(2):
        cache.update(mx.ones((1, key_heads, 1, 64)), mx.ones((1, key_heads, 1, 64)))
        mx.eval(cache.buffers)
    assert mx.get_active_memory() - before < cache.nbytes / 2, "the next write copied the whole buffer"
    assert mx.max(snapshot.arrays[0]).item() == 0


# --- the file -----------------------------------------------------------------


def filled(model: Any, tokenizer: Tokenizer, seed: int = 0) -> PromptCache:
    cache = PromptCache(model, tokenizer)
    cache.prefill([TURN, *ids(40, seed)])
    cache.prefill([TURN, *ids(40, seed), *ids(9, 1), TURN, *ids(30, 2)])
    return cache


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_file_restores_tokens_checkpoints_and_logits(dtype: mx.Dtype, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model()
    model.set_dtype(dtype)
    cache = filled(model, tokenizer)
    cache.save(tmp_path / "cache")
    loaded = PromptCache.load(tmp_path / "cache", model, tokenizer)
    assert loaded.ids == cache.ids
    assert [c.length for c in loaded.checkpoints] == [c.length for c in cache.checkpoints] != []
    for prompt in ([*cache.ids, 9], [*cache.ids[:50], *ids(20, 8)], [*cache.ids[:41], *ids(5, 9)]):
        one, two = cache.prefill(prompt), loaded.prefill(prompt)
        assert one[1] == two[1] > 0
        assert mx.array_equal(one[0], two[0]).item(), "the logits must be bit-identical after save and load"


def test_an_empty_cache_can_be_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model()
    PromptCache(model, tokenizer).save(tmp_path / "cache")
    assert PromptCache.load(tmp_path / "cache", model, tokenizer).ids == []


def other_weights(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    weight[3, 5] = weight[3, 5] + 0.001


def swapped_weights(model: Any) -> None:
    """Swaps two entries, which keeps every plain sum."""
    weight = model.model.layers[1].mlp.up_proj.weight
    weight[3, 5], weight[4, 6] = weight[4, 6] + 0, weight[3, 5] + 0


def rectangle(model: Any) -> None:
    """Changes four entries so that the sums of their rows and columns stay the same."""
    bits = model.model.layers[1].mlp.up_proj.weight.view(mx.uint32)
    for row, column, change in ((3, 5, 4096), (3, 6, -4096), (4, 5, -4096), (4, 6, 4096)):
        bits[row, column] = bits[row, column] + change % 2**32
    model.model.layers[1].mlp.up_proj.weight = bits.view(mx.float32)


@pytest.mark.parametrize("change", [other_weights, swapped_weights, rectangle])
def test_the_digest_of_the_weights_detects_any_change(change: Callable[[Any], None]) -> None:
    model = small_model()
    before = weights_digest(tree_flatten(model.parameters()))
    assert before == weights_digest(tree_flatten(small_model().parameters()))
    change(model)
    assert weights_digest(tree_flatten(model.parameters())) != before


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "belongs to another model: weights differ"),
        ("config", "belongs to another model: config differ"),
        ("template", "belongs to another model: chat template differ"),
        ("tokenizer", "belongs to another model: tokenizer differ"),
        ("layout", r"has another cache layout \(other kv_bits, say\)"),
        ("bits", "has another cache layout"),
    ],
)
def test_a_file_of_another_model_is_refused_with_the_reason(what: str, message: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(DEMO_FOLDER)
    filled(small_model(head_dim=32), tokenizer).save(tmp_path / "cache")
    changes = {"rms_norm_eps": 1e-6} if what == "config" else {"reserve": 5 if what == "layout" else 4}
    model = small_model(head_dim=32, **changes)
    if what == "weights":
        other_weights(model)
    if what == "template":
        assert tokenizer._template is not None
        tokenizer._template.source += " "
    if what == "tokenizer":
        tokenizer._backend.add_tokens(["one more"])
    kv = 8 if what == "bits" else None
    with pytest.raises(ValueError, match=message):
        PromptCache.load(tmp_path / "cache", model, tokenizer, kv=kv)


def test_a_missing_file_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no prompt cache"):
        PromptCache.load(tmp_path / "none", small_model(), tokenizer)


def test_a_damaged_file_gives_a_cold_start_and_a_warning(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """For a flipped bit or a cut at any position, no tokens of the file are used."""
    model, file, rng = small_model(), tmp_path / "cache", random.Random(0)
    filled(model, tokenizer).save(file)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [0, 7, 9, *(rng.randrange(8, header) for _ in range(30)), *(rng.randrange(len(whole)) for _ in range(30))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        if place < header and damaged.replace(b" ", b"") == whole.replace(b" ", b""):
            continue
        if cache_file.FILE_FORMAT.encode() not in damaged:
            with pytest.raises(ValueError, match="is no prompt cache"):
                PromptCache.load(file, model, tokenizer)
            continue
        with pytest.warns(UserWarning, match="starting without it"):
            assert PromptCache.load(file, model, tokenizer).ids == [], place
    for length in (0, header, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match="starting without it"):
            assert PromptCache.load(file, model, tokenizer).ids == []


@pytest.mark.parametrize("content", [b"important notes", b"{}", b"\x00" * 100])
def test_a_file_of_another_kind_is_neither_read_nor_overwritten(
    content: bytes, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt is there already and is no prompt cache"):
        PromptCache.load(file, small_model(), tokenizer)
    with pytest.raises(ValueError, match=r"notes\.txt is there already and is no prompt cache"):
        filled(small_model(), tokenizer).save(file)
    assert file.read_bytes() == content
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        filled(small_model(), tokenizer).save(tmp_path / "none" / "cache")


@pytest.mark.parametrize("damage", ["no ids", "fewer ids", "a layer gone", "another shape", "a long checkpoint"])
def test_wrong_content_with_a_correct_digest_is_not_used(
    damage: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = small_model(), tmp_path / "cache"
    digest = cache_file._digest

    def forged(arrays: dict[str, mx.array], about: dict[str, str]) -> str:
        if damage == "no ids":
            arrays.pop("ids", None)
        if damage == "fewer ids":
            arrays["ids"] = arrays["ids"][:50]
        if damage == "a layer gone":
            arrays.pop("3 keys", None)
        if damage == "another shape":
            arrays["0 keys"] = arrays["0 keys"][:, :1]
        if damage == "a long checkpoint":
            about["checkpoints"] = about["checkpoints"].replace("81", "99").replace("50", "999")
        return digest(arrays, about)

    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "_digest", forged)
        filled(model, tokenizer).save(file)
    with pytest.warns(UserWarning, match="starting without it"):
        assert PromptCache.load(file, model, tokenizer).ids == []


def test_replaced_weights_are_detected_at_any_address(tokenizer: Tokenizer) -> None:
    """A new array can have the id of a deleted one."""
    model = small_model()
    cache = filled(model, tokenizer)
    for factor in (2.0, 1.5):
        norm = model.model.norm
        norm.weight = norm.weight * factor
    assert cache.prefill([*cache.ids, 9])[1] == 0


def test_a_file_keeps_its_mode_and_may_have_any_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / ("[한글]" * 17)
    for _ in range(2):
        filled(small_model(), tokenizer).save(file)
        file.chmod(0o600)
    filled(small_model(), tokenizer).save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_keeps_the_old_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = small_model(), tmp_path / "cache"
    filled(model, tokenizer).save(file)
    before = file.read_bytes()

    def full_disk(stream: Any, *args: Any) -> None:
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(cache_file.mx, "save_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        filled(model, tokenizer, seed=5).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache"], "no partial file may remain"


ENDLESS_WRITES = """
import sys; sys.path[:0] = ["tests", "tests/generation"]
from test_prompt_cache import *
model, tokenizer = small_model(), Tokenizer.from_pretrained(DEMO_FOLDER)
caches = [filled(model, tokenizer, seed) for seed in (0, 5)]
print("ready", flush=True)
while True:
    for cache in caches:
        cache.save(sys.argv[1])
"""


@pytest.mark.heavy
def test_a_killed_process_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(DEMO_FOLDER)
    model, rng, found = small_model(), random.Random(1), set()
    file = tmp_path / "cache"
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITES, str(file)], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if file.exists():
            found.add(tuple(PromptCache.load(file, model, tokenizer).ids))
    filled(model, tokenizer).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"], "partial files of killed processes must be deleted"
    assert found <= {tuple(filled(model, tokenizer, seed).ids) for seed in (0, 5)}
    assert found
