"""A folder, a file and the hub: what is found, what is downloaded, and how a file is replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from exaone4_mlx import Exaone4Config
from exaone4_mlx.files.folders import DEMO_FOLDER, atomic_file, find_folder


def test_a_missing_folder_is_refused() -> None:
    for path, message in (
        ("/no/such/folder", "^there is no folder /no/such/folder$"),
        ("./LGAI-EXAONE/model", "^there is no folder LGAI-EXAONE/model$"),
        ("gpt2", "^there is no folder gpt2$"),
        ("dmeo", "^there is no folder dmeo; did you mean demo\\?$"),
        (f"{ROOT}/test", f"^there is no folder {ROOT}/test; did you mean {ROOT}/tests\\?$"),
        (__file__, "is not a folder; a model is a folder"),
        ("/dev/null", "is not a folder; a model is a folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find_folder(path)


def test_revisions_are_for_hub_ids(tmp_path: Path) -> None:
    for path, message in (("demo", "the demo model has no revisions"), (tmp_path, "revision 'v1' is for hub ids")):
        with pytest.raises(ValueError, match=message):
            find_folder(path, revision="v1")


def test_only_useful_files_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(DEMO_FOLDER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_folder("some/repo", revision="v1") == DEMO_FOLDER
    assert (asked["repo"], asked["revision"]) == ("some/repo", "v1")
    assert "*model*.safetensors" in asked["allow_patterns"]
    assert not {"*", "*.bin", "*.safetensors"} & set(asked["allow_patterns"])


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = "^there is no folder some/repo, and it cannot be downloaded: cannot reach the hub$"
    with pytest.raises(FileNotFoundError, match=message):
        find_folder("some/repo", revision="v1")


def test_downloaded_model_is_found_offline(tmp_path: Path) -> None:
    """A model in the hub's cache needs no network. The test uses a new process: the hub reads its settings once."""
    snapshot = tmp_path / "hub" / "models--some--repo" / "snapshots" / ("0" * 40)
    shutil.copytree(DEMO_FOLDER, snapshot, ignore=shutil.ignore_patterns("recipe"))
    (tmp_path / "hub" / "models--some--repo" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--repo" / "refs" / "main").write_text("0" * 40)
    script = "from exaone4_mlx.files.folders import find_folder; print(find_folder('some/repo'))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(snapshot)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o600)
    with pytest.raises(RuntimeError), atomic_file(file) as stream:
        raise RuntimeError(stream.write(b"half"))
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with atomic_file(file) as stream:
        stream.write(b"new")
        [digest] = {path.name.split(".")[1] for path in tmp_path.iterdir() if path != file}
        (tmp_path / f".{digest}.999999999-1.partial").touch()
    assert file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o600
    with atomic_file(file) as stream:
        stream.write(b"newer")
    assert list(tmp_path.iterdir()) == [file], "what a killed process left is removed"


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "EXAONE-4.0-1.2B-Q4_K_M.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "EXAONE-4.0-1.2B-Q4_K_M.gguf", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"EXAONE-4.0-1.2B-Q4_K_M.gguf is a GGUF file for llama.cpp, so take"
        ):
            Exaone4Config.from_pretrained(path) if path.is_dir() else find_folder(path)


def test_files_of_a_model_lie_in_its_folder(tmp_path: Path) -> None:
    """A link could name any file of the user, which a conversion copies and an upload publishes. The hub's cache has
    links to its own blobs."""
    secret, model = tmp_path / "secret", tmp_path / "model"
    secret.write_text("key")
    for name in ("config.json", "model.safetensors", "LICENSE", "README.md", "chat_template.jinja"):
        model.mkdir()
        (model / name).symlink_to(secret)
        with pytest.raises(ValueError, match=rf"model/{name} is a link to {secret}, which is outside the folder; copy"):
            find_folder(model)
        (model / name).unlink()
        os.mkfifo(model / name)
        with pytest.raises(ValueError, match=rf"model/{name} is not a file: it is a broken link, a FIFO or a device"):
            find_folder(model)
        (model / name).unlink()
        model.rmdir()
    cache = tmp_path / "models--LGAI--EXAONE"
    for folder in (snapshot := cache / "snapshots" / "123", cache / "blobs"):
        folder.mkdir(parents=True)
    (cache / "blobs" / "456").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/456")
    (snapshot / "tokenizer.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(snapshot)
    assert find_folder(snapshot) == snapshot and find_folder(tmp_path / "link") == tmp_path / "link"
