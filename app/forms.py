"""The forms of values in files: JSON, times, titles, and text as it is compared."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from datetime import datetime
from typing import Any

MAX_TITLE = 120  # characters


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that can be encoded, with half characters as escapes. Raises ValueError for other values."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=indent)
    except RecursionError as error:
        raise ValueError("it is nested too deeply for JSON") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"it cannot be written as JSON: {error}") from error
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_json(data: str | bytes) -> Any:
    """Raises ValueError saying in one line why it is not JSON."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error


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
