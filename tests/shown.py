"""What tests of views share: a parsed page, a reply and a conversion."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from exaone4_mlx import ConversionSummary
from exaone4_mlx.text.message import Reply
from exaone4_mlx.tools.call import ToolCall

COUNTS = {
    "prompt_tokens": 24,
    "cached_tokens": 3,
    "thinking_tokens": 23,
    "answer_tokens": 14,
    "prefill_seconds": 0.05,
    "decode_seconds": 2.0,
    "thinking_seconds": 1.25,
    "peak_bytes": 12_000_000,
}


def reply(text: str = "x", thinking: str = "", calls: tuple[ToolCall, ...] = (), **changes: Any) -> Reply:
    return Reply(text, thinking, calls, **({"finish_reason": "stop"} | COUNTS | changes))


def summary(**changes: Any) -> ConversionSummary:
    made: dict[str, Any] = {
        "path": Path("there"),
        "parameters": 1_234,
        "source_bytes": 4_000_000,
        "bytes": 1_000_000,
        "bits_per_weight": 4.5,
        "seconds": 3.0,
        "peak_bytes": 5_000_000,
    }
    return ConversionSummary(**(made | changes))


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.text += data
