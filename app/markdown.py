"""Untrusted Markdown -> Markdown that is safe to show and looks the same.

Notes:
- HTML is shown as source text, and remote images as links. Code must not be escaped, so every Markdown parser has to
  agree on what is code: lines around a code block are normalized, and an ambiguous pair of backticks is not code.
- Gradio's parser gets the marks of emphasis as `exaone4_mlx.text.markdown` reads them.
- What a user typed is no Markdown: it is a code block, which the style sheet shows as words.
- This is not the only protection: Gradio removes active content, and the content security policy blocks requests.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

from exaone4_mlx.text.markdown import DOLLARS, portable

#: The first line of a code block: the prefix (list markers, for example), the fence, the language.
FENCE = re.compile(r"([ \t]*(?:(?:[-+*]|[0-9]{1,9}[.)])[ \t]+)*(?:\[[ xX]\][ \t]+)?)(`{3,}(?=[^`]*$)|~{3,})(.*)")
#: The line below the head of a table.
TABLE = re.compile(r"^(?=.*-)(?=.*[|:])[ \t>|:-]+$", re.MULTILINE)
#: Where a span of code may begin, and in what Gradio's parser (marked) sees none: an address, and behind a tilde.
SPAN = re.compile(r"\\[!-/:-@[-`{-~]|((?i:https?://|ftp://|www\.)\S*|~`|\]\(\s*<[^>]*)|(`+)")
MARK = re.compile(
    r"\\?(?:<(?=[A-Za-z/!?])|&(?=#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]*;)|!(?=\[))|(\\[!-/:-@[-`{-~])"
)
ENTITIES = {"<": "&lt;", "&": "&amp;", "!": "&#33;"}
#: A line that Markdown shows as it is: no marks, no spaces that count, no number that could begin a list.
PLAIN_LINE = r"(?!\d{1,9}[.)])[^\W_](?:[^\W_]|[.,:;?!'\"()/%…·-]| (?![ \n]|\Z))*"
PLAIN = re.compile(f"(?:{PLAIN_LINE}(?:\n{PLAIN_LINE})*)?")
TYPED = "typed"  # the "language" of a code block that holds what a user typed
NESTED = 10  # quotes inside one another in which code is looked for


def inert(text: str) -> str:
    """Markdown whose HTML is shown as it is written, and whose pictures are links. Code stays as it is."""
    return _outside_code(text)


def verbatim(text: str) -> str:
    """Markdown that shows a text exactly as a user typed it."""
    return text if PLAIN.fullmatch(text) else fenced(text, TYPED)


def typed(shown: str) -> str:
    """The text that a user typed, from what `verbatim` returned and the user edited then."""
    begin = re.match(rf"(`{{3,}}){TYPED}\n", shown)
    if begin is None:
        return shown
    before, _, after = shown[begin.end() :].rpartition(f"\n{begin[1]}")
    return before + after


def fenced(text: str, language: str) -> str:
    """A text as a code block."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


@dataclass
class _MarkdownBlock:
    """An open code block: its fence, the column of the fence, and how far its lines are moved to that column."""

    fence: str
    column: int
    moved: int | None = None

    def ends_with(self, line: str) -> bool:
        bare = line.strip(" \t")
        return bare.startswith(self.fence) and not bare.strip("`~") and _indent(line) <= self.column + 3

    def line(self, line: str) -> str:
        """A line of the block, indented to the column of the fence: a smaller indent would end the list item."""
        if not self.column or not (bare := line.lstrip(" \t")):
            return line
        if self.moved is None:
            self.moved = max(0, self.column - _indent(line))
        return " " * max(self.column, self.moved + _indent(line)) + bare


def _outside_code(text: str, depth: int = 0) -> str:
    """Markdown with all escaped that is not code."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    has_table = TABLE.search(text) is not None
    result: list[str] = []
    block: _MarkdownBlock | None = None
    waits = False  # whether an earlier backtick may be the begin of a span that ends here
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if block is not None:
            ends = block.ends_with(line)
            result.append(" " * block.column + block.fence if ends else block.line(line))
            block = None if ends else block
            continue
        line = line.replace("```mermaid", "``` mermaid")  # or Gradio would draw it, unescaped
        if begin := FENCE.fullmatch(line):
            before, fence, language = begin[1].expandtabs(4), begin[2], begin[3]
            block, waits = _MarkdownBlock(fence, len(before)), False
            last = result[-1].strip() if result else ""
            if last and (before.strip() or len(before) > 3 or last.endswith(":") or at == len(lines)):
                result.append("")  # or a paragraph could go on here, or the definition of a link
            result.append(f"{before}{fence}{language}")
        elif line.startswith(">") and depth < NESTED:
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith(">")), len(lines))
            quoted = [quote[1:].removeprefix(" ") for quote in lines[at - 1 : end]]
            result += [""] * bool(result and result[-1].strip())  # what is above goes on in it otherwise
            result += [f"> {inner}" for inner in _outside_code("\n".join(quoted), depth + 1).split("\n")]
            waits, at = any("`" in quote for quote in quoted), end
        elif waits:
            waits = bool(line.strip(" \t"))
            result.append(_escaped([line]))
        else:
            line, waits = _outside_spans(line, has_table)
            result.append(line)
    return "\n".join(result)


def _outside_spans(line: str, has_table: bool) -> tuple[str, bool]:
    """A line with all escaped but its spans of code; and whether one may be open at its end."""
    runs: dict[int, list[int]] = {}  # of backticks: length -> where
    for run in re.finditer("`+", line):
        runs.setdefault(len(run[0]), []).append(run.start())
    parts: list[str] = []  # text, code, text, code and so on
    bracket = line.find("[")
    end = at = 0
    waits = False
    while runs and not waits and (found := SPAN.search(line, at)):
        at = found.end()
        address, ticks = found[1], found[2]
        if not ticks:
            waits = bool(address and "`" in address)
            continue
        closing = runs.get(len(ticks), [])
        number = bisect.bisect_left(closing, at)
        if waits := number == len(closing):
            continue
        close = closing[number] + len(ticks)
        if (0 <= bracket < at and "](" in line[at:close]) or (has_table and "|" in line[at:close]):
            return _escaped([line]), True  # links and cells come before code
        parts += [line[end : found.start()], line[found.start() : close]]
        end = at = close
    return _escaped([*parts, line[end:]]), waits


def _escaped(parts: list[str]) -> str:
    """A line of text, code, text and so on, with its text escaped."""
    return portable([part if number % 2 else _escaped_text(part) for number, part in enumerate(parts)])


def _escaped_text(text: str) -> str:
    text = MARK.sub(lambda mark: mark[1] or ENTITIES[mark[0][-1]], text)
    return DOLLARS.sub(lambda math: rf"\({math[1]}\)", text)


def _indent(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
