"""The files of a prefix store: a safetensors file for each entry, in one folder.

Notes:
- Files are written by a thread of their own, whole or not at all. It does not use MLX: it writes the bytes of arrays
  that were evaluated before. Only the owner can read them.
- The index reads headers. The digest of a file is checked when its rows are needed. A damaged file is removed.
- Several processes can use one folder. Each finds the files that were there when it began, and its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import mlx.core as mx

from ..files.folders import atomic_file, remove_partial_files
from ..files.safetensors import DTYPE_NAMES, CheckpointError, read_whole_header
from ..model.cache import Cache, KVCache, Snapshot
from ..model.config import Exaone4Config
from ..model.fused import FusedModel
from ..model.led import LedModel
from .cache_file import Part, digest_of_parts, named_arrays, read_arrays, read_rows, weights_digest

FILE_FORMAT = "exaone4_mlx prefix, version 1"
SUFFIX = ".prefix"


class PrefixFolder:
    """The files of the entries, by their keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder {folder} for prompt caches is read-only")
        remove_partial_files(folder)
        self.folder = folder
        self._waiting: dict[str, list[Part]] = {}  # what is not written yet
        self._queue: SimpleQueue[tuple[str, dict[str, str], list[Part]] | threading.Event | None] = SimpleQueue()
        self._writer: threading.Thread | None = None

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def index(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """The key of each file, what it says about its entry, and its size; the least recently used first.

        Files that are damaged, or of another version, are removed.
        """
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            if re.fullmatch(r"[0-9a-f]{40}", path.stem) and path.is_file():
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        for _, size, path in sorted(found):
            try:
                _, metadata = read_whole_header(path)
                if metadata.get("format") != FILE_FORMAT:
                    raise CheckpointError(f"{path} is of another version")
                about = json.loads(metadata["entry"])
                yield path.stem, {"parent": str(about["parent"])} | _whole_numbers(about), size
            except (OSError, CheckpointError, KeyError, TypeError, ValueError, RecursionError):
                self.remove(path.stem)

    def digest(self, model: FusedModel) -> str:
        """A digest of the weights of a model whose rows are in files. Raises ValueError for one of several ranks."""
        if isinstance(model, LedModel):
            raise ValueError("a prefix store with files of several ranks needs them: PrefixStore(…, ranks=ranks)")
        return weights_digest(model.parameters)

    def write(
        self, key: str, about: dict[str, Any], rows: Sequence[Snapshot], layers: Sequence[Cache], most_waiting: int
    ) -> bool:
        """Lets a file be written. Returns False, and does nothing, while more than `most_waiting` bytes wait."""
        arrays: dict[str, mx.array] = {}
        for i, (snapshot, layer) in enumerate(zip(rows, layers, strict=True)):
            arrays |= named_arrays(f"{i}", snapshot, layer)
        if sum(len(part.data) for parts in list(self._waiting.values()) for part in parts) > most_waiting:
            return False
        parts = self._waiting[key] = [Part.of(name, array) for name, array in sorted(arrays.items())]
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="prefix files", daemon=True)
            self._writer.start()
        self._queue.put((key, {"format": FILE_FORMAT, "entry": json.dumps(about)}, parts))
        return True

    def read(
        self, key: str, stop: int, tokens: int, local_rows: int, layers: Sequence[Cache], config: Exaone4Config
    ) -> tuple[Snapshot, ...]:
        """The rows of each layer: of `tokens` tokens before position `stop`, in local layers `local_rows` or more.

        Raises OSError and CheckpointError for a file that is gone or damaged, or that another process has replaced by
        one with fewer rows.
        """
        arrays, _ = read_arrays(self.path(key), FILE_FORMAT)
        found = []
        for i, layer in enumerate(layers):
            found.append(read_rows(arrays, f"{i}", stop, layer, config))
            rows = found[-1].rows
            if not (tokens if isinstance(layer, KVCache) else local_rows) <= rows <= tokens:
                raise CheckpointError(f"{rows} rows of {tokens} tokens")
        return tuple(found)

    def remove(self, key: str) -> None:
        self._waiting.pop(key, None)
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def touch(self, keys: Sequence[str]) -> None:
        """Marks files as used, the end of a conversation before its beginning."""
        for key in reversed(keys):
            with contextlib.suppress(OSError):
                os.utime(self.path(key))

    def flush(self) -> None:
        """Returns when all files are written."""
        if self._writer is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait()

    def close(self) -> None:
        """Ends the writing thread after it has written all files."""
        self._queue.put(None)
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join()

    def _write_all(self) -> None:
        """The loop of the writing thread."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            key, metadata, parts = item
            if self._waiting.get(key) is parts:  # else it was removed, or replaced by a later item
                with contextlib.suppress(OSError):  # a full disk: the entry stays in memory
                    self._write(self.path(key), metadata, parts)
            current = self._waiting.get(key)
            if current is parts:
                self._waiting.pop(key, None)
            elif current is None:  # removed meanwhile
                self.remove(key)
            del item, parts

    def _write(self, path: Path, metadata: dict[str, str], parts: list[Part]) -> None:
        header: dict[str, Any] = {"__metadata__": metadata | {"digest": digest_of_parts(parts, metadata)}}
        offset = 0
        for part in parts:
            place = [offset, offset + len(part.data)]
            header[part.name] = {"dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape), "data_offsets": place}
            offset += len(part.data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_file(path, mode=0o600) as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for part in parts:
                stream.write(part.data)


def _whole_numbers(about: dict[str, Any]) -> dict[str, Any]:
    """The position, the tokens and the count of rows that a file states, checked."""
    start, ids, local_rows = about["start"], about["ids"], about["local_rows"]
    if not all(type(number) is int and number >= 0 for number in (start, local_rows, *ids)) or not ids:
        raise CheckpointError("its entry is malformed")
    return {"start": start, "ids": ids, "local_rows": min(local_rows, len(ids))}
