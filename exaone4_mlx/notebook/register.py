"""Registers rich display of the package's objects with IPython.

Notes:
- IPython gets each class by the name of its module, so that registering imports neither the class nor its view.
- `import exaone4_mlx` registers where IPython is already running in the process, as in a notebook. If the package was
  imported before IPython started, `%load_ext exaone4_mlx` registers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

#: Module and name of a class -> the module of this room that renders it, and its function for each MIME type.
VIEWS = {
    ("conversation.chat", "Chat"): ("conversation_view", {"text/html": "chat_html", "text/markdown": "chat_markdown"}),
    ("conversion.convert", "ConversionSummary"): ("report_view", {"text/html": "summary_html"}),
    ("conversion.evaluation", "Evaluation"): ("report_view", {"text/html": "evaluation_html"}),
    ("text.message", "Reply"): ("conversation_view", {"text/html": "reply_html", "text/markdown": "reply_markdown"}),
    ("measure.fit", "Fit"): ("report_view", {"text/html": "fit_html"}),
    ("model.config", "Exaone4Config"): ("config_view", {"text/html": "config_html"}),
    ("notebook.attention", "AttentionMaps"): ("attention", {"text/html": "attention_html"}),
    ("notebook.cache_state", "CacheDrawing"): ("cache_view", {"text/html": "caches_html"}),
    ("notebook.tokens", "InspectedTokens"): ("token_view", {"text/html": "tokens_html"}),
    ("notebook.tree", "TokenTree"): ("token_view", {"text/html": "tree_html"}),
}


def register(display_formatter: Any) -> None:
    """Registers all views with an IPython `DisplayFormatter`. A second call changes nothing."""
    package = __name__.split(".")[0]
    for (module, name), (view, functions) in VIEWS.items():
        for mime_type, function in functions.items():
            formatter = display_formatter.formatters[mime_type]
            formatter.for_type_by_name(f"{package}.{module}", name, _imported_at_use(view, function))


def _imported_at_use(module: str, function: str) -> Callable[[Any], str]:
    def render(value: Any) -> str:
        return str(getattr(importlib.import_module(f".{module}", __package__), function)(value))

    return render
