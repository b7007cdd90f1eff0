"""The calibration and held-out texts, a user's own files, and their token ids."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx import Tokenizer
from exaone4_mlx.conversion.texts import (
    CALIBRATION,
    HELD_OUT,
    RUN,
    Passage,
    encode,
    fingerprints,
    overlap,
    read_passages,
    windows,
)
from exaone4_mlx.files.folders import DEMO_FOLDER

KINDS = ("ko", "en", "es", "code", "math", "chat")
CALIBRATING, HOLDING = read_passages(CALIBRATION), read_passages(HELD_OUT)
ALL = CALIBRATING + HOLDING
CHATS = [passage for passage in ALL if passage.kind == "chat"]

QUESTION = {"role": "user", "content": "Is the shop open?"}
CALL = {"type": "function", "function": {"name": "opening_hours", "arguments": {"day": "Monday"}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(DEMO_FOLDER)


@pytest.fixture(scope="module", params=["tokenizer", "real"], ids=["demo", "EXAONE"])
def encoded(request: pytest.FixtureRequest) -> tuple[Tokenizer, list[list[int]]]:
    """The demo's tokenizer, then EXAONE's own, each with the ids of every passage."""
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer, [encode(passage, tokenizer) for passage in ALL]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """written(name, content): a file of the user."""

    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def chat(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Passage:
    return Passage("chat", "en", None, messages, tools)


def all_text(passage: Passage) -> str:
    """All text of a passage."""
    return passage.text or json.dumps([passage.messages, passage.tools], ensure_ascii=False)


# What the two files hold


@pytest.mark.parametrize(("passages", "each"), [(CALIBRATING, 40), (HOLDING, 16)], ids=["calibration", "held out"])
def test_a_file_is_a_balanced_mix_without_repetition(passages: list[Passage], each: int) -> None:
    assert Counter(passage.kind for passage in passages) == dict.fromkeys(KINDS, each)
    first = {passage.kind for passage in passages[: len(passages) // 6]}
    assert first == set(KINDS), "the first passages are a fair sample"
    for kind in ("code", "math", "chat"):
        languages = Counter(passage.language for passage in passages if passage.kind == kind)
        assert min(languages[language] for language in ("ko", "en", "es")) >= 3, (kind, languages)
    first_with: dict[str, Passage] = {}
    for passage in passages:
        for fingerprint in fingerprints([passage]):
            other = first_with.setdefault(fingerprint, passage)
            assert other is passage, f"{overlap([passage], [other])} are in two passages"


def test_prose_is_in_its_language_and_of_a_common_length() -> None:
    for passage in ALL:
        if passage.kind in ("ko", "en", "es"):
            assert passage.language == passage.kind
            hangul = len(re.findall("[가-힣]", passage.text or ""))
            assert (hangul > 100) == (passage.kind == "ko"), passage.text
            # A Korean word is one to three words of the others.
            low, high = (50, 140) if passage.kind == "ko" else (75, 180)
            assert low <= len((passage.text or "").split()) <= high, passage.text


def test_about_half_of_the_chats_have_a_thought_and_some_have_tools() -> None:
    thinking = sum("reasoning_content" in (passage.messages or ())[-1] for passage in CHATS)
    assert 0.4 <= thinking / len(CHATS) <= 0.6, f"{thinking} of {len(CHATS)} end with a reply that has a thought"
    calling = sum(any(message.get("tool_calls") for message in passage.messages or ()) for passage in CHATS)
    assert calling >= 8
    assert all(passage.tools for passage in CHATS if any(m["role"] == "tool" for m in passage.messages or ()))


def test_the_texts_contain_no_control_string(tokenizer: Tokenizer, real: Tokenizer) -> None:
    for passage in ALL:
        found = [control for control in tokenizer.control_tokens | real.control_tokens if control in all_text(passage)]
        assert not found, f"{found} in: {all_text(passage)}"


def test_calibration_and_held_out_texts_are_disjoint() -> None:
    assert overlap(HOLDING, CALIBRATING) == []


# Overlap


def test_a_shared_sentence_is_found() -> None:
    sentence = (HOLDING[0].text or "").split("\n")[0][:120].rsplit(" ", 1)[0]
    planted = Passage("text", "und", f"Before it. {sentence.upper()}\n\tAfter it.")
    shared = overlap([planted], HOLDING)
    assert [words.split() for words in shared] == [re.findall(r"\w+", sentence.casefold())]
    assert fingerprints([planted]) & fingerprints(HOLDING)


def test_overlap_is_eight_consecutive_words_in_any_spelling() -> None:
    one = Passage("text", "ko", "저녁이 되자 마을 사람들은 모두 강가로 나와 불을 피웠다.")
    other = Passage("text", "ko", "“저녁이  되자\n마을 사람들은, 모두 강가로 나와 불을 피웠다!”")
    assert fingerprints([one]) == fingerprints([other])
    words = "one two three four five six seven eight".split()
    assert len(words) == RUN
    longer = Passage("text", "en", " ".join(words) + " and more")
    assert overlap([longer], [Passage("text", "en", "zero " + " ".join(words[:7]))]) == []
    assert overlap([longer], [Passage("text", "en", "zero " + " ".join(words))]) == [" ".join(words)]
    first, second = "a b c d e f g h i", "r s t u v w x y z"
    both = Passage("text", "en", f"{first} here is something new {second}")
    assert overlap([both], [Passage("text", "en", first), Passage("text", "en", second)]) == [first, second]


def test_thoughts_of_a_chat_count_as_text() -> None:
    thought = "the shop is closed on Mondays as the sign on the door says"
    passage = chat(QUESTION, {"role": "assistant", "reasoning_content": thought, "content": "No."})
    assert overlap([Passage("text", "en", thought)], [passage]) == [thought.casefold()]


# Token ids


def test_every_passage_has_ids(encoded: tuple[Tokenizer, list[list[int]]]) -> None:
    tokenizer, all_ids = encoded
    for passage, ids in zip(ALL, all_ids, strict=True):
        if passage.text is not None:
            assert tokenizer.decode(ids) == passage.text
        else:
            assert ids[-1] == tokenizer.eos_token_id


def test_a_reply_has_one_end_of_thought(encoded: tuple[Tokenizer, list[list[int]]]) -> None:
    tokenizer, all_ids = encoded
    (assistant,) = tokenizer.encode("[|assistant|]")
    for passage, ids in zip(ALL, all_ids, strict=True):
        if passage.messages:
            reply = ids[len(ids) - ids[::-1].index(assistant) :]
            assert reply.count(tokenizer.think_end_id) == 1, tokenizer.decode(ids)
            thought = tokenizer.decode(reply[: reply.index(tokenizer.think_end_id)])
            assert thought == f"\n<think>\n{passage.messages[-1].get('reasoning_content', '')}\n"


def test_a_chat_is_its_prompt_and_the_reply_of_the_model(tokenizer: Tokenizer) -> None:
    plain = chat(QUESTION, {"role": "assistant", "content": "Yes."})
    prompt = tokenizer.apply_chat_template([QUESTION])
    assert encode(plain, tokenizer) == prompt + tokenizer.encode("Yes.[|endofturn|]")

    thinking = chat(QUESTION, {"role": "assistant", "content": "Yes.", "reasoning_content": "It is ten.\n"})
    prompt = tokenizer.apply_chat_template([QUESTION], enable_thinking=True)
    assert encode(thinking, tokenizer) == prompt + tokenizer.encode("It is ten.\n</think>\n\nYes.[|endofturn|]")


def test_a_thought_in_the_content_is_a_thought(tokenizer: Tokenizer) -> None:
    apart = chat(QUESTION, {"role": "assistant", "content": "Yes.", "reasoning_content": "It is ten."})
    together = chat(QUESTION, {"role": "assistant", "content": "<think>\nIt is ten.\n</think>\n\nYes."})
    assert encode(together, tokenizer) == encode(apart, tokenizer)


def test_a_reply_that_ends_with_calls_is_rendered_by_the_template(tokenizer: Tokenizer) -> None:
    call = '<tool_call>{"name": "opening_hours", "arguments": {"day": "Monday"}}</tool_call>[|endofturn|]'
    for content, thought in (("", ""), ("Let me look.", ""), ("", "I must look."), ("Let me look.", "I must look.")):
        turn = {"role": "assistant", "content": content, "reasoning_content": thought, "tool_calls": [CALL]}
        text = tokenizer.decode(encode(chat(QUESTION, turn), tokenizer))
        start = f"<think>\n{thought}\n</think>\n\n"
        assert text.endswith("[|assistant|]\n" + start + (content + "\n" if content else "") + call)


def test_the_tools_of_a_chat_are_in_its_prompt(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "opening_hours", "parameters": {"type": "object"}}}
    passage = chat(QUESTION, {"role": "assistant", "content": "Yes."}, tools=(tool,))
    assert json.dumps(tool) in tokenizer.decode(encode(passage, tokenizer))


@pytest.mark.parametrize("which", ["tokenizer", "real"])
def test_control_strings_in_a_text_give_no_control_tokens(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    controls = {id for text in tokenizer.control_tokens for id in tokenizer.encode(text)}
    for text in (*sorted(tokenizer.control_tokens), "a [|endofturn|]\n[|user|]\nb", "[[|endofturn|][|user|]]"):
        ids = encode(Passage("text", "en", text), tokenizer)
        assert not controls.intersection(ids), text
        assert tokenizer.decode(ids) == text


def test_control_strings_in_a_reply_do_not_end_it(tokenizer: Tokenizer) -> None:
    text = "It ends with [|endofturn|] and </think>."
    ids = encode(chat(QUESTION, {"role": "assistant", "content": text, "reasoning_content": text}), tokenizer)
    prompt = tokenizer.apply_chat_template([QUESTION], enable_thinking=True)
    reply = ids[len(prompt) :]
    assert reply.count(tokenizer.think_end_id) == reply.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(reply) == f"{text}\n</think>\n\n{text}[|endofturn|]"


def test_long_passages_are_cut_into_windows_and_empty_ones_refused(tokenizer: Tokenizer) -> None:
    for passage in (CALIBRATING[0], CHATS[0]):
        ids = encode(passage, tokenizer)
        parts = windows(ids, 5)
        assert (
            [id for part in parts for id in part] == ids
            and {len(part) for part in parts[:-1]} == {5}
            and 1 <= len(parts[-1]) <= 5
        )
    with pytest.raises(ValueError, match="a passage of the kind 'text' has no text"):
        encode(Passage("text", "en", ""), tokenizer)


def test_passages_are_compared_and_hashed() -> None:
    assert len(set(ALL)) == len(ALL)
    assert replace(ALL[0], kind="other") != ALL[0]


# Files of a user


def test_datasets_of_mlx_lm_are_read(written: Callable[..., Path]) -> None:
    answer = {"role": "assistant", "content": "Yes."}
    tool = {"type": "function", "function": {"name": "opening_hours"}}
    lines = [{"text": "Plain."}, {"messages": [QUESTION, answer], "tools": [tool], "source": "mine"}]
    file = written("train.jsonl", "\ufeff" + "\r\n\n".join(map(json.dumps, lines)))
    assert read_passages(file) == [
        Passage("text", "und", "Plain."),
        Passage("chat", "und", None, (QUESTION, answer), (tool,)),
    ]


def test_dashes_separate_the_passages_of_a_text_file(written: Callable[..., Path]) -> None:
    assert read_passages(written("one.txt", "A first part.\n\nA second.\n")) == [
        Passage("text", "und", "A first part.\n\nA second.")
    ]
    several = read_passages(written("several.md", "---\nOne.\n-----  \nTwo -- still two.\n--\n\f\nThree.\n---\n\n"))
    assert [passage.text for passage in several] == ["One.", "Two -- still two.\n--", "Three."]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"there is no file {path} ")):
            read_passages(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\n", r"a\.csv must end with one of \.jsonl, \.txt, \.md"),
        ("a.txt", b"a\0b", r"a\.txt holds no text"),
        ("a.txt", " \n---\n", r"a\.txt contains no text"),
        ("a.jsonl", "\n", r"a\.jsonl contains no text"),
        ("a.jsonl", '{"text": "fine"}\n\n{"text": ', r"a\.jsonl, line 3 is not JSON: Expecting value"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1 is nested too deeply"),
        ("a.jsonl", '"text"', 'line 1: a passage is an object with one of "text", "messages" and "prompt"'),
        ("a.jsonl", '{"prompt": "a", "text": "b"}', "an object with one of"),
        ("a.jsonl", '{"text": "a", "messages": []}', "an object with one of"),
        ("a.jsonl", '{"text": " "}', '"text" must be a string that is not blank'),
        ("a.jsonl", '{"text": 7}', '"text" must be a string that is not blank'),
        ("a.jsonl", '{"text": "a", "kind": 7}', "must be strings, not 7 and 'und'"),
        ("a.jsonl", r'{"text": "half \ud83d"}', "line 1: .*surrogates not allowed"),
        ("a.jsonl", '{"messages": "Hello"}', "messages must be a list of messages, not str"),
        ("a.jsonl", '{"messages": []}', "there are no messages"),
        ("a.jsonl", '{"messages": [{"role": "robot"}]}', "message 0 has the unknown role 'robot'"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "must end with a message of the assistant"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": ""}]}', "must end with a message of the assistant"),
        (
            "a.jsonl",
            '{"messages": [{"role": "assistant", "content": "a", "reasoning_content": 7}]}',
            "reasoning_content must be a string, not 7",
        ),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "needs a message before the answer"),
    ],
)
def test_malformed_files_are_refused_by_name_and_line(
    written: Callable[..., Path], name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_passages(written(name, content))
