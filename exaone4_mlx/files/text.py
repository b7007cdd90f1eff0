"""Bytes of a text file -> its text; JSON values -> text, and text -> JSON values.

Notes:
- Legacy encodings are not declared. Bytes that are not UTF-8 are Korean (cp949, and in it EUC-KR) if they decode
  without an error to Hangul that Western text cannot produce; otherwise they are Western (cp1252, latin-1).
- A byte order mark is not part of the text: it would be a token of its own, and JSON does not allow it.
- Values that a model, a tool or a user gives are nested at most 100 deep. So no later step exceeds Python's recursion.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

BOMS_16 = (b"\xff\xfe", b"\xfe\xff")
HARMLESS_CONTROLS = frozenset("\t\n\v\f\r\b\x1b")  # overstriking, and the colours of terminals, occur in text
#: Control characters except the line end and the tab, and marks of the writing direction.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f]")
ONE_LETTER_IN_A_WORD = re.compile(r"(?<=[A-Za-z])[^\x00-\x7f](?=[A-Za-z])")

HALF = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 cannot hold
MAX_DEPTH = 100  # of JSON values that are not our own


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, with half characters as escapes, and null for infinity and NaN. Raises ValueError for others."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        if "NaN" in text or "Infinity" in text:
            text = json.dumps(json.loads(text, parse_constant=lambda name: None), ensure_ascii=False, indent=indent)
    except RecursionError as error:
        raise ValueError("it is nested too deeply for JSON") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"it cannot be written as JSON: {error}") from error
    return HALF.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_json(data: str | bytes, name: str = "it", **options: Any) -> Any:
    """The value, with `options` of json.loads. Raises ValueError, which says in one line why `name` is not JSON."""
    try:
        value = json.loads(data, **options)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise not_json(name, error) from error
    check_depth(value, name)
    return value


def not_json(name: object, error: Exception) -> ValueError:
    """What is wrong with `name`, which json.loads refused with `error`."""
    is_encoding = isinstance(error, UnicodeDecodeError)
    return ValueError(f"{name} is not UTF-8: save it as UTF-8" if is_encoding else f"{name} is not JSON: {error}")


def check_depth(value: Any, name: str = "it") -> None:
    """Raises ValueError for a JSON value that is nested more than 100 deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        parents = [one for one in level if isinstance(one, (dict, list, tuple))]
        if not parents:
            return
        level = [child for one in parents for child in (one.values() if isinstance(one, dict) else one)]
    raise ValueError(f"{name} is nested too deeply: more than {MAX_DEPTH} levels")


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a JSON value that should be a list of them."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def number(value: Any) -> Any:
    """A JSON value as a count or as seconds; 0 for what is none."""
    return value if isinstance(value, (int, float)) and 0 < value < 1e12 else 0


def clean(text: str) -> str:
    """The text without control characters and direction marks."""
    return UNSAFE.sub("", text)


def decode_text(data: bytes, name: str = "the file") -> str:
    """Bytes as text, without a byte order mark: UTF-8, UTF-16 with one, or the legacy encoding that they look like.

    Raises ValueError, with `name`, for bytes that are no text.
    """
    text = _decoded(data)
    controls = sum(
        count for c, count in Counter(text).items() if unicodedata.category(c) == "Cc" and c not in HARMLESS_CONTROLS
    )
    if "\0" in text or controls > len(text) / 10:
        raise ValueError(f"{name} holds no text")
    return text


def _decoded(data: bytes) -> str:
    if data.startswith(BOMS_16):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            return data.decode("latin-1")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    repaired = data.decode("utf-8-sig", "replace")  # a log cut off within a character is still UTF-8
    counts = Counter(repaired)
    if sum(count for c, count in counts.items() if c > "\x7f") > 10 * counts["\ufffd"]:
        return repaired
    for encoding in ("cp949", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "cp949" or _is_korean(text):
            return text
    return data.decode("latin-1")


def _is_korean(text: str) -> bool:
    """Whether a text that was decoded as cp949 is Korean.

    Common syllables are two high bytes. In Western text those are two accented letters, which are rare together and
    then stand within a word ("AÇÃO"), or make Hanja ("GRÖß"). One accented letter before a plain one makes a
    syllable as well ("Ángel"), but one that KS X 1001 lacks and Korean seldom needs.
    """
    common = rare = 0
    for c, count in Counter(ONE_LETTER_IN_A_WORD.sub("", text)).items():
        if "가" <= c <= "힣":
            first, second = c.encode("cp949")
            if 0xB0 <= first <= 0xC8 and second >= 0xA1:
                common += count
            else:
                rare += count
    return common > rare
