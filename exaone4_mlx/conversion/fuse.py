"""`fuse`: a checkpoint and its adapters -> an MLX folder; `export_adapter`: an adapter -> another program's format.

Notes:
- The converter reads the weights of the base with the adapters added, a few rows at a time. So quantized weights are
  made from the fused ones, with error search, and everything that `convert` can do applies.
- Without options the result has the form of the base: full precision, or the bits of each quantized weight.
- `evaluate` compares the result with the base plus its adapters.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.folders import find_folder
from ..generation.names import refuse_unknown
from ..model.adapter import check_adapters
from ..model.adapter_file import AdapterPath, AdapterPaths, Scales, read_adapters, write_adapter
from ..model.config import Exaone4Config
from .calibrate import StageProgress
from .card import adapter_card
from .convert import ConversionSummary, run_conversion
from .licence import public_origin, source_card
from .prepare import describe_adapter, prepare
from .request import ConversionOptions, ConversionRequest
from .sidecar import write_text

if TYPE_CHECKING:
    from typing_extensions import Unpack


def fuse(
    model: str | Path,
    adapter_path: AdapterPaths,
    mlx_path: str | Path = "fused_model",
    *,
    adapter_scale: Scales = 1.0,
    revision: str | None = None,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] = warnings.warn,
    **options: Unpack[ConversionOptions],
) -> ConversionSummary:
    """Adds adapters to the weights of a model (a folder, a hub id or "demo"), and writes the result as an MLX folder.

    `adapter_path` and `adapter_scale` are those of `load`. The other arguments, the result and the errors are those of
    `convert`. Without options the result has the form of the base: full precision, or the same bits.
    """
    refuse_unknown(options, [field.name for field in fields(ConversionRequest)])
    adapters = read_adapters(adapter_path, adapter_scale)
    conversion = prepare(model, mlx_path, ConversionRequest(**options), revision, adapters=adapters)
    return run_conversion(conversion, progress, notice)


def export_adapter(
    model: str | Path, adapter_path: AdapterPath, folder: str | Path, layout: str, revision: str | None = None
) -> Path:
    """Writes an adapter of `model` into a new folder in the layout "mlx-lm" or "peft", with a card and the licence.

    Raises FileExistsError for a folder with files in it, and ValueError for an adapter of another model, and for whole
    weights in PEFT's layout.
    """
    base, target = find_folder(model, revision), Path(folder).expanduser()
    adapters = read_adapters(adapter_path)
    check_adapters(adapters, Exaone4Config.from_file(base / "config.json"))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty; choose another folder")
    for adapter, _ in adapters:
        write_adapter(target, adapter.with_base(public_origin(str(model))), layout)
        licences = sorted(file.name for pattern in ("LICENSE*", "NOTICE*") for file in base.glob(pattern))
        for name in licences:
            shutil.copyfile(base / name, target / name)
        about = describe_adapter(adapter, adapter.config.scale)
        card = adapter_card(target.name, str(model), about, layout, licences, source_card(base))
        write_text(target / "README.md", card)
    return target
