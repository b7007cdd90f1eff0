"""Ranks that have some layers each give the replies of one process."""

from __future__ import annotations

import contextlib
import json
import random
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import ranks
from conftest import random_ids, tiny_model
from mlx.utils import tree_map_with_path
from ranks import Launched, ended_of, results, saved

from exaone4_mlx.checkpoint.share import Stage, layers_of_ranks
from exaone4_mlx.cli.main import main
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.model.config import Exaone4Config
from exaone4_mlx.model.kv import KVBuffer
from exaone4_mlx.model.led import spread
from exaone4_mlx.model.pipeline import NoRows

HEAVY = pytest.mark.heavy
DEMO = Exaone4Config.from_file(DEMO_FOLDER / "config.json")


check = partial(ranks.check, limit=0)  # no sum is cut, so that nothing rounds in another order


def options(pipeline: Any, **more: Any) -> str:
    return json.dumps({"dtype": "float32", "pipeline": pipeline, **more})


@HEAVY
@pytest.mark.parametrize(
    ("checks", "layers", "more"),
    [
        ("logits long greedy seeded", True, {}),
        ("chat drafts batch stopped", [3, 5], {}),
        ("many", [7, 1], {}),
        *[("logits greedy seeded", True, more) for more in ({"q_bits": 4}, {"q_bits": 8}, {"kv": 8}, {"q_bits": 4, "kv": 4})],
        ("prefixes files", [5, 3], {}),
        ("prefixes files", [5, 3], {"kv": 8}),
    ],
    ids=str,
)  # fmt: skip
def test_two_ranks_are_as_one_process(tmp_path: Path, checks: str, layers: Any, more: dict[str, int]) -> None:
    check(results(tmp_path, *checks.split(), "demo", options(layers, **more)))


SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2}
MORE = {"head_dim": 32, "vocab_size": 3072, "max_position_embeddings": 2048}


@HEAVY
@pytest.mark.parametrize(
    ("layers", "changes"),
    [([3, 2, 4, 1], {"num_hidden_layers": 10}), (True, {"sliding_window": None, "tie_word_embeddings": True})],
    ids=["hybrid", "all global"],
)
def test_four_ranks_of_a_model_whose_heads_do_not_divide(tmp_path: Path, layers: Any, changes: dict[str, Any]) -> None:
    """The hidden states of the hybrid have another dtype in each rank."""
    model = tiny_model(seed=3, **SIZES, **MORE, **({"sliding_window": 12, "num_hidden_layers": 5} | changes))
    if layers is not True:
        half = ("embed_tokens", *(f"layers.{i}." for i in range(4)))
        cast = tree_map_with_path(
            lambda name, x: x.astype(mx.bfloat16 if any(part in name for part in half) else mx.float32),
            model.parameters(),
        )
        model.update(cast)
    given = json.dumps({"pipeline": layers})
    check(results(tmp_path, "logits", "greedy", "batch", saved(model, tmp_path), given, size=4))


@HEAVY
@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10, "sliding_window": 12}, {"sliding_window": None}], ids=str
)
def test_files_and_prefixes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A hybrid of which rank 0 has local layers only, and so no rows of some pieces; a model without local layers."""
    model = tiny_model(seed=3, **SIZES, **MORE, **changes)
    check(results(tmp_path, "prefixes", "files", saved(model, tmp_path), options([2, len(model.layers) - 2])))


@HEAVY
def test_a_rank_that_does_not_go_back_is_found(tmp_path: Path) -> None:
    """The checks above fail if a rank leaves out one kind of change of its caches."""
    found = results(tmp_path, "logits", "demo", options(True, without="rewind"))
    assert found["logits"] > 1e-2


@HEAVY
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of a connection")
def test_bytes_of_a_token(tmp_path: Path) -> None:
    """Rank 0 receives 256 numbers once. Both send halves of the sum of the token's id, of at least four bytes."""
    sent, received = results(tmp_path, "bytes", "demo", options([3, 5]))["bytes"]
    assert sent == 2 * 4
    assert received == 256 * 4 + 2 * 4


@HEAVY
@pytest.mark.parametrize("more", [[], ["--pipeline"]], ids=["heads", "layers"])
def test_a_chat_that_ends_while_the_next_turn_is_prepared(tmp_path: Path, more: list[str]) -> None:
    """All ranks leave together: rank 0 ends its idle work first."""
    command = ["-m", "exaone4_mlx.chat", "--model", "demo", "--dtype", "float32", "--temp", "0", "--max-tokens", "20"]
    with Launched([*command, *more], tmp_path) as launched:
        stdin = launched.processes[0].stdin
        assert stdin is not None
        stdin.write("Hello\nAnd what is 2+2?\n")
        ended = launched.ended()
    assert ended[1] == (0, "", "") and ended[0][0] == 0, ended
    assert "lost" not in ended[0][2] and "failed" not in ended[0][2]


@HEAVY
def test_the_command_and_its_refusals(tmp_path: Path) -> None:
    command = ["-m", "exaone4_mlx.generate", "--model", "demo", "--temp", "0", "--max-tokens", "8", "--prompt", "Hi"]
    ended = ended_of([*command, "--pipeline"], tmp_path, 3)
    assert [code for code, _, _ in ended.values()] == [0, 0, 0], ended
    assert ended[0][1].strip() and not ended[1][1]
    ended = ended_of(command, tmp_path, 3)
    assert "is not a multiple of 3 ranks" in ended[0][2] and "--pipeline" in ended[0][2]
    ended = ended_of([*command, "--pipeline", "4,3"], tmp_path)
    assert "pipeline 4,3 must be the layers of each rank, 8 in all" in ended[0][2]


@HEAVY
def test_files_of_a_model_that_differs_in_a_layer_of_rank_1_only(tmp_path: Path) -> None:
    model = tiny_model(seed=3, **SIZES, **MORE)
    command = ["-m", "exaone4_mlx.generate", "--model", str(tmp_path / "model"), "--temp", "0", "--jsonl"]
    command += ["--max-tokens", "4", "--prompt", "What is 17 * 23?", "--pipeline", "1,3"]

    file, folder = [*command, "--prompt-cache-file", "turns"], [*command, "--prompt-cache-dir", "prefixes"]
    for change in (1, -1):
        model.layers[0].mlp.up_proj.weight *= change
        saved(model, tmp_path)
        assert '"cached_tokens": 0' in ended_of(folder, tmp_path)[0][1]
        code, _, error = ended_of(file, tmp_path)[0]
        assert not code if change == 1 else "rank1of2 belongs to another model: weights" in error, error


class OneRank:
    """Stands for rank 0 of a pipeline of two."""

    rank, size, pipeline, group = 0, 2, (1, 3), None

    def __init__(self, events: list[Any] | None = None) -> None:
        self.events = [] if events is None else events

    def exchange(self, value: str) -> list[str]:
        return [value, value]

    def in_order(self) -> None:
        pass

    def queued(self, *built: Any) -> None:
        pass

    def tell(self, message: Any, is_work: bool = False) -> None:
        self.events.append(("told", len(message["call"][4][0])))


class Stop(Exception):
    """A prompt is stopped."""


@pytest.mark.parametrize("stops", [False, True])
def test_the_others_work_on_the_next_part_of_a_prompt(stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is told before the one before it is received, and all that was told is received."""
    events: list[Any] = []
    model = tiny_model()
    spread(model, OneRank(events), Stage(0, (2, len(model.layers) - 2), model.config.tie_word_embeddings))  # type: ignore[arg-type]

    def received(shape: tuple[int, ...], dtype: mx.Dtype, source: int, group: Any) -> mx.array:
        events.append(("received", shape[1]))
        return mx.zeros(shape, dtype)

    monkeypatch.setattr(mx.distributed, "recv", received)
    caches, seen = model.make_cache(), []

    def pause(layers: int, x: mx.array) -> None:
        seen.append(layers)
        if stops:
            raise Stop

    with pytest.raises(Stop) if stops else contextlib.nullcontext():
        model.fused().prefill(random_ids(600), caches, 600, pause)
    expected = [("told", 256), ("told", 256), ("received", 256), ("told", 88), ("received", 256), ("received", 88)]
    assert events == ([*expected[:3], ("received", 256)] if stops else expected)
    assert seen == sorted(seen) and seen[-1] < len(caches)
    offsets = [cache.offset for cache in caches]
    assert offsets[:-2] == [512 if stops else 600] * (len(caches) - 2), "as those of the other ranks"
    if not stops:
        assert set(offsets) == {600}


def test_modules_of_some_layers_are_refused() -> None:
    for tied in (False, True):
        model = tiny_model(tie_word_embeddings=tied)
        count = len(model.layers)
        spread(model, OneRank(), Stage(0, (1, count - 1), tied))  # type: ignore[arg-type]
        assert len(model.layers) == 1
        with pytest.raises(ValueError, match=r"use model\.fused\(\)"):
            model(random_ids(3))


def test_layers_follow_the_memory() -> None:
    sizes = {f"model.layers.{i}.x.weight": 10 for i in range(8)} | {"model.embed_tokens.weight": 20}
    tied = DEMO.replace(tie_word_embeddings=True)
    assert layers_of_ranks(True, tied, sizes, [8, 8]) == (4, 4)
    assert layers_of_ranks(True, tied, sizes, [8, 8, 8]) == (2, 4, 2), "the embedding counts in both ends"
    assert layers_of_ranks(True, tied, sizes, [24, 8]) == (7, 1)
    assert layers_of_ranks(True, tied, sizes, [1, 1000]) == (1, 7), "a rank has one layer at least"
    assert layers_of_ranks((6, 2), tied, sizes, [1, 1000]) == (6, 2)
    with pytest.raises(ValueError, match="has 8 layers, and a pipeline of 9 ranks needs one for each"):
        layers_of_ranks(True, tied, sizes, [1] * 9)


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        ((4, 3), "pipeline 4,3 must be the layers of each rank, 8 in all, and one at least"),
        ((8, 0), "pipeline 8,0 must be"),
        ((4, 2, 2), "pipeline 4,2,2 has the layers of 3 ranks, and there are 2"),
    ],
)
def test_wrong_numbers_of_layers(layers: tuple[int, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        layers_of_ranks(layers, DEMO, {}, [1, 1])


def test_each_weight_is_in_one_rank_but_for_a_tied_embedding() -> None:
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(12)]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for tied in (False, True):
        stages = [Stage(rank, (5, 4, 3), tied) for rank in range(3)]
        counts = {name: sum(stage.has(name) for stage in stages) for name in names}
        assert counts.pop("model.embed_tokens.weight") == 1 + tied
        assert set(counts.values()) == {1}
    assert stages[0].has("lm_head.weight") and stages[0].has(names[11]) and stages[2].has(names[0])


@pytest.mark.parametrize("make", [lambda: KVCache(64), lambda: RotatingKVCache(5, 3, 4)], ids=["global", "local"])
def test_a_cache_without_rows_counts_as_one_with_rows(make: Any) -> None:
    """Whatever is done to both, they can go back equally far, and say so."""
    rng, real, counted = random.Random(1), make(), make()
    counted.rows = NoRows()
    taken = []
    for _ in range(300):
        action, n = rng.choice(("update", "update", "rewind", "undo", "snapshot", "restore")), rng.randint(1, 9)
        if action == "update" and real.offset + n < 64:
            rows = mx.zeros((1, 2, n, 8))
            real.update(rows, rows)
            counted.update(rows, rows)
        elif action == "rewind" and n <= real.rewindable:
            real.rewind(n)
            counted.rewind(n)
        elif action == "undo" and n <= real.offset:
            if isinstance(real, RotatingKVCache):
                assert real.undo(n) == counted.undo(n)
        elif action == "snapshot":
            taken.append((real.snapshot(), counted.snapshot()))
            assert taken[-1][0].rows == taken[-1][1].rows
        elif action == "restore" and taken:
            one, other = rng.choice(taken)
            if one.arrays or one.offset <= real.offset:
                assert real.rewindable_from(one) == counted.rewindable_from(other)
                real.restore(one)
                counted.restore(other)
        assert (real.offset, real.rewindable, real.past) == (counted.offset, counted.rewindable, counted.past)
        assert real.rows.capacity == counted.rows.capacity
    assert isinstance(real.rows, KVBuffer) and real.nbytes and not counted.nbytes


def test_fit_of_each_rank(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*flags: str) -> str:
        assert main(["fit", "--model", "demo", *flags]) == 0
        return capsys.readouterr().out

    whole, ranks = json.loads(printed("--json")), json.loads(printed("--json", "--pipeline", "3,5"))["ranks"]
    assert [rank["layers"] for rank in ranks] == [3, 5]
    embedding = DEMO.vocab_size * DEMO.hidden_size * 2
    assert sum(rank["weights_bytes"] for rank in ranks) == whole["weights_bytes"] + embedding, "both ends have it"
    assert sum(rank["global_cache_bytes"] for rank in ranks) == whole["global_cache_bytes"]
    text = printed("--ranks", "3", "--pipeline")
    assert "Rank 0 has layers 7 to 8, the norm, the output head.\n" in text
    assert "Rank 2 has layers 1 to 2, the embedding.\n" in text
    text = printed("--pipeline", "--memory", "64,32", "--metal")
    assert re.search(r"memory for a model +48.00 GB +24.00 GB\nfits into it +yes +yes\n", text), text
    assert "Rank 1 has layers 1 to 2, the embedding.\n" in text and "three quarters of 64.00 GB or 32.00 GB" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--pipeline"], "--pipeline needs several ranks: give --ranks N, or the layers of each"),
        (["--pipeline", "8"], "--pipeline needs several ranks"),
        (["--pipeline", "3,5", "--ranks", "1"], "--pipeline needs several ranks"),
        (["--pipeline", "3,5", "--ranks", "3"], "pipeline 3,5 has the layers of 2 ranks, and there are 3"),
        (["--pipeline", "3,5", "--memory", "8,8,8"], "--memory has one number, or with --pipeline one for each rank"),
        (["--ranks", "2", "--memory", "8,8"], "--memory has one number"),
        (["--pipeline", "3,5", "--adapter-path", "x"], "several ranks takes no adapters"),
    ],
)
def test_fit_refuses_what_generate_refuses(flags: list[str], expected: str, capsys: Any) -> None:
    assert main(["fit", "--model", "demo", *flags]) == 1
    assert expected in capsys.readouterr().err


def test_a_pipeline_needs_ranks(capsys: Any) -> None:
    assert main(["generate", "--model", "demo", "--prompt", "x", "--pipeline"]) == 1
    assert "--pipeline needs several ranks: start them by mlx.launch" in capsys.readouterr().err
