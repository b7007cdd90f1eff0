"""The hub: Ctrl-C during a download, the cache when the network fails, and errors that say what to do."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROGRAM, TerminalText
from conftest import ROOT, until
from fake_hub import FileServer

from exaone4_mlx.cli import output
from exaone4_mlx.cli.loading import _needs_download
from exaone4_mlx.cli.main import main
from exaone4_mlx.files import resumable
from exaone4_mlx.files.folders import DEMO_FOLDER, USEFUL_FILES, find_folder
from exaone4_mlx.files.hub_errors import DownloadError
from exaone4_mlx.model.adapter_file import FILES

LOGIN_PAGE = (200, "text/html", b"<html>log in</html>")


def cache(folder: Path) -> Path:
    """The snapshot of x/y in the cache, with the files of `folder`."""
    repo = folder / "hub" / "models--x--y"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("e" * 40)
    shutil.copytree(DEMO_FOLDER, repo / "snapshots" / ("e" * 40), ignore=shutil.ignore_patterns("recipe", "draft"))
    return repo / "snapshots" / ("e" * 40)


def test_ctrl_c_ends_a_stalled_download_and_the_next_one_continues_it(hub: FileServer, tmp_path: Path) -> None:
    hub.stall_after = 600_000
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [*PROGRAM, "generate", "--model", "x/y", "-p", "Hello"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as running:
        assert hub.stalled.wait(60)
        blobs = tmp_path / "hub" / "models--x--y" / "blobs"
        until(lambda: any(file.stat().st_size > 500_000 for file in blobs.glob("*.incomplete")))
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == 130, "the server sends nothing more"
        assert running.stderr is not None
        err = running.stderr.read()
    assert err.endswith("stopping\nthe same command continues the download\n")
    assert "Traceback" not in err
    hub.stall_after = None
    folder = find_folder("x/y")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == hub.files
    assert [int(asked[len("bytes=") : -1]) > 500_000 for asked in hub.ranges] == [True]
    assert [file.name for file in blobs.iterdir() if "." in file.name] == []


def test_every_command_shows_a_download_as_its_own_bar(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "BAR_SECONDS", 0)
    for command in (
        ["convert", "--hf-path", "x/y", "--mlx-path", str(tmp_path / "new")],
        ["bench", "--model", "x/y"],
        ["evaluate", "--model", "x/y", "--reference", "demo"],
        ["fit", "--model", "x/y"],
    ):
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        screen = TerminalText()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            main(command)
        shown = screen.getvalue()
        assert "downloading x/y" in shown and "Fetching" not in shown and "config.json:" not in shown, (command, shown)


def test_a_damaged_rest_of_a_download_is_not_used(hub: FileServer, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--x--y" / "blobs"
    blobs.mkdir(parents=True)
    digest = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    (blobs / (digest + resumable.KEPT)).write_bytes(b"other bytes")
    (blobs / ("0" * 64 + resumable.KEPT)).write_bytes(b"of another revision")
    folder = find_folder("x/y")
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert len(hub.ranges) == 1
    assert not any(blobs.glob("*" + resumable.KEPT))


def test_a_kept_file_that_cannot_be_continued_does_not_stop_a_download(hub: FileServer, tmp_path: Path) -> None:
    blobs, precious = tmp_path / "hub" / "models--x--y" / "blobs", tmp_path / "precious"
    blobs.mkdir(parents=True)
    weights = hub.files["model.safetensors"]
    file = blobs / (hashlib.sha256(weights).hexdigest() + resumable.KEPT)
    precious.write_bytes(b"of the user")
    for kind in ("longer", "link", "folder"):
        shutil.rmtree(tmp_path / "hub" / "models--x--y" / "snapshots", ignore_errors=True)
        (blobs / file.stem).unlink(missing_ok=True)
        if kind == "longer":
            file.write_bytes(weights + b"more than there is")
        elif kind == "link":
            file.symlink_to(precious)
        else:
            file.unlink(missing_ok=True)
            file.mkdir()
        assert (find_folder("x/y") / "model.safetensors").read_bytes() == weights, kind
        assert not hub.ranges, f"{kind}: nothing is continued"
    assert precious.read_bytes() == b"of the user"


def test_a_whole_model_in_the_cache_is_used_whatever_the_network_answers(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache(tmp_path)
    answers = (LOGIN_PAGE, (401, "text/plain", b""), (404, "text/plain", b""), (500, "text/html", b"oops"))
    for hub.answer in answers:
        if hub.answer is LOGIN_PAGE:  # huggingface_hub itself uses the cache after an HTTP error
            with pytest.warns(UserWarning, match="x/y is loaded from the cache, because the answer is not the hub's"):
                assert find_folder("x/y") == snapshot
        else:
            assert find_folder("x/y") == snapshot, hub.answer
    hub.answer = LOGIN_PAGE
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="only a part of it is in the cache, and the answer is not the hub's"):
        find_folder("x/y")
    with pytest.warns(UserWarning, match="from the cache"):
        assert find_folder("x/y", files=("config.json",)) == snapshot
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(DownloadError, match="only a part"):
        find_folder("x/y")
    assert _needs_download("x/y", None), "a command checks the memory before it continues the download"
    (snapshot / "model-1.safetensors").touch()
    assert not _needs_download("x/y", None)
    with pytest.warns(UserWarning, match="from the cache"):
        assert find_folder("x/y") == snapshot
    (snapshot / "model.safetensors.index.json").unlink()
    gptq = (snapshot / "model-1.safetensors").rename(snapshot / "gptq_model-4bit.safetensors")
    with pytest.warns(UserWarning, match="from the cache"):
        assert find_folder("x/y") == snapshot
    gptq.rename(snapshot / "adapters.safetensors")
    (snapshot / "config.json").rename(snapshot / "adapter_config.json")
    with pytest.warns(UserWarning, match="from the cache"):
        assert find_folder("x/y", files=FILES) == snapshot
    assert "*.json" in USEFUL_FILES


def test_errors_of_the_hub_say_what_to_do(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(revision: str | None = None) -> str:
        with pytest.raises(DownloadError) as caught:
            find_folder("x/y", revision=revision)
        return str(caught.value)

    start = "there is no folder x/y, and it cannot be downloaded: "
    hub.answer = (404, "text/plain", b"")
    assert error() == start + "there is no model of this name on the hub, or it is private and needs HF_TOKEN"
    hub.answer = LOGIN_PAGE
    assert error() == start + "the answer is not the hub's: the network may show a login page"
    hub.answer = (401, "text/plain", b"")
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    assert error() == start + "the hub refuses the token in HF_TOKEN: unset it, or set a valid one"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_stored")
    assert error() == start + "the hub refuses the token that `hf auth login` stored: log in again"


def test_an_error_names_the_proxy(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    for name, value in (("http_proxy", "http://me:secret@127.0.0.1:9"), ("all_proxy", "socks5://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            close_session()
            with pytest.raises(DownloadError, match=rf"\(through the proxy in {name}\)$") as caught:
                find_folder("x/y")
            assert "secret" not in str(caught.value)
    close_session()
