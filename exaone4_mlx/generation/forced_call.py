"""A call of a tool with which an answer must begin, and the line ends that may come before what is constrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..text.reply import ReplyParser
from ..text.tokenizer import Tokenizer
from .constrain import ToolConstraint


class LineEnds:
    """The tokens of one and of two line ends, and how many line ends may still come (`left`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = [tokenizer.encode(text) for text in ("\n", "\n\n")]
        self._counts = {ids[0]: count for count, ids in enumerate(ends, start=1) if len(ids) == 1}
        self.left = 0

    def take(self, token: int) -> bool:
        """Whether `token` is one that may come. It is counted then."""
        count = self._counts.get(token, 0)
        if not 0 < count <= self.left:
            return False
        self.left -= count
        return True

    def added_to(self, mask: bytearray) -> bytes:
        """A mask that allows them, too."""
        for token, count in self._counts.items():
            if count <= self.left:
                mask[token] = 1
        return bytes(mask)


class ForcedCall(ToolConstraint):
    """Forces an answer to begin with a call of one of the tools. Line ends may come before it, as after a thought."""

    def __init__(self, tokenizer: Tokenizer, schemas: Sequence[Mapping[str, Any]], vocab_size: int) -> None:
        super().__init__(tokenizer, schemas, vocab_size)
        self._line_ends = LineEnds(tokenizer)
        self._pending = True  # the call has not begun

    def begins(self, parser: ReplyParser) -> bool:
        if not self._pending:
            return super().begins(parser)
        self._line_ends.left = parser.line_ends_left
        return not parser.inside_thought

    def advance(self, token: int) -> None:
        if not self._pending:
            super().advance(token)
        elif token == self.start_id:
            self._pending = False
            self._known_mask = None
        elif not self._line_ends.take(token):
            raise ValueError(f"token {token} was not allowed here: a call of a tool must come first")

    def _mask(self) -> bytes:
        if not self._pending:
            return super()._mask()
        mask = bytearray(self._vocab_size)
        mask[self.start_id] = 1
        return self._line_ends.added_to(mask)
