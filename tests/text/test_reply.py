"""The parser: the same events for any cut of the text, and not a character lost."""

from __future__ import annotations

import random

import pytest

from exaone4_mlx import Answer, ReplyParser, Thinking, Tokenizer, ToolCall
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.text.events import Event
from exaone4_mlx.text.json_prefix import JsonPrefix
from exaone4_mlx.text.reply import CALL_END, CALL_START, VALUE_ONLY, join_events, read_calls

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
F = ToolCall("f", {"x": 1})


def parse(text: str, inside_thought: bool = False, cuts: tuple[int, ...] = ()) -> list[Event]:
    parser = ReplyParser(inside_thought)
    events: list[Event] = []
    for start, stop in zip((0, *cuts), (*cuts, len(text)), strict=True):
        events += parser.feed(text[start:stop])
    return join_events(iter(events + parser.close()))


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


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("", "not JSON: Expecting value"),
        ("oops", "not JSON: Expecting value"),
        ("f(x=1)", "not JSON: Expecting value"),
        ("{'name': 'f'}", "not JSON: Expecting property name"),
        ('{name: "f"}', "not JSON: Expecting property name"),
        ('{"name": "f", "arguments": {"x": 1,}}', "not JSON: "),
        ('{"name": "f" "arguments": {}}', "not JSON: Expecting ',' delimiter"),
        ('{"name": "f", "arguments": {"x": 1}', "not JSON: Expecting ',' delimiter"),
        ('{"name": "f", "arguments": {"x": 1}}}', "not JSON: Extra data"),
        ('{"name": "f"}\n{"name": "g"}', "not JSON: Extra data"),
        ('```json\n{"name": "f"}\n```', "not JSON: Expecting value"),
        ('{"name": "f", "arguments": {"x": 01}}', "not JSON: "),
        ('{"name": "f", "arguments": {"x": True}}', "not JSON: Expecting value"),
        ('{"name": "f", "arguments": {"x": Infinity}}', "not JSON: Infinity is not a JSON value"),
        ('{"name": "f", "arguments": {"x": "\\q"}}', "not JSON: Invalid"),
        ('{"name": "f", "arguments": {"x": "\\ud83d"}}', "not JSON: "),
        ('{"name": "f", "arguments": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ("[" * 100_000, "not JSON: "),
        ("6", VALUE_ONLY),
        ('"f"', VALUE_ONLY),
        ("null", VALUE_ONLY),
        ("{}", "a call needs a name"),
        ('{"name": ""}', "a call needs a name"),
        ('{"name": 3, "arguments": {}}', "a call needs a name"),
        ('{"tool": "f", "arguments": {}}', "a call needs a name"),
        ('{"function": "f", "arguments": {}}', "a call needs a name"),
        ('[{"name": "f"}, 6]', VALUE_ONLY),
        ("[]", "an empty list of calls"),
        ('<tool_call>{"name": "f"}', "not JSON: Expecting value"),
    ],
    ids=lambda text: text[:40],
)
def test_malformed_call_comes_back_verbatim_with_the_reason(body: str, problem: str) -> None:
    for written in (f"{CALL_START}{body}{CALL_END}", f"{CALL_START}{body}"):
        events = parse(written)
        assert [event.text for event in events if isinstance(event, Answer)] == [written]
        assert str(events[0].problem).startswith(problem)
    assert [event.text for event in parse(f"so {CALL_START}{body}{CALL_END} yes{CALL}")[:3]] == [
        "so ",
        f"{CALL_START}{body}{CALL_END}",
        " yes",
    ], "what stands around it is answer as before"


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (' \n{"name": "f", "arguments": {"x": 1}}\n ', [F]),
        ('{"arguments": {"x": 1}, "name": "f", "id": 7}', [F]),
        ('{"name": "f", "arguments": null}', [ToolCall("f", {})]),
        ('{"name": "f"}', [ToolCall("f", {})]),
        ('{"name": "f", "arguments": [1]}', [ToolCall("f", [1])]),
        ('{"name": "f", "arguments": "{broken"}', [ToolCall("f", "{broken")]),
        ('{"name": "f", "arguments": {"x": 0, "x": 1}}', [F]),
        ('{"name": "f", "arguments": {"x": "a\nb\tc"}}', [ToolCall("f", {"x": "a\nb\tc"})]),
        ('{"name": "f", "arguments": {"x": "\\ud83d\\ude00"}}', [ToolCall("f", {"x": "😀"})]),
        ('{"name": "날씨", "arguments": {"도시": "서울"}}', [ToolCall("날씨", {"도시": "서울"})]),
        ('[{"name": "f", "arguments": {"x": 1}}, {"function": {"name": "f", "parameters": {"x": 1}}}]', [F, F]),
    ],
)
def test_careless_call_is_still_a_call(body: str, calls: list[ToolCall]) -> None:
    """Whatever has one meaning only is read: raw newlines in strings, keys in any order, calls in a list."""
    assert parse(f"{CALL_START}{body}{CALL_END}") == calls
    assert parse(f"{CALL_START}{body}") == calls, "also where the reply ends before the tag is closed"


PIECES = [
    *("<tool_call>", "</tool_call>", "</think>", "<think>", "<", "tool", "</", "\n", " ", "한글", "👩‍👧"),
    *("{", "}", "[", "]", ",", ":", '"', "\\", "\\u00", "1", "-0.5e", "01", "tru", "true", "null"),
    *('{"name": "f"', '"arguments": ', '{"name":"f","arguments":{"x":"'),
]


@pytest.mark.parametrize("inside_thought", [False, True])
def test_any_cut_gives_the_same_events(inside_thought: bool) -> None:
    rng = random.Random(4)
    for _ in range(1500):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))
        whole = parse(text, inside_thought)
        cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6))))
        assert parse(text, inside_thought, cuts) == whole, (text, cuts)
        assert parse(text, inside_thought, tuple(range(len(text)))) == whole, text


def rebuilt(events: list[Event], text: str, inside_thought: bool) -> bool:
    """Whether the events account for every character of `text`, in order.

    Beside texts only what has become something else may stand: the tags and body of calls that say the same,
    and the tag and glue that end a thought.
    """
    at, left = 0, list(events)
    while left:
        if inside_thought and not isinstance(left[0], Thinking):
            at, inside_thought = after_thought(text, at), False
        if isinstance(left[0], ToolCall):
            at, count = after_call(text, at, left)
            left = left[count:]
            if not count:
                return False
        else:
            said = left.pop(0).text
            if not text.startswith(said, at):
                return False
            at += len(said)
    return (after_thought(text, at) if inside_thought else at) == len(text)


def after_call(text: str, at: int, events: list[Event]) -> tuple[int, int]:
    """Where the tag at `at` ends, and how many of the events it says: 0 where it says others, or none."""
    if text.startswith(CALL_START, at):
        begin = at + len(CALL_START)
        ends = [end for end in range(begin, len(text)) if text.startswith(CALL_END, end)]
        for end in [*ends, len(text)]:
            calls = read_calls(text[begin:end])[0]
            if calls and calls == events[: len(calls)]:
                return min(end + len(CALL_END), len(text)), len(calls)
    return at, 0


def after_thought(text: str, at: int) -> int:
    """Where the answer begins, behind a tag that ends the thought at `at`."""
    at += text.startswith("\n</think>", at)
    at += len("</think>") * text.startswith("</think>", at)
    return at + text.startswith("\n", at) + text.startswith("\n\n", at)


def random_text(rng: random.Random, longest: int = 25) -> str:
    """Tags, pieces of JSON and of anything else, in any order; now and then a character of any kind."""
    pieces = rng.choices([*PIECES, CALL, CALL_START, ""], k=rng.randrange(longest))
    return "".join(
        piece or chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for piece in pieces
    )


def fuzz(seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        text, inside_thought = random_text(rng), seed % 2 == 0
        whole = parse(text, inside_thought)
        cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6))))
        assert parse(text, inside_thought, cuts) == whole, (text, cuts)
        assert rebuilt(whole, text, inside_thought), (text, whole)


def test_random_texts_lose_nothing_however_they_are_cut() -> None:
    fuzz(range(3000))


@pytest.mark.heavy
def test_hundred_thousand_random_texts_lose_nothing_however_they_are_cut() -> None:
    fuzz(range(3000, 103_000))


def test_lost_characters_are_seen() -> None:
    """The check of the fuzz itself: drop any character of any event, and it notices."""
    text = f"hm\n</think>\n\nyes {CALL}<tool_call>no</tool_call>."
    events = parse(text, inside_thought=True)
    assert [type(event) for event in events] == [Thinking, Answer, ToolCall, Answer, Answer]
    assert rebuilt(events, text, True)
    for index, event in enumerate(events):
        missing = [*events[:index], *events[index + 1 :]]
        assert not rebuilt(missing, text, True), f"without {event}"
        if not isinstance(event, ToolCall):
            for short in (event.text[1:], event.text[:-1]):
                changed = Answer(short) if isinstance(event, Answer) else Thinking(short)
                assert not rebuilt([*events[:index], changed, *events[index + 1 :]], text, True)


# --- bytes --------------------------------------------------------------------

KOREAN = "생각: 뷁\n</think>\n\n안녕하세요 👩‍👩‍👧 🇰🇷"
KOREAN_CALL = '<tool_call>{"name": "날씨", "arguments": {"도시": "서울 🌧️"}}</tool_call>끝 ½'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(DEMO_FOLDER)


def test_characters_cut_at_every_byte_come_out_whole(tokenizer: Tokenizer) -> None:
    """As tokens of one byte each, fed one by one: no piece of text holds a broken character."""
    byte_id = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    text = KOREAN + KOREAN_CALL
    decoder, parser = tokenizer.stream_decoder(), ReplyParser(inside_thought=True)
    events: list[Event] = []
    for byte in text.encode():
        events += parser.feed(decoder.feed(byte_id[bytes([byte])]))
        assert "\ufffd" not in "".join(event.text for event in events if not isinstance(event, ToolCall))
    events += [*parser.feed(decoder.close()), *parser.close()]
    assert join_events(iter(events)) == [
        Thinking("생각: 뷁"),
        Answer("안녕하세요 👩‍👩‍👧 🇰🇷"),
        ToolCall("날씨", {"도시": "서울 🌧️"}),
        Answer("끝 ½"),
    ]


def test_one_cut_at_any_byte_changes_nothing(tokenizer: Tokenizer) -> None:
    """Where a token ends inside a character, its first bytes wait for the others."""
    byte_id = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    octets = (KOREAN + KOREAN_CALL).encode()
    whole = parse(octets.decode(), inside_thought=True)
    for cut in range(len(octets) + 1):
        decoder, parser = tokenizer.stream_decoder(), ReplyParser(inside_thought=True)
        events: list[Event] = []
        for half in (octets[:cut], octets[cut:]):
            events += parser.feed("".join(decoder.feed(byte_id[bytes([byte])]) for byte in half))
        assert decoder.close() == "", f"cut before byte {cut}"
        assert join_events(iter(events + parser.close())) == whole, f"cut before byte {cut}"


def test_reply_that_ends_inside_a_character_says_so(tokenizer: Tokenizer) -> None:
    byte_id = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    decoder, parser = tokenizer.stream_decoder(), ReplyParser(inside_thought=False)
    events = [event for byte in "ok 뷁".encode()[:-1] for event in parser.feed(decoder.feed(byte_id[bytes([byte])]))]
    events += [*parser.feed(decoder.close()), *parser.close()]
    assert join_events(iter(events)) == [Answer("ok \ufffd")]


# --- in good time -------------------------------------------------------------


def test_text_comes_as_soon_as_its_meaning_is_clear() -> None:
    parser = ReplyParser(inside_thought=False)
    assert parser.feed("a < b") == [Answer("a < b")]
    assert parser.feed(" <tool") == [Answer(" ")]
    assert parser.feed("box>") == [Answer("<toolbox>")]


def test_long_call_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it again for every piece would take minutes."""
    read = 0
    feed = JsonPrefix.feed

    def counted(self: JsonPrefix, text: str) -> None:
        nonlocal read
        read += len(text)
        feed(self, text)

    monkeypatch.setattr(JsonPrefix, "feed", counted)
    parser = ReplyParser(inside_thought=False)
    parts = ['<tool_call>{"name": "f", "arguments": {"x": "', *["</tool_call> "] * 2000, '"}}</tool_call>']
    events = [event for part in parts for event in parser.feed(part)]
    assert [type(event) for event in events] == [ToolCall]
    assert read <= sum(map(len, parts))
