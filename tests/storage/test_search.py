"""The place of a search in a conversation, with `storage.search`."""

from __future__ import annotations

import unicodedata

import pytest

from exaone4_mlx.storage.conversation import Conversation
from exaone4_mlx.storage.search import LENGTH, marked, place

MESSAGES = [
    {"role": "system", "content": "Lima is secret."},
    {"role": "user", "content": "페루의 수도는 어디인가요?"},
    {"role": "assistant", "content": "The capital of Perú is Lima."},
    {"role": "tool", "content": {"city": "Lima"}},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "And the capital of Italy? " + "So far. " * 60 + "Rome, I think, not LIMA."},
]


@pytest.mark.parametrize(
    ("query", "message", "found"),
    [
        ("lima", 2, ["Lima"]),  # neither the system prompt nor a tool's result
        ("capital rome", 5, ["capital"]),  # the message with both words, from the first of them on
        ("PERU\u0301 capital", 2, ["capital", "Perú"]),
        (unicodedata.normalize("NFD", "수도"), 1, ["수도"]),
        ("LIMA quito", 2, ["Lima"]),
    ],
)
def test_the_place_is_the_first_message_with_most_of_the_words(query: str, message: int, found: list[str]):
    place_found = place(Conversation("", messages=MESSAGES), query)
    assert (place_found["message"], place_found["hidden"]) == (message, False)
    assert place_found["snippet"][1::2] == found


def test_words_of_the_title_alone_have_no_place_in_the_messages():
    conversation = Conversation("", messages=MESSAGES)
    assert place(conversation, "quito") == {} == place(conversation, "")


def test_what_another_branch_says_is_found_at_the_message_in_whose_place_it_stands():
    """Positions of branches count after the system prompt, and a branch of a branch is where its parent is."""
    branches = [
        {"parent": 1, "at": 3, "place": 0, "dropped": 0, "messages": [{"role": "assistant", "content": "Quito and Lima"}]},
        {"parent": None, "at": 1, "place": 0, "dropped": 0, "messages": [{"role": "assistant", "content": "Bogotá"}] * 4},
    ]  # fmt: skip
    conversation = Conversation("", messages=MESSAGES, branches=branches)
    assert place(conversation, "quito") == {"message": 2, "hidden": True, "snippet": ["", "Quito", " and Lima"]}
    assert place(conversation, "quito lima")["snippet"][1::2] == ["Quito", "Lima"], "it has both words"
    assert place(conversation, "lima")["hidden"] is False


@pytest.mark.parametrize(
    ("text", "query", "parts"),
    [
        ("Lima", "lima", ["", "Lima", ""]),
        ("In der Straße.", "STRASSE", ["In der ", "Straße", "."]),
        ("İstanbul and more", "and", ["İstanbul ", "and", " more"]),  # its first letter is two in lower case
        (unicodedata.normalize("NFD", "제주도 여행 계획"), "여행", ["제주도 ", "여행", " 계획"]),
        ("banana", "ana an", ["b", "ana", "", "n", "a"]),
        ("one\n\n two\tthree", "two", ["one ", "two", " three"]),
        ("<b>bold</b>", "b>", ["<", "b>", "bold</", "b>", ""]),
        ("", "x", [""]),
    ],
)
def test_found_words_are_marked_where_the_reader_sees_them(text: str, query: str, parts: list[str]):
    assert marked(text, query) == parts


def test_a_snippet_is_short_and_begins_near_the_first_word():
    text = "word " * 400 + "needle " + "word " * 400
    parts = marked(text, "needle", LENGTH)
    assert parts[0].startswith("…word") and parts[1] == "needle" and parts[-1].endswith("…")
    assert 0.8 * LENGTH < sum(map(len, parts)) <= LENGTH + 2
    assert marked("x" * 500 + "needle", "needle", LENGTH)[1] == "needle"
