"""The bytes of a text file -> its text, for the command line, the texts of a conversion, and the app.

Notes:
- Legacy encodings are not declared. Bytes that are not UTF-8 are Korean (cp949, and in it EUC-KR) if they decode
  without an error to Hangul that Western text cannot produce; otherwise they are Western (cp1252, latin-1).
- A byte order mark is not part of the text: it would be a token of its own, and JSON does not allow it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

BOMS_16 = (b"\xff\xfe", b"\xfe\xff")
HARMLESS_CONTROLS = frozenset("\t\n\v\f\r\b\x1b")  # overstriking, and the colours of terminals, occur in text
ONE_LETTER_IN_A_WORD = re.compile(r"(?<=[A-Za-z])[^\x00-\x7f](?=[A-Za-z])")


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
