"""Untrusted Markdown, made safe for notebooks.

Notes:
- `markdown_html` renders without HTML and without pictures. `inert_markdown` is for front ends that render themselves
  and pass HTML on: it breaks everything that could become HTML.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from ..text.format import clean
from .html import HALF, escaped

FORMULAS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"))
#: What can begin a tag, an entity, a picture or the URL of a script in Markdown that passes HTML on.
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|!(?=\[)|(?:script|data)(?=\s*\\?:)", re.IGNORECASE)
JOINER = "\u2060"  # WORD JOINER: zero width, and not a letter of any of these
FENCE = re.compile(r" *(`{3,}(?=[^`]*$)|~{3,})")


def markdown_html(text: str) -> str:
    """Untrusted Markdown as HTML. Tags are shown as text, script links are removed, and pictures become links."""
    return _markdown_parser().render(HALF.sub("\ufffd", text))


@functools.cache
def _markdown_parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


def _formula(state: Any, silent: bool) -> bool:
    """Leaves formulas to the front end: Markdown would remove their backslashes."""
    for begin, end in FORMULAS:
        if state.src.startswith(begin, state.pos) and (stop := state.src.find(end, state.pos + 2)) >= 0:
            if not silent:
                state.push("text", "", 0).content = state.src[state.pos : stop + 2]
            state.pos = stop + 2
            return True
    return False


def inert_markdown(text: str) -> str:
    """Untrusted Markdown for a front end that passes HTML on. An open code block is closed.

    A zero-width character breaks all that could become a tag, in code too: parsers disagree on what is code.
    """
    fence = ""
    for line in text.splitlines():
        found = FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence and line.strip().startswith(fence) and not line.strip().strip("`~"):
            fence = ""
    text = ACTIVE.sub(lambda found: found[0] + JOINER, HALF.sub("\ufffd", text))
    return f"{text}\n{fence}" if fence else text


def plain_markdown(text: str) -> str:
    """One line of text without Markdown syntax."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", escaped(" ".join(clean(text).split())))
