"""The flags of adapters, and the adapters that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model.adapter import WeightedAdapter
    from ..model.config import Exaone4Config


def add_adapter_flags(flags: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    flags.add_argument(
        "--adapter-path",
        action="append",
        default=[],
        metavar="PATH",
        help="an adapter: a folder or a hub id; may be repeated",
    )
    flags.add_argument(
        "--adapter-scale",
        action="append",
        type=float,
        metavar="X",
        help="multiplies what the adapter changes (default: 1); one for all, or one for each --adapter-path",
    )


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
