"""Markdown that is still being written is cut into final blocks."""

from __future__ import annotations

import random

from chat_terminals import REPLY, cut

from exaone4_mlx.terminal.markdown import BlockStream

BLOCKS = [
    "# Sorting 정렬",
    "A paragraph that\nhas two lines.",
    "## Steps",
    "1. First:\n   ```python\n   def f():\n\n       return 1\n   ```\n2. Second",
    "- loose\n\n- list",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    r"\[ a \\ b \]",
    "```\ncode\n\n# no heading\n```",
    "In\n1986. it was so.\n---",
    "The end",
]


def blocks_of(pieces: list[str]) -> list[str]:
    stream = BlockStream()
    return [block for piece in pieces for block in stream.feed(piece)] + stream.close()


def test_a_reply_is_cut_into_blocks() -> None:
    assert blocks_of([REPLY]) == BLOCKS


def test_any_cut_of_the_text_gives_the_same_blocks() -> None:
    rng = random.Random(1)
    for _ in range(50):
        assert blocks_of(cut(REPLY, rng)) == BLOCKS


def test_no_line_is_lost() -> None:
    rng = random.Random(2)
    lines = [*REPLY.split("\n"), "", "  indented", "$$", "~~~", "> quoted", "* * *", "````", "   ```js"]
    for _ in range(300):
        text = "\n".join(rng.choices(lines, k=rng.randrange(1, 25)))
        blocks = blocks_of(cut(text, rng))
        assert [line for line in "\n".join(blocks).split("\n") if line.strip()] == [
            line for line in text.split("\n") if line.strip()
        ]


def test_the_last_block_is_open() -> None:
    stream = BlockStream()
    assert stream.feed("One.\n\n```py\na = 1\nb =") == ["One."]
    assert stream.open == "```py\na = 1\nb ="
    assert stream.close() == ["```py\na = 1\nb ="]
    assert stream.open == ""


def test_a_link_definition_before_a_block_gives_the_same_blocks_in_pieces() -> None:
    assert blocks_of(["[a]: http://x\n---\nText\n\n"]) == blocks_of(["[a]: http://x\n", "---\n", "Text\n", "\n"])
