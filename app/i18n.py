"""Every text of the interface, in English, Korean and Spanish.

Notes:
- The texts are in words/*.json: key -> language -> text. The browser translates labels (Gradio's i18n), the script of
  the page its own texts, and Python generated ones.
- Errors of the package stay in English after a translated beginning, so that a user can search for them.
"""

from __future__ import annotations

import json
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


class Words:
    """The texts of one language: `words("loaded", name="demo")`."""

    def __init__(self, language: str) -> None:
        """`language` is a code of `LANGUAGES`, also with a region behind it; any other means English."""
        code = language.lower().replace("_", "-").split("-")[0]
        self.language = code if code in LANGUAGES else "en"

    def __call__(self, key: str, **values: object) -> str:
        return WORDS[key][self.language].format(**values)

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
