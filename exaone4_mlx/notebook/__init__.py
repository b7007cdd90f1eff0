"""Helpers for Jupyter: live replies, a chat widget, and pictures of the model's inside.

Notes:
- Names are imported when they are first used: `notebook.views` must not import MLX.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "AttentionMaps",
    "CacheDrawing",
    "InspectedTokens",
    "TokenTree",
    "attention_maps",
    "chat_widget",
    "display_stream",
    "draw_cache",
    "inspect_tokens",
    "token_tree",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".widgets", __name__), name)
