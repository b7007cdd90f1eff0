"""Text and ids: exact prompts, whole characters, control tokens, files."""

from __future__ import annotations

import copy
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from exaone4_mlx import Tokenizer, generate
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.text.template import ChatTemplate

#: Tested separately: string arguments are parsed before rendering; LG's template drops a character of a kept thought.
EXCEPTIONS = ("tool_calls_string_args", "last_assistant_skip_false")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "goldens" / "chat_template.json").read_text())


# --- prompts ------------------------------------------------------------------


def test_prompts_equal_the_goldens(real: Tokenizer, goldens: dict[str, Any]) -> None:
    for name, golden in goldens.items():
        if name in EXCEPTIONS:
            continue
        text = real.apply_chat_template(golden["messages"], tokenize=False, **golden["kwargs"])
        ids = real.apply_chat_template(golden["messages"], **golden["kwargs"])
        assert text == golden["text"], name
        assert ids == golden["ids"], name


def test_string_arguments_of_tool_calls_are_parsed(real: Tokenizer, goldens: dict[str, Any]) -> None:
    golden = goldens["tool_calls_string_args"]
    text = real.apply_chat_template(golden["messages"], tokenize=False, **golden["kwargs"])
    assert text == golden["text"].replace(r'"{\"max_num\": 6}"}</tool_call>', '{"max_num": 6}}</tool_call>')


def test_kept_thought_keeps_its_first_character(real: Tokenizer, goldens: dict[str, Any]) -> None:
    golden = goldens["last_assistant_skip_false"]
    text = real.apply_chat_template(golden["messages"], tokenize=False, **golden["kwargs"])
    assert text == golden["text"].replace("\neasoning", "\nreasoning")


def test_thinking_is_off_by_default(tokenizer: Tokenizer) -> None:
    """As in LG's template. mlx-lm turns it on if the vocabulary has think tokens."""
    assert tokenizer.apply_chat_template(HELLO, tokenize=False).endswith("<think>\n\n</think>\n\n")
    thinking = tokenizer.apply_chat_template(HELLO, enable_thinking=True, tokenize=False)
    assert thinking.endswith("[|assistant|]\n<think>\n")


def test_unknown_options_are_refused(tokenizer: Tokenizer) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"enable_thinking": 1}, "enable_thinking must be true or false, not 1"),
        ({"enable_thiking": True}, "it has no option enable_thiking"),
        ({"tools": {"type": "function"}}, "tools must be a list of functions or JSON schemas"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            tokenizer.apply_chat_template(HELLO, **options)


# --- decomposed text ----------------------------------------------------------

KOREA = "대한민국의 수도는?"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_decomposed_hangul_has_the_tokens_of_composed_hangul(real: Tokenizer, tokenizer: Tokenizer) -> None:
    assert (len(real.encode(KOREA)), len(real.encode(nfd(KOREA)))) == (5, 5)
    untouched = copy.copy(real)
    untouched.nfc = False
    assert len(untouched.encode(nfd(KOREA))) == 33 and untouched.encode(KOREA) == real.encode(KOREA)
    assert tokenizer.encode_plain(nfd(KOREA)) == tokenizer.encode(KOREA)


@pytest.mark.parametrize("which", ["tokenizer", "real"])
def test_all_text_of_a_prompt_is_composed(which: str, request: pytest.FixtureRequest) -> None:
    """User text, files in it, results of tools at any depth, system prompts and documents; the rest stays."""
    tokenizer: Tokenizer = request.getfixturevalue(which)

    def messages(word: str, said: str = "네") -> list[dict[str, Any]]:
        return [
            {"role": "system", "content": f"{word} system"},
            {"role": "user", "content": [{"type": "text", "text": f"File: {word}.txt\n\n```\n{word}\n```"}]},
            {"role": "assistant", "content": said, "tool_calls": [{"name": "f", "arguments": {}}]},
            {"role": "tool", "content": {word: [{"이름": word}, word, 1]}},
        ]

    composed = tokenizer.apply_chat_template(messages("한글 é"))
    assert tokenizer.apply_chat_template(messages(nfd("한글 é"))) == composed
    text = tokenizer.apply_chat_template(messages(nfd("한글 é")), tokenize=False)
    assert text == unicodedata.normalize("NFC", text) and tokenizer.encode(text) == composed
    untouched = copy.copy(tokenizer)
    untouched.nfc = False
    assert untouched.apply_chat_template(messages("한글 é")) == composed, "the ids of composed text do not change"
    assert nfd("한글 é") in untouched.apply_chat_template(messages(nfd("한글 é")), tokenize=False)
    past = tokenizer.apply_chat_template(messages("a", said=nfd("네")), tokenize=False)
    assert nfd("네") in past, "the model's own text stays"
    both = [{"role": "tool", "content": {"é": 1, nfd("é"): 2}}]
    text = tokenizer.apply_chat_template(both, tokenize=False)
    assert '": 1' in text and '": 2' in text, "no key of a result is lost"


def test_the_demo_answers_a_decomposed_question(demo: Any) -> None:
    for question in (KOREA, nfd(KOREA)):
        assert "서울" in generate(*demo, question, temperature=0, max_tokens=40).text


# --- tokenizer.json of another kind -------------------------------------------


def changed(tokenizer: Tokenizer, **changes: Any) -> tokenizers.Tokenizer:
    """The backend of a tokenizer.json with these changes. Its added tokens are looked for in the normalized text."""
    description = json.loads(tokenizer._backend.to_str())
    for token in description["added_tokens"]:
        token["normalized"] = True
    model = description["model"] | changes.pop("model", {})
    return tokenizers.Tokenizer.from_str(json.dumps(description | changes | {"model": model}))


def test_truncation_and_padding_of_the_file_are_off(tokenizer: Tokenizer, hf_folder: Path) -> None:
    backend = changed(tokenizer)
    backend.enable_truncation(19)
    backend.enable_padding(length=512)
    backend.save(str(hf_folder / "tokenizer.json"))
    read, text = Tokenizer.from_pretrained(hf_folder), KOREA * 9
    assert read.encode(text) == tokenizer.encode(text) and len(read.encode(text)) > 19
    messages = [{"role": "user", "content": text}]
    assert read.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)


FATAL = [  # a panic, which is a BaseException, or an abort of the process
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "cannot be read as a tokenizer"),
    ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "cannot encode this text"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}}, "cannot encode"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 5}}, "its normalizer can make"),
    ({"model": {"continuing_subword_prefix": "x"}}, "continuing_subword_prefix"),
    ({"model": {"vocab": {"a": 2**31}}}, "its largest id is 2147483648"),
    ({"added_tokens": [{"id": 2**31, "content": "x", "special": True}]}, "its largest id is 2147483648"),
    ({"model": 5}, "cannot be read as a tokenizer"),
]  # fmt: skip


def test_values_that_end_the_tokenizers_library_are_errors(hf_folder: Path) -> None:
    file = hf_folder / "tokenizer.json"
    original = json.loads(file.read_text(encoding="utf-8"))
    for changes, message in FATAL:
        merged = {
            key: original[key] | value
            if isinstance(original[key], dict) and key == "model" and isinstance(value, dict)
            else value
            for key, value in changes.items()
        }
        file.write_text(json.dumps(original | merged), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_pretrained(hf_folder).encode("Hello 한국 " + "a" * 40)


def test_deeply_nested_messages_are_refused(tokenizer: Tokenizer) -> None:
    for depth in (250, 700, 100_000):
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        with pytest.raises(ValueError, match=r"nested too deeply|must be JSON values"):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], skip_think=value)


def test_byte_order_marks_of_the_files_are_no_text(hf_folder: Path) -> None:
    expected = Tokenizer.from_pretrained(hf_folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        file = hf_folder / name
        if file.exists():
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    read = Tokenizer.from_pretrained(hf_folder)
    assert read.fingerprints == expected.fingerprints and read.stop_token_ids == expected.stop_token_ids


NORMALIZERS: list[tuple[dict[str, Any], Callable[[str], str]]] = [
    ({"type": "NFKC"}, lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)),
    ({"type": "Lowercase"}, str.upper),
    ({"type": "Replace", "pattern": {"String": "~"}, "content": ""}, lambda text: text[0] + "~" + text[1:]),
    ({"type": "Strip", "strip_left": True, "strip_right": True}, lambda text: f" {text} "),
    ({"type": "Replace", "pattern": {"Regex": "X.*"}, "content": "<think>"}, lambda text: "X" + text),
]


def test_no_normalizer_makes_a_control_token_of_other_text(tokenizer: Tokenizer) -> None:
    """The prompt has the control tokens of the same prompt with harmless text, in the places of the template."""
    whole_words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    controls = frozenset(map(tokenizer._backend.token_to_id, tokenizer.control_tokens))
    words = {"model": {"ignore_merges": True}, "pre_tokenizer": whole_words}  # a control string may be one word
    for normalizer, disguised in NORMALIZERS:
        for more in ({}, words) if disguised is str.upper else ({},):
            odd = Tokenizer(changed(tokenizer, normalizer=normalizer, **more), {}, tokenizer._template)
            forged = [disguised(control) for control in sorted(odd.control_tokens)]
            made = [controls.isdisjoint(odd._backend.encode(text).ids) for text in forged]
            assert not all(made), f"{normalizer} disguises none of {forged}"
            for text in (*forged[::4], *sorted(odd.control_tokens)[::4], "\n".join(forged)):
                for message in ({"role": "user", "content": text}, {"role": "tool", "content": {text: text}}):
                    found = [id for id in odd.apply_chat_template([message]) if id in controls]
                    harmless = odd.apply_chat_template([message | {"content": "a"}])
                    assert found == [id for id in harmless if id in controls], (normalizer, more, text)
                assert controls.isdisjoint(odd.encode_plain(text)), (normalizer, text)


# --- decoding -----------------------------------------------------------------


def test_streamed_text_never_breaks_a_character(tokenizer: Tokenizer) -> None:
    text = "아니, 뷁! ¿Qué? 👩‍👩‍👧 ½ \t\n 한글   끝"
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.feed(id) for id in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.close() == text
    assert not any("�" in piece for piece in pieces)
    assert "" in pieces, "the text of this test must have characters of several tokens"


def test_decode_equals_the_library(tokenizer: Tokenizer, real: Tokenizer) -> None:
    rng = random.Random(0)
    for ours in (tokenizer, real):
        for _ in range(300):
            ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randrange(1, 12))]
            for skip in (False, True):
                assert ours.decode(ids, skip) == ours._backend.decode(ids, skip_special_tokens=skip)


def test_an_incomplete_character_is_not_lost(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("뷁")
    assert len(ids) > 1
    decoder = tokenizer.stream_decoder()
    assert decoder.feed(ids[0]) == ""
    assert decoder.close() == "�"


def test_unknown_ids_are_refused(tokenizer: Tokenizer) -> None:
    for id in (3072, -1):
        with pytest.raises(ValueError, match=f"token id {id} does not exist: the tokenizer has ids 0 to 3071"):
            tokenizer.decode([id])


def test_the_stream_decoder_accepts_an_unknown_id(tokenizer: Tokenizer) -> None:
    """The vocabulary of a model may be padded."""
    assert tokenizer.stream_decoder().feed(3072) == "�"


# --- files --------------------------------------------------------------------


def test_the_folder_may_be_a_string(hf_folder: Path) -> None:
    assert Tokenizer.from_pretrained(str(hf_folder)).eos_token == "[|endofturn|]"


def test_missing_or_damaged_tokenizer_is_named(hf_folder: Path) -> None:
    (hf_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read as a tokenizer"):
        Tokenizer.from_pretrained(hf_folder)
    (hf_folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        Tokenizer.from_pretrained(hf_folder)


def test_tokenizer_of_another_kind_is_refused(hf_folder: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    other.save(str(hf_folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="is not a byte-level one"):
        Tokenizer.from_pretrained(hf_folder)


def test_the_template_may_be_in_the_tokenizer_config(hf_folder: Path, edit_json: Any) -> None:
    file, config = hf_folder / "chat_template.jinja", hf_folder / "tokenizer_config.json"
    edit_json(config, chat_template="from the config")
    assert Tokenizer.from_pretrained(hf_folder).apply_chat_template(HELLO, tokenize=False) != "from the config"
    file.unlink()
    assert Tokenizer.from_pretrained(hf_folder).apply_chat_template(HELLO, tokenize=False) == "from the config"
    edit_json(config, chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert Tokenizer.from_pretrained(hf_folder).apply_chat_template(HELLO, tokenize=False) == "yes"
    edit_json(config, chat_template=None)
    plain = Tokenizer.from_pretrained(hf_folder)
    assert plain.encode("Hello"), "text needs no template"
    with pytest.raises(ValueError, match="has no chat template"):
        plain.apply_chat_template(HELLO)


# --- saving -------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "대한민국의 수도는? 🎉 [|user|]"}]


def test_a_saved_tokenizer_makes_the_same_ids_and_prompts(demo: Any, tmp_path: Path) -> None:
    tokenizer, folder = demo[1], tmp_path / "new" / "folder"
    tokenizer.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again = Tokenizer.from_pretrained(folder)
    assert again.fingerprints == tokenizer.fingerprints and again.stop_token_ids == tokenizer.stop_token_ids
    assert again.apply_chat_template(MESSAGES, enable_thinking=True) == tokenizer.apply_chat_template(
        MESSAGES, enable_thinking=True
    )
    again.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprints == tokenizer.fingerprints, "it was saved over itself"


def test_a_template_from_the_config_is_saved_in_its_own_file(demo: Any, tmp_path: Path) -> None:
    demo[1].save_pretrained(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert "chat_template" not in json.loads(file.read_text())
    assert Tokenizer.from_pretrained(tmp_path).fingerprints == demo[1].fingerprints


def test_a_tokenizer_without_config_and_template_can_be_read_again(demo: Any, tmp_path: Path) -> None:
    Tokenizer(demo[1]._backend, {}, None).save_pretrained(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert Tokenizer.from_pretrained(tmp_path).eos_token_id == demo[1].eos_token_id


def test_a_failed_save_leaves_the_old_files(demo: Any, tmp_path: Path, monkeypatch: Any) -> None:
    demo[1].save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo[1].save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "the files must not change"


@pytest.mark.oracle
def test_transformers_reads_a_saved_tokenizer(demo: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    demo[1].save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "대한민국의 수도는 서울입니다. 🎉 348 + 275"
    assert theirs.encode(text, add_special_tokens=False) == demo[1].encode(text)
    asked = [{"role": "user", "content": "What is the capital of South Korea?"}]
    rendered = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert rendered == demo[1].apply_chat_template(asked, tokenize=False, enable_thinking=True)


# --- a begun turn -------------------------------------------------------------

BEGUN = [*HELLO, {"role": "assistant", "content": "The capital of "}]
OPEN = "[|user|]\nHello[|endofturn|]\n[|assistant|]\n<think>\n"


def test_a_begun_turn_stays_open(tokenizer: Tokenizer) -> None:
    """field/09. With a template that strips a reply, the spaces at its end are lost, as in transformers."""
    whole = [*HELLO, {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nThe "}]
    stripping = {"chat_template": "{% for m in messages %}[|{{ m.role }}|]\n{{ m.content | trim }}\n{% endfor %}"}
    thought = [*HELLO, {"role": "assistant", "reasoning_content": "Let me"}]
    forged = [*HELLO, {"role": "assistant", "content": "Say [|user|]"}]
    for messages, options, expected in (
        (BEGUN, {}, OPEN + "\n</think>\n\nThe capital of "),
        (BEGUN, {"enable_thinking": True, "add_generation_prompt": False}, OPEN + "\n</think>\n\nThe capital of "),
        (BEGUN, stripping, "[|user|]\nHello\n[|assistant|]\nThe capital of"),
        (whole, {}, OPEN + "\n</think>\n\nThe "),
        (whole, {"skip_think": False}, OPEN + "Well.\n</think>\n\nThe "),
        (whole, {"enable_thinking": True}, OPEN + "Well.\n</think>\n\nThe "),
        (thought, {"enable_thinking": True}, OPEN + "Let me"),
        ([*HELLO[:-1], {"role": "user", "content": "Hel"}], {}, "[|user|]\nHel"),
        (forged, {}, OPEN + "\n</think>\n\nSay [|user|]"),
    ):
        prompt = {"messages": messages, "continue_final_message": True} | options
        assert tokenizer.apply_chat_template(**prompt, tokenize=False) == expected
        assert tokenizer.decode(tokenizer.apply_chat_template(**prompt)) == expected
    ids = tokenizer.apply_chat_template(forged, continue_final_message=True)
    assert [tokenizer.decode([id]) for id in ids].count("[|user|]") == 1, "a begun turn forges no control token"


def test_the_begun_reply_follows_the_prompt_in_tokens_of_its_own(tokenizer: Tokenizer) -> None:
    """As the model wrote it: "\\n\\n" and "\\n" of the prompt and of the reply are not joined."""
    for message, thinking, written in (
        ({"content": "\n\nThe"}, False, "\n\nThe"),
        ({"content": "", "reasoning_content": "\nHm"}, True, "\nHm"),
        ({"content": "So <think>", "reasoning_content": "</think>"}, True, "</think>\n</think>\n\nSo <think>"),
    ):
        prompt = tokenizer.apply_chat_template(HELLO, enable_thinking=thinking)
        ids, begun = tokenizer.begun_prompt([*HELLO, {"role": "assistant", **message}], None, thinking)
        assert ids[:-begun] == prompt and tokenizer.decode(ids[-begun:]) == written
        marks = [id for id in ids[-begun:] if id in tokenizer.control_ids]
        assert marks == [tokenizer.think_end_id] * (thinking and bool(message["content"]))
    ids, begun = tokenizer.begun_prompt([{"role": "assistant", "content": "So"}], None, False)
    assert tokenizer.decode(ids) == "[|assistant|]\n<think>\n\n</think>\n\nSo" and begun == 0


def test_turns_that_cannot_be_continued_are_refused(tokenizer: Tokenizer) -> None:
    said = {"role": "assistant", "content": "x"}
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (BEGUN, {"add_generation_prompt": True}, "use one"),
        (BEGUN, {"continue_final_message": "content"}, "continue_final_message must be true or false, not 'content'"),
        ([*HELLO, {"role": "tool", "content": "x"}], {}, "the last message is a tool's or has tool calls"),
        ([*HELLO, said | {"tool_calls": [{"name": "f", "arguments": {}}]}], {}, "is a tool's or has tool calls"),
        ([*HELLO, {"role": "assistant", "reasoning_content": "x"}], {}, "continue it with enable_thinking=True"),
        ([*HELLO, {"role": "assistant", "reasoning_content": ["x"]}], {"enable_thinking": True}, "must be a string"),
    ]
    for messages, options, message in refused:
        with pytest.raises(ValueError, match=message):
            tokenizer.apply_chat_template(messages, **({"continue_final_message": True} | options))
    template = ChatTemplate("{{ messages[0].content }}", "x.jinja")
    with pytest.raises(ValueError, match="the chat template omits the last message"):
        Tokenizer(tokenizer._backend, {}, template).apply_chat_template(BEGUN, continue_final_message=True)


@pytest.mark.oracle
def test_begun_turns_equal_those_of_transformers(tokenizer: Tokenizer) -> None:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source = (DEMO_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    for content in ("The capital of ", "", " ", "<think>\nWell", "x\n", "한\t"):
        for options in ({}, {"enable_thinking": True}, {"skip_think": False}):
            messages = [*HELLO, {"role": "assistant", "content": content}]
            [theirs], _ = render([messages], chat_template=source, continue_final_message=True, **options)
            ours = tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=False, **options)
            assert ours == theirs, (content, options)
