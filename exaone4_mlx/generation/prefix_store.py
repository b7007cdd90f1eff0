"""What a model has read in all conversations, for prompts that begin with the same tokens.

Notes:
- Token ids form a tree. An entry holds a piece of at most MAX_PIECE tokens and the cached rows of these tokens, so a
  beginning that many conversations share is held once. A new turn of the user or of a tool begins a new piece.
- A global layer has all rows of a piece. A local layer has those that its cache still held: the last ones. A place in
  the tree can be used if the window before it is there.
- The key of an entry is a digest of all that its rows depend on: the model, the cache layout, a salt, and the tokens
  from the beginning on. A prompt finds entries of its own salt only.
- Rows are copied into the store and out of it. So no conversation writes into the rows of another.
- Entries leave the memory, and the folder, when these are full: the least recently used first, and of a conversation
  the end first.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from ..cluster.ranks import Ranks
from ..files.safetensors import CheckpointError
from ..model.cache import Cache, RotatingKVCache, Snapshot
from ..model.config import Exaone4Config
from ..model.fused import FusedModel
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .cache_file import fingerprints
from .prefill import common_prefix
from .prefix_entry import (
    Chain,
    PrefixEntry,
    TurnStarts,
    end_of_piece,
    joined_rows,
    local_rows_of,
    taken_rows,
    usable_length,
)
from .prefix_folder import PrefixFolder
from .rank_files import RankedFolder

MAX_ENTRIES = 4096
MAX_BYTES, MAX_FOLDER_BYTES = 4 << 30, 16 << 30


class PrefixStore:
    """The cached rows of many conversations, within `max_bytes`, for `PromptCache` and `Chat`. Any thread may use it.

    With a `folder` the entries are also written to files there, within `max_folder_bytes`, and outlive the process. The
    files hold the token ids of conversations; only their owner can read them. Without it nothing is written.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        folder: str | Path | None = None,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
        ranks: Ranks | None = None,
    ) -> None:
        """With a folder, a model of several ranks needs its `ranks`. Each has a folder of its own in it.

        Raises ValueError for a negative limit, and OSError for a folder that cannot be used."""
        for name, limit in (("max_bytes", max_bytes), ("max_folder_bytes", max_folder_bytes)):
            if type(limit) is not int or limit < 0:
                raise ValueError(f"{name} must be a number of bytes, not {limit!r}")
        self.max_bytes, self.max_folder_bytes = max_bytes, max_folder_bytes
        self._lock = threading.RLock()
        self._children: defaultdict[str, list[PrefixEntry]] = defaultdict(list)  # by the key of their parent
        self._models: weakref.WeakKeyDictionary[FusedModel, str] = weakref.WeakKeyDictionary()
        self._now = 0  # counts uses
        self._folder: PrefixFolder | None = None
        if folder is not None:
            path = Path(folder)
            self._folder = PrefixFolder(path.expanduser()) if ranks is None else RankedFolder(path, ranks)
            weakref.finalize(self, self._folder.close)  # at the end of the process, too
            self._read_index(self._folder)

    def __repr__(self) -> str:
        return f"PrefixStore({len(list(self._entries()))} entries, {self.nbytes} of {self.max_bytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in memory."""
        return sum(entry.nbytes for entry in self._entries())

    def clear(self) -> None:
        """Removes the rows from memory. Files stay."""
        with self._lock:
            for entry in list(self._entries()):
                self._forget(entry)

    def flush(self) -> None:
        """Returns when the files are written."""
        if self._folder is not None:
            self._folder.flush()

    def root(
        self,
        model: Exaone4ForCausalLM,
        fused: FusedModel,
        tokenizer: Tokenizer,
        layers: Sequence[Cache],
        kv: KVQuantization | None,
        salt: str,
    ) -> str:
        """The key at which conversations begin: a digest of everything but the tokens that their rows depend on."""
        with self._lock:
            if fused not in self._models:  # files outlive the model, and identify it by its weights
                self._models[fused] = self._folder.digest(fused) if self._folder else uuid.uuid4().hex
            about = fingerprints(model, tokenizer, layers, kv, self._models[fused])
        return hashlib.sha256(json.dumps([about, salt]).encode()).hexdigest()

    def add(self, root: str, ids: list[int], layers: Sequence[Cache], turn_start_ids: TurnStarts) -> None:
        """Stores what `layers` hold, the caches after `ids`, as far as it is not stored and `max_bytes` allow."""
        with self._lock:
            self._now += 1
            key, start, size = root, 0, 0
            while start < len(ids) and size <= self.max_bytes:
                entry = self._whole_child(key, ids, start)
                stop = entry.stop if entry else end_of_piece(ids, start, turn_start_ids)
                rows = local_rows_of(layers, start, stop)
                if entry is None:
                    entry = PrefixEntry(key, start, ids[start:stop], -1, 0)
                    self._children[key].append(entry)
                if entry.local_rows < rows:
                    self._fill(entry, rows, layers)
                entry.used = self._now
                if self._folder and not entry.file_bytes and entry.layers:
                    self._write(entry, layers)
                key, start, size = entry.key, stop, size + entry.nbytes
            self._limit()

    def fetch(
        self, root: str, ids: list[int], layers: Sequence[Cache], config: Exaone4Config, limit: int
    ) -> Iterator[None]:
        """Reads the files that `restore` needs, and yields after each: the caller can do other work between them."""
        windows = [layer.window for layer in layers if isinstance(layer, RotatingKVCache)]
        with self._lock:
            _, chain, _ = self._find(root, ids, limit, max(windows, default=None))
        for entry in chain:
            if entry.layers is None and entry.file_bytes:
                with self._lock:
                    self._now += 1
                    if self._pieces((entry,), layers, config) is None:
                        return
                yield

    def restore(
        self, root: str, ids: list[int], layers: Sequence[Cache], config: Exaone4Config, least: int, limit: int
    ) -> tuple[int, int]:
        """Fills `layers` with the longest stored prefix of `ids` that has more than `least` and at most `limit` tokens.

        Returns its length, or 0 if there is none, and the number of tokens that an earlier prompt shares with `ids`.
        """
        windows = [layer.window for layer in layers if isinstance(layer, RotatingKVCache)]
        with self._lock:
            self._now += 1
            while True:
                length, chain, shared = self._find(root, ids, limit, max(windows, default=None))
                if length <= least:
                    return 0, shared
                if (pieces := self._pieces(chain, layers, config)) is not None:
                    break
            spans = [entry.span for entry in chain]
            for i, layer in enumerate(layers):
                layer.restore(joined_rows(layer, [piece[i] for piece in pieces], spans, length))
                mx.eval(layer.buffers)  # layer by layer: this limits the memory
            del pieces
            if self._folder:
                self._folder.touch([entry.key for entry in chain if entry.file_bytes])
            self._limit()
            return length, shared

    def _read_index(self, folder: PrefixFolder) -> None:
        entries: dict[str, PrefixEntry] = {}
        for key, about, size in folder.index():
            entry = PrefixEntry(about["parent"], about["start"], about["ids"], about["local_rows"], 0, None, size)
            if entry.key == key:
                self._now = entry.used = self._now + 1
                entries[key] = entry
            else:
                folder.remove(key)
        for entry in sorted(entries.values(), key=lambda entry: -entry.start):
            self._children[entry.parent].append(entry)
            if (parent := entries.get(entry.parent)) is not None:
                parent.used = max(parent.used, entry.used)
        self._limit()

    # --- the tree -------------------------------------------------------------

    def _entries(self) -> Iterator[PrefixEntry]:
        return (entry for group in list(self._children.values()) for entry in list(group))

    def _whole_child(self, key: str, ids: list[int], start: int) -> PrefixEntry | None:
        """The longest entry after `key` that `ids` continue with."""
        found = [entry for entry in self._children.get(key, ()) if entry.ids == ids[start : entry.stop]]
        return max(found, key=lambda entry: len(entry.ids), default=None)

    def _find(self, root: str, ids: list[int], limit: int, window: int | None) -> tuple[int, Chain, int]:
        """The longest usable prefix of at most `limit` tokens, its entries, and the longest shared one of any use."""
        best, most = 0, 0
        found: Chain = ()
        ends: list[tuple[str, Chain]] = [(root, ())]
        while ends:
            key, before = ends.pop()
            for entry in self._children.get(key, ()):
                shared = common_prefix(entry.ids, ids[entry.start : entry.stop])
                if shared == 0:
                    continue
                chain: Chain = (*before, entry)
                length = usable_length(chain, min(entry.start + shared, limit), window)
                most = max(most, entry.start + shared)
                if length > best:
                    best, found = length, tuple(one for one in chain if one.start < length)
                if shared == len(entry.ids):
                    ends.append((entry.key, chain))
        return best, found, most

    def _pieces(
        self, chain: Chain, layers: Sequence[Cache], config: Exaone4Config
    ) -> list[tuple[Snapshot, ...]] | None:
        """The rows of the entries, read from files where they are not in memory. None if one was removed: damaged."""
        found = []
        for entry in chain:
            if entry.layers is None:
                assert self._folder is not None
                try:
                    rows = len(entry.ids), entry.local_rows
                    entry.layers = self._folder.read(entry.key, entry.stop, *rows, layers, config)
                except (OSError, CheckpointError):
                    self._remove_file(entry)
                    self._forget(entry)
                    return None
                entry.nbytes = sum(snapshot.nbytes for snapshot in entry.layers)
            entry.used = self._now
            found.append(entry.layers)
        return found

    def _fill(self, entry: PrefixEntry, local_rows: int, layers: Sequence[Cache]) -> None:
        """Copies the rows of an entry out of caches."""
        entry.layers = tuple(taken_rows(layer, entry.start, entry.stop) for layer in layers)
        mx.eval([snapshot.arrays for snapshot in entry.layers])
        entry.local_rows, entry.nbytes = local_rows, sum(snapshot.nbytes for snapshot in entry.layers)
        self._remove_file(entry)  # it has fewer rows

    def _write(self, entry: PrefixEntry, layers: Sequence[Cache]) -> None:
        assert self._folder is not None and entry.layers is not None
        about = {"parent": entry.parent, "start": entry.start, "ids": entry.ids, "local_rows": entry.local_rows}
        if self._folder.write(entry.key, about, entry.layers, layers, self.max_bytes):
            entry.file_bytes = entry.nbytes

    def _limit(self) -> None:
        """Removes the least recently used rows from memory and files, to stay within the limits."""
        entries = list(self._entries())
        count, size = len(entries), sum(entry.nbytes for entry in entries)
        stored = sum(entry.file_bytes for entry in entries)
        if count <= MAX_ENTRIES and size <= self.max_bytes and stored <= self.max_folder_bytes:
            return
        for entry in sorted(entries, key=lambda entry: (entry.used, -entry.start)):
            if stored > self.max_folder_bytes or count > MAX_ENTRIES:
                stored -= entry.file_bytes
                self._remove_file(entry)
            if size > self.max_bytes or count > MAX_ENTRIES or entry.layers is None:
                size -= entry.nbytes
                count -= not entry.file_bytes
                self._forget(entry)

    def _forget(self, entry: PrefixEntry) -> None:
        """Removes the rows of an entry from memory, and the entry if no file has them."""
        entry.layers, entry.nbytes = None, 0
        if not entry.file_bytes:
            self._children[entry.parent].remove(entry)
            if not self._children[entry.parent]:
                del self._children[entry.parent]

    def _remove_file(self, entry: PrefixEntry) -> None:
        if self._folder is not None and entry.file_bytes:
            self._folder.remove(entry.key)
        entry.file_bytes = 0
