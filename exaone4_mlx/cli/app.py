"""`exaone4-mlx app`: the desktop chat, which has a command line of its own.

Notes:
- In an installed package it is `exaone4_mlx.app`. In a clone its folder is `app/`, beside the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "exaone4_mlx.app"
NEEDED = ("gradio", "platformdirs", "latex2mathml", "pygments")  # the extra `app`


def run_app(arguments: Sequence[str]) -> int:
    """Runs the app until Ctrl-C, and returns the exit code. Raises ValueError without the extra `app`."""
    code: int = app_module("__main__").main(arguments, "exaone4-mlx app")
    return code


def app_module(name: str) -> Any:
    """A module of the app. Raises ValueError without the extra `app`."""
    if missing := [name for name in NEEDED if not _is_installed(name)]:
        raise ValueError(f"the app needs {', '.join(missing)}: pip install 'exaone4_mlx[app]'")
    clone = Path(__file__).parents[2] / "app"
    if importlib.util.find_spec(NAME) is None and (clone / "__init__.py").is_file():
        spec = importlib.util.spec_from_file_location(
            NAME, clone / "__init__.py", submodule_search_locations=[str(clone)]
        )
        assert spec is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{NAME}.{name}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it is None in sys.modules
        return False
