"""Inspected tokens and trees of next tokens -> HTML.

Notes:
- Shades of one colour are half transparent, so that they show on any theme. The probability is written beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

from .html import FAINT, GREY, escaped, percent_text, table_html, visible
from .tokens import InspectedTokens, TokenRow
from .tree import TokenNode, TokenTree

SURPRISE = "213,94,0"  # Okabe and Ito's vermillion
MOST_BITS = 10  # bits of surprise of the darkest shade
PROMPT_END = 20  # characters


def tokens_html(found: InspectedTokens) -> str:
    """The tokens in a row, each with its probability below, and a folded table of them."""
    cells = "".join(map(_token_cell, found.rows))
    scale = "".join(
        f'<span style="padding:0 .6em;background:{_shade(bits)}">{bits}{"+" * (bits == MOST_BITS)}</span>'
        for bits in (0, 1, 2, 5, MOST_BITS)
    )
    head = ("position", "id", "token", "probability", "surprise (bits)", "rank", "entropy (bits)", "most probable")
    rows = [_token_line(place, row) for place, row in enumerate(found.rows)]
    return (
        f'<div><div style="line-height:1.3">{cells}</div>'
        f'<div style="font-size:85%;margin:.5em 0">below each token: its probability; shade: surprise in bits {scale} '
        f"· {len(found):,} tokens, {found.mean_surprise_bits:.2f} bits each</div>"
        f'<details><summary style="cursor:pointer">Tokens and predictions</summary>{table_html(head, rows)}'
        "</details></div>"
    )


def _token_cell(row: TokenRow) -> str:
    bits = row.surprise_bits
    probability = "–" if row.probability is None else percent_text(row.probability)
    title = f"id {row.id}"
    if row.entropy_bits is not None:
        expected = ", ".join(f"{visible(other.text)} {percent_text(other.probability)}" for other in row.alternatives)
        title += f" · {bits:.2f} bits of surprise, {row.entropy_bits:.2f} of entropy · expected: {expected}"
    completes = f" → {visible(row.completes)}" if row.completes else ""
    return (
        f'<span title="{escaped(title)}" style="display:inline-block;text-align:center;margin:1px;padding:1px 4px;'
        f'border:1px solid {GREY};border-radius:3px;background:{_shade(bits or 0)}">'
        f'<span style="font-family:monospace">{escaped(visible(row.text) + completes)}</span><br>'
        f'<span style="font-size:75%">{probability}</span></span>'
    )


def _token_line(place: int, row: TokenRow) -> tuple[str, ...]:
    token = visible(row.text) + (f" → {visible(row.completes)}" if row.completes else "")
    if row.probability is None or row.surprise_bits is None:
        return (str(place), str(row.id), token, "–", "–", "–", "–", "")
    others = "  ".join(f"{visible(other.text)} {percent_text(other.probability)}" for other in row.alternatives)
    return (
        str(place),
        str(row.id),
        token,
        percent_text(row.probability),
        f"{row.surprise_bits:.2f}",
        str(row.rank),
        f"{row.entropy_bits:.2f}",
        others,
    )


def _shade(bits: float) -> str:
    return f"rgba({SURPRISE},{0.6 * min(bits, MOST_BITS) / MOST_BITS:.2f})"


def tree_html(tree: TokenTree) -> str:
    """From left to right: each token with its probability, and the tokens that may follow it."""
    return (
        f'<div><div style="display:flex;align-items:center">{_prompt_end(tree.prompt)}'
        f"{_nodes_html(tree.children)}</div>"
        '<div style="font-size:85%;margin:.4em 0">after the end of the prompt: each token with its probability after '
        "those to its left; the bar shows it, too</div></div>"
    )


def _prompt_end(prompt: str) -> str:
    end = visible(prompt)
    end = end if len(end) <= PROMPT_END else "…" + end[1 - PROMPT_END :]
    return (
        f'<span title="the end of the prompt" style="padding:1px 6px;margin-right:4px;border:1px dashed {GREY};'
        f'border-radius:3px;white-space:nowrap;font-family:monospace">{escaped(end)}</span>'
    )


def _nodes_html(nodes: Sequence[TokenNode]) -> str:
    return f'<div style="display:flex;flex-direction:column">{"".join(map(_node_html, nodes))}</div>'


def _node_html(node: TokenNode) -> str:
    percent = 100 * node.probability
    end = ' <span style="font-size:85%">(end)</span>' if node.ends_turn else ""
    return (
        f'<div style="display:flex;align-items:center;border-left:1px solid {GREY};padding:1px 0 1px 4px">'
        f'<span style="min-width:9em;padding:1px 6px;margin-right:4px;border:1px solid {GREY};border-radius:3px;'
        f"background:linear-gradient(to right,rgba(86,180,233,.45) {percent:.1f}%,{FAINT} {percent:.1f}%);"
        f'white-space:nowrap"><span style="font-family:monospace">{escaped(visible(node.text))}</span>{end} '
        f'<span style="font-size:80%;float:right;padding-left:1em">{percent_text(node.probability)}</span></span>'
        f"{_nodes_html(node.children) if node.children else ''}</div>"
    )
