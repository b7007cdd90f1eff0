"""The prompt caches that commands keep: a file for one prompt, and a prefix store for all of them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .flags import Flags

if TYPE_CHECKING:
    from ..generation.prefix_store import PrefixStore
    from ..generation.prompt_cache import PromptCache
    from ..measure.fit import Fit
    from .loading import ReadyModel


def add_prompt_cache_flags(flags: Flags) -> None:
    """Adds the flags of a prefix store."""
    flags.add_argument(
        "--prompt-cache-bytes",
        type=byte_count,
        metavar="SIZE",
        help="what was read for earlier prompts is kept in this much memory, such as 2GB (default: what is left of the "
        "memory, an eighth at least and 4 GiB at most)",
    )
    add_prompt_cache_dir_flags(flags)


def add_prompt_cache_dir_flags(flags: Flags) -> None:
    flags.add_argument(
        "--prompt-cache-dir",
        type=Path,
        metavar="FOLDER",
        help="keep what was read for prompts in FOLDER, for later ones that begin the same, also after a restart; the "
        "files hold the conversations (default: write nothing)",
    )
    flags.add_argument(
        "--prompt-cache-dir-bytes", type=byte_count, metavar="SIZE", help="the limit of FOLDER (default: 16 GiB)"
    )


def byte_count(text: str) -> int:
    """The type of a flag for a size: 500000, 500MB, 2GB, 2GiB."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be a size such as 500MB or 2GB")
    power = " KMGT".index((found[2] or " ").upper())
    return round(float(found[1]) * (1024 if found[3] else 1000) ** power)


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
    return PrefixStore(limit, options.prompt_cache_dir, folder_limit)


def check_cache_file(path: Path | None) -> None:
    """Raises OSError, before any work, for a place where no prompt cache can be stored."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--prompt-cache-file: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"--prompt-cache-file: {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"--prompt-cache-file: the folder {path.parent} is read-only")


def open_prompt_cache(path: Path | None, made: ReadyModel) -> PromptCache | None:
    if path is None and made.prefix_store is None:
        return None

    from ..generation.prompt_cache import PromptCache

    if path is None or not path.exists():
        return PromptCache(made.model, made.tokenizer, kv=made.kv, prefix_store=made.prefix_store)
    return PromptCache.load(path, made.model, made.tokenizer, kv=made.kv)
