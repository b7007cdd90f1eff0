"""Markdown -> HTML for the page, block by block.

Notes:
- Markdown is that of the whole package (`new_parser`). Its HTML is text, and pictures are links: none is fetched.
- Formulas become MathML, which browsers draw themselves. A formula that cannot be read is shown as its source.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from typing import Any
from xml.etree import ElementTree

from exaone4_mlx.text.markdown import CODE_LANGUAGES, new_parser

from .i18n import Words

HIGHLIGHT_SECONDS = 0.3  # for all code of a text
LONG = 20_000  # characters of code that is highlighted
FORMULA = re.compile(r"^(\$\$|\\\[|\\\(|\$)(.*?)(\$\$|\\\]|\\\)|\$)$", re.DOTALL)  # its delimiters and its text
#: Environments of LaTeX under the name that latex2mathml knows.
ENVIRONMENTS = {
    name: known
    for known, names in {
        "split": "aligned alignedat alignat alignat* flalign flalign* eqnarray eqnarray*",
        "matrix": "gathered gather gather*",
        "cases": "dcases rcases",
    }.items()
    for name in names.split()
}
#: What belongs to the page of a LaTeX document: numbers of equations, and the columns that `alignat` counts.
UNSEEN = re.compile(
    r"\\label\{[^{}]*\}|\\(?:nonumber|notag|limits|nolimits)(?![A-Za-z])|(?<=at\})\{\d+\}|(?<=at\*\})\{\d+\}"
)
FORMULA_ATTRIBUTES = {"display", "displaystyle", "scriptlevel", "mathvariant", "mathcolor", "stretchy", "fence", "form",
    "accent", "accentunder", "columnalign", "columnspacing", "rowspacing", "columnlines", "rowlines", "linethickness",
    "width", "height", "depth", "notation", "separator", "minsize", "maxsize", "lspace", "rspace"}  # fmt: skip


def blocks(text: str, words: Words) -> Iterator[str]:
    """The top-level blocks of Markdown as HTML."""
    parser = _parser()
    environment: dict[str, Any] = {
        "words": words,
        "deadline": time.thread_time() + HIGHLIGHT_SECONDS,
        "docId": f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):x}",  # of its footnotes
    }
    block: list[Any] = []
    depth = 0
    for token in parser.parse(text, environment):
        block.append(token)
        depth += token.nesting
        if not depth:
            yield parser.renderer.render(block, parser.options, environment)
            block = []


@cache
def _parser() -> Any:
    parser: Any = new_parser(formula_token="formula")
    parser.disable("reference")  # the line of a definition would not be shown
    parser.enable("image")
    for name, rule in {
        "fence": _fence,
        "code_block": _fence,
        "formula": _formula,
        "link_open": _link,
        "image": _picture,
        "table_open": lambda *_: '<div class="table" tabindex="0"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }.items():
        parser.renderer.rules[name] = rule
    return parser


def _fence(tokens: Any, index: int, _options: Any, environment: Mapping[str, Any]) -> str:
    """A code block with its language, its highlighting and its buttons."""
    words, token = environment["words"], tokens[index]
    language = token.info.split()[0] if token.info.strip() else ""
    buttons = f'<button type="button" data-do="copy-code">{escape(words("copy_code"))}</button>'
    if language.lower() in ("html", "svg"):
        buttons = f'<button type="button" data-do="preview">{escape(words("preview"))}</button>' + buttons
    kind = "code mermaid" if language.lower() == "mermaid" else "code"
    if kind != "code":  # the page draws it
        buttons = (
            f'<button type="button" class="show-code" data-do="show-code">{escape(words("show_code"))}</button>'
            + buttons
        )
    head = f'<div class="code-head"><span>{escape(language)}</span>{buttons}</div>'
    code = _highlighted(token.content, language, environment["deadline"])
    return f'<div class="{kind}">{head}<pre tabindex="0"><code>{code}</code></pre></div>\n'


def _highlighted(code: str, language: str, deadline: float) -> str:
    """Code as HTML, with Pygments' classes where it is done before `deadline`, in CPU time of this thread."""
    if language.lower() not in CODE_LANGUAGES or len(code) > LONG:
        return escape(code)
    from pygments import format
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    tokens = []
    for token in get_lexer_by_name(language, stripnl=False, ensurenl=False).get_tokens(code):
        if time.thread_time() > deadline:
            return escape(code)
        tokens.append(token)
    return str(format(tokens, HtmlFormatter(nowrap=True)))


def highlighting_css() -> str:
    """Pygments' colours, for the light and the dark theme."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style) for style in ("xcode", "github-dark"))
    rules = [light.get_style_defs("#chat .code code"), dark.get_style_defs(".dark #chat .code code")]
    colours = [line for rule in rules for line in rule.splitlines() if " code ." in line and "color" in line]
    return "\n".join(re.sub(r"background-color: [^;}]*;?", "", line) for line in colours)


def _link(tokens: Any, index: int, _options: Any, _environment: Any) -> str:
    address = escape(str(tokens[index].attrGet("href") or ""))
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">'


def _picture(tokens: Any, index: int, _options: Any, _environment: Any) -> str:
    """A link: a page that fetched pictures would say to their server who reads this."""
    address = str(tokens[index].attrGet("src") or "")
    link = f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer nofollow">'
    return f"{link}🖼 {escape(tokens[index].content or address)}</a>"


def _formula(tokens: Any, index: int, _options: Any, _environment: Any) -> str:
    return mathml(tokens[index].content)


def mathml(source: str) -> str:
    r"""A formula with its delimiters (`\(x\)`, `$x$`, `\[x\]`, `$$x$$`, or an environment) as MathML."""
    import latex2mathml.converter

    parts = FORMULA.match(source)
    latex, is_block = (parts[2], parts[1] in ("$$", r"\[")) if parts else (source, source.startswith(r"\begin"))
    latex = UNSEEN.sub("", latex)
    latex = re.sub(r"\\(begin|end)\{(\w+\*?)\}", lambda m: rf"\{m[1]}{{{ENVIRONMENTS.get(m[2], m[2])}}}", latex)
    try:
        made = latex2mathml.converter.convert(latex, display="block" if is_block else "inline")
        tree = ElementTree.fromstring(made)
    except Exception:  # of any kind: a model can write any formula
        return f'<code class="formula">{escape(source)}</code>'
    for element in tree.iter():
        for name in set(element.attrib) - FORMULA_ATTRIBUTES:
            del element.attrib[name]
    return ElementTree.tostring(tree, encoding="unicode").replace("ns0:", "").replace("xmlns:ns0", "xmlns")
