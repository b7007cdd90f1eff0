"""Earlier states of prompt caches, to which they can go back, and a limit for those of all conversations."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol

from ..model.cache import Snapshot

MAX_CHECKPOINTS = 16  # of all conversations that share a pool
MAX_CHECKPOINT_BYTES = 2 << 30  # of all of them together; one checkpoint of the 32B has 0.8 GB in bfloat16


class HasCheckpoints(Protocol):
    """A prompt cache, as far as a pool knows it."""

    checkpoints: list[CacheCheckpoint]


@dataclass(frozen=True, eq=False)
class CacheCheckpoint:
    """The state of every layer after `length` tokens. `conversation` is the prompt cache that it belongs to."""

    length: int
    layers: tuple[Snapshot, ...]
    conversation: weakref.ref[HasCheckpoints]

    @property
    def nbytes(self) -> int:
        return sum(snapshot.nbytes for snapshot in self.layers)


class CheckpointPool:
    """Limits many conversations' checkpoints. It removes the least recently used first, the newest of each last."""

    def __init__(self, max_count: int = MAX_CHECKPOINTS, max_bytes: int = MAX_CHECKPOINT_BYTES) -> None:
        self.max_count, self.max_bytes = max_count, max_bytes
        self._used: list[weakref.ref[CacheCheckpoint]] = []  # least recently used first

    @property
    def checkpoints(self) -> list[CacheCheckpoint]:
        """The existing checkpoints, least recently used first."""
        return [checkpoint for ref in self._used if (checkpoint := ref()) is not None]

    @property
    def nbytes(self) -> int:
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    def use(self, checkpoint: CacheCheckpoint) -> None:
        """Adds a checkpoint, or marks it as used again, and removes others to stay within the limits."""
        all_used = [*(other for other in self.checkpoints if other is not checkpoint), checkpoint]
        self._used = [weakref.ref(used) for used in all_used]
        newest = {id(used.conversation()): used for used in all_used}
        victims = sorted(all_used, key=lambda used: newest[id(used.conversation())] is used)
        count, size = len(victims), sum(used.nbytes for used in victims)
        for victim in victims:
            if count <= self.max_count and size <= self.max_bytes:
                break
            if (conversation := victim.conversation()) is not None:
                conversation.checkpoints[:] = [kept for kept in conversation.checkpoints if kept is not victim]
            count, size = count - 1, size - victim.nbytes
