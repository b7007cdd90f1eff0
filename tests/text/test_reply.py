"""The reply parser: any cut of the text gives the same events, and no character is lost."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest

from exaone4_mlx import Answer, ReplyParser, Thinking, Tokenizer, ToolCall
from exaone4_mlx.text.calls import VALUE_ONLY, arguments_text, read_calls
from exaone4_mlx.text.events import CallPart, Event
from exaone4_mlx.text.json_prefix import JsonPrefix
from exaone4_mlx.text.reply import CALL_END, CALL_START, LoopDetector, StopStrings, join_events

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
RICH = '<tool_call>{"name":"g", "arguments":{"a":[1,-2.50,{"b":null}],\n"c":"\\u00e9\\ud83d\\ude00\\t","d":{}}}</tool_call>'
F = ToolCall("f", {"x": 1})


def parse(text: str, inside_thought: bool = False, cuts: tuple[int, ...] = (), call_parts: bool = False) -> list[Event]:
    parser = ReplyParser(inside_thought, call_parts=call_parts)
    events: list[Event] = []
    for start, stop in zip((0, *cuts), (*cuts, len(text)), strict=True):
        events += parser.feed(text[start:stop])
    return join_events(iter(events + parser.close()))


def without_wording(events: list[Event]) -> list[object]:
    """Events, with a problem as true or false."""
    return [(event.text, bool(event.problem)) if isinstance(event, Answer) else event for event in events]


THOUGHTS = [
    ("hm\n</think>\n\nyes", [Thinking("hm"), ("yes", False)]),
    ("hm</think>yes", [Thinking("hm"), ("yes", False)]),
    ("hm\n\n</think>\n\n\nyes", [Thinking("hm\n"), ("\nyes", False)]),
    ("</think>\n\nyes", [("yes", False)]),
    ("hm, never ending", [Thinking("hm, never ending")]),
    ("a</think>\n\nb</think>c", [Thinking("a"), ("b</think>c", False)]),
    (f"I could {CALL}\n</think>\n\nno", [Thinking(f"I could {CALL}"), ("no", False)]),
    ("```\n</think>\n```", [Thinking("```"), ("```", False)]),
]


def test_thoughts() -> None:
    for text, events in THOUGHTS:
        assert without_wording(parse(text, inside_thought=True)) == events, text


CALLS = [
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
]


def test_calls() -> None:
    for text, events in CALLS:
        assert without_wording(parse(text)) == events, text


MALFORMED = [
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
    ("[" * 100_000, "nested too deeply"),
    ('{"name": "f", "arguments": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply: more than 100 levels"),
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
]


def test_the_text_of_a_malformed_call_becomes_answer_text_with_the_reason() -> None:
    for body, problem in MALFORMED:
        for written in (f"{CALL_START}{body}{CALL_END}", f"{CALL_START}{body}"):
            events = parse(written)
            assert [event.text for event in events if isinstance(event, Answer)] == [written]
            assert str(events[0].problem).startswith(problem), body[:40]
        around = parse(f"so {CALL_START}{body}{CALL_END} yes{CALL}")
        assert [event.text for event in around[:3]] == ["so ", f"{CALL_START}{body}{CALL_END}", " yes"], body[:40]


CARELESS = [
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
]


def test_a_careless_call_is_a_call() -> None:
    """A body with one possible meaning is read: raw newlines in strings, keys in any order, calls in a list."""
    for body, calls in CARELESS:
        assert parse(f"{CALL_START}{body}{CALL_END}") == calls, body
        assert parse(f"{CALL_START}{body}") == calls, "also if the reply ends before the tag is closed"


def test_arguments_are_events_while_they_are_written() -> None:
    def parts(body: str) -> list[tuple[str, str]]:
        found = parse(CALL_START + body + CALL_END, call_parts=True)
        return [(event.name, event.arguments) for event in found if isinstance(event, CallPart)]

    head = '{"name": "f", "arguments": '
    for body, pieces in (
        (head + '{"x": 1}}', '{"x": 1'),  # the last brace waits for the end of the call
        (
            ' {"name":"f" ,"arguments" : {"x":1e2,"y":[ ],"z":{"한":"\\ud55c\\n\\/"}}}',
            '{"x": 100.0, "y": [], "z": {"한": "한\\n/"}',
        ),
        (head + '{"x": "a\nb"}', '{"x": "a\\nb"'),
        (head + '{"x": "\\ud83d\\ude00\\ud83d"}}', '{"x": "😀'),
        (head + '{"x": "1</tool_call> 2', '{"x": "1'),  # text after what may be the end of the call
        (head + "{}}", "{"),
        (head + '{"x": 1e999, "y": 2}}', '{"x": '),
    ):
        assert parts(body) == [("f", pieces)], body
    for body in ("oops", '[{"name": "f", "arguments": {"x": 1}}]', head + '"{}"}', '{"arguments": {}, "name": "f"}'):
        assert not parts(body), body


PIECES = [
    *("<tool_call>", "</tool_call>", "</think>", "<think>", "<", "tool", "</", "\n", " ", "한글", "👩‍👧"),
    *("{", "}", "[", "]", ",", ":", '"', "\\", "\\u00", "1", "-0.5e", "01", "tru", "true", "null"),
    *('{"name": "f"', '"arguments": ', '{"name":"f","arguments":{"x":"'),
]


def test_any_cut_gives_the_same_events() -> None:
    rng = random.Random(4)
    for number in range(1000):
        inside_thought = number % 2 == 0
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))
        whole = parse(text, inside_thought)
        cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6))))
        assert parse(text, inside_thought, cuts) == whole, (text, cuts)
        assert parse(text, inside_thought, tuple(range(len(text)))) == whole, text


@pytest.mark.heavy
def test_parts_of_a_call_are_the_beginning_of_its_arguments_in_any_cut() -> None:
    rng = random.Random(5)
    complete = 0
    for number in range(3000):
        text, inside_thought = (
            random_text(rng, 12) + rng.choice(("", CALL, RICH)) + random_text(rng, 6),
            number % 2 == 0,
        )
        whole = parse(text, inside_thought, call_parts=True)
        cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6))))
        assert parse(text, inside_thought, cuts, call_parts=True) == whole, (text, cuts)
        assert parse(text, inside_thought, tuple(range(len(text))), call_parts=True) == whole, text
        assert [event for event in whole if not isinstance(event, CallPart)] == parse(text, inside_thought), text
        for part, event in pairwise(whole):
            if isinstance(part, CallPart) and isinstance(event, ToolCall) and '"x"' not in part.arguments[5:]:  # once
                complete += 1
                assert part.name == event.name and arguments_text(event) == part.arguments + "}", text
            elif isinstance(part, CallPart):
                assert isinstance(event, ToolCall) or (isinstance(event, Answer) and event.problem), text
    assert complete > 100


def rebuilt(events: list[Event], text: str, inside_thought: bool) -> bool:
    """Whether the events contain every character of `text`, in order.

    Three parts of `text` are not in the text of an event: the tags and the body of a call, and the end of a thought.
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
    """The end of the call at `at`, and the number of events that it gives: 0 if the events are not its own."""
    if text.startswith(CALL_START, at):
        begin = at + len(CALL_START)
        ends = [end for end in range(begin, len(text)) if text.startswith(CALL_END, end)]
        for end in [*ends, len(text)]:
            calls = read_calls(text[begin:end])[0]
            if calls and calls == events[: len(calls)]:
                return min(end + len(CALL_END), len(text)), len(calls)
    return at, 0


def after_thought(text: str, at: int) -> int:
    """The beginning of the answer, after the end of the thought at `at`."""
    at += text.startswith("\n</think>", at)
    at += len("</think>") * text.startswith("</think>", at)
    return at + text.startswith("\n", at) + text.startswith("\n\n", at)


def random_text(rng: random.Random, longest: int = 25) -> str:
    """Tags and pieces of JSON and of other text in random order, with a few random characters."""
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


def test_random_texts_lose_no_character_in_any_cut() -> None:
    fuzz(range(3000))


@pytest.mark.heavy
def test_a_hundred_thousand_random_texts_lose_no_character_in_any_cut() -> None:
    fuzz(range(3000, 103_000))


def test_the_fuzz_notices_a_lost_character() -> None:
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


def test_characters_in_tokens_of_one_byte_stay_whole(tokenizer: Tokenizer) -> None:
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


def test_an_incomplete_character_at_the_end_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    byte_id = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    decoder, parser = tokenizer.stream_decoder(), ReplyParser(inside_thought=False)
    events = [event for byte in "ok 뷁".encode()[:-1] for event in parser.feed(decoder.feed(byte_id[bytes([byte])]))]
    events += [*parser.feed(decoder.close()), *parser.close()]
    assert join_events(iter(events)) == [Answer("ok \ufffd")]


# --- speed -------------------------------------------------------------


def test_text_is_returned_as_soon_as_its_meaning_is_clear() -> None:
    parser = ReplyParser(inside_thought=False)
    assert parser.feed("a < b") == [Answer("a < b")]
    assert parser.feed(" <tool") == [Answer(" ")]
    assert parser.feed("box>") == [Answer("<toolbox>")]
    broken = CALL_START + '{"x": "\\uzz' + CALL_END
    assert [event.text for event in parser.feed(broken)] == [broken], "the string is not JSON, so the tag is the end"


def test_a_long_call_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that reads it again for each piece takes minutes."""
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


def test_literals_of_json_are_read_in_linear_time() -> None:
    for text in ("1", "1.5", "1e9"):
        prefix = JsonPrefix()
        prefix.feed(text + "0" * 100_000)  # minutes, if each digit makes it read the number again
        assert prefix.valid, text
    for text in "-0 -1.5e+3 0.5 10 1E5 true false null".split():
        for end in range(len(text)):
            prefix = JsonPrefix()
            prefix.feed(text[: end + 1])
            assert prefix.valid, text[: end + 1]
        prefix.feed(" ")
        assert prefix.valid, text
    for text in ("01", "1.e5", "-x", "1e+-5", "tru ", "f0", "- ", "1. ", "1e ", "nulll", "+1", ".5"):
        prefix = JsonPrefix()
        prefix.feed(text)
        assert not prefix.valid, text


# --- stop strings -----------------------------------------------------------------


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


def test_a_loop_is_detected_soon_after_eight_copies() -> None:
    for before, block in product([0, 7, 1000], [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 257, 512]):
        rng = random.Random(block)
        unit = [rng.randrange(100_000) for _ in range(block)]
        detected = detected_after([rng.randrange(100_000) for _ in range(before)] + unit * (6000 // block))
        least = before + max(8 * block, 512)
        assert detected is not None, f"{block} tokens, after {before} others"
        assert least <= detected < least + 32, f"{block} tokens, after {before} others"


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
