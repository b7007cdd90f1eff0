"""The staging folder: a result appears complete or not at all, and no file of anyone else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversions import digests, interrupted

from exaone4_mlx import convert, load


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def full_disk(done: int, total: int, stage: str) -> None:
        if done > total / 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        convert("demo", tmp_path / "new" / "parents" / "out", progress=full_disk)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_a_second_conversion_to_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Otherwise one would rename the other's unfinished folder."""

    def convert_too(done: int, total: int, stage: str) -> None:
        with pytest.raises(FileExistsError, match=r"another conversion to .*out is running"):
            convert("demo", tmp_path / "out", search=False)

    convert("demo", tmp_path / "out", progress=convert_too, search=False)
    load(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.docx", "README.md", "config.json", "Makefile"])
def test_a_partial_folder_without_our_journal_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / name).write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=f"holds {name}, which no conversion wrote"):
            convert("demo", tmp_path / "out", overwrite=overwrite, search=False)
    assert (tmp_path / "out.partial" / name).read_text() == "years of work"


def test_folders_with_similar_names_are_not_touched(tmp_path: Path) -> None:
    for name in ("out.old", "out.replaced", ".out.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    convert("demo", tmp_path / "out", search=False)
    convert("demo", tmp_path / "out", overwrite=True, search=False)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.old", "out.replaced", ".out.replaced"}


def test_a_folder_that_was_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def create(done: int, total: int, stage: str) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"out was created meanwhile; the result is .*out.partial"):
        convert("demo", tmp_path / "out", progress=create, search=False)
    assert (tmp_path / "out" / "precious.txt").exists()
    (tmp_path / "out" / "precious.txt").unlink()
    (tmp_path / "out").rmdir()
    convert("demo", tmp_path / "out", search=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the finished result only had to be renamed"


def test_an_empty_folder_becomes_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    convert("demo", tmp_path / "out", search=False)
    load(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(FileExistsError, match="disk is a mount point; choose a folder in it"):
        convert("demo", tmp_path / "disk", search=False)


# --- overwriting ----------------------------------------------------------------


def test_overwriting_replaces_the_folder_at_the_end(tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", q_bits=8, search=False)
    old = digests(tmp_path / "out")
    interrupted(tmp_path / "out", overwrite=True, search=False)
    assert digests(tmp_path / "out") == old, "until then the old folder keeps its name"
    convert("demo", tmp_path / "out", overwrite=True, search=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_a_model_is_not_overwritten(tmp_path: Path) -> None:
    for name, file in (("thesis", "thesis.docx"), ("project", "config.json"), ("notes", "README.md")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "project" / "src").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name, message in {
        "thesis": "holds thesis.docx, which no conversion wrote, so it is not overwritten",
        "project": "holds src, which no conversion wrote",
        "notes": "holds no model, so it is not overwritten",
        "link": "is not a folder, so it is not overwritten",
    }.items():
        with pytest.raises(FileExistsError, match=message):
            convert("demo", tmp_path / name, overwrite=True, search=False)
    assert (tmp_path / "thesis" / "thesis.docx").exists()


def test_an_interrupted_replacement_is_finished_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the two renames of an overwriting: nothing is lost."""
    convert("demo", tmp_path / "out", q_bits=8, search=False)
    rename = Path.rename

    def interrupt(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert("demo", tmp_path / "out", overwrite=True, search=False)
    assert not (tmp_path / "out").exists()
    convert("demo", tmp_path / "out", overwrite=True, search=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 4
