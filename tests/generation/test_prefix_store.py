"""The prefix store: what other conversations read gives the logits of a cold start, in memory and from files."""

# ruff: noqa: F811 (pytest fixtures are imported and named as arguments)

from __future__ import annotations

import json
import random
import stat
import struct
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import turns
from conftest import distance, mostly_heavy
from turns import TURN, cold, ids, tokenizer  # noqa: F401

from exaone4_mlx import Chat, PrefixStore, PromptCache, Tokenizer
from exaone4_mlx.generation import prefix_folder, prefix_store
from exaone4_mlx.generation.prefill import Batch, CheckpointPool
from exaone4_mlx.generation.prefix_entry import PrefixEntry, usable_length
from exaone4_mlx.generation.prefix_folder import FILE_FORMAT
from exaone4_mlx.model.cache import Snapshot
from exaone4_mlx.model.kv import BUCKET

ROW = 2 * 2 * 16 * 4  # bytes of a token in a layer of the tiny model: key and value, 2 heads of 16 floats


small_model = partial(turns.small_model, max_position_embeddings=900)


def fresh(model: Any, tokenizer: Tokenizer, store: PrefixStore, **more: Any) -> PromptCache:
    """A prompt cache of a new conversation. It has no checkpoints of its own, like those of the server."""
    return PromptCache(model, tokenizer, CheckpointPool(max_count=0), prefix_store=store, **more)


# --- exactness ----------------------------------------------------------------


def run_schedule(seed: int, model: Any, tokenizer: Tokenizer, store: PrefixStore, kv: int | None = None) -> int:
    """Prompts of several conversations with common beginnings, in any order. Returns the number of reused tokens.

    Every one must give the logits of a cold start, and the store must stay within its limit.
    """
    rng = random.Random(seed)
    beginnings = [ids(rng.randrange(1, 60), 900 + k) for k in range(3)]
    prompts = [[*rng.choice(beginnings), TURN, *ids(9, k)] for k in range(4)]
    caches = [fresh(model, tokenizer, store, kv=kv) for _ in prompts]
    reused = 0
    for _ in range(16):
        i = rng.randrange(len(prompts))
        if rng.random() < 0.5:
            caches[i] = fresh(model, tokenizer, store, kv=kv)
        if rng.random() < 0.3:  # another branch, of this conversation or another one
            other = rng.choice(prompts)
            prompts[i] = other[: rng.randrange(len(other) + 1)]
        prompts[i] = [*prompts[i], TURN, *ids(rng.randrange(1, 30), rng.randrange(10**6))][:200]
        logits, cached = caches[i].prefill(prompts[i], rng.choice([1, 5, 64]))
        expected = (
            cold(model, prompts[i]) if kv is None else PromptCache(model, tokenizer, kv=kv).prefill(prompts[i])[0]
        )
        assert distance(logits, expected) < 1e-4
        assert store.nbytes <= store.max_bytes
        reused += cached
        for _ in range(rng.randrange(4)):  # a reply
            prompts[i].append(rng.randrange(8, 60))
            model(mx.array([[prompts[i][-1]]]), caches[i].layers)
            caches[i].ids.append(prompts[i][-1])
        caches[i].keep()
    return reused


@pytest.mark.parametrize("seed", mostly_heavy(range(16), 1))
@pytest.mark.parametrize("on_disk", [False, True])
def test_any_schedule_of_conversations_gives_the_logits_of_cold_starts(
    seed: int, on_disk: bool, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr("exaone4_mlx.generation.prefix_entry.MAX_PIECE", rng.choice([3, 16, 512]))
    window = rng.choice([None, 1, 4, 9])
    model = small_model(seed, rng.randrange(6), rng.randrange(1, 6), sliding_window=window)
    limit = rng.choice([20, 200, 10_000]) * 4 * ROW
    store = PrefixStore(limit, tmp_path / "store" if on_disk else None, 300 * 4 * ROW)
    assert run_schedule(seed, model, tokenizer, store) > 0
    if on_disk:
        store.flush()
        assert sum(file.stat().st_size for file in (tmp_path / "store").iterdir()) < 1.5 * 300 * 4 * ROW
        assert run_schedule(seed, model, tokenizer, PrefixStore(limit, tmp_path / "store")) > 0


@pytest.mark.parametrize("kv", mostly_heavy([8, 4], 1))
def test_quantized_rows_are_stored_as_they_are(kv: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model(head_dim=32)
    assert run_schedule(1, model, tokenizer, PrefixStore(folder=tmp_path), kv) > 0
    assert run_schedule(1, model, tokenizer, PrefixStore(folder=tmp_path), kv) > 0


def window_ignored(chain: Any, length: int, window: int | None) -> int:
    return length


def window_short_by_one(chain: Any, length: int, window: int | None) -> int:
    return usable_length(chain, length, window and window - 1)


def one_row_less(layer: Any, pieces: Any, chain: Any, length: int) -> Any:
    found = prefix_store_joined(layer, pieces, chain, length)
    arrays = tuple(mx.concatenate([array[:, :, :1], array[:, :, :-1]], axis=2) for array in found.arrays)
    return Snapshot(length, arrays)


prefix_store_joined = prefix_store.joined_rows


@pytest.mark.parametrize(
    ("name", "broken", "seed"),
    [
        ("usable_length", window_ignored, 6),
        ("usable_length", window_short_by_one, 4),
        ("joined_rows", one_row_less, 1),
        ("common_prefix", lambda a, b: min(len(a), len(b)), 0),
    ],
)
def test_broken_variants_are_noticed(
    name: str, broken: Any, seed: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_store, name, broken)
    with pytest.raises((AssertionError, ValueError)):
        run_schedule(seed, small_model(seed, seed % 3, 1 + seed % 2), tokenizer, PrefixStore())


@pytest.mark.parametrize("broken", [False, True])
def test_no_conversation_writes_into_the_rows_of_another(
    broken: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant stores the full buffers of a conversation, into which that writes after it went back."""
    if broken:
        whole = lambda layer, start, stop: Snapshot(stop, tuple(layer.rows.buffers))  # noqa: E731
        monkeypatch.setattr(prefix_store, "taken_rows", whole)
    model, store = small_model(sliding_window=None), PrefixStore()
    prompt = ids(BUCKET)
    one = PromptCache(model, tokenizer, prefix_store=store)
    one.prefill(prompt)
    with monkeypatch.context() as patch:
        patch.setattr(store, "add", lambda *args: None)
        one.prefill([*prompt[:100], *ids(100, 1)])
    logits, cached = fresh(model, tokenizer, store).prefill([*prompt, 9])
    assert cached == BUCKET
    assert (distance(logits, cold(model, [*prompt, 9])) < 1e-4) != broken


# --- what is read once --------------------------------------------------------


@pytest.mark.parametrize("window", [None, 7])
def test_a_second_conversation_reads_only_what_is_new(window: int | None, tokenizer: Tokenizer) -> None:
    model, store = small_model(sliding_window=window), PrefixStore()
    system = ids(300)
    for number, cached in ((1, 0), (2, 300), (3, 300)):
        prompt = [*system, TURN, *ids(40, number)]
        logits, reused = fresh(model, tokenizer, store).prefill(prompt)
        assert cached <= reused <= cached + 1
        assert distance(logits, cold(model, prompt)) < 1e-4


def test_a_document_within_a_message_is_read_once_from_the_third_question_on(tokenizer: Tokenizer) -> None:
    """Windows are kept where turns begin and end, and, from the second prompt on, where prompts differ."""
    document = [TURN, *ids(300)]
    for window, expected in ((None, [0, 301, 301]), (7, [0, 0, 301])):
        model, store = small_model(sliding_window=window), PrefixStore()
        reused = [fresh(model, tokenizer, store).prefill([*document, 20 + k, *ids(40, k)])[1] for k in range(3)]
        assert reused == expected


def test_a_common_beginning_is_held_once(tokenizer: Tokenizer) -> None:
    model, store = small_model(sliding_window=None), PrefixStore()
    for number in range(5):
        fresh(model, tokenizer, store).prefill([*ids(300), TURN, *ids(20, number)])
    assert store.nbytes == 4 * ROW * (300 + 5 * 21)


def test_the_nbytes_of_a_store_are_the_memory_that_it_takes(tokenizer: Tokenizer) -> None:
    model, store = small_model(sliding_window=None, head_dim=64), PrefixStore()
    fresh(model, tokenizer, PrefixStore()).prefill(ids(300))
    mx.clear_cache()
    before = mx.get_active_memory()
    for number in range(3):
        fresh(model, tokenizer, store).prefill([*ids(300), TURN, *ids(200, number)])
        mx.clear_cache()
    assert 0.95 < (mx.get_active_memory() - before) / store.nbytes < 1.1


def test_the_least_recently_used_conversation_goes_first_and_its_end_before_its_beginning(tokenizer: Tokenizer) -> None:
    model = small_model(sliding_window=None)
    store = PrefixStore(4 * ROW * 250)

    def cached(number: int) -> int:
        """Tokens of a conversation of 100 that are stored."""
        prompt = [*ids(50, number), TURN, *ids(49, 10 + number), 9]
        root = fresh(model, tokenizer, store)
        return root.reuse(prompt, len(prompt))

    for number in (1, 2):
        fresh(model, tokenizer, store).prefill([*ids(50, number), TURN, *ids(49, 10 + number)])
    assert (cached(2), cached(1)) == (100, 100)
    fresh(model, tokenizer, store).prefill([*ids(50, 3), TURN, *ids(49, 13)])
    assert (cached(1), cached(2), cached(3)) == (100, 50, 100), "2 was not used since"


def test_a_store_of_no_bytes_keeps_nothing(tokenizer: Tokenizer) -> None:
    store = PrefixStore(0)
    for _ in range(2):
        assert fresh(small_model(), tokenizer, store).prefill([TURN, *ids(50)])[1] == 0
    assert store.nbytes == 0


def test_other_salts_bits_weights_and_models_do_not_share(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = [TURN, *ids(50), TURN, *ids(30, 1)]
    for folder in (None, tmp_path):
        model, store = small_model(head_dim=32), PrefixStore(folder=folder)

        def cached(model: Any, store: PrefixStore = store, **more: Any) -> int:
            return fresh(model, tokenizer, store, **more).prefill(prompt)[1]

        assert cached(model) == 0
        assert cached(model, salt="another") == 0
        assert cached(model, kv=8) == 0
        assert cached(small_model(1, head_dim=32)) == 0
        assert cached(model) == cached(model, salt="another") == len(prompt) - 1
        model.model.norm.weight = model.model.norm.weight * 2
        assert cached(model) == 0
        assert cached(model) == len(prompt) - 1


def test_a_rope_that_depends_on_the_length_has_no_store(tokenizer: Tokenizer) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    cache = fresh(small_model(rope_parameters=rope), tokenizer, PrefixStore())
    assert cache.prefix_store is None


@pytest.mark.parametrize("thinking", [False, True])
def test_a_chat_continues_where_another_chat_was(thinking: bool, demo: Any) -> None:
    """After a chat is gone, another one with its history reads the new message only, also after a thought."""
    store, options = PrefixStore(), {"temperature": 0.0, "max_tokens": 200, "thinking": thinking}
    first = Chat(*demo, "You are a helpful assistant.", prefix_store=store, **options)  # type: ignore[arg-type]
    first.ask("My name is Mina.")
    first.settle()
    history = first.messages
    del first
    again = Chat(*demo, messages=history, prefix_store=store, settle=False, **options)  # type: ignore[arg-type]
    reply = again.ask("What is my name?")
    assert 0 < reply.prompt_tokens - reply.cached_tokens < 20
    alone = Chat(*demo, messages=history, settle=False, **options).ask("What is my name?")  # type: ignore[arg-type]
    assert alone.cached_tokens == 0
    assert reply.token_ids == alone.token_ids and "Mina" in reply.text


@pytest.mark.parametrize("limit", [-1, 1.5, True, "2GB"])
def test_a_limit_is_a_number_of_bytes(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes must be a number of bytes"):
        PrefixStore(limit)
    with pytest.raises(ValueError, match="max_folder_bytes must be a number of bytes"):
        PrefixStore(folder=tmp_path, max_folder_bytes=limit)


def test_usable_length() -> None:
    """Entries of 10 tokens, of which local layers have the last 10, 4, 10 and 0 rows; the window has 4 tokens."""
    chain = tuple(PrefixEntry("", 10 * i, list(range(10)), rows, 0) for i, rows in enumerate((10, 4, 10, 0)))
    for length, usable in ((5, 5), (10, 10), (13, 10), (18, 10), (19, 19), (25, 25), (30, 30), (31, 30), (40, 30)):
        assert usable_length(chain, length, 4) == usable, length
        assert usable_length(chain, length, None) == length


# --- files --------------------------------------------------------------------


def stored(model: Any, tokenizer: Tokenizer, folder: Path) -> list[int]:
    """The prompt of a conversation that was read and written to files, by another process, say."""
    store, prompt = PrefixStore(folder=folder), [*ids(60), TURN, *ids(30, 1), TURN, *ids(20, 2)]
    fresh(model, tokenizer, store).prefill(prompt)
    store.flush()
    return prompt


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_files_outlive_the_process(dtype: mx.Dtype, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model()
    model.set_dtype(dtype)
    prompt = stored(model, tokenizer, tmp_path / "new")
    store = PrefixStore(folder=tmp_path / "new")
    logits, cached = fresh(model, tokenizer, store).prefill([*prompt, TURN, 9])
    assert cached == len(prompt)
    expected = PromptCache(model, tokenizer).prefill([*prompt, TURN, 9])[0]
    assert distance(logits, expected) < (1e-4 if dtype == mx.float32 else 0.1)


def test_files_are_read_one_at_a_time_between_which_other_replies_go_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model(sliding_window=None)
    prompt = stored(model, tokenizer, tmp_path)
    store = PrefixStore(folder=tmp_path)
    steps = fresh(model, tokenizer, store).prefill_steps(prompt)
    held = [(tokens, store.nbytes // (4 * ROW)) for tokens in steps]
    assert held == [(0, 60), (0, 91), (0, 112)], "the system prompt, and two turns"
    batch = Batch()
    steps = fresh(model, tokenizer, PrefixStore(folder=tmp_path)).prefill_steps([*prompt, *ids(20, 3)], 5)
    chunks: list[int] = []
    batch.measured = lambda tokens, seconds, reader="model": chunks.append(tokens)  # type: ignore[method-assign]
    assert len(list(batch.timed(steps))) == 3 + 3
    assert len(chunks) == 3 and all(chunks), "a file is no chunk, from which the size of the next one follows"


def test_only_the_owner_can_read_the_files_and_without_a_folder_there_are_none(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh(small_model(), tokenizer, PrefixStore()).prefill([TURN, *ids(50)])
    assert not list(tmp_path.iterdir())
    stored(small_model(), tokenizer, tmp_path / "store")
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "store").iterdir()} == {0o600}


def test_damaged_files_are_removed_and_never_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A flipped bit or a cut at any position."""
    model, rng = small_model(), random.Random(0)
    prompt = stored(model, tokenizer, tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    expected = cold(model, prompt)
    for k in range(24):
        for file, content in whole.items():
            file.write_bytes(content)
        file = rng.choice(sorted(whole))
        size = len(whole[file])
        header = 8 + int.from_bytes(whole[file][:8], "little")
        place = rng.randrange(header if k % 2 else size)
        damaged = bytearray(whole[file])
        damaged[place] ^= 1 << rng.randrange(8)
        if damaged.replace(b" ", b"") == whole[file].replace(b" ", b""):
            continue
        file.write_bytes(damaged if k % 3 else damaged[:place])
        logits, cached = fresh(model, tokenizer, PrefixStore(folder=tmp_path)).prefill(prompt)
        assert cached < len(prompt) - 1 or not file.exists() or file.read_bytes() == whole[file]
        assert distance(logits, expected) < 1e-4
    assert len(whole) >= 3


def test_a_wrong_entry_with_a_correct_digest_is_not_used(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = prefix_folder.PrefixFolder.write

    def with_fewer_rows(self: Any, key: str, about: Any, rows: Any, *others: Any) -> bool:
        rows = [Snapshot(one.offset, tuple(array[:, :, 1:] for array in one.arrays)) for one in rows]
        return write(self, key, about, rows, *others)

    model = small_model()
    with monkeypatch.context() as patch:
        patch.setattr(prefix_folder.PrefixFolder, "write", with_fewer_rows)
        prompt = stored(model, tokenizer, tmp_path)
    logits, cached = fresh(model, tokenizer, PrefixStore(folder=tmp_path)).prefill(prompt)
    assert cached == 0 and distance(logits, cold(model, prompt)) < 1e-4


def test_a_file_that_another_process_replaced_by_one_with_fewer_rows_is_not_used(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, prompt = small_model(max_position_embeddings=4096, sliding_window=7), ids(1600)
    one, other = PrefixStore(folder=tmp_path), PrefixStore(folder=tmp_path)
    for store, length in ((one, 514), (other, 1600)):  # the longer one is read in one chunk
        fresh(model, tokenizer, store).prefill(prompt[:length])
        store.flush()
    one.clear()
    again = [*prompt[:503], *ids(5, 1)]
    assert distance(fresh(model, tokenizer, one).prefill(again)[0], cold(model, again)) < 1e-4


def test_a_file_whose_entry_nests_too_deep_is_removed(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"format": FILE_FORMAT, "entry": "[" * 200_000}}).encode()
    (tmp_path / f"{'a' * 40}.prefix").write_bytes(struct.pack("<Q", len(text)) + text)
    assert not PrefixStore(folder=tmp_path).nbytes and not list(tmp_path.iterdir())


def test_files_of_others_stay(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Those of another model are not found, and count. Files of other kinds are not touched."""
    (tmp_path / "notes.prefix").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    prompt = stored(small_model(), tokenizer, tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    store = PrefixStore(folder=tmp_path, max_folder_bytes=10**9)
    assert fresh(small_model(1), tokenizer, store).prefill(prompt)[1] == 0
    store.flush()
    assert before < {file.name for file in tmp_path.iterdir()}
    store = PrefixStore(folder=tmp_path, max_folder_bytes=0)
    assert {file.name for file in tmp_path.iterdir()} == {"notes.prefix", "notes.txt"}


def test_the_files_used_least_recently_are_removed_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model(sliding_window=None)
    prompts = [[*ids(50, k), TURN, *ids(49, 10 + k)] for k in range(3)]
    store = PrefixStore(folder=tmp_path)
    for prompt in prompts:
        fresh(model, tokenizer, store).prefill(prompt)
    store.flush()
    assert fresh(model, tokenizer, store).prefill(prompts[0])[1] == 99
    del store
    store = PrefixStore(folder=tmp_path, max_folder_bytes=4 * ROW * 290)
    assert [fresh(model, tokenizer, store).reuse(prompt, 100) for prompt in prompts] == [100, 50, 100]


def test_a_full_disk_and_a_folder_that_is_gone_do_no_harm(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError("No space left on device")

    model, prompt = small_model(), [TURN, *ids(50)]
    with monkeypatch.context() as patch:
        patch.setattr(prefix_folder.PrefixFolder, "_write", full_disk)
        store = PrefixStore(folder=tmp_path / "store")
        fresh(model, tokenizer, store).prefill(prompt)
        store.flush()
    assert not list((tmp_path / "store").iterdir())
    (tmp_path / "store").rmdir()
    assert fresh(model, tokenizer, store).prefill(prompt)[1] == len(prompt) - 1, "it is in memory"
    store.flush()


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        PrefixStore(folder=tmp_path / "file")


def test_rows_in_memory_are_bounded_while_all_files_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model(sliding_window=None)
    prompt = stored(model, tokenizer, tmp_path)
    store = PrefixStore(4 * ROW * 40, tmp_path)
    logits, cached = fresh(model, tokenizer, store).prefill(prompt)
    assert cached == len(prompt) - 1 and store.nbytes <= 4 * ROW * 40
    assert distance(logits, cold(model, prompt)) < 1e-4


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".0123456789abcdef.999999999-1.partial"
    left.write_bytes(b"half")
    PrefixStore(folder=tmp_path)
    assert not left.exists()
