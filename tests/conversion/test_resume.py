"""A conversion that was killed or interrupted is resumed, and writes the same bytes as an uninterrupted one."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversions import digests, interrupted, killed

from exaone4_mlx import CheckpointError, convert
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion import convert as converter
from exaone4_mlx.conversion.shards import JOURNAL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of an uninterrupted conversion."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    convert("demo", folder)
    return digests(folder)


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of memory")


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.heavy
def test_a_killed_conversion_is_resumed_with_the_same_bytes(tmp_path: Path, whole: dict[str, str]) -> None:
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


def test_finished_tensors_are_not_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "out", number=20)
    quantize_mse, count = converter.quantize_mse, []
    monkeypatch.setattr(converter, "quantize_mse", lambda *a: count.append(a) or quantize_mse(*a))
    convert("demo", tmp_path / "out")
    assert 0 < len(count) < 50, "of 57 matrices, some were finished before the interruption"


def test_damaged_and_truncated_tensors_are_written_again(tmp_path: Path, whole: dict[str, str]) -> None:
    staging = interrupted(tmp_path / "out")
    weights = staging / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[20_000:20_100] = bytes(100)
    weights.write_bytes(data[:1_000_000])
    with (staging / JOURNAL).open("a") as journal:
        journal.write('{"sha256": {"model.layers.0.mlp.up')
    convert("demo", tmp_path / "out")
    assert digests(tmp_path / "out") == whole


def test_damaged_lines_of_the_journal_are_ignored(tmp_path: Path, whole: dict[str, str]) -> None:
    staging = interrupted(tmp_path / "out")
    with (staging / JOURNAL).open("a") as journal:
        for line in ('{"sha256": {"nope": "0"}}', "[1, 2]", '{"x": 1}', '{"sha256": []}', "\\xff", "null"):
            journal.write(line + "\n")
    (staging / "model.safetensors.index.json").write_text("")
    convert("demo", tmp_path / "out")
    assert digests(tmp_path / "out") == whole


def test_another_request_or_source_does_not_resume(tmp_path: Path, hf_folder: Path) -> None:
    staging = interrupted(tmp_path / "out")
    os.utime(hf_folder / "model.safetensors", (0, 0))
    for source, other in (("demo", {"q_bits": 8}), ("demo", {"search": False}), (hf_folder, {})):
        with pytest.raises(
            FileExistsError, match=r"out.partial belongs to a conversion with other options, or of anot"
        ):
            convert(source, tmp_path / "out", **other)
        assert staging.exists(), "the first request can still resume"


def test_files_that_the_source_lost_are_not_copied(tmp_path: Path, hf_folder: Path) -> None:
    (hf_folder / "LICENSE-1.2").write_text("LG's")
    assert (interrupted(tmp_path / "out", 1, hf_folder) / "LICENSE-1.2").exists()
    (hf_folder / "LICENSE-1.2").unlink()
    convert(hf_folder, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE-1.2").exists()


def test_a_source_that_changes_during_the_conversion_is_noticed(tmp_path: Path, hf_folder: Path) -> None:
    def change(done: int, total: int, stage: str) -> None:
        os.utime(hf_folder / "model.safetensors", (1, 1))

    with pytest.raises(CheckpointError, match="changed during the conversion"):
        convert(hf_folder, tmp_path / "out", progress=change)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_complete_weights_are_kept_after_a_later_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(converter, "evaluate", fail)
        with (
            pytest.raises(RuntimeError),
            pytest.warns(UserWarning, match=r"complete and stay in .*out.partial; the same"),
        ):
            convert("demo", tmp_path / "out", evaluate=True)
    monkeypatch.setattr(converter, "quantize_mse", fail)
    convert("demo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_resumes_with_and_without_its_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out")]
    interrupted(tmp_path / "out")
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume"]) == 1
    assert "out already exists; choose another folder, or overwrite it (--overwrite)" in capsys.readouterr().err
    interrupted(tmp_path / "new")
    assert main([*command[:-1], str(tmp_path / "new")]) == 0


def test_an_interrupted_command_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "quantize_mse", interrupt)
    assert main(["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out")]) == 130
    assert "the same command resumes from" in capsys.readouterr().err
    assert (tmp_path / "out.partial").is_dir()
