"""The widgets of the page, by name, and the texts on them.

Notes:
- Each text is first an entry of Gradio's i18n, which the browser translates. It is replaced when the user chooses a
  language.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .i18n import LANGUAGES, Words
from .settings import SAMPLING

#: The widgets whose values make up the settings of a conversation.
SETTINGS = ("system", "thinking", "thinking_budget", "use_tools", "tools", "ask", "max_tokens", "titles", *SAMPLING)


@dataclass
class Page:
    """Every widget that is read or changed."""

    # the conversation
    models: gr.HTML  # the picker of models: models.js
    chat: gr.HTML  # the conversation and the box: page/*.js
    thinking: gr.Checkbox
    use_tools: gr.Checkbox
    open_settings: gr.Button
    # the list
    left: gr.Sidebar
    listed: gr.HTML  # page/list*.js
    # the settings
    right: gr.Sidebar
    heading: gr.Markdown
    system: gr.Textbox
    thinking_budget: gr.Slider
    tools: gr.CheckboxGroup
    servers: gr.CheckboxGroup  # MCP servers that run
    ask: gr.Checkbox
    titles: gr.Checkbox
    always: gr.CheckboxGroup
    sampling: gr.Accordion
    sampling_hint: gr.Markdown
    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    min_p: gr.Slider
    presence_penalty: gr.Slider
    frequency_penalty: gr.Slider
    repetition_penalty: gr.Slider
    max_tokens: gr.Slider
    seed: gr.Number
    reset: gr.Button
    language: gr.Dropdown
    appearance: gr.Radio
    # invisible
    conversation: gr.Textbox  # the id in the address, and then of the conversation whose settings are shown
    browser_language: gr.Textbox
    kept_language: gr.BrowserState
    kept_settings: gr.BrowserState  # of the next conversation
    width: gr.Number  # of the window

    @property
    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @property
    def settings(self) -> list[Any]:
        return [getattr(self, name) for name in SETTINGS]


#: widget -> what of it -> the key of its text
TEXTS = {
    "thinking": {"label": "think"},
    "use_tools": {"label": "use_tools"},
    "open_settings": {"value": "settings"},
    "heading": {"value": "settings"},
    "system": {"label": "system", "placeholder": "system_hint"},
    "thinking_budget": {"label": "budget", "info": "budget_hint"},
    "tools": {"label": "which_tools"},
    "servers": {"label": "servers"},
    "ask": {"label": "ask"},
    "titles": {"label": "titles"},
    "always": {"label": "always"},
    "sampling": {"label": "sampling"},
    "sampling_hint": {"value": "sampling_hint"},
    **{name: {"label": name} for name in (*SAMPLING, "max_tokens")},
    "reset": {"value": "reset"},
    "language": {"label": "language"},
    "appearance": {"label": "appearance"},
}
#: the key of its text -> its name
THEMES = {"system_theme": "", "light": "light", "dark": "dark"}


def languages(words: Words) -> list[tuple[str, str]]:
    """What the choice of the language shows, and its values."""
    return [(words("automatic"), ""), *((name, code) for code, name in LANGUAGES.items())]


def labels(page: Page, words: Words) -> dict[Any, Any]:
    """All texts in a language, as updates by widget."""
    updates = {name: {what: words(key) for what, key in texts.items()} for name, texts in TEXTS.items()}
    themes = [(words(key), value) for key, value in THEMES.items()]
    updates["appearance"] |= {"choices": themes}  # type: ignore[dict-item]
    updates["language"] |= {"choices": languages(words)}  # type: ignore[dict-item]
    return {getattr(page, name): gr.update(**texts) for name, texts in updates.items()}  # type: ignore[arg-type]
