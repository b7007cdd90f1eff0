"""A resumable download: a kill costs no bytes, sizes are known before it begins, a small disk is refused."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, until
from fake_hub import FileServer

from exaone4_mlx.files import resumable
from exaone4_mlx.files.folders import USEFUL_FILES
from exaone4_mlx.files.hub_errors import CAUSES, DownloadError
from exaone4_mlx.files.resumable import discard_incomplete, download_resumably, remote_files, stored_bytes

CHILD = (
    "from exaone4_mlx.files.resumable import *\nfrom exaone4_mlx.files.folders import USEFUL_FILES\n"
    "download_resumably('x/y', USEFUL_FILES, lambda *_: None)"
)


def test_a_killed_download_continues_with_every_byte_that_it_had(hub: FileServer, tmp_path: Path) -> None:
    hub.files["model-2.safetensors"] = random.Random(1).randbytes(10**6)
    hub.stall_after = 600_000
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=ROOT, env=os.environ.copy()) as running:
        assert hub.stalled.wait(60)
        found = remote_files("x/y", USEFUL_FILES)
        until(lambda: stored_bytes("x/y", found) > 500_000)
        running.kill()
    hub.stall_after = None
    seen: list[tuple[int, int]] = []
    before, total = stored_bytes("x/y", found), sum(map(len, hub.files.values()))
    folder = download_resumably("x/y", USEFUL_FILES, lambda *now: seen.append(now))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == hub.files
    assert [int(asked[len("bytes=") : -1]) for asked in hub.ranges] == [before], "one file is continued where it ended"
    assert seen[0] == (before, total) and seen[-1] == (total, total) and seen == sorted(seen)
    assert not [file for file in resumable.blobs_of("x/y").iterdir() if "." in file.name]


def test_a_file_that_another_process_downloads_is_left_to_it(hub: FileServer) -> None:
    import fcntl

    found = next(file for file in remote_files("x/y", USEFUL_FILES) if file.name.endswith(".safetensors"))
    blobs = resumable.blobs_of("x/y")
    blobs.mkdir(parents=True)
    kept = blobs / (found.digest + resumable.KEPT)
    kept.write_bytes(b"half")
    with kept.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        folder = download_resumably("x/y", USEFUL_FILES, lambda *_: None)
        assert (folder / found.name).read_bytes() == hub.files[found.name]
        assert kept.read_bytes() == b"half"
    assert discard_incomplete("x/y") == 4 and not kept.exists()


def test_a_small_disk_is_refused_before_anything_is_downloaded(
    hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "_free_bytes", lambda: 1000)
    with pytest.raises(
        DownloadError, match=r"x/y needs 0.00 GB more, and the disk of the cache has 0.00 GB free"
    ) as no:
        download_resumably("x/y", USEFUL_FILES, lambda *_: None)
    assert no.value.cause == "disk" and not resumable.blobs_of("x/y").exists()


def test_a_disk_that_fills_up_is_named(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        monkeypatch.setattr(resumable, "_free_bytes", lambda: 0)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resumable, "continue_kept_files", full)
    with pytest.raises(DownloadError, match=r"x/y needs 0\.00 GB more, and the disk of the cache has 0\.00 GB") as no:
        download_resumably("x/y", USEFUL_FILES, lambda *_: None)
    assert (no.value.cause, no.value.detail) == ("disk", f"{sum(map(len, hub.files.values()))} 0")


def test_errors_have_a_cause(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    causes = []
    answers = {"missing": (404, "text/plain", b""), "stranger": (200, "text/html", b"<html>log in</html>")}
    for hub.answer in answers.values():
        with pytest.raises(DownloadError, match=r"^x/y cannot be downloaded: ") as caught:
            remote_files("x/y", USEFUL_FILES)
        causes.append(caught.value.cause)
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    hub.answer = (401, "text/plain", b"")
    with pytest.raises(DownloadError) as caught:
        remote_files("x/y", USEFUL_FILES)
    assert (*causes, caught.value.cause, caught.value.detail) == ("missing", "stranger", "token", "HF_TOKEN")
    assert set(causes) < set(CAUSES)
