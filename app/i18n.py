"""Every text of the interface, in English, Korean and Spanish.

Notes:
- The texts are in words/*.json: key -> language -> text. The browser translates labels (Gradio's i18n), the script of
  the page its own texts, and Python generated ones.
- Errors are raised in English. errors.json translates those that a user often meets. Others stay in English after a
  translated beginning, so that a user can search for them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "ko": "한국어", "es": "Español"}


def _table(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


#: key -> language -> text
WORDS: dict[str, dict[str, str]] = {}
for _file in sorted(HERE.glob("words/*.json")):
    WORDS.update(_table(_file))
#: What can be tried first, on the demo model too: language -> [(text, thinking, tools)]
EXAMPLES: dict[str, list[tuple[str, bool, bool]]] = {
    code: [(one["text"], one["thinking"], one["tools"]) for one in found]
    for code, found in _table(HERE / "examples.json").items()
}
ERRNO = re.compile(r"\[Errno -?\d+\] ")
#: key of an error -> what its English text looks like
ERRORS = {
    key: re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(texts["en"])), re.DOTALL)
    for key, texts in WORDS.items()
    if key.startswith("error_")
}


class Words:
    """The texts of one language: `words("loaded", name="demo")`."""

    def __init__(self, language: str) -> None:
        """`language` is a code of `LANGUAGES`, also with a region behind it; any other means English."""
        code = language.lower().replace("_", "-").split("-")[0]
        self.language = code if code in LANGUAGES else "en"

    def __call__(self, key: str, **values: object) -> str:
        if "error" in values:
            values["error"] = self.error(str(values["error"]))
        return WORDS[key][self.language].format(**values)

    def error(self, text: str) -> str:
        """The text of an exception without its number, translated if a user often meets it."""
        text = ERRNO.sub("", text)
        for key, pattern in ERRORS.items():
            if self.language != "en" and (found := pattern.fullmatch(text)):
                return WORDS[key][self.language].format(**found.groupdict())
        return text

    def seconds(self, seconds: float) -> str:
        """`0.42 s`, `3.1 s`, `12 s`, `2 min 5 s`."""
        if seconds >= 59.5:
            minutes, seconds = divmod(round(seconds), 60)
            return f"{self('minutes', count=minutes)} {self('seconds', count=seconds)}"
        digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        return self("seconds", count=f"{seconds:.{digits}f}")


def translations() -> dict[str, dict[str, str]]:
    """Language -> key -> text."""
    return {code: {key: texts[code] for key, texts in WORDS.items()} for code in LANGUAGES}
