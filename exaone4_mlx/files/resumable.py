"""A download that continues where the last one ended, also after a kill.

Notes:
- Each weight file is written from its start to its end, under a name that the next download continues. A kill or a
  network error costs none of its bytes; huggingface_hub (2.4) itself removes an incomplete file.
- This uses plain HTTP. Xet storage can be faster, but does not write a file from its start to its end.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from .hub_errors import DownloadError, download_error

KEPT = ".kept"  # the suffix of incomplete files, in place of the hub's
CHUNK_BYTES = 2**18  # between two checks for Ctrl-C; huggingface_hub reads 10 MB, which takes minutes on a slow line


class RemoteFile(NamedTuple):
    """A file of a repository. `digest` names it in the cache."""

    name: str
    size: int
    digest: str


def download_resumably(repo: str, files: Sequence[str], progress: Callable[[int, int], None]) -> Path:
    """The folder of a repository in the cache, as `download`, in this thread. The process may be killed at any time.

    `progress(done, total)` counts the bytes on disk of all files. Raises DownloadError, also for a disk that is too
    small.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    found = remote_files(repo, files)
    total = sum(file.size for file in found)
    missing = total - stored_bytes(repo, found)
    if missing > _free_bytes():
        raise _disk_error(repo, missing)

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            progress(min(stored_bytes(repo, found), total), total)
            return super().update(n)

    try:
        set_chunk_size()
        progress(total - missing, total)
        continue_kept_files(repo, None, Bar, [file for file in found if file.name.endswith(".safetensors")])
        folder = snapshot_download(repo, allow_patterns=list(files), tqdm_class=Bar)
        progress(total, total)
        return Path(folder)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise _disk_error(repo, total - stored_bytes(repo, found)) from error
        raise download_error(repo, error) from error


def remote_files(repo: str, files: Sequence[str]) -> list[RemoteFile]:
    """The files of a repository that match `files`, with their sizes: one small request. Raises DownloadError."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = [entry for entry in HfApi().list_repo_tree(repo) if isinstance(entry, RepoFile)]
    except Exception as error:
        raise download_error(repo, error) from error
    return [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in entries
        if any(fnmatchcase(entry.path, pattern) for pattern in files)
    ]


def stored_bytes(repo: str, files: Sequence[RemoteFile]) -> int:
    """The bytes of these files that are in the cache, those of incomplete files included."""
    sizes: dict[str, int] = {}
    with suppress(OSError), os.scandir(blobs_of(repo)) as found:
        for file in found:
            name, _, suffix = file.name.partition(".")
            if suffix in ("", KEPT[1:]):
                sizes[name] = max(sizes.get(name, 0), file.stat().st_size)
    return sum(min(file.size, sizes.get(file.digest, 0)) for file in files)


def discard_incomplete(repo: str) -> int:
    """Removes the incomplete files of a repository from the cache. Returns their bytes."""
    freed = 0
    for file in blobs_of(repo).glob("*" + KEPT):
        if file.is_file() and not file.is_symlink():
            freed += file.stat().st_size
            file.unlink()
    return freed


def _disk_error(repo: str, missing: int) -> DownloadError:
    free = _free_bytes()
    text = f"{repo} needs {missing / 1e9:.2f} GB more, and the disk of the cache has {free / 1e9:.2f} GB free"
    return DownloadError(text, "disk", f"{missing} {free}")


def _free_bytes() -> int:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def set_chunk_size() -> None:
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, CHUNK_BYTES)


def continue_kept_files(repo: str, revision: str | None, bar: Any, begin: Sequence[RemoteFile] = ()) -> None:
    """Completes the files that an earlier download left, and those of `begin`, where the hub looks for them."""
    blobs = blobs_of(repo)
    kept = {file.stem: file for file in blobs.glob("*" + KEPT) if file.is_file() and not file.is_symlink()}
    for new in begin:
        if not (blobs / new.digest).exists() and new.digest not in kept:
            blobs.mkdir(parents=True, exist_ok=True)
            kept[new.digest] = blobs / (new.digest + KEPT)
            kept[new.digest].touch()
    if not kept:
        return
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    for name in HfApi().list_repo_files(repo, revision=revision):
        url = hf_hub_url(repo, name, revision=revision)
        if not name.endswith(".safetensors") or (about := get_hf_file_metadata(url)).etag not in kept:
            continue
        file = kept.pop(about.etag)
        if (begin or about.xet_file_data is None) and file.stat().st_size <= (about.size or 0):
            with file.open("r+b") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # another process continues it
                    continue
                start = stream.seek(0, os.SEEK_END)
                http_get(
                    url,
                    stream,
                    resume_size=start,
                    headers=build_hf_headers(),
                    expected_size=about.size,
                    displayed_filename=name,
                    tqdm_class=bar,
                )
                if _sha256(file) == about.etag:
                    file.replace(file.with_suffix(""))
                    continue
        file.unlink()
    for file in kept.values():  # of another revision
        file.unlink()


def blobs_of(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "blobs")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()
