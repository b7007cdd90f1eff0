r"""Cuts Markdown that is still being written into blocks that will not change any more, with `markdown-it-py`.

Notes:
- All top-level blocks but the last are final: no later line changes them. The last block is `BlockStream.open`.
- Only whole lines are parsed, so that the blocks do not depend on the pieces in which the text arrives.
- Formulas between `\[` and `\]` or `$$` and `$$` are blocks too: Markdown would remove their backslashes.
- No line is lost: the blocks, joined by empty lines, are the text except for the number of empty lines.
"""

from __future__ import annotations

from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock

FORMULA_ENDS = {r"\[": r"\]", "$$": "$$"}


class BlockStream:
    """`feed(text)` and, at the end, `close()` return the blocks that are final."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # whole lines of the open block
        self._partial = ""  # the last line, which is not complete yet

    @property
    def open(self) -> str:
        """The block that is still being written."""
        return "\n".join([*self._lines, self._partial]).strip("\n")

    def feed(self, text: str) -> list[str]:
        *whole, self._partial = (self._partial + text).split("\n")
        if not whole:
            return []
        self._lines += [line.removesuffix("\r") for line in whole]
        starts = _starts(self._lines)
        last = starts[-1] if starts else 0
        final = self._blocks(starts[:-1], last)
        del self._lines[:last]
        return final

    def close(self) -> list[str]:
        """The rest, complete or not."""
        self._lines, self._partial = [*self._lines, self._partial], ""
        rest = self._blocks(_starts(self._lines), len(self._lines))
        self._lines = []
        return rest

    def _blocks(self, starts: list[int], end: int) -> list[str]:
        cuts = [0, *starts, end]  # before the first block there may be link definitions
        blocks = ["\n".join(self._lines[a:b]).strip("\n") for a, b in pairwise(cuts)]
        return [block for block in blocks if block]


class LineStream:
    """Text without Markdown: each whole line is final."""

    def __init__(self) -> None:
        self.open = ""

    def feed(self, text: str) -> list[str]:
        *whole, self.open = (self.open + text).split("\n")
        return [line.removesuffix("\r") for line in whole]

    def close(self) -> list[str]:
        rest, self.open = self.open, ""
        return [rest] if rest else []


def _starts(lines: list[str]) -> list[int]:
    """The first lines of the top-level blocks."""
    tokens = PARSER.parse("\n".join(lines))
    return [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]


def _formula(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A rule of markdown-it: a formula at the top level, from its first line to the line of its end mark."""
    line = state.getLines(first, first + 1, 0, False).strip()
    mark = FORMULA_ENDS.get(line[:2])
    if mark is None or silent:
        return mark is not None
    if state.level:
        return False  # part of a list or a quotation
    after = first + 1
    if len(line) < 4 or not line.endswith(mark):
        while after < end and not state.getLines(after, after + 1, 0, False).rstrip().endswith(mark):
            after += 1
        after = min(after + 1, end)
    state.push("formula", "", 0).map = [first, after]
    state.line = after
    return True


PARSER = MarkdownIt().enable("table")
PARSER.core.ruler.disable("inline")
PARSER.block.ruler.before("table", "formula", _formula, {"alt": ["paragraph", "reference", "blockquote", "list"]})
