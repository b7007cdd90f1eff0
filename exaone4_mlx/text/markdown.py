r"""Which marks of a model's Markdown begin and end emphasis: one rule for the app, the terminal and notebooks.

Notes:
- CommonMark ends no bold text between a punctuation mark and a letter, so `**EXAONE(엑사원)**은` shows its asterisks.
  Korean attaches particles to the word. Beside a letter of Chinese, Japanese or Korean, `delimits` ignores that rule.
- A single tilde is text (`3~5시`): GitHub's Markdown strikes out what is between two of them.
- Between two letters or digits `*` is a product (`2*3*4`) and `**` beside a digit a power (`x**2`).
- Addresses of pages are links (addresses.py); in a terminal they are text.
- HTML, entities and pictures are text, formulas keep their backslashes, and a line end is a line end.
- A formula may have empty lines: a block rule groups its lines. `$5 and $6` are two prices.
- A footnote that nothing refers to is shown with the others. The boxes of a task list are the characters ☐ and ☑.
- `portable` writes the same decisions into the source, for a program that has its own parser.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from .addresses import address_link

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_core import StateCore
    from markdown_it.rules_inline import StateInline

#: Letters of scripts that write no spaces around marks, or attach particles: Hangul, Chinese characters, kana.
EAST_ASIAN = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)
#: `$x$` as pandoc reads it: no space after the first and before the last dollar sign, and no digit after the last. A
#: Latin letter before the first or after the last one means prices (`US$5`) or variables of a shell (`$A:$B`).
DOLLARS = re.compile(r"(?<![\\$A-Za-z])\$(?![\s$])([^$\n]*?[^\s$\\])\$(?![\dA-Za-z$])")
ENVIRONMENT = re.compile(r"\\begin(\{\w+\*?\})")
FORMULAS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"))
NOTE = re.compile(r"\[\^[^\]\s]{1,99}\]")  # of a footnote
TASK = re.compile(r"\[([ xX])\](?=\s)")
#: Languages that are highlighted. For others, Pygments' lexer may never end: that of mcschema after `<!--`.
CODE_LANGUAGES = frozenset(
    "bash c c++ console cpp cs csharp css dart diff docker dockerfile go golang graphql haskell html ini "
    "java javascript js json jsx julia kotlin latex lua make makefile markdown md matlab objective-c perl "
    "php powershell protobuf py python python3 r rb ruby rs rust scala scss sh shell sql swift tex toml "
    "ts tsx typescript xml yaml yml zsh".split()
)
#: What `portable` looks at: an escaped character, the address of a page, or a run of marks.
MARKS = re.compile(r"\\[!-/:-@[-`{-~]|(?i:https?://|ftp://|www\.)[^\s<*)\]`]+|\*+|_+|~+")


def delimits(before: str, run: str, after: str, begun: Container[str]) -> tuple[bool, bool]:
    """Whether a run of `*`, `_` or `~` can begin emphasis, and whether it can end it.

    `before` and `after` are the characters around the run, "" at the end of a line. `begun` are the earlier runs
    that can begin emphasis: without one, a `*` or `_` between two letters is part of a product or a name.
    """
    mark, double = run[0], len(run) > 1
    asian_before, asian_after = bool(EAST_ASIAN.match(before)), bool(EAST_ASIAN.match(after))
    if mark == "~" and len(run) != 2:
        return False, False
    if _is_word(before) and _is_word(after):
        asian = asian_before or asian_after
        if mark == "*":
            opens = double and (asian or not (before.isdigit() or after.isdigit()))
            return opens, double or (asian and run in begun)
        return False, mark == "~" or (asian_before and asian_after and run in begun)
    opens, closes = _flanks(before, after)
    opens = opens or (mark == "*" and double and asian_before and _is_punctuation(after))
    return opens, closes or (asian_after and _is_punctuation(before))


def portable(parts: Sequence[str]) -> str:
    """A line such that every parser of CommonMark or GFM reads its marks as `delimits`.

    `parts` are the line, cut into text, code, text and so on. Marks that are text become entities. A letter beside a
    mark becomes an entity where CommonMark wants punctuation.
    """
    line = "".join(parts)
    coded: set[int] = set()  # places of characters that become entities
    struck: set[int] = set()  # those of a `~~` that may begin a struck out text
    begun: set[str] = set()
    end = 0
    for number, part in enumerate(parts):
        begin, end = end, end + len(part)
        for found in () if number % 2 else MARKS.finditer(line, begin, end):
            run, first, last = found[0], found.start(), found.end()
            if run[0] not in "*_~":
                continue
            before, after = line[first - 1 : first], line[last : last + 1]
            answer, expected = delimits(before, run, after, begun), _commonmark(before, run, after)
            if answer[0]:
                begun.add(run)
            if answer == (False, False):
                coded.update(range(first, last) if expected != answer or run[0] == "~" else ())
                continue
            if run == "~~":  # GitHub's Markdown looks for its pair only, and not at what is around it
                if struck and answer[1]:
                    coded, struck = coded - struck, set()
                else:
                    coded.update(range(first, last))
                    struck = set(range(first, last)) if answer[0] else struck
            if answer[0] and not expected[0]:
                coded.add(first - 1)
            elif answer != expected:
                coded.add(last)
    return "".join(f"&#{ord(letter)};" if place in coded else letter for place, letter in enumerate(line))


@cache
def markdown_parser(as_written: bool = False) -> MarkdownIt:
    """The parser of `new_parser`, which is made once."""
    return new_parser(as_written)


def new_parser(as_written: bool = False, formula_token: str = "text") -> MarkdownIt:
    """A parser of a model's Markdown: CommonMark with tables and `~~`, and with the rules of this file.

    `as_written` is for a terminal, which has no links to click: all parts of a link are to be read. `formula_token` is
    the type of the tokens of formulas, for a renderer that draws them.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["image", "entity"])
    if as_written:
        parser.disable(["reference", "autolink"])
        parser.normalizeLink = lambda url: url  # type: ignore[method-assign]  # no percent signs
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.at("strikethrough", _emphasis)
    parser.inline.ruler.before("escape", "formula", partial(_formula, kind=formula_token))
    paragraphs = ["paragraph", "reference", "blockquote", "list"]  # which a formula can end
    parser.block.ruler.before("table", "formula", _formula_block, {"alt": paragraphs})
    parser.core.ruler.push("line_ends", _line_ends)
    parser.core.ruler.push("task_boxes", _task_boxes)
    if not as_written:
        from mdit_py_plugins.footnote import footnote_plugin

        parser.use(footnote_plugin, inline=False)
        parser.inline.ruler.at("footnote_ref", _footnote)
        parser.core.ruler.before("footnote_tail", "lone_footnotes", _lone_footnotes)
        parser.inline.ruler.before("newline", "address", address_link)
    return parser


def _emphasis(state: StateInline, silent: bool) -> bool:
    """A rule of markdown-it: as its own rules of emphasis and `~~`, but with `delimits`."""
    from markdown_it.rules_inline.state_inline import Delimiter

    text, start, mark = state.src, state.pos, state.src[state.pos]
    if silent or mark not in "*_~":
        return False
    end = start + 1
    while end < state.posMax and text[end] == mark:
        end += 1
    before, after = text[start - 1] if start else "", text[end] if end < state.posMax else ""
    begun = vars(state).setdefault("begun", set())  # in this paragraph
    opens, closes = delimits(before, text[start:end], after, begun)
    if opens:
        begun.add(text[start:end])
    size = 2 if mark == "~" and (opens or closes) else 1
    for _ in range(start, end, size):
        state.push("text", "", 0).content = mark * size
        if opens or closes:
            length = 0 if mark == "~" else end - start  # 0: no rule of three
            state.delimiters.append(Delimiter(ord(mark), length, len(state.tokens) - 1, -1, opens, closes))
    state.pos = end
    return True


def formula_end(line: str) -> str:
    r"""The mark that ends a formula of several lines which begins with `line`: `\]`, `$$` or `\end{align}`; else ""."""
    if line.startswith((r"\[", "$$")):
        return "$$" if line[0] == "$" else r"\]"
    return rf"\end{found[1]}" if (found := ENVIRONMENT.match(line)) else ""


def _formula(state: StateInline, silent: bool, kind: str) -> bool:
    """A rule of markdown-it for formulas. A mark of a formula alone is text; markdown-it would read it as an escape."""
    text, start = state.src, state.pos
    end = start
    for begin, close in FORMULAS:
        if text.startswith(begin, start):
            end = max(_after(state, close, start + 2), start + 2)
    if text.startswith((r"\)", r"\]"), start):
        end = start + 2
    elif end == start and (dollars := DOLLARS.match(text, start)):
        end = dollars.end()
    elif end == start and (found := ENVIRONMENT.match(text, start)):
        end = max(_after(state, rf"\end{found[1]}", found.end()), start)
    if end == start or end > state.posMax:
        return False
    if not silent:
        state.push(kind if end > start + 2 else "text", "", 0).content = text[start:end]
    state.pos = end
    return True


def _after(state: StateInline | StateBlock, mark: str, start: int) -> int:
    """The place behind the next `mark`, or 0. The last one of a text is looked for once: the time is linear."""
    lasts = vars(state).setdefault("lasts", {})
    last = lasts[mark] if mark in lasts else lasts.setdefault(mark, state.src.rfind(mark))
    return state.src.find(mark, start) + len(mark) if last >= start else 0


def _formula_block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A block rule of markdown-it: the lines of a formula are one paragraph, whatever they look like."""
    line = state.getLines(first, first + 1, state.blkIndent, False).lstrip()
    start = state.bMarks[first] + state.tShift[first]
    mark = formula_end(line)
    after = _after(state, mark, start + 2) if mark and state.sCount[first] - state.blkIndent < 4 else 0
    last = first
    while last + 1 < end and state.eMarks[last] < after:
        last += 1
    if not after or state.eMarks[last] < after or last == first:
        return False
    if not silent:
        state.push("paragraph_open", "p", 1).map = [first, last + 1]
        inline = state.push("inline", "", 0)
        inline.content = state.getLines(first, last + 1, state.blkIndent, False).strip()
        inline.map, inline.children = [first, last + 1], []
        state.push("paragraph_close", "p", -1)
        state.line = last + 1
    return True


def _line_ends(state: StateCore) -> None:
    """A rule of markdown-it: a model ends a line where it means to."""
    for block in state.tokens:
        for token in block.children or ():
            if token.type == "softbreak":
                token.type, token.tag = "hardbreak", "br"


def _task_boxes(state: StateCore) -> None:
    """A rule of markdown-it: `[ ]` and `[x]` at the start of a list item are boxes."""
    for place, token in enumerate(state.tokens):
        texts = token.children if token.type == "inline" and place > 1 else None
        if texts and state.tokens[place - 2].type == "list_item_open" and (box := TASK.match(texts[0].content)):
            texts[0].content = ("☐" if box[1] == " " else "☑") + texts[0].content[3:]
            state.tokens[place - 2].attrSet("class", "task")


def _footnote(state: StateInline, silent: bool) -> bool:
    """The rule of the plugin, which looks for the end of a note without a bound."""
    from mdit_py_plugins.footnote.index import footnote_ref

    return bool(NOTE.match(state.src, state.pos)) and footnote_ref(state, silent)


def _lone_footnotes(state: StateCore) -> None:
    """A rule of markdown-it: notes without a reference are listed, too."""
    notes = state.env.get("footnotes", {"refs": {}, "list": {}})
    for label in [name for name, number in notes["refs"].items() if number < 0]:
        notes["refs"][label] = len(notes["list"])
        notes["list"][len(notes["list"])] = {"label": label[1:], "count": 0}


def _commonmark(before: str, run: str, after: str) -> tuple[bool, bool]:
    """CommonMark's answer to `delimits`."""
    opens, closes = _flanks(before, after)
    if run[0] != "_":
        return opens, closes
    return opens and (not closes or _is_punctuation(before)), closes and (not opens or _is_punctuation(after))


def _flanks(before: str, after: str) -> tuple[bool, bool]:
    """Whether a run of marks is left-flanking and right-flanking (CommonMark 0.31, 6.2)."""
    outer_before, outer_after = not _is_word(before), not _is_word(after)
    left = not _is_blank(after) and (not _is_punctuation(after) or outer_before)
    right = not _is_blank(before) and (not _is_punctuation(before) or outer_after)
    return left, right


def _is_blank(character: str) -> bool:
    return not character or character.isspace()


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character or " ")[0] in "PS"


def _is_word(character: str) -> bool:
    return not _is_blank(character) and not _is_punctuation(character)
