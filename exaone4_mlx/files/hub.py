"""A repository of the hub -> a local folder.

Notes:
- huggingface_hub downloads in threads that Ctrl-C does not reach. So the download has a thread of its own here, and the
  main thread leaves it.
- huggingface_hub (2.4) removes the incomplete file of a download that ends early. Another name keeps the file, and the
  next download continues it. Xet storage is an exception: it does not write a file from its start to its end.
- A whole model in the cache is used, also if the network answers with an error or a login page.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

KEPT = ".kept"  # the suffix of incomplete files, in place of the hub's
CHUNK_BYTES = 2**18  # between two checks for Ctrl-C; huggingface_hub reads 10 MB, which takes minutes on a slow line
STOP_SECONDS = 0.5  # the longest wait for a download that is stopped


class DownloadError(FileNotFoundError):
    """A repository that is not in the cache and cannot be downloaded."""


def download(
    repo: str, revision: str | None, files: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Path:
    """The folder of a repository in the cache of the hub, with the files that match `files`.

    `progress(done, total)` counts bytes. The total grows while the files are found, and is above `done` until the end.
    Warns if the network fails and the cache has them all. Raises DownloadError, which names the cause.
    """
    from huggingface_hub import snapshot_download  # here: its import costs more than a demo reply

    get = partial(snapshot_download, repo, revision=revision, allow_patterns=list(files))
    try:
        return Path(_until_ctrl_c(get, repo, revision, progress))
    except Exception as error:  # connections fail in many classes
        reason = _reason(error, revision)
        try:
            cached = Path(get(local_files_only=True))
        except Exception:
            cached = None
        if cached is not None and _is_whole(cached, files):
            warnings.warn(f"{repo} is loaded from the cache, because {reason}", stacklevel=2)
            return cached
        part = "" if cached is None else "only a part of it is in the cache, and "
        raise DownloadError(f"there is no folder {repo}, and it cannot be downloaded: {part}{reason}") from error


def _until_ctrl_c(
    get: Callable[..., str], repo: str, revision: str | None, progress: Callable[[int, int], None] | None
) -> str:
    """Downloads in a thread, until Ctrl-C."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import tqdm

    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, CHUNK_BYTES)
    stopped, result = threading.Event(), Future[str]()

    lock = threading.Lock()  # of `progress`

    class StoppableBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # huggingface_hub shows a second bar of the same bytes, and one of files
            self.is_shown = options.get("unit") == "B" and not str(options.get("name")).endswith("transfer")
            self.done = 0.0
            options["disable"] = progress is not None or options.get("disable")  # None: without a terminal
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise KeyboardInterrupt
            self.done += n or 0
            if progress and self.is_shown:
                with lock:
                    progress(int(self.done), max(int(self.total or 0), int(self.done) + 1))
            return super().update(n)

    def work() -> None:
        try:
            _continue_kept_files(repo, revision, StoppableBar)
            result.set_result(get(tqdm_class=StoppableBar))
        except BaseException as error:
            result.set_exception(error)

    incomplete = set(_blobs(repo).glob("*.incomplete"))  # of others
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:
        for file in set(_blobs(repo).glob("*.incomplete")) - incomplete:
            file.replace(file.with_name(file.name.partition(".")[0] + KEPT))
        stopped.set()
        thread.join(STOP_SECONDS)
        raise KeyboardInterrupt("the same command continues the download") from None


def _continue_kept_files(repo: str, revision: str | None, bar: Any) -> None:
    """Completes the files that an earlier download left, and puts them where the hub looks for them."""
    kept = {file.stem: file for file in _blobs(repo).glob("*" + KEPT) if file.is_file() and not file.is_symlink()}
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
        if about.xet_file_data is None and file.stat().st_size <= (about.size or 0):
            with file.open("r+b") as stream:
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


def _blobs(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "blobs")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder of the cache has its config, and its weights if `files` include them."""
    if not (folder / "config.json").is_file():
        return False
    if not any("safetensors" in pattern for pattern in files) or (folder / "model.safetensors").is_file():
        return True
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / name).is_file() for name in index["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False


def _reason(error: BaseException, revision: str | None) -> str:
    """Why a download fails, and what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and get_token() is not None:
        variable = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
        held = (
            f"in {variable}: unset it, or set a valid one" if variable else "that `hf auth login` stored: log in again"
        )
        return f"the hub refuses the token {held}"
    if isinstance(error, GatedRepoError):
        return "it needs a login: accept its terms on the hub and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no model of this name on the hub, or it is private and needs HF_TOKEN"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, (json.JSONDecodeError, FileMetadataError)):
        return "the answer is not the hub's: the network may show a login page"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    scheme = constants.ENDPOINT.partition(":")[0]
    proxies = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    proxy = next((name for name in proxies if os.environ.get(name)), None)
    return reason if status or proxy is None else f"{reason} (through the proxy in {proxy})"
