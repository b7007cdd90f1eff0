"""Markdown that is still being written is cut into final blocks."""

from __future__ import annotations

import random

import pytest
from chat_terminals import REPLY, cut

from exaone4_mlx.terminal.markdown import PARSER, BlockStream

BLOCKS = [
    "# Sorting 정렬",
    "A paragraph that\nhas two lines.",
    "## Steps",
    "1. First:\n   ```python\n   def f():\n\n       return 1\n   ```\n2. Second",
    *("- loose", "- list"),
    "| a | b |\n|---|---|\n| 1 | 2 |",
    r"\[ a \\ b \]",
    "```\ncode\n\n# no heading\n```",
    "In\n1986. it was so.\n---",
    "The end",
]


def blocks_of(pieces: list[str]) -> list[str]:
    stream = BlockStream()
    return [block for piece in pieces for block in stream.feed(piece)] + stream.close()


def test_any_cut_of_a_reply_gives_the_same_blocks() -> None:
    rng = random.Random(1)
    for pieces in ([REPLY], *(cut(REPLY, rng) for _ in range(50))):
        assert blocks_of(pieces) == BLOCKS


def test_no_line_is_lost_and_a_block_begins_only_where_the_parser_begins_a_block_or_an_item() -> None:
    rng = random.Random(2)
    parts = "  indented|$$|~~~|> quoted|* * *|````|   ```js|- a|  - b|-|1. a|2. b|10) p|    code|>     code|> - a|> ```"
    parts += "|- ```|===|<div>|<!-- a|-->|-   wide|\ttab|[a]: http://x"
    for _ in range(300):
        lines = rng.choices([*REPLY.split("\n"), "", "", "", *parts.split("|")], k=rng.randrange(1, 25))
        tokens = [token for token in PARSER.parse("\n".join(lines)) if token.level == 0 or token.tag == "li"]
        rests = [[line for line in lines[token.map[0] :] if line] for token in tokens if token.map and token.level < 2]
        blocks = blocks_of(cut("\n".join(lines), rng))
        assert blocks == blocks_of(["\n".join(lines)])
        for n in range(len(blocks)):
            assert [line for line in "\n".join(blocks[n:]).split("\n") if line] in rests, (lines, blocks[n])


def test_the_last_block_is_open() -> None:
    stream = BlockStream()
    assert stream.feed("One.\n\n```py\na = 1\nb =") == ["One."]
    assert stream.open == "```py\na = 1\nb ="
    assert stream.close() == ["```py\na = 1\nb ="]
    assert stream.open == ""


def test_a_block_is_final_as_soon_as_it_is_complete() -> None:
    paragraph, quotation, table = "a\n\n", "> a\nb\n\n", "|a|\n|---|\n|1|\n\n"
    for block in ("# A\n", "A\n=\n", "---\n", "```\na\n\n```\n", "$$\na\n$$\n", paragraph, quotation, table):
        stream = BlockStream()
        assert [stream.feed(block[:-1]), stream.feed(block[-1])] == [[], [block.strip("\n")]]


def test_an_item_of_a_loose_list_is_final_when_the_next_item_begins() -> None:
    lists = ["3. a", "4. b", "5. c"], ["- a\n\n  b\n  - c", "- d", "- e"], ["8. a\n9. b", "10. c", "Text"]
    for items in lists:
        stream = BlockStream()
        assert [stream.feed(item + "\n\n") for item in items[:2]] == [[], items[:1]]
        assert stream.feed(items[2] + "\n") == items[1:2]
    assert blocks_of(["1. a\n\n1. b\n\n1. c"]) == ["1. a\n\n1. b\n\n1. c"], "Markdown numbers them 1, 2, 3"


def test_the_number_of_parsed_characters_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(PARSER, "parse", lambda text: parsed.append(text) or type(PARSER).parse(PARSER, text))
    heads = "", "", "", "| a |\n|---|\n", "```\n", "- a\n", "- a\n", ""
    lines = "- item\n", "- item\n\n", "text\n", "| 1 |\n", "a = 1\n", "  - b\n", "lazy\n", "> quote\n"
    for head, line in zip(heads, lines, strict=True):
        parsed.clear()
        blocks_of([head, *[line] * 200])
        assert sum(map(len, parsed)) < 200 * (4 * len(line) + 40), line
