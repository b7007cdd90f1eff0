"""The forms of values in files: JSON, times, titles, and text as it is compared."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from datetime import datetime
from typing import Any

MAX_TITLE = 120  # characters


def one_line(text: str, limit: int = MAX_TITLE) -> str:
    """`text` as a title: without control characters and line breaks, and cut."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())[:limit].strip()


def is_time(text: Any) -> bool:
    """Whether it is a time as files have it: ISO 8601, with its offset from UTC."""
    with contextlib.suppress(ValueError):
        return isinstance(text, str) and moment(text).tzinfo is not None
    return False


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not know the Z


def folded(text: str) -> str:
    """`text` as it is compared: macOS hands over Korean syllables in pieces, and they are composed here."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
