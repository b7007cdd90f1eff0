"""The flags of adapters, and the adapters that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model.adapter import Adapter, WeightedAdapter
    from ..model.config import Exaone4Config


def add_adapter_flags(flags: argparse.ArgumentParser | argparse._ArgumentGroup, with_scale: bool = True) -> None:
    flags.add_argument(
        "--adapter-path",
        action="append",
        default=[],
        metavar="PATH",
        help="an adapter: a folder or a hub id; may be repeated",
    )
    if not with_scale:
        flags.set_defaults(adapter_scale=None)
        return
    flags.add_argument(
        "--adapter-scale",
        action="append",
        type=float,
        metavar="X",
        help="multiplies what the adapter changes (default: 1); one for all, or one for each --adapter-path",
    )


def named_adapter(text: str) -> tuple[str, str]:
    """NAME=PATH as (name, path)."""
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise argparse.ArgumentTypeError(f"{text!r:.99} is not NAME=PATH")
    return name, path


def adapter_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of adapters that were given, as keyword arguments of `load`."""
    if options.adapter_scale and not options.adapter_path:
        raise ValueError("--adapter-scale needs --adapter-path")
    scales = options.adapter_scale or [1.0]
    given = {"adapter_path": options.adapter_path, "adapter_scale": scales if len(scales) > 1 else scales[0]}
    return given if options.adapter_path else {}


def find_adapters(options: argparse.Namespace, config: Exaone4Config) -> tuple[WeightedAdapter, ...]:
    """The adapters of the flags, with their scales. Raises ValueError for one that a model of `config` cannot have."""
    given = adapter_options(options)
    if not given:
        return ()
    from ..model.adapter import check_adapters
    from ..model.adapter_file import read_adapters

    adapters = read_adapters(**given)
    check_adapters(adapters, config)
    return adapters


def find_named_adapters(options: argparse.Namespace, config: Exaone4Config) -> dict[str, Adapter]:
    """The adapters of `serve --adapter-model` by name. Raises ValueError for a repeated name, too."""
    given: list[tuple[str, str]] = getattr(options, "adapter_model", [])
    if not given:
        return {}
    from ..model.adapter import check_adapters
    from ..model.adapter_file import read_adapter

    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--adapter-model gives the name {twice[0]} twice")
    adapters = {name: read_adapter(path) for name, path in given}
    for adapter in adapters.values():
        check_adapters([(adapter, 1.0)], config)
    return adapters
