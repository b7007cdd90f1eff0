r"""Markdown that is still being written -> blocks that will not change any more.

What is peculiar here:
- Only whole lines decide. A block is finished when the line is there that ends it, so that a finished block is
  drawn once; what is open is `BlockStream.open`.
- A list is one block as long as its items follow each other without an empty line; the items of a loose list
  are blocks of their own, and keep their numbers.
- Formulas between `\[` and `\]` or `$$` and `$$` are blocks too: Markdown would eat their backslashes.
- No line is lost: the blocks, joined by empty lines, are the text but for the number of empty lines.
"""

from __future__ import annotations

import re

FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^`]*)$")
FORMULA_ENDS = {r"\[": r"\]", "$$": "$$"}
HEADING = re.compile(r"^ {0,3}#{1,6}(\s|$)")
RULE = re.compile(r"^ {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")  # of a heading
ITEM = re.compile(r"^ {0,3}([-*+]|\d{1,9}[.)])(\s|$)")


class BlockStream:
    """Cuts a text that comes piece by piece: `feed(text)` and, at the end, `close()` return the finished blocks."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # of the open block
        self._partial = ""  # the last line, as far as it has come
        self._fence = ""  # what must end the open code block
        self._formula_end = ""
        self._in_list = False
        self._finished: list[str] = []

    @property
    def open(self) -> str:
        """The block in the making."""
        return "\n".join([*self._lines, self._partial]).strip("\n")

    def feed(self, text: str) -> list[str]:
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._add(line.removesuffix("\r"))
        return self._take()

    def close(self) -> list[str]:
        """What is left, whatever it lacks."""
        if self._partial:
            self._add(self._partial)
        self._partial = ""
        self._finish()
        return self._take()

    def _add(self, line: str) -> None:
        if self._fence:
            self._lines.append(line)
            self._end_fence(line)
        elif self._formula_end:
            self._lines.append(line)
            if line.rstrip().endswith(self._formula_end):
                self._finish()
        elif not line.strip():
            self._add_empty(line)
        else:
            self._add_text(line)

    def _add_empty(self, line: str) -> None:
        """An empty line ends a block, but a list may go on behind it."""
        if self._in_list:
            self._lines.append(line)
        else:
            self._finish()

    def _add_text(self, line: str) -> None:
        after_gap = bool(self._lines) and not self._lines[-1].strip()
        indented = line.startswith(("  ", "\t"))
        if self._in_list and ((after_gap and not indented) or (not indented and self._begins_block(line))):
            self._finish()
        inside_list = self._in_list and (indented or not self._begins_block(line))
        if fence := FENCE.match(line):
            if not inside_list:
                self._finish()
            self._fence = fence[2]
            self._lines.append(line)
        elif inside_list:
            self._lines.append(line)
        elif (mark := line.strip()[:2]) in FORMULA_ENDS:
            self._finish()
            self._lines.append(line)
            self._formula_end = FORMULA_ENDS[mark]
            if line.rstrip().endswith(self._formula_end) and len(line.strip()) >= 4:
                self._finish()
        elif self._lines and not self._in_list and UNDERLINE.match(line):
            self._lines.append(line)
            self._finish()
        elif HEADING.match(line) or RULE.match(line):
            self._finish()
            self._lines.append(line)
            self._finish()
        else:
            item = ITEM.match(line)
            if item and (not self._lines or item[1] in ("-", "*", "+", "1.", "1)")):  # 1986. goes on with a sentence
                self._finish()
                self._in_list = True
            self._lines.append(line)

    @staticmethod
    def _begins_block(line: str) -> bool:
        """Whether a line that is not indented cannot belong to a list item before it."""
        mark = line.strip()[:2]
        return bool(FENCE.match(line) or mark in FORMULA_ENDS or HEADING.match(line) or RULE.match(line))

    def _end_fence(self, line: str) -> None:
        mark = line.strip()
        if mark and set(mark) == {self._fence[0]} and len(mark) >= len(self._fence):
            self._fence = ""
            if not self._in_list:
                self._finish()

    def _finish(self) -> None:
        if block := "\n".join(self._lines).strip("\n"):
            self._finished.append(block)
        self._lines, self._fence, self._formula_end, self._in_list = [], "", "", False

    def _take(self) -> list[str]:
        finished, self._finished = self._finished, []
        return finished
