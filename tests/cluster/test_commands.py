"""Commands on several ranks: those that take them, as `mlx.launch` starts them, and those that refuse."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ranks import Launched, ended_of

from exaone4_mlx.cli import ranks
from exaone4_mlx.cli.main import main
from exaone4_mlx.cluster import ranks as joined

HEAVY = pytest.mark.heavy


@pytest.fixture
def as_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as rank 0 of two that do not exist."""
    hosts = tmp_path / "hosts"
    hosts.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))


@pytest.mark.parametrize("command", ["convert", "fuse", "evaluate", "lora", "doctor", "fit"])
def test_other_commands_are_refused_by_name(command: str, as_rank_0: None, capsys: Any) -> None:
    needed = {
        "convert": ["--hf-path", "demo"],
        "evaluate": ["--model", "demo", "--reference", "demo"],
        "doctor": [],
        "fuse": ["--model", "demo", "--adapter-path", "x", "--mlx-path", "y"],
        "lora": ["--model", "demo", "--data", "x"],
    }
    assert main([command, *needed.get(command, ["--model", "demo"])]) == 1
    error = capsys.readouterr().err
    assert f"error: {command} runs in one process" in error and "start it without mlx.launch" in error
    assert ("one layer at a time" in error) == (command in ("convert", "fuse", "evaluate"))


def test_adapters_are_refused(as_rank_0: None, tmp_path: Path, capsys: Any) -> None:
    for command, flag, value in (("generate", "--adapter-path", "x"), ("serve", "--adapter-model", "name=x")):
        assert main([command, "--model", "demo", flag, value]) == 1
        assert f"error: {flag} is not available with several ranks: fuse the adapter" in capsys.readouterr().err


def test_secrets_are_not_sent_to_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(ranks, "_is_one_of_several", lambda: True)
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setattr(
        joined,
        "join_ranks",
        lambda *_: SimpleNamespace(rank=0, agree=lambda *what: sent.append(what), leave=sent.append),
    )
    flags = ["--api-key", "hunter2", "--password", "hunter3", "--app", "--model-name", "shown"]
    main(["serve", "--model", "absent", *flags])
    assert "shown" in str(sent) and "hunter" not in str(sent)


@HEAVY
@pytest.mark.parametrize("how", [[], ["--pipeline", "5,3"]], ids=["heads", "layers"])
def test_generate_goes_on_from_the_files_of_all_ranks(tmp_path: Path, how: list[str]) -> None:
    command = ["-m", "exaone4_mlx.generate", "--model", "demo", "--dtype", "float32", "--temp", "0", "--jsonl"]
    command += ["--max-tokens", "4", "--prompt", "What is 17 * 23?"]
    for kind, name in (("--prompt-cache-file", "turns"), ("--prompt-cache-dir", "prefixes")):
        found = []
        for _ in range(2):
            ended = ended_of([*command, *how, kind, name], tmp_path)
            assert ended[1] == (0, "", "") and ended[0][0] == 0, ended
            *words, done = map(json.loads, ended[0][1].splitlines())
            found.append((words, done["cached_tokens"]))
        assert found[0][1] == 0 and found[1][1] > 15
        assert found[0][0] == found[1][0], "as without the files"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"hosts.json", "prefixes", "turns.rank0of2", "turns.rank1of2"}
    here = f"rank 0 of 2 with {'pipeline 5,3' if how else 'some heads'}"
    for other, named in ([], "some heads"), (["--pipeline", "4,4"], "pipeline 4,4"):
        if named not in here:
            ended = ended_of([*command, *other, "--prompt-cache-file", "turns"], tmp_path)
            assert f"turns.rank0of2 is of {here}, and here is rank 0 of 2 with {named}: divide" in ended[0][2]
            cold = ended_of([*command, *other, "--prompt-cache-dir", "prefixes"], tmp_path)[0][1].splitlines()[-1]
            assert json.loads(cold)["cached_tokens"] == 0, "the rows are of another division"


def test_the_files_of_several_ranks_are_refused_alone(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "turns.rank0of2").write_text("exaone4_mlx prompt cache, version 1")
    flags = ["--max-tokens", "1", "--prompt-cache-file", str(tmp_path / "turns")]
    assert main(["generate", "--model", "demo", "--prompt", "x", *flags]) == 1
    assert "turns.rank0of2 was written by 2 ranks, and here is 1: start as many, or give" in capsys.readouterr().err


@pytest.mark.parametrize("peer", ["mlx-lm", "transformers"])
def test_bench_of_several_ranks_has_no_peers(peer: str, as_rank_0: None, capsys: Any) -> None:
    assert main(["bench", "--model", "demo", "--peer", peer]) == 1
    assert "error: --peer is not available with several ranks: other engines run in one" in capsys.readouterr().err


@HEAVY
def test_bench_measures_all_ranks_together(tmp_path: Path) -> None:
    sizes = ["-p", "32", "-d", "0", "-g", "4", "--repeat", "1", "--dtype", "float32", "--format", "json"]
    ended = ended_of(["-m", "exaone4_mlx", "bench", "--model", "demo", *sizes, "--q-bits", "4"], tmp_path)
    assert ended[1] == (0, "", "") and ended[0][0] == 0, ended
    found = json.loads(ended[0][1])
    assert (found["conditions"]["ranks"], found["conditions"]["backend"]) == (2, "ring")
    assert found["conditions"]["bits_per_weight"] == pytest.approx(5, abs=0.1), (
        "in rank 0: 4, and 2 * 32 for 64 weights"
    )
    tests = [row["test"] for row in found["rows"]]
    assert tests[:2] == ["prefill", "decode"] and not {"one token, whole process", "nodes"} & set(tests)


@HEAVY
def test_the_desktop_chat_answers_on_several_ranks(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the app needs the extra `app`")
    from gradio_client import Client

    command = ["-m", "app", "--model", "demo", "--no-browser", "--data-dir", str(tmp_path / "data")]
    with Launched(command, tmp_path) as launched:
        error = launched.processes[0].stderr
        assert error is not None
        address = next(line.split()[3] for line in error if line.startswith("EXAONE is at "))
        client = Client(address, verbose=False)
        found = client.predict("Hello", {"temperature": 0, "max_tokens": 4}, api_name="/chat")
        assert found["stats"]["answer_tokens"] == 4
        again = client.predict("And you?", {"temperature": 0, "max_tokens": 4}, api_name="/chat")
        assert again["stats"]["cached_tokens"] > 10
        launched.processes[0].send_signal(signal.SIGINT)
        ended = launched.ended()
    assert {rank: code for rank, (code, _, _) in ended.items()} == {0: 130, 1: 130}
    assert ended[1][1:] == ("", "")
