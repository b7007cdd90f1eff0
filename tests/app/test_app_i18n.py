"""The app's texts: every one in three languages, and none too many."""

from __future__ import annotations

import ast
import json
import re
import string

import pytest
from conftest import ROOT

from app.i18n import ERRORS, EXAMPLES, HERE, LANGUAGES, WORDS, Words, translations
from app.settings import SAMPLING
from app.tools import permission_text
from exaone4_mlx.storage.branches import ACTIONS
from exaone4_mlx.storage.transcript import HEADINGS

SOURCES = [file for file in (ROOT / "app").glob("*.py") if file.stem != "i18n"]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_language_has_every_text_with_the_same_placeholders() -> None:
    for key, texts in WORDS.items():
        assert list(texts) == list(LANGUAGES), key
        assert all(text.strip() for text in texts.values()), key
        assert len({frozenset(placeholders(text)) for text in texts.values()}) == 1, (key, texts)


def test_no_key_is_there_twice() -> None:
    keys = [
        key for file in HERE.glob("words/*.json") for key, _ in json.loads(file.read_text(), object_pairs_hook=list)
    ]
    assert len(keys) == len(set(keys)) == len(WORDS)


def test_every_text_is_used_and_every_text_that_is_used_exists() -> None:
    strings = {
        node.value
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    strings |= {"seconds", "minutes"}  # of Words.seconds itself
    strings |= {f"act_{name}" for name in ACTIONS} | {f"md_{name}" for name in HEADINGS}
    scripts = "".join(file.read_text() for file in HERE.glob("page/*.js"))
    strings |= set(re.findall(r'"([\w-]+)"', scripts)) | set(ERRORS)
    assert set(WORDS) <= strings, f"nobody says {sorted(set(WORDS) - strings)}"
    sources = scripts + "".join(file.read_text() for file in SOURCES)
    asked = set(re.findall(r'words\(\s*"(\w+)"', sources))
    assert asked <= set(WORDS), f"there is no text {sorted(asked - set(WORDS))}"


def test_korean_is_korean() -> None:
    same = {"top_p", "min_p"}  # names
    for key, texts in WORDS.items():
        korean = texts["ko"]
        assert key in same or re.search("[가-힣]", korean) or not re.sub(r"{\w+}|[^\w]", "", korean), (key, korean)


@pytest.mark.parametrize(
    ("code", "language"),
    [("ko", "ko"), ("ko-KR", "ko"), ("es_MX", "es"), ("EN-us", "en"), ("de", "en"), ("", "en"), ("korean", "en")],
)
def test_language_is_taken_with_its_region_and_else_english(code: str, language: str) -> None:
    assert Words(code).language == language


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.042, "0.04 s"), (0.994, "0.99 s"), (0.996, "1.0 s"), (3.14, "3.1 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s")],
)  # fmt: skip
def test_seconds_are_rounded(seconds: float, expected: str) -> None:
    assert Words("en").seconds(seconds) == expected


def test_minutes_and_seconds_are_those_of_the_language() -> None:
    assert Words("ko").seconds(125.0) == "2분 5초"


def test_no_example_is_there_twice() -> None:
    """An example that is chosen is found by its text."""
    texts = [text for examples in EXAMPLES.values() for text, _, _ in examples]
    assert len(set(texts)) == len(texts) and len({len(examples) for examples in EXAMPLES.values()}) == 1


def test_text_of_widgets_names_keys_that_are_there() -> None:
    """`TEXTS` of widgets.py, without Gradio."""
    tree = ast.parse((ROOT / "app" / "widgets.py").read_text())
    [texts] = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "TEXTS"]  # type: ignore[attr-defined]
    named = [value for value in texts.values if isinstance(value, ast.Dict)]  # type: ignore[attr-defined]
    keys = {value.value for one in named for value in one.values if isinstance(value, ast.Constant)}
    assert keys and keys <= set(WORDS), keys - set(WORDS)


def test_every_setting_has_a_label() -> None:
    """Sliders are labelled by the names of their settings."""
    assert {*SAMPLING, "max_tokens"} <= set(WORDS)


def test_translations_are_those_of_the_table() -> None:
    assert translations()["ko"]["new_chat"] == WORDS["new_chat"]["ko"]
    assert set(translations()) == set(EXAMPLES) == set(LANGUAGES)


def test_every_translated_error_is_one_that_is_raised() -> None:
    files = [*SOURCES, *(ROOT / "exaone4_mlx").rglob("*.py")]
    constants = {
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for key in ERRORS:
        for part in re.split(r"\{\w+\}|; |(?<=: )|\bthe (?=newest)", WORDS[key]["en"]):
            assert any(part.strip() in text for text in constants), f"{key}: no error says {part!r}"


def test_errors_are_in_the_language_of_the_page() -> None:
    for language, expected in (("en", "a.pdf is encrypted"), ("ko", "암호화"), ("es", "cifrado")):
        words = Words(language)
        assert expected in words("not_sent", error="a.pdf is encrypted; save a copy without a password")
        assert words.error("something rare") == "something rare"
    file = "report.bin holds no text; accepted are PDF and text"
    assert Words("ko").error(file) == "report.bin: 텍스트가 아닙니다. 읽을 수 있는 것: PDF and text"


def test_a_permission_is_shown_in_the_language() -> None:
    assert permission_text("roll_dice · built-in", Words("ko")) == "roll_dice · 기본 도구"
    assert permission_text("built-in · /a/built-in.py", Words("ko")) == "built-in · /a/built-in.py"
