"""A conversion that is killed is gone on with, and its bytes are those of one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx import convert
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion.shards import JOURNAL
from exaone4_mlx.files.safetensors import CheckpointError

#: Converts, and kills its own process some seconds after the first tensor, or at the progress of that number.
KILLED = """
import json, os, signal, sys, threading
from exaone4_mlx import convert
path, options, seconds, number = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
calls = []
def progress(done, total, stage):
    calls.append(stage)
    if len(calls) == 1 and seconds >= 0:
        threading.Timer(seconds, kill).start()
    if len(calls) == number:
        kill()
convert("demo", path, progress=progress, **options)
"""


def killed(path: Path, options: dict[str, Any], seconds: float = -1, number: int = -1) -> bool:
    """Whether a conversion in a process of its own was killed before it was through."""
    arguments = [str(path), json.dumps(options), str(seconds), str(number)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def digests(folder: Path) -> dict[str, str]:
    """Of every file but those that tell times."""
    files = [file for file in folder.iterdir() if file.name != "report.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a conversion that nothing befalls writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    convert("demo", folder)
    return digests(folder)


def test_killed_conversion_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, whole: dict[str, str]) -> None:
    rng = random.Random(5)
    for _ in range(3):
        assert killed(tmp_path / "out", {}, number=rng.randrange(1, 58))
        assert not (tmp_path / "out").exists()
    convert("demo", tmp_path / "out")
    assert digests(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.heavy
@pytest.mark.parametrize("method", [None, "distill"])
def test_killed_at_twenty_random_moments(tmp_path: Path, method: str | None) -> None:
    options: dict[str, Any] = {}
    if method:
        texts = tmp_path / "texts.txt"
        texts.write_text("\n---\n".join(["Which one is bigger, 3.12 vs 3.9?", "서울 날씨 어때?", "La capital de Perú"]))
        options = {"calibrate": method, "calibration_data": str(texts)}
    made = convert("demo", tmp_path / "whole" / "out", **options)
    whole = digests(made.path)
    rng, kills = random.Random(7), 0
    while kills < 20:
        kills += killed(tmp_path / "out", options, seconds=rng.random() * made.seconds)
        if (tmp_path / "out").exists():
            assert digests(tmp_path / "out") == whole
            shutil.rmtree(tmp_path / "out")
    convert("demo", tmp_path / "out", **options)
    assert digests(tmp_path / "out") == whole


def stopped(path: Path, number: int = 20, **options: Any) -> Path:
    """What a conversion leaves that is interrupted after so many tensors."""
    calls: list[int] = []

    def progress(done: int, total: int, stage: str) -> None:
        calls.append(done)
        if len(calls) == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert("demo", path, progress=progress, **options)
    return path.with_name(path.name + ".partial")


def stopped_from(source: Path, path: Path) -> Path:
    """The same, of another source."""

    def progress(done: int, total: int, stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, path, progress=progress)
    return path.with_name(path.name + ".partial")


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "out", number=20)
    from exaone4_mlx.conversion import convert as converter

    quantize_mse, count = converter.quantize_mse, []
    monkeypatch.setattr(converter, "quantize_mse", lambda *a: count.append(a) or quantize_mse(*a))
    convert("demo", tmp_path / "out")
    assert 0 < len(count) < 50, "57 matrices, some of them among the twenty that were done"


def test_damaged_and_torn_remains_are_made_again(tmp_path: Path, whole: dict[str, str]) -> None:
    partial = stopped(tmp_path / "out")
    weights = partial / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[20_000:20_100] = bytes(100)
    weights.write_bytes(data[:1_000_000])
    with (partial / JOURNAL).open("a") as journal:
        journal.write('{"sha256": {"model.layers.0.mlp.up')
    convert("demo", tmp_path / "out")
    assert digests(tmp_path / "out") == whole


@pytest.mark.parametrize("other", [{"q_bits": 8}, {"search": False}])
def test_remains_of_another_plan_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    partial = stopped(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"out.partial belongs to a conversion with other options"):
        convert("demo", tmp_path / "out", **other)
    assert partial.exists(), "it can still be gone on with"


def test_remains_of_another_source_are_refused(tmp_path: Path, hf_folder: Path) -> None:
    stopped(tmp_path / "out")
    os.utime(hf_folder / "model.safetensors", (0, 0))
    with pytest.raises(FileExistsError, match="or of another source"):
        convert(hf_folder, tmp_path / "out")


@pytest.mark.heavy
def test_command_goes_on_with_and_without_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out")]
    stopped(tmp_path / "out")
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume"]) == 1
    assert "out already exists; choose another folder, or overwrite it (--overwrite)" in capsys.readouterr().err
    stopped(tmp_path / "new")
    assert main([*command[:-1], str(tmp_path / "new")]) == 0


def test_interrupted_command_tells_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from exaone4_mlx.conversion import convert as converter

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "quantize_mse", interrupt)
    assert main(["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out")]) == 130
    assert "the same command resumes from" in capsys.readouterr().err
    assert (tmp_path / "out.partial").is_dir()


# --- overwriting ----------------------------------------------------------------


def test_overwriting_replaces_the_folder_at_the_end(tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", q_bits=8)
    old = digests(tmp_path / "out")
    stopped(tmp_path / "out", overwrite=True)
    assert digests(tmp_path / "out") == old, "until then the old one stands"
    convert("demo", tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("years of work")
    with pytest.raises(
        FileExistsError, match=r"holds thesis.docx, which no conversion wrote, so it is not overwritten"
    ):
        convert("demo", tmp_path / "out", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not a folder, so it is not overwritten"):
        convert("demo", tmp_path / "link", overwrite=True)
    assert (tmp_path / "out" / "thesis.docx").exists()


def test_a_project_with_a_config_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "src").mkdir(parents=True)
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds src, which no conversion wrote"):
        convert("demo", tmp_path / "out", overwrite=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "README.md").write_text("notes")
    with pytest.raises(FileExistsError, match="holds no model, so it is not overwritten"):
        convert("demo", tmp_path / "new", overwrite=True)


def test_swap_that_was_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames of an overwriting: nothing is lost, and the same call ends it."""
    convert("demo", tmp_path / "out", q_bits=8)
    rename = Path.rename

    def cut_short(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cut_short)
    with pytest.raises(KeyboardInterrupt):
        convert("demo", tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    convert("demo", tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 4


# --- what goes wrong late, or under way -----------------------------------------


def test_whole_weights_are_kept_when_the_rest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exaone4_mlx.conversion import convert as converter

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(converter, "evaluate", fail)
    with pytest.raises(RuntimeError):
        convert("demo", tmp_path / "out", evaluate=True)
    monkeypatch.undo()
    monkeypatch.setattr(converter, "quantize_mse", fail)
    convert("demo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_source_that_changes_under_way_is_noticed(tmp_path: Path, hf_folder: Path) -> None:
    def meanwhile(done: int, total: int, stage: str) -> None:
        os.utime(hf_folder / "model.safetensors", (1, 1))

    with pytest.raises(CheckpointError, match="changed during the conversion"):
        convert(hf_folder, tmp_path / "out", progress=meanwhile)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_what_the_source_has_no_more_is_not_carried_over(tmp_path: Path, hf_folder: Path) -> None:
    (hf_folder / "LICENSE-1.2").write_text("LG's")
    assert (stopped_from(hf_folder, tmp_path / "out") / "LICENSE-1.2").exists()
    (hf_folder / "LICENSE-1.2").unlink()
    convert(hf_folder, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE-1.2").exists()


@pytest.mark.parametrize(
    "line",
    [
        '{"sha256": {"nope": "0"}}',
        "[1, 2]",
        *(pytest.param(line, marks=pytest.mark.heavy) for line in ('{"x": 1}', '{"sha256": []}', "\\xff", "null")),
    ],
)
def test_damaged_journal_costs_no_more_than_its_lines(tmp_path: Path, line: str, whole: dict[str, str]) -> None:
    partial = stopped(tmp_path / "out")
    with (partial / JOURNAL).open("a") as journal:
        journal.write(line + "\n")
    (partial / "model.safetensors.index.json").write_text("")
    convert("demo", tmp_path / "out")
    assert digests(tmp_path / "out") == whole


# --- the disk -------------------------------------------------------------------


def test_bytes_that_the_disk_changed_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exaone4_mlx.conversion import convert as converter

    check = converter.check_written

    def damaged(shards: Any, plan: Any) -> None:
        file = shards.folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1000] ^= 1
        file.write_bytes(data)
        check(shards, plan)

    monkeypatch.setattr(converter, "check_written", damaged)
    with pytest.raises(CheckpointError, match=r"differs from the written bytes; check the disk"):
        convert("demo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"has 0.00 GB free, and 0.05 GB are needed"):
        convert("demo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("model.layers.3.mlp.up_proj.weight", "nan"), ("model.norm.weight", "inf")]
)
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, hf_folder: Path, name: str, value: str) -> None:
    import mlx.core as mx

    weights = mx.load(str(hf_folder / "model.safetensors"))
    weights[name][-1] = float(value)
    mx.save_safetensors(str(hf_folder / "new.safetensors"), weights)
    (hf_folder / "new.safetensors").rename(hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        convert(hf_folder, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_values_that_are_no_numbers_are_refused_by_calibration_too(tmp_path: Path, hf_folder: Path) -> None:
    import mlx.core as mx

    weights = mx.load(str(hf_folder / "model.safetensors"))
    weights["model.layers.3.mlp.up_proj.weight"][0, 0] = float("nan")
    mx.save_safetensors(str(hf_folder / "new.safetensors"), weights)
    (hf_folder / "new.safetensors").rename(hf_folder / "model.safetensors")
    (tmp_path / "texts.txt").write_text("Hello")
    with pytest.raises(CheckpointError, match=r"model.layers.3.mlp.up_proj.weight holds NaN or infinity"):
        convert(hf_folder, tmp_path / "out", calibrate="gptq", calibration_data=tmp_path / "texts.txt")


def test_values_too_large_for_float16_are_told_as_such(
    tmp_path: Path, hf_folder: Path, edit_json: Callable[..., None]
) -> None:
    import mlx.core as mx

    weights = mx.load(str(hf_folder / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    mx.save_safetensors(str(hf_folder / "new.safetensors"), weights)
    (hf_folder / "new.safetensors").rename(hf_folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model.norm.weight holds values beyond the range of float16; use bfloat16"
    ):
        convert(hf_folder, tmp_path / "out", dtype="float16")
