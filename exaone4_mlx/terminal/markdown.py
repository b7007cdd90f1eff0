r"""Cuts Markdown that is still being written into blocks that will not change any more, with `markdown-it-py`.

Notes:
- A block is final as soon as no later line can change it. The last block is `BlockStream.open`.
- Each line is parsed after a context, not after the whole open block. So the time is linear in the number of lines.
  Inside a list item or a quotation the context is long, but only a line that may end it is parsed.
- The items of a loose list are blocks of their own if their numbers are consecutive, so that each keeps its number.
- Formulas of several lines are blocks too: Markdown would remove their backslashes.
- No line is lost: the blocks, joined by empty lines, are the text except for the number of empty lines.
"""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock

from ..text.markdown import formula_end, new_parser

QUOTED = re.compile(" {0,3}>")
NEVER = re.compile("(?!)")
TEXT = "x"  # a line that begins a paragraph, or continues the block before it if that block allows text


class BlockStream:
    """`feed(text)` and, at the end, `close()` return the blocks that are final."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # whole lines of the open block
        self._context: list[str] = []  # lines after which the next line means the same as after the whole open block
        self._inside = NEVER  # matches lines that surely continue the open list item or quotation
        self._number = 0  # of the last item of the open list
        self._partial = ""  # the last line, which is not complete yet
        self._final: list[str] = []

    @property
    def open(self) -> str:
        """The block that is still being written."""
        return "\n".join([*self._lines, self._partial]).strip("\n")

    def feed(self, text: str) -> list[str]:
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._add(line.removesuffix("\r").replace("\r", " "))  # the parser ends a line at each \r
        final, self._final = self._final, []
        return final

    def close(self) -> list[str]:
        """The rest, complete or not."""
        final = self.feed("\n")
        self._finish(len(self._lines))
        return final + self.feed("")

    def _add(self, line: str) -> None:
        empty = not line.strip(" \t")
        if empty and not self._lines:
            return
        self._lines.append(line)
        if self._inside.match(line.expandtabs(4)):
            self._context.append(line)
            return
        new = len(self._context)  # the index of the line in the parsed text
        tokens = PARSER.parse("\n".join([*self._context, line, TEXT]))
        blocks = [(token.type, token.map[0]) for token in tokens if token.level == 0 and token.map]
        ended = blocks[-1][1] > new  # TEXT begins another block
        kind, start = blocks[-2 if ended else -1]
        if start:
            self._finish(len(self._lines) - (new + 1 - start))
        if kind.endswith("list_open"):
            for token in tokens:
                if token.type == "list_item_open" and token.level == 1 and token.map and token.map[0] == new:
                    self._begin_item(line, token.info)
        elif ended and kind != "code_block" and (kind != "blockquote_open" or empty):
            self._finish(len(self._lines))
        elif kind == "blockquote_open":
            if start == new:  # else the line continues a quoted paragraph, which changes nothing
                self._context, self._inside = [line], QUOTED
        elif kind == "paragraph_open":  # its last line may be the head of a table
            self._context = [TEXT, line] if len(self._lines) > 1 else [line]
        else:
            self._context = self._lines[: 2 if kind == "table_open" else 1]

    def _begin_item(self, line: str, number: str) -> None:
        after_empty = len(self._lines) > 1 and not self._lines[-2].strip(" \t")
        if len(self._lines) == 1 or (after_empty and (not number or int(number) == self._number + 1)):
            self._finish(len(self._lines) - 1)
            self._number = int(number or 0)
        else:
            self._number += 1
        mark = re.findall(r" *\S+ +", line.expandtabs(4) + " ")[0]
        self._context, self._inside = [line], re.compile(f" {{{len(mark)}}}| *$")

    def _finish(self, count: int) -> None:
        """Makes the first lines of the open block final."""
        if block := "\n".join(self._lines[:count]).strip("\n"):
            self._final.append(block)
        del self._lines[:count]
        self._context, self._inside = [], NEVER


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


def _formula(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A rule of markdown-it: a formula at the top level, from its first line to the line of its end mark."""
    line = state.getLines(first, first + 1, 0, False).strip()
    mark = formula_end(line)
    if not mark or silent:
        return bool(mark)
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


PARSER = new_parser(as_written=True)
PARSER.core.ruler.disable("inline")
PARSER.block.ruler.at("formula", _formula, {"alt": ["paragraph", "reference", "blockquote", "list"]})
