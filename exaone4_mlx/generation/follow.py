"""What the ranks other than 0 do: each call of the model that rank 0 makes, with their part of it.

Notes:
- The next call is built while the last one is computed, so that rank 0 does not wait for Python here.
- After a pause, what was queued is waited for: that is a sign of progress for rank 0.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import mlx.core as mx

from ..cluster.peers import Message
from ..cluster.ranks import Ranks
from ..model.cache import Cache, Snapshot, make_caches
from ..model.kv import KVQuantization
from ..model.led import shared_ids
from ..model.network import Exaone4ForCausalLM
from .decode import CLEAR_EVERY
from .prefix_entry import joined_rows, taken_rows
from .rank_files import OwnFiles
from .reply_loop import metal_memory

PAUSE_SECONDS = 0.2


class Stopped(Exception):
    """Rank 0 ended a prompt within a chunk."""


class Follower:
    """A rank other than 0: its part of the model, and of the caches and snapshots of rank 0 by their numbers."""

    def __init__(self, model: Exaone4ForCausalLM) -> None:
        assert model.ranks is not None and model.part is not None
        self.ranks: Ranks = model.ranks
        self._config, self._fused = model.config, model.fused()
        self._own = model.part.own  # layers
        self._caches: dict[int, Cache] = {}
        self._lists: dict[int, list[Cache]] = {}  # its layers, by the number of the first of all
        self._snapshots: dict[int, Snapshot] = {}
        self._files = OwnFiles(model, self._lists, self._snapshots)
        self._pending: Any = []  # what the last call computes

    def run(self) -> None:
        """Follows rank 0 until it leaves."""
        while "leave" not in (message := self._next()):
            for change in message["changes"]:
                self._change(*change)
            if "ask" in message:
                self.ranks.gather(self._files.ask(*message["ask"]))
                continue
            call, *arguments = message["call"]
            self.ranks.in_order()
            built = self._prefill(*arguments) if call == "prefill" else self._step(arguments[0])
            self.ranks.queued(built)
            mx.eval(self._pending)  # one call ahead, and no more
            self._pending = built
            self.ranks.watchdog.done += 1
            if call == "prefill" or self.ranks.watchdog.done % CLEAR_EVERY == 0:
                mx.clear_cache()
        self._files.close()

    def _next(self) -> Message:
        inbox = self.ranks.peers[0].inbox
        try:
            return inbox.get(timeout=PAUSE_SECONDS)
        except Empty:
            mx.eval(self._pending)
            return inbox.get()

    def _step(self, rows: list[list[int]]) -> Any:
        ids = [mx.zeros(shape, mx.int32) for _, *shape in rows]
        return self._fused.together(shared_ids(self.ranks, ids, [self._lists[first] for first, *_ in rows]))

    def _prefill(self, first: int, whole_length: int, pauses: bool, ids: list[list[int]]) -> Any:
        try:
            return self._fused.prefill(mx.array(ids), self._lists[first], whole_length, self._pause if pauses else None)
        except Stopped:
            return []

    def _pause(self, layers: int, x: mx.array) -> None:
        self.ranks.queued(x)  # rank 0 may evaluate it before it goes on
        message = self.ranks.receive("go", "stop")
        self.ranks.watchdog.done += 1
        if "stop" in message:
            mx.eval(x)
            raise Stopped

    def _change(self, kind: str, number: Any, *values: Any) -> None:
        """Changes the caches as rank 0 did."""
        if kind == "caches":
            kv = values[0] and KVQuantization(**values[0])
            windows = [layer.window for layer in self._config.layers]
            layers = make_caches(windows[self._own], self._config.max_position_embeddings, kv)
            self._lists[number[0]] = layers
            self._caches |= zip(number[self._own], layers, strict=True)
        elif kind == "free":
            self._lists.pop(number, None)
            self._caches.pop(number, None)
        elif kind == "drop":
            self._snapshots.pop(number, None)
        elif kind == "files":
            self._files.change(number, *values)
        elif number not in self._caches:
            pass  # a layer of another rank
        elif kind in ("snapshot", "take", "join"):
            *how, taken = values
            self._snapshots[taken] = found = self._copy(self._caches[number], kind, *how)
            mx.eval(found.arrays)
        elif kind == "restore":
            taken, offset = values
            self._caches[number].restore(self._snapshots[taken] if taken else Snapshot(offset))
            mx.eval(self._caches[number].buffers)  # layer by layer: this limits the memory
        elif kind == "rewind":
            self._caches[number].rewind(values[0])
        else:
            self._caches[number].undo(values[0])

    def _copy(self, cache: Cache, kind: str, *how: Any) -> Snapshot:
        """The rows of a snapshot, of an entry of a prefix store, or of several entries."""
        if kind == "snapshot":
            return cache.snapshot(*how)
        if kind == "take":
            return taken_rows(cache, *how)
        numbers, spans, length = how
        empty = Snapshot(0)
        return joined_rows(cache, [self._snapshots[one] if one else empty for one in numbers], spans, length)


def follow(model: Exaone4ForCausalLM) -> None:
    """Computes this rank's part of `load(…, group=)` until rank 0 leaves or ends. Rank 0 may not call it.

    Rank 0 uses the model as any other. Raises ValueError for a model of one process, and in rank 0.
    """
    if model.ranks is None or model.ranks.rank == 0:
        raise ValueError("follow() is for the ranks other than 0 of a model of several ranks")
    try:
        with metal_memory():
            Follower(model).run()
        model.ranks.leave()
    except Exception as error:
        model.ranks.watchdog.end_by(error)
        raise
