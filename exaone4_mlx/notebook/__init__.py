"""Helpers for Jupyter: live replies, a chat widget, and pictures of what happens inside the model.

Notes:
- Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` exports a name to type checkers
    from .attention import AttentionMaps as AttentionMaps, attention_maps as attention_maps
    from .cache_state import CacheDrawing as CacheDrawing, draw_cache as draw_cache
    from .figure import FigureView as FigureView, draw_figure as draw_figure
    from .live import display_stream as display_stream
    from .tokens import InspectedTokens as InspectedTokens, inspect_tokens as inspect_tokens
    from .tree import TokenTree as TokenTree, token_tree as token_tree
    from .widget import chat_widget as chat_widget

_MODULE_OF = {
    "AttentionMaps": "attention",
    "CacheDrawing": "cache_state",
    "FigureView": "figure",
    "InspectedTokens": "tokens",
    "TokenTree": "tree",
    "attention_maps": "attention",
    "chat_widget": "widget",
    "display_stream": "live",
    "draw_cache": "cache_state",
    "draw_figure": "figure",
    "inspect_tokens": "tokens",
    "token_tree": "tree",
}
__all__ = [*_MODULE_OF]  # noqa: PLE0604 (all are strings)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value
