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

#: Module and name of a class -> for each MIME type, the module of this room and the function in it that render it.
VIEWS = {
    ("conversation.chat", "Chat"): {"text/html": "views.chat_html", "text/markdown": "views.chat_markdown"},
    ("conversion.convert", "ConversionSummary"): {"text/html": "views.summary_html"},
    ("conversion.evaluate", "Evaluation"): {"text/html": "views.evaluation_html"},
    ("generation.generate", "Reply"): {"text/html": "views.reply_html", "text/markdown": "views.reply_markdown"},
    ("measure.fit", "Fit"): {"text/html": "views.fit_html"},
    ("model.config", "Exaone4Config"): {"text/html": "views.config_html"},
    ("notebook.introspect", "AttentionMaps"): {"text/html": "pictures.attention_html"},
    ("notebook.introspect", "CacheDrawing"): {"text/html": "pictures.caches_html"},
    ("notebook.introspect", "InspectedTokens"): {"text/html": "pictures.tokens_html"},
    ("notebook.introspect", "TokenTree"): {"text/html": "pictures.tree_html"},
}


def register(display_formatter: Any) -> None:
    """Registers all views with an IPython `DisplayFormatter`. A second call changes nothing."""
    package = __name__.split(".")[0]
    for (module, name), views in VIEWS.items():
        for mime_type, view in views.items():
            formatter = display_formatter.formatters[mime_type]
            formatter.for_type_by_name(f"{package}.{module}", name, _imported_at_use(view))


def _imported_at_use(view: str) -> Callable[[Any], str]:
    module, function = view.split(".")

    def render(value: Any) -> str:
        return str(getattr(importlib.import_module(f".{module}", __package__), function)(value))

    return render
