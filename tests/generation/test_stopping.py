"""The conditions that end a reply or its thought: limits, stop strings, loops."""

from __future__ import annotations

import random

import pytest

from exaone4_mlx import Answer, ToolCall
from exaone4_mlx.generation.stopping import LoopDetector, StopStrings, thought_limit


def test_text_held_back_for_a_stop_string_follows_at_the_end() -> None:
    stops = StopStrings(["abcd"])
    events = [*stops.filter([Answer("xab"), Answer("c")]), *stops.close()]
    assert "".join(event.text for event in events) == "xabc"
    order = [*StopStrings(["abc"]).filter([Answer("ab"), ToolCall("f", {}), Answer("c")])]
    assert order == [Answer("ab"), ToolCall("f", {}), Answer("c")]


@pytest.mark.parametrize("stops", [("abcd", "bc"), ("bc", "abcd"), ("abc", "bc"), ("b", "c")])
def test_stop_strings_end_at_the_same_position_for_any_split(stops: tuple[str, ...]) -> None:
    def text_of(pieces: list[str]) -> str:
        strings = StopStrings(stops)
        return "".join(event.text for event in [*strings.filter(map(Answer, pieces)), *strings.close()])

    for text in ("xabcdx", "abc", "ab", "aabbccdd"):
        assert text_of([text]) == text_of(list(text)) == text_of([text[:2], text[2:]]), text


# --- loops --------------------------------------------------------------------


def detected_after(ids: list[int]) -> int | None:
    """The number of tokens after which the loop was detected."""
    detector = LoopDetector()
    return next((i + 1 for i, id in enumerate(ids) if detector.add(id)), None)


@pytest.mark.parametrize("block", [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 257, 512])
@pytest.mark.parametrize("before", [0, 7, 1000])
def test_a_loop_is_detected_soon_after_eight_copies(block: int, before: int) -> None:
    rng = random.Random(block)
    unit = [rng.randrange(100_000) for _ in range(block)]
    detected = detected_after([rng.randrange(100_000) for _ in range(before)] + unit * (6000 // block))
    least = before + max(8 * block, 512)
    assert detected is not None
    assert least <= detected < least + 32


def test_a_loop_is_detected_if_its_block_repeats_a_part() -> None:
    """The nearest match of the last tokens is inside the block then."""
    rng = random.Random(3)
    part = [rng.randrange(1000) for _ in range(20)]
    assert detected_after([*part, 1, *part, 2] * 40) is not None


@pytest.mark.parametrize(
    "ids",
    [
        random.Random(1).choices(range(50), k=8000),
        list(range(8000)),
        [
            token for i in range(1000) for token in (1, 2, 3, 4, 5 + i, 6, 7)
        ],  # a table: similar rows with one number each
        [token for i in range(400) for token in [9] * 20 + [i]],
        [7] * 500,
        [token for _ in range(7) for token in range(300)],  # seven copies of a paragraph
    ],
    ids=["noise", "counting", "table", "lines", "500 times the same", "seven copies"],
)
def test_lists_and_tables_are_not_loops(ids: list[int]) -> None:
    assert detected_after(ids) is None


# --- limits -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "max_tokens", "limit"),
    [(100, 8192, 100), (9000, 8192, 8192 - 10 - 512), (9000, 1000, 1000 - 10 - 250), (0, 100, 0), (50, 12, -1)],
)
def test_the_answer_has_a_quarter_and_at_most_512_tokens_reserved(budget: int, max_tokens: int, limit: int) -> None:
    assert thought_limit(budget, max_tokens, wrap_up=10) == limit
