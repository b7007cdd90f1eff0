"""The pieces in which replies of one model take turns, and what the replies share.

Notes:
- A reply that decodes waits for one long piece at most. So a chunk of a prompt is a long piece, and takes about
  CHUNK_SECONDS while other replies are in progress.
- A draft model reads the prompt, too. Its speed is measured by itself.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from enum import Enum
from typing import TypeVar

from .decode import TokenStream

T = TypeVar("T")

CHUNK_SECONDS = 0.2
FIRST_CHUNK = 64  # tokens of a chunk before any was measured


class Piece(Enum):
    """What a job yields where other jobs may run: how long its next piece takes, a step or a chunk of a prompt."""

    SHORT, LONG = "step", "chunk"


class Batch:
    """What replies share: the streams that take their steps together, and the size of the chunks of their prompts."""

    def __init__(self) -> None:
        self.streams: list[TokenStream] = []
        self.has_others = False  # whether a job is in progress or waits beside the one that runs
        self._speeds: dict[str, float] = {}  # tokens per second of the last chunk, by who reads it

    def chunk_size(self, limit: int, reader: str = "model") -> int:
        """The tokens of the next chunk, at most `limit`. A draft model is another reader than its model."""
        speed = self._speeds.get(reader)
        size = FIRST_CHUNK if speed is None else max(1, int(speed * CHUNK_SECONDS))
        return min(limit, size) if self.has_others else limit

    def measured(self, tokens: int, seconds: float, reader: str = "model") -> None:
        self._speeds[reader] = tokens / max(seconds, 1e-6)

    def timed(self, steps: Generator[int, None, T]) -> Generator[Piece, None, T]:
        """Runs `steps`, which yields the tokens of each chunk, or 0 after other work, as long pieces.

        Returns what it returns.
        """
        while True:
            started = time.perf_counter()
            try:
                tokens = next(steps)
            except StopIteration as end:
                return end.value
            if tokens:
                self.measured(tokens, time.perf_counter() - started)
            yield Piece.LONG
