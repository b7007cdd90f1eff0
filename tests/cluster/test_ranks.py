"""Several ranks give the replies of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import random_ids, tiny_model
from ranks import Alone, Launched, check, results, saved

from exaone4_mlx import PrefixStore, PromptCache
from exaone4_mlx.cluster.ranks import Place, Ranks, join_ranks
from exaone4_mlx.generation.follow import follow
from exaone4_mlx.generation.prefix_folder import FILE_FORMAT, PrefixFolder
from exaone4_mlx.generation.rank_files import OwnFiles
from exaone4_mlx.model.led import spread

FLOAT32 = json.dumps({"dtype": "float32"})
HEAVY = pytest.mark.heavy


def test_two_ranks_compute_as_one_process(tmp_path: Path) -> None:
    check(results(tmp_path, "logits", "demo", FLOAT32))


@HEAVY
@pytest.mark.parametrize("checks", ["greedy seeded chat drafts batch stopped", "many"])
def test_two_ranks_reply_as_one_process(tmp_path: Path, checks: str) -> None:
    """Seeded draws, turns with thought, tools and reuse, drafts, replies together, and 500 tokens."""
    check(results(tmp_path, *checks.split(), "demo", FLOAT32))


@HEAVY
@pytest.mark.parametrize("options", [{"q_bits": 4}, {"q_bits": 8}, {"kv": 8}, {"q_bits": 4, "kv": 4}], ids=str)
def test_quantized_weights_and_caches(tmp_path: Path, options: dict[str, int]) -> None:
    found = results(tmp_path, "logits", "greedy", "seeded", "demo", json.dumps({"dtype": "float32", **options}))
    check(found, limit=0.05 if "kv" in options else 1e-4)


@HEAVY
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_caches_differ_by_the_rounding_of_sums(tmp_path: Path, bits: int) -> None:
    """A group of numbers is in one head, so a rank has the groups of one process: in the first layer the same codes.

    In later layers the last bit of a sum gives a few keys the next code, and so other logits than 1e-4 allows.
    """
    first, *others = results(tmp_path, "codes", "demo", json.dumps({"dtype": "float32", "kv": bits}))["codes"]
    assert first[0] <= 2, "no sum of ranks is before these keys"
    assert max(steps for _, steps in others) <= 4


@HEAVY
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of a connection")
def test_bytes_sent_for_a_token(tmp_path: Path) -> None:
    """Two sums of 256 numbers for each of 8 layers, and one of the token's id, which a ring of two sends in halves.

    Of a prompt of 100 tokens the last layer has the last token only, and the ids are in a message.
    """
    found = results(tmp_path, "bytes", "prompt bytes", "demo", FLOAT32)
    assert found["bytes"] == [2 * 8 * 256 * 4 + 2 * 4] * 2
    assert found["prompt bytes"] == [2 * (7 + 1 / 100) * 256 * 4] * 2


@HEAVY
@pytest.mark.parametrize("bits", [None, 4])
def test_four_ranks_of_a_hybrid_with_a_head_of_its_own(tmp_path: Path, bits: int | None) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    more = {"head_dim": 32, "vocab_size": 3072, "max_position_embeddings": 2048, "sliding_window": 12}
    model = tiny_model(seed=3, **sizes, **more)
    options = {"dtype": "float32"} | ({"q_bits": bits, "q_group_size": 32} if bits else {})
    check(results(tmp_path, "logits", "greedy", "stopped", saved(model, tmp_path), json.dumps(options), size=4))


def test_the_place_of_a_process(tmp_path: Path) -> None:
    hosts, devices = tmp_path / "hosts", tmp_path / "devices"
    hosts.write_text('[["10.0.0.1:32323", "10.0.1.1:32324"], ["10.0.0.2:32325"]]')
    devices.write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    assert Place.of_process({}) is None
    ring = Place.of_process({"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)})
    assert ring == Place(1, "ring", (("10.0.0.1", 32323), ("10.0.0.2", 32325)))
    jaccl = Place.of_process(
        {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323", "MLX_IBV_DEVICES": str(devices)}
    )
    assert jaccl == Place(0, "jaccl", (("10.0.0.1", 32323), ("host 1", 0)))
    hosts.write_text("")  # mlx.launch -n 1
    assert Place.of_process({"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts)}) is None
    with pytest.raises(ValueError, match="ranks of MPI are not supported"):
        Place.of_process({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="MLX_RANK is set without MLX_HOSTFILE"):
        Place.of_process({"MLX_RANK": "0"})


def test_wrong_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert join_ranks() is None
    with pytest.raises(ValueError, match="must be a number of seconds from 1, not 0"):
        join_ranks(0)
    with pytest.raises(ValueError, match="for the ranks other than 0"):
        follow(tiny_model())


def test_modules_of_a_part_are_refused() -> None:
    model = tiny_model()
    spread(model, Alone(0, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="several ranks have a part of the weights: use model"):
        model(random_ids(3))
    with pytest.raises(ValueError, match="a model of several ranks takes no adapters"):
        model.set_adapters()


@pytest.mark.heavy
def test_a_rank_with_other_flags_is_named(tmp_path: Path) -> None:
    command = ["-m", "exaone4_mlx.generate", "--model", "demo", "--prompt", "x", "--rank-timeout", "30"]
    with Launched(command, tmp_path, ranks=[0]) as launched:
        launched.start(1, [*command, "--q-bits", "4"])
        ended = launched.ended()
    assert ended[0][0] == 1 and "(" in ended[0][2]
    assert "differs from rank 0 in the command and its versions: --q-bits 4 there, None here" in ended[0][2]
    assert ended[1][0] == 75 and not ended[1][2], "rank 0 says it"


def test_a_rank_keeps_files_that_another_cluster_may_use(tmp_path: Path) -> None:
    """Those that its rank 0 does not have, until they are a week old."""
    files, own = PrefixFolder(tmp_path / "rank1of2"), OwnFiles.__new__(OwnFiles)
    own._folders = {str(tmp_path): files}
    entry = {"parent": "", "start": 0, "ids": [1], "local_rows": 0}
    keys = ["a" * 40, "b" * 40, "c" * 40]
    for key in keys:
        files._write(files.path(key), {"format": FILE_FORMAT, "entry": json.dumps(entry)}, [])
    os.utime(files.path(keys[2]), (0, 0))
    own.change(0, str(tmp_path), "keep", keys[:1])
    assert sorted(key for key, _, _ in files.index()) == keys[:2]


def test_a_prefix_store_with_files_is_for_one_process_or_for_ranks(tmp_path: Path, tokenizer: Any) -> None:
    alone, model, ranks = tiny_model(), tiny_model(), Ranks(Place(0, "ring", (("a", 1), ("b", 2))))
    store = PrefixStore(folder=tmp_path, ranks=ranks)
    with pytest.raises(ValueError, match="files of several ranks: make another one for this model"):
        PromptCache(alone, tokenizer, prefix_store=store).prefill([1, 2, 3])
    spread(model, ranks)
    with pytest.raises(ValueError, match=r"with files of several ranks needs them: PrefixStore\(…, ranks=ranks\)"):
        PromptCache(model, tokenizer, prefix_store=PrefixStore(folder=tmp_path)).prefill([1, 2, 3])


@HEAVY
@pytest.mark.parametrize("more", [{}, {"kv": 8}], ids=str)
def test_files_and_prefixes(tmp_path: Path, more: dict[str, int]) -> None:
    """Each rank writes and reads its part, of a hybrid with windows."""
    check(results(tmp_path, "prefixes", "files", "demo", json.dumps({"dtype": "float32", **more})))
