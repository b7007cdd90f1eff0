"""The prompt caches that commands keep: a file for one prompt, and a prefix store for all of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..generation.prefix_store import PrefixStore
    from ..generation.prompt_cache import PromptCache
    from ..measure.fit import Fit
    from .loading import ReadyModel


def open_prefix_store(options: argparse.Namespace, needs: Fit | None) -> PrefixStore:
    """The store that the flags ask for. By default it has what the model leaves of the memory.

    Raises ValueError for flags that do not fit together, and OSError for a folder that cannot be used.
    """
    from ..generation.prefix_store import MAX_BYTES, MAX_FOLDER_BYTES, PrefixStore

    limit, folder_limit = getattr(options, "prompt_cache_bytes", None), options.prompt_cache_dir_bytes
    if limit is None:
        limit = MAX_BYTES if needs is None else needs.store_bytes
    if folder_limit is not None and options.prompt_cache_dir is None:
        raise ValueError("--prompt-cache-dir-bytes needs --prompt-cache-dir")
    folder_limit = MAX_FOLDER_BYTES if folder_limit is None else folder_limit
    return PrefixStore(limit, options.prompt_cache_dir, folder_limit, getattr(options, "ranks", None))


def check_cache_file(path: Path) -> None:
    """Raises OSError, before any work, for a place where no prompt cache can be stored."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--prompt-cache-file: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"--prompt-cache-file: {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"--prompt-cache-file: the folder {path.parent} is read-only")


def open_prompt_cache(path: Path | None, made: ReadyModel) -> PromptCache:
    from ..generation.cache_file import check_count, place_of
    from ..generation.prompt_cache import PromptCache

    if path is not None:
        check_count(path, made.model.ranks)
    if path is None or not place_of(path, made.model.ranks).exists():
        return PromptCache(made.model, made.tokenizer, kv=made.kv, prefix_store=made.prefix_store)
    return PromptCache.load(path, made.model, made.tokenizer, kv=made.kv)
