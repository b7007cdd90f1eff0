"""The bytes of a text file become its text, in the encoding that they look like and without a byte order mark."""

from __future__ import annotations

import json
import math

import pytest

from exaone4_mlx import decode_text
from exaone4_mlx.files.text import json_text, parse_json

KOREAN = "안녕하세요. 엑사원은 한국어를 잘합니다.\n오늘 회의는 3시에 시작합니다.\n"
SPANISH = "El niño comió una piña en la mañana.\n¿Cuándo llegará Ángel? ¡Qué lástima!\n"


def test_every_usual_encoding_is_read() -> None:
    for text, encodings in (
        (KOREAN, "utf-8 utf-8-sig utf-16 cp949 euc-kr"),
        (SPANISH, "utf-8 utf-8-sig utf-16 cp1252 latin-1"),
    ):
        for encoding in encodings.split():
            assert decode_text(text.encode(encoding)) == text, encoding
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decode_text(("\ufeff" + KOREAN).encode(encoding)) == KOREAN, encoding


#: Several of the western texts are valid cp949, and would be Hangul or Hanja there.
TEXTS = {
    "cp1252": [
        "¿Como te llamas?", "¡Hola!", "Ángel", "ÁRBOL, ÁNGEL Y ÁGUILA", "ESPAÑA Y CORAZÓN", "MÁS CAFÉ", "don’t", "20°C",
        "It’s “fine” – isn’t it?", "A informação e as ações", "INFORMAÇÃO", "SITUAÇÃO E AÇÕES, 20°C", "price: 5€", "GRÖßE",
        "La jeune fille créée", "Ärger über Öl", "ÁÉ: ¿Como? ¡Hola! Ángel",
    ],
    "cp949": [
        "가", "똠방각하와 펲시콜라, 찦차", "LG전자의 EXAONE은 AI모델이다", "大韓民國은 民主共和國이다", "├──┤ ※ 표 1 ★",
        "def f():  # 함수\n    return 1\n",
    ],
}  # fmt: skip


def test_western_and_korean_text_are_distinguished() -> None:
    for encoding, samples in TEXTS.items():
        for text in samples:
            assert decode_text(text.encode(encoding)) == text


def test_unusual_bytes_are_text() -> None:
    for data, text in (
        (b"", ""),
        (b"caf\xe9 \x81 ol\xe9", "café \x81 olé"),  # latin-1, where cp1252 has no character
        (KOREAN.strip().rstrip(".").encode()[:-1], KOREAN.strip()[:-2] + "\ufffd"),  # cut within a character
        (b"one\r\ntwo\rthree", "one\r\ntwo\rthree"),
    ):
        assert decode_text(data) == text


def test_json_of_others_has_a_limit_of_depth_and_one_line_of_error() -> None:
    deep = "[" * 101 + "]" * 101
    assert parse_json(deep[1:-1].encode()) is not None
    for text in (deep, '{"a":' * 600 + "1" + "}" * 600, "[" * 200_000):
        with pytest.raises(ValueError, match=r"^it is nested too deeply"):
            parse_json(text)
    with pytest.raises(ValueError, match=r"^it is not JSON: Expecting value"):
        parse_json("")
    with pytest.raises(ValueError, match=r"^it is not UTF-8: save it as UTF-8$"):
        parse_json('{"이름": "하나"}'.encode("cp949"))


def test_json_holds_no_half_characters_no_infinity_and_no_objects() -> None:
    value: object = {"a": [math.inf, -math.inf, 1.5, math.nan], "NaN": "Infinity", "\ud800": "한\udc80"}
    text = json_text(value)
    assert text.encode() and "한" in text
    assert json.loads(text) == {"a": [None, None, 1.5, None], "NaN": "Infinity", "\ud800": "한\udc80"}
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match=r"^it is nested too deeply for JSON$"):
        json_text(value)
    with pytest.raises(ValueError, match=r"^it cannot be written as JSON: "):
        json_text({"a": object()})


def test_bytes_that_are_no_text_are_refused() -> None:
    for data in (b"text with a \0 in it", b"\x01\x02\x03ab", b"\xff\xfe\0\0a\0\0\0"):
        with pytest.raises(ValueError, match=r"^notes\.txt holds no text$"):
            decode_text(data, "notes.txt")
