"""A repository of the hub -> a local folder.

Notes:
- huggingface_hub downloads in threads that Ctrl-C does not reach. So the download has a thread of its own here, and the
  main thread leaves it.
- huggingface_hub (2.4) removes the incomplete file of a download that ends early. Another name keeps the file, and the
  next download continues it. Xet storage is an exception: it does not write a file from its start to its end.
- A whole model in the cache is used, also if the network answers with an error or a login page.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from .hub_errors import DownloadError, reason_of
from .resumable import KEPT, blobs_of, continue_kept_files, set_chunk_size

STOP_SECONDS = 0.5  # the longest wait for a download that is stopped


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
        reason, cause, detail = reason_of(error, revision)
        try:
            cached = Path(get(local_files_only=True))
        except Exception:
            cached = None
        if cached is not None and _is_whole(cached, files):
            warnings.warn(f"{repo} is loaded from the cache, because {reason}", stacklevel=2)
            return cached
        part = "" if cached is None else "only a part of it is in the cache, and "
        raise DownloadError(
            f"there is no folder {repo}, and it cannot be downloaded: {part}{reason}", cause, detail
        ) from error


def is_cached(repo: str, revision: str | None) -> bool:
    """Whether a repository is in the cache of the hub with all its weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    return isinstance(config, str) and _is_whole(Path(config).parent, ("*.safetensors",))


def _until_ctrl_c(
    get: Callable[..., str], repo: str, revision: str | None, progress: Callable[[int, int], None] | None
) -> str:
    """Downloads in a thread, until Ctrl-C."""
    from huggingface_hub.utils.tqdm import tqdm

    set_chunk_size()
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
            continue_kept_files(repo, revision, StoppableBar)
            result.set_result(get(tqdm_class=StoppableBar))
        except BaseException as error:
            result.set_exception(error)

    incomplete = set(blobs_of(repo).glob("*.incomplete"))  # of others
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:
        for file in set(blobs_of(repo).glob("*.incomplete")) - incomplete:
            file.replace(file.with_name(file.name.partition(".")[0] + KEPT))
        stopped.set()
        thread.join(STOP_SECONDS)
        raise KeyboardInterrupt("the same command continues the download") from None


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder of the cache has its config, and its weights if `files` include them."""
    config = "adapter_config.json" if "adapter_config.json" in files else "config.json"
    if not (folder / config).is_file():
        return False
    if not any("safetensors" in pattern for pattern in files):
        return True
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        return all((folder / name).is_file() for name in json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False
