"""Export and import of conversations as JSON and Markdown lose nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx import Conversation, ConversationStore
from exaone4_mlx.storage import transcript
from exaone4_mlx.storage.conversation import ID
from exaone4_mlx.storage.transcript import HEADINGS, file_name, from_text, to_json, to_markdown

ASK = {"role": "user", "content": "안녕?"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
END = "<!-- exaone4_mlx: end -->\n"


def conversation_of(*messages: dict[str, Any], **fields: Any) -> Conversation:
    fields = {"title": "인사", "created": "2026-11-25T09:30:15.000000+00:00", "messages": list(messages), **fields}
    return dataclasses.replace(Conversation.new("demo"), **fields)


def carried(conversation: Conversation) -> dict[str, Any]:
    """What an import takes over: all but what belongs to a file of the store."""
    return {name: value for name, value in vars(conversation).items() if name not in ("id", "revision", "updated")}


def imported(*messages: Any, **fields: Any) -> Conversation:
    return from_text(json.dumps({"messages": list(messages), **fields}))


LONG = conversation_of(
    {"role": "system", "content": "You are EXAONE."},
    {"role": "user", "text": "What is this?", "content": "--- a.txt ---\nhi\n---\nWhat is this?", "files": [{"name": "a.txt", "tokens": 2}, {"name": "나.md", "tokens": 9}]},
    {"role": "assistant", "content": "Let me see.", "reasoning_content": "A file.\n\nI call f.", "tool_calls": [CALL, CALL], "finish_reason": "tool_calls", "stats": {"tokens": 3, "seconds": 0.5}},
    {"role": "tool", "content": {"answer": [1, None, "--> 한"]}, "failed": False, "seconds": 0.25},
    {"role": "tool", "content": "plain", "failed": True, "seconds": 1},
    {"role": "assistant", "content": "It is **hi**.", "finish_reason": "stop"},
    {"role": "user", "text": "Thanks", "content": "Thanks"},
    {"role": "assistant", "content": "", "reasoning_content": "Cut", "finish_reason": "length"},
    named=True, settings={"thinking": True, "sampling": {"temperature": 0.6}}, dropped=2,
)  # fmt: skip

PAGE = """\
<!-- exaone4_mlx: conversation {"version": 1, "title": "인사", "named": false, "model": "demo", "created": \
"2026-11-25T09:30:15.000000+00:00", "dropped": 0, "settings": {}} -->
# 인사

2026-11-25 · demo

<!-- exaone4_mlx: user {"files": [{"name": "a.txt", "tokens": 2}]} -->
## You

+ a.txt

<!-- exaone4_mlx: text -->

What is this?

<!-- exaone4_mlx: content -->
<details><summary>What the model saw</summary>

hi
What is this?

</details>

<!-- exaone4_mlx: assistant {"finish_reason": "stop"} -->
## EXAONE

<!-- exaone4_mlx: reasoning_content -->
<details><summary>Thought</summary>

Hm.

</details>

<!-- exaone4_mlx: content -->

A *greeting*.

<!-- exaone4_mlx: tool_calls -->
```json
[
 {
  "type": "function",
  "function": {
   "name": "f",
   "arguments": {
    "x": 1
   }
  }
 }
]
```

<!-- exaone4_mlx: tool -->
## Tool

<!-- exaone4_mlx: content {"json": true} -->
```json
{
 "y": 2
}
```

<!-- exaone4_mlx: end -->
"""
SHORT = conversation_of(
    {"role": "user", "content": "hi\nWhat is this?", "text": "What is this?", "files": [{"name": "a.txt", "tokens": 2}]},
    {"role": "assistant", "content": "A *greeting*.", "tool_calls": [CALL], "reasoning_content": "Hm.", "finish_reason": "stop"},
    {"role": "tool", "content": {"y": 2}},
)  # fmt: skip


# --- there and back ------------------------------------------------------------


def test_the_page_is_made_for_reading():
    assert to_markdown(SHORT) == PAGE


@pytest.mark.parametrize("form", [to_json, to_markdown])
@pytest.mark.parametrize("conversation", [LONG, SHORT], ids=["long", "short"])
def test_nothing_is_lost_on_the_way_out_and_in(form: Any, conversation: Conversation):
    text = form(conversation)
    for file in (text, *map(text.encode, ("utf-8", "utf-8-sig", "utf-16", "cp949"))):
        assert carried(from_text(file)) == carried(conversation)


def test_what_is_imported_is_a_conversation_of_its_own():
    conversation = from_text(to_json(dataclasses.replace(LONG, revision=7)))
    assert (conversation.revision, ID.fullmatch(conversation.id) is not None) == (0, True)
    assert conversation.id != LONG.id


def test_json_is_what_the_store_writes(tmp_path: Path):
    conversation = ConversationStore(tmp_path).write(LONG)
    assert (tmp_path / f"{LONG.id}.json").read_text(encoding="utf-8") == to_json(conversation)


def test_the_content_of_a_file_decides_its_format():
    assert carried(from_text(to_markdown(LONG), "chat.json")) == carried(from_text(to_json(LONG), "chat.md"))


def test_a_conversation_about_an_export_is_not_taken_for_one():
    conversation = conversation_of({"role": "user", "content": to_markdown(LONG)})
    assert from_text(to_json(conversation)).messages == conversation.messages
    assert from_text(to_markdown(conversation)).messages == conversation.messages


#: Texts that could be taken for something else, each on its own and in a heap.
PIECES = [
    "<!-- exaone4_mlx: user -->", "<!-- exaone4_mlx: end -->", END, "<!-- exaone4_mlx:", "\\<!-- exaone4_mlx: content -->",
    "\\\\<!-- exaone4_mlx: content -->", " <!-- exaone4_mlx: user -->", '<!-- exaone4_mlx: conversation {"version": 9} -->',
    "-->", "--", "->", "<!--", "--!>", "## You", "## EXAONE", "# title", "```", "~~~", "````py", "```json\n[]\n```", "  ```",
    "<details><summary>Thought</summary>", "</details>", "\n</details>\n", "\n\n</details>\n\n", "\n", "\n\n\n", " ", "\t",
    "\r\n", "\r", "\n\r\n", "\x00", "\x0b", "\x85", "\u2028", "\ufeff", "\\", "\\\n", "&", "&amp;", "amp;", "&#xd800;",
    "&amp;#xd800;", "#xd800;", "\ud800", "\udfff", "\\ud800", "한글", "각", "😀", "text", '"', "'", "{", "}", "\\u002d",
]  # fmt: skip


def any_text(random: random.Random) -> str:
    return "".join(random.choices(PIECES, k=random.randint(0, 6)))


def any_json(random: random.Random, depth: int = 2) -> Any:
    kinds: list[Any] = [None, True, -1, 0.5, whole(any_text(random))]
    if depth:
        values = [any_json(random, depth - 1) for _ in range(random.randint(0, 3))]
        kinds += [values, {whole(any_text(random)): value for value in values}]
    return random.choice(kinds)


def whole(text: str) -> str:
    """`text` with neighbouring halves of a character as that character, as which JSON gives them back."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") if "\ud800\udfff" in text else text


def any_message(random: random.Random) -> dict[str, Any]:
    role = random.choice(("user", "assistant", "tool"))
    message = {"role": role, "content": any_text(random)}
    if role == "tool":
        message |= {
            "content": random.choice([message["content"], any_json(random)]),
            "failed": random.choice([True, False]),
        }
    if role == "user" and random.random() < 0.5:
        message["text"] = random.choice([message["content"], any_text(random)])
        message["files"] = [
            {"name": whole(any_text(random)), "tokens": random.randint(0, 9)} for _ in range(random.randint(0, 2))
        ]
    if role == "assistant":
        if random.random() < 0.5:
            message["reasoning_content"] = any_text(random)
        if random.random() < 0.5:
            arguments = {whole(any_text(random)): any_json(random)}
            function = {"name": whole(any_text(random)) or "f", "arguments": arguments}
            message["tool_calls"] = [{"type": "function", "function": function}] * random.randint(1, 2)
        message |= {"finish_reason": whole(any_text(random)), "stats": {"x": any_json(random)}}
    return message


@pytest.mark.parametrize("form", [to_markdown, to_json])
def test_random_conversations_come_back(form: Any):
    for seed in range(500):
        numbers = random.Random(seed)
        messages = [any_message(numbers) for _ in range(numbers.randint(1, 5))]
        conversation = conversation_of(*messages, title=any_text(numbers), settings={"x": any_json(numbers)})
        page = form(conversation)
        page.encode()
        back = from_text(page)
        expected = [{**message, "content": message["content"]} for message in messages]
        if form is to_json:
            expected = json.loads(json.dumps(expected))
        assert back.messages == expected, f"seed {seed}:\n{page}"
        assert back.settings == conversation.settings, f"seed {seed}"


def test_each_piece_comes_back_alone_and_doubled():
    texts = [text for p in PIECES for text in (p, p * 2, f"a\n{p}\nb", f"{p}\na\n{p}")]
    for text in texts:
        messages = [
            {"role": "user", "text": text, "content": text + "!"},
            {"role": "assistant", "content": text, "reasoning_content": text},
        ]
        assert from_text(to_markdown(conversation_of(*messages))).messages == messages, repr(text)


# --- the page --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-->", "--!>", "--->", "a -->\n# b", "<!-->", "--"])
def test_nothing_inside_a_comment_ends_it(text: str):
    conversation = conversation_of(ASK | {"files": [{"name": text, "tokens": 1}]}, title=text, settings={text: text})
    comments = [line for line in to_markdown(conversation).split("\n") if line.startswith("<!-- exaone4_mlx:")]
    assert all(line.count("--") == 2 and line.endswith(" -->") for line in comments)
    assert carried(from_text(to_markdown(conversation)))["settings"] == {text: text}


def test_the_prompt_text_is_exported_only_where_it_differs():
    assert "What the model saw" not in to_markdown(conversation_of({"role": "user", "text": "a", "content": "a"}))


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        ("```py\nx = 1", "```"), ("```py\nx = 1\n", "```"), ("~~~~\n~~~\n```", "~~~~"), ("1. a\n   ```sh\n   ls", "   ```"),
        ("```\na\n```\n```", "```"), ("```\na\n``` b", "```"), ("```\r\na", "```"), ("```\na\n`````", ""),
        ("```\r\na\r\n```\r\n", ""), ("```\na\n```  ", ""), ("``` a ` b", ""), ("`` `` ``", ""), ("no code", ""),
    ],
)  # fmt: skip
def test_a_code_block_that_was_cut_is_closed_on_the_page_only(text: str, fence: str):
    conversation = conversation_of(ASK, {"role": "assistant", "content": text})
    page = to_markdown(conversation)
    if fence:
        assert f"{text}\n{fence}\n\n{END}" in page
    else:
        assert f"\n\n{text}\n\n{END}" in page
    assert from_text(page).messages == conversation.messages


def test_an_edit_by_hand_counts():
    page = (
        PAGE.replace("A *greeting*.", "Eine *Begrüßung*.\n\n## You\n\nsaid so")
        .replace("Hm.", "Ha.")
        .replace('"x": 1', '"x": 3')
    )
    page = (
        page.replace("# 인사\n", "# 안부 &#xd800; \n")
        .replace('"y": 2', '"y": [2]')
        .replace("What is this?\n\n<!--", "What?\n\n<!--")
    )
    conversation = from_text(page)
    asked, answered, tool = conversation.messages
    assert (asked["text"], asked["content"]) == ("What?", "hi\nWhat is this?")
    assert answered["content"] == "Eine *Begrüßung*.\n\n## You\n\nsaid so"
    assert answered["reasoning_content"] == "Ha."
    assert answered["tool_calls"][0]["function"]["arguments"] == {"x": 3}
    assert tool["content"] == {"y": [2]}
    assert (conversation.title, conversation.named) == ("안부 \ud800", True)


def test_a_message_may_be_taken_out_or_written_by_hand():
    start, _, _ = PAGE.partition("<!-- exaone4_mlx: tool -->")
    page = (
        start
        + "<!-- exaone4_mlx: tool -->\n<!-- exaone4_mlx: content -->\nby hand\n<!-- exaone4_mlx: user -->\n<!-- exaone4_mlx: text -->\nOK?\n"
        + END
    )
    assert from_text(page).messages[2:] == [
        {"role": "tool", "content": "by hand"},
        {"role": "user", "content": "OK?", "text": "OK?"},
    ]


def test_an_editor_may_trim_blank_lines_and_change_all_line_breaks():
    for page in (
        PAGE.replace("\n\n", "\n"),
        PAGE.rstrip(),
        PAGE.replace("\n", "\r\n"),
        PAGE.replace("-->\n", "-->  \n"),
    ):
        assert carried(from_text(page)) == carried(SHORT)


def test_headings_in_another_language_are_read_like_these():
    """And the list of files as it was written before."""
    headings = {name: f"{name} 제목 {{count}}" for name in HEADINGS}
    page = to_markdown(LONG, headings)
    assert "## user 제목" in page and "<summary>thought 제목" in page and "You" not in page.replace("You are", "")
    assert carried(from_text(page)) == carried(LONG) == carried(from_text(page.replace("\n+ a", "\nFiles: a")))


def test_notes_around_a_conversation_are_not_of_it():
    assert carried(from_text(f"---\nlayout: post\n---\n\n{PAGE}\nsee also\n")) == carried(SHORT)


def test_a_page_without_a_title_is_called_by_the_first_words():
    page = to_markdown(conversation_of(ASK, title=""))
    assert "\n# EXAONE\n" in page and from_text(page).title == "안녕?"


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("# Hello\n\nA page of somebody else's.", "it is neither JSON with messages nor Markdown that was exported here, with its lines <!-- exaone4_mlx: ... --> in place"),
        ("", "it is neither JSON"),
        ("한글", "it is neither JSON"),
        (PAGE.replace(END, ""), "it is cut off: the last of its comments is <!-- exaone4_mlx: end -->"),
        (PAGE[:300], "it is cut off"),
        (PAGE + PAGE, "line 62: 'end' cannot stand there"),
        (END + PAGE, "line 1: 'end' cannot stand there"),
        (PAGE.replace(": text -->", ": speech -->"), "line 11: 'speech' cannot stand there"),
        (PAGE.replace(": content -->", ": text -->", 1), "line 15: 'text' cannot stand there"),
        (re.sub("<!-- exaone4_mlx: user.*\n", "", PAGE), "line 10: 'text' cannot stand there"),
        (PAGE.replace("text -->", "text"), "line 11: '<!-- exaone4_mlx: text' is not whole"),
        (PAGE.replace('{"files": [', '{"files": '), "line 6: it is not JSON: Expecting"),
        (PAGE.replace("## You\n", "## You\n\nlost words\n"), "line 9: 'lost words' belongs to no message; move it below the next comment"),
        (PAGE.replace('{"version": 1,', '{"version": 3,'), "it has version 3, and this program reads up to 2"),
        (PAGE.replace('"x": 1', '"x": 1,,'), "line 37: it is not JSON: Expecting"),
        (PAGE.replace("```json\n{", "{"), "line 55: there must be one block ```json below this"),
        (to_markdown(conversation_of()), "there are no messages"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_read_says_why(page: str, problem: str):
    with pytest.raises(ValueError) as caught:
        from_text(page, "a.md")
    assert str(caught.value).startswith(f"a.md cannot be imported: {problem}") and "\n" not in str(caught.value)


# --- JSON of others -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [[ASK], {"messages": [ASK], "model": "gpt"}, {"format": "theirs", "version": 9, "messages": [ASK]}]
)
def test_messages_are_read_from_a_list_or_an_object(content: Any):
    assert from_text(json.dumps(content)).messages == [ASK]


def test_a_chat_that_the_package_saved_is_read():
    """As `Chat.save` writes it; kept here as text, for the app's files do not need MLX."""
    reply = {
        "role": "assistant",
        "content": "네",
        "reasoning_content": "음",
        "finish_reason": "stop",
        "stats": {"x": 3},
    }
    settings = {"thinking": True, "sampling": None}
    saved = {"format": "exaone4_mlx chat", "version": 1, "messages": [ASK, reply], "dropped": 1, "tools": ["f"]}
    conversation = from_text(json.dumps({**saved, "settings": settings}, ensure_ascii=False, indent=1))
    assert (conversation.messages, conversation.dropped) == ([ASK, reply], 1)
    assert (conversation.settings, conversation.title, conversation.named) == (settings, "안녕?", False)


def test_openai_messages_come_in_the_form_of_the_package():
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": "한"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "Call."}], "name": "Kim", "audio": {}},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": "Done.", "tool_calls": None},
    ]
    assert imported(*messages).messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Call."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": "한"}}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        {"role": "assistant", "content": "Done."},
    ]


def test_results_that_came_in_another_order_are_shown_and_read_with_their_calls():
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": {"x": id}}} for id in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in ("b", "a")]
    conversation = imported(ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *results)
    assert conversation.messages[2:] == results[::-1]
    assert from_text(to_markdown(conversation)).messages == conversation.messages


@pytest.mark.parametrize(
    ("fields", "title", "named"),
    [
        ({}, "What is the capital of Peru, and how many peopl…", False),
        ({"title": "Peru\n\x00"}, "Peru", False),
        ({"title": "Peru", "named": True}, "Peru", True),
        ({"title": " ", "named": True}, "What is the capital of Peru, and how many peopl…", False),
        ({"title": ["Peru"], "named": True}, "What is the capital of Peru, and how many peopl…", False),
        ({"title": "a" * 200}, "a" * 120, False),
    ],
)
def test_a_title_comes_from_the_file_or_from_the_first_words(fields: dict[str, Any], title: str, named: bool):
    text = "\n  What is the capital of Peru, and how many people live in it now?\nTell me."
    conversation = imported(
        {"role": "system", "content": "sys"}, {"role": "user", "text": text, "content": "file\n" + text}, **fields
    )
    assert (conversation.title, conversation.named) == (title, named)


def test_a_file_without_words_of_the_user_has_no_title():
    assert imported({"role": "assistant", "content": "Hello!"}).title == ""


@pytest.mark.parametrize(
    "fields", [{"settings": [1], "model": 5, "created": "now"}, {"settings": None, "model": None, "created": None}, {}]
)
def test_settings_model_and_date_that_are_none_are_left_out(fields: dict[str, Any]):
    conversation = imported(ASK, **fields)
    assert (conversation.settings, conversation.model, conversation.created[:2]) == ({}, "", "20")


def message(**fields: Any) -> str:
    return json.dumps([ASK, {"role": "assistant", "content": "", **fields}])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[" * 200_000, "it is nested too deeply"),
        (b'["\0"]', "the file holds no text"),
        ("{}", "it has no messages"),
        ("[]", "there are no messages"),
        ('{"format": "exaone4_mlx conversation", "version": 3, "messages": []}', "it has version 3, and this program reads up to 2"),
        ('{"format": "exaone4_mlx chat", "messages": []}', "it has version None, and this program reads 1"),
        (json.dumps({"messages": [ASK], "dropped": 2}), "dropped is 2, and there are 1 messages"),
        (json.dumps({"messages": [ASK], "dropped": "1"}), "dropped is '1', and there are 1 messages"),
        ('["a"]', "message 0 must be an object with role and content, not str"),
        (message(role="wizard"), "message 1 has the unknown role 'wizard'; roles are system, user, assistant, tool"),
        (message(role="system"), "message 1: a system message can only be the first"),
        (message(content=[{"type": "image_url"}]), "message 1: content may have text parts only, not 'image_url'"),
        (message(finish_reason=1), "message 1: finish_reason must be a string, not 1"),
        (message(stats=[]), "message 1: stats must be an object, not []"),
        (message(text=[]), "message 1: text must be a string, not []"),
        (message(files={}), "message 1: files must be a list of objects with name and tokens, not {}"),
        (message(files=[{"name": "a"}]), "message 1: files must be a list of objects with name and tokens, not [{'name': 'a'}]"),
        (message(files=[{"name": "a", "tokens": True}]), "message 1: files must be a list of objects"),
        (message(failed="no"), "message 1: failed must be true or false, not 'no'"),
        (message(seconds=True), "message 1: seconds must be a number, not True"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(text: str | bytes, problem: str):
    with pytest.raises(ValueError) as caught:
        from_text(text, "a.json")
    assert str(caught.value).startswith(f"a.json cannot be imported: {problem}") and "\n" not in str(caught.value)


def test_what_is_wrong_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"^a b\.json cannot be imported: there are no messages$"):
        from_text("[]", "a\nb.json")


def test_a_long_file_is_refused(monkeypatch: Any):
    monkeypatch.setattr(transcript, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"the text cannot be imported: it is too large: at most 10 bytes are read"):
        from_text(" " * 11)


def test_what_is_nested_too_deeply_to_be_written_is_refused():
    for depth in (99, 1_100):
        with pytest.raises(ValueError, match=r"^the text cannot be imported: it is nested too deeply"):
            from_text('[{"role": "tool", "content": ' + "[" * depth + "]" * depth + "}]")
    assert to_json(from_text('[{"role": "tool", "content": ' + "[" * 98 + "]" * 98 + "}]"))


def test_a_value_nested_deeply_is_shown_in_part():
    with pytest.raises(
        ValueError, match=r"message 0 has the unknown role \[\[\[\[\[\[\[\.\.\.\]\]\]\]\]\]\]; roles are"
    ):
        from_text('[{"role": ' + "[" * 70 + "]" * 70 + "}]")


def test_what_is_imported_can_be_written(tmp_path: Path):
    store = ConversationStore(tmp_path)
    for text in (to_markdown(LONG), to_json(LONG), json.dumps([{"role": "user", "content": "\ud800"}])):
        conversation = from_text(text)
        assert store.read(store.write(conversation).id).messages == conversation.messages


# --- names of files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("여행 계획", "여행 계획.md"),
        (unicodedata.normalize("NFD", "여행"), "여행.md"),
        ("a/b\\c:d*e?f\"g<h>i|j", "a b c d e f g h i j.md"),
        ("../../x", "x.md"),
        ("/etc/passwd", "etc passwd.md"),
        (".hidden", "hidden.md"),
        ("-rf ~", "rf.md"),
        ("end. . ", "end.md"),
        ("", "conversation.md"),
        ("...", "conversation.md"),
        ("\x00\x1b\u202e\ud800\ufeff", "conversation.md"),
        ("a\x00b\nc\td", "a b c d.md"),
        ("😀 hi", "😀 hi.md"),
        ("CON", "_CON.md"),
        ("nul.txt", "_nul.txt.md"),
        ("com1", "_com1.md"),
        ("COM¹", "_COM¹.md"),
        ("lpt9 .x", "_lpt9 .x.md"),
        ("CONSOLE", "CONSOLE.md"),
        ("가" * 300, "가" * 40 + ".md"),
        ("a" * 119 + "가", "a" * 119 + ".md"),
        ("a" * 118 + " . b", "a" * 118 + ".md"),
    ],
)  # fmt: skip
def test_a_title_becomes_a_name_that_every_system_takes(title: str, name: str):
    assert file_name(title, ".md") == name


def test_no_title_makes_a_bad_name():
    pieces = [*PIECES, *transcript.RESERVED, ".", "/", "\\", ":", "..", "~", "-", "é", "ㄱ" * 50, "x" * 99, "👨‍👩‍👧"]
    for seed in range(2000):
        numbers = random.Random(seed)
        name = file_name("".join(numbers.choices(pieces, k=numbers.randint(0, 5))), ".json")
        stem = name.removesuffix(".json")
        assert stem and name.endswith(".json") and len(name.encode()) <= 130, name
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028]', name), name
        assert stem[0] not in ".-~ " and stem[-1] not in " .", name
        assert unicodedata.normalize("NFKC", stem.split(".")[0]).strip().upper() not in transcript.RESERVED, name
