"""Untrusted Markdown, made safe for notebooks.

Notes:
- `markdown_html` renders without HTML and without pictures. `inert_markdown` is for front ends that render themselves
  and pass HTML on: it breaks everything that could become HTML.
"""

from __future__ import annotations

import re

from ..files.text import HALF
from ..text.format import clean
from ..text.markdown import markdown_parser, portable
from .html import escaped

#: What can begin a tag, an entity, a picture or the URL of a script in Markdown that passes HTML on.
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|!(?=\[)|(?:script|data)(?=\s*\\?:)", re.IGNORECASE)
JOINER = "\u2060"  # WORD JOINER: zero width, and not a letter of any of these
CODE = re.compile(r"((?<!`)`(?!`)[^`]+`(?!`)|(?<!`)``(?!`)[^`]+``(?!`))")  # in a line
FENCE = re.compile(r" *(`{3,}(?=[^`]*$)|~{3,})")


def markdown_html(text: str) -> str:
    """Untrusted Markdown as HTML. Tags are shown as text, script links are removed, and pictures become links."""
    return str(markdown_parser().render(HALF.sub("\ufffd", text)))


def inert_markdown(text: str) -> str:
    """Untrusted Markdown for a front end that passes HTML on. An open code block is closed.

    A zero-width character breaks all that could become a tag, in code too: parsers disagree on what is code.
    """
    fence, lines = "", []
    for line in ACTIVE.sub(lambda found: found[0] + JOINER, HALF.sub("\ufffd", text)).splitlines():
        found = FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence and line.strip().startswith(fence) and not line.strip().strip("`~"):
            fence = ""
        elif not fence:
            line = portable(CODE.split(line))
        lines.append(line)
    return "\n".join([*lines, fence] if fence else lines)


def plain_markdown(text: str) -> str:
    """One line of text without Markdown syntax."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", escaped(" ".join(clean(text).split())))
