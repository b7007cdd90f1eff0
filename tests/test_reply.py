"""The parser: the same events for any cut of the text, and not a character lost."""

from __future__ import annotations

import random

import pytest

from exaone4_mlx import Answer, ReplyParser, Thinking, ToolCall
from exaone4_mlx.text.reply import Event, _joined, _JsonPrefix

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
F = ToolCall("f", {"x": 1})


def parse(text: str, inside_thought: bool = False, cuts: tuple[int, ...] = ()) -> list[Event]:
    parser = ReplyParser(inside_thought)
    events: list[Event] = []
    for start, stop in zip((0, *cuts), (*cuts, len(text)), strict=True):
        events += parser.feed(text[start:stop])
    return _joined(iter(events + parser.close()))


def told(events: list[Event]) -> list[object]:
    """Events without the wording of problems."""
    return [(event.text, bool(event.problem)) if isinstance(event, Answer) else event for event in events]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("hm\n</think>\n\nyes", [Thinking("hm"), ("yes", False)]),
        ("hm</think>yes", [Thinking("hm"), ("yes", False)]),
        ("hm\n\n</think>\n\n\nyes", [Thinking("hm\n"), ("\nyes", False)]),
        ("</think>\n\nyes", [("yes", False)]),
        ("hm, never ending", [Thinking("hm, never ending")]),
        ("a</think>\n\nb</think>c", [Thinking("a"), ("b</think>c", False)]),
        (f"I could {CALL}\n</think>\n\nno", [Thinking(f"I could {CALL}"), ("no", False)]),
        ("```\n</think>\n```", [Thinking("```"), ("```", False)]),
    ],
)
def test_thoughts(text: str, events: list[object]) -> None:
    assert told(parse(text, inside_thought=True)) == events


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("plain", [("plain", False)]),
        ("no </think> thought was open", [("no </think> thought was open", False)]),
        (f"so: {CALL} done", [("so: ", False), F, (" done", False)]),
        (f"{CALL}\n{CALL}", [F, ("\n", False), F]),
        ('<tool_call>[{"name": "f", "arguments": {"x": 1}}, {"name": "g"}]</tool_call>', [F, ToolCall("g", {})]),
        ('<tool_call>{"name": "f", "arguments": 6}</tool_call>', [ToolCall("f", 6)]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', [F]),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [F]),
        ('<tool_call>{"name": "f", "arguments": "6"}</tool_call>', [ToolCall("f", "6")]),
        ('<tool_call>{"function": {"name": "f", "arguments": {"x": 1}}}</tool_call>', [F]),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}', [F]),
        ("<tool_call>6</tool_call>", [("<tool_call>6</tool_call>", True)]),
        ("<tool_call>[]</tool_call>", [("<tool_call>[]</tool_call>", True)]),
        ("<tool_call>oops</tool_call>z", [("<tool_call>oops</tool_call>", True), ("z", False)]),
        ("<tool_call>oops", [("<tool_call>oops", True)]),
        (
            '<tool_call>{"name": "f", "arguments": NaN}</tool_call>',
            [('<tool_call>{"name": "f", "arguments": NaN}</tool_call>', True)],
        ),
        ('<tool_call>{"name": "\\ud83d"}</tool_call>', [('<tool_call>{"name": "\\ud83d"}</tool_call>', True)]),
        ("ends in <tool_ca", [("ends in <tool_ca", False)]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>!',
            [ToolCall("f", {"x": "</tool_call>"}), ("!", False)],
        ),
        (
            f'<tool_call>{{"name": "f</tool_call> is "broken" but {CALL}',
            [('<tool_call>{"name": "f</tool_call>', True), (' is "broken" but ', False), F],
        ),
        (
            f'<tool_call>{{"x": "</tool_call> {CALL} open',
            [('<tool_call>{"x": "</tool_call>', True), (" ", False), F, (" open", False)],
        ),
    ],
)
def test_calls(text: str, events: list[object]) -> None:
    assert told(parse(text)) == events


def test_problem_says_why_a_text_was_no_call() -> None:
    assert "not JSON" in (parse("<tool_call>oops</tool_call>")[0].problem or "")
    assert "needs a name" in (parse("<tool_call>{}</tool_call>")[0].problem or "")


PIECES = [
    *("<tool_call>", "</tool_call>", "</think>", "<think>", "<", "tool", "</", "\n", " ", "한글", "👩‍👧"),
    *("{", "}", "[", "]", ",", ":", '"', "\\", "\\u00", "1", "-0.5e", "01", "tru", "true", "null"),
    *('{"name": "f"', '"arguments": ', '{"name":"f","arguments":{"x":"'),
]


@pytest.mark.parametrize("inside_thought", [False, True])
def test_any_cut_gives_the_same_events(inside_thought: bool) -> None:
    rng = random.Random(4)
    for _ in range(3000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))
        whole = parse(text, inside_thought)
        cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6))))
        assert parse(text, inside_thought, cuts) == whole, (text, cuts)
        assert parse(text, inside_thought, tuple(range(len(text)))) == whole, text


def test_no_character_is_lost() -> None:
    """Without calls, the texts add up to the reply; the glue of one </think> is all that may go."""
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))
        events = parse(text)
        if not any(isinstance(event, ToolCall) for event in events):
            assert "".join(event.text for event in events) == text


def test_text_comes_as_soon_as_its_meaning_is_clear() -> None:
    parser = ReplyParser(inside_thought=False)
    assert parser.feed("a < b") == [Answer("a < b")]
    assert parser.feed(" <tool") == [Answer(" ")]
    assert parser.feed("box>") == [Answer("<toolbox>")]


def test_long_call_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it again for every piece would take minutes."""
    read = 0
    feed = _JsonPrefix.feed

    def counted(self: _JsonPrefix, text: str) -> None:
        nonlocal read
        read += len(text)
        feed(self, text)

    monkeypatch.setattr(_JsonPrefix, "feed", counted)
    parser = ReplyParser(inside_thought=False)
    parts = ['<tool_call>{"name": "f", "arguments": {"x": "', *["</tool_call> "] * 2000, '"}}</tool_call>']
    events = [event for part in parts for event in parser.feed(part)]
    assert [type(event) for event in events] == [ToolCall]
    assert read <= sum(map(len, parts))
