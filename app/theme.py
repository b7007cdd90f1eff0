"""The looks of the page: the files of page/, joined, and Gradio's theme.

Notes:
- base.css is the design system. Its buttons, fields and focus ring hold for every gr.HTML with the class `own`.
- The files of the script share one scope, in the order of `SCRIPT`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gradio as gr

from .markdown import highlighting_css

HERE = Path(__file__).parent / "page"
SCRIPT = (
    "elements", "start", "frames", "conversation", "branches", "found", "asking", "welcome", "scrolling", "actions",
    "composer", "files", "notices", "keys", "diagrams", "numbers", "appearance", "labels",
)  # fmt: skip
LIST_SCRIPT = ("elements", "list", "list-rows", "list-menu", "list-keys")
MODELS_SCRIPT = ("elements", "models")
STYLES = ("base", "chat", "message", "composer", "list", "keys", "models", "widgets")


def page_template(name: str = "chat") -> str:
    """The elements of the conversation and the box, or of another part of the page."""
    return _joined([f"{name}.html"])


def script(names: Iterable[str] = SCRIPT) -> str:
    """The script of the conversation and the box, or of another part of the page."""
    return _joined(f"{name}.js" for name in names)


def styles() -> str:
    """All rules of the page."""
    return f"{_joined(f'{name}.css' for name in STYLES)}\n{highlighting_css()}"


def diagram_engine() -> str:
    """The script of Mermaid (MIT), without mind maps and architecture diagrams. Pages with a diagram fetch it."""
    return (HERE.parent / "vendor" / "mermaid.tiny.js").read_text(encoding="utf-8")


def _joined(names: Iterable[str]) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def theme() -> gr.Theme:
    """Quiet colours, and the fonts that Gradio includes."""
    weights = (400, 700)  # its file for 600 holds no Latin letters (6.31)
    made = gr.themes.Default(
        primary_hue="rose",
        neutral_hue="slate",
        font=(gr.themes.LocalFont("Source Sans Pro", weights), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", weights), "ui-monospace", "monospace"),
    )
    return made.set(  # contrast of hints and of the button: at least 4.5:1
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
