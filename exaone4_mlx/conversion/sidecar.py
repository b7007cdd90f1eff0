"""The files of a result besides its weights: config.json, the tokenizer, report.json, the model card, its picture.

Notes:
- config.json has every spelling of a field, so that mlx-lm and transformers of any version read it.
- config.json and the copied files are the same in every run, so an interrupted run writes them again.
- No path of the user's machine is written: `_name_or_path` and `name_or_path` are removed.
- tokenizer_config.json says how mlx-lm's server finds tool calls. It infers that from templates of other models only.
"""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.quantize import quantization_keys
from ..files.folders import read_json
from ..files.safetensors import FLOAT_DTYPES, read_dtype
from ..files.svg import has_matplotlib
from ..text.template import ChatTemplate
from .card import model_card
from .evaluation import Evaluation
from .licence import source_card
from .plot import PLOT_NAME, write_error_plot
from .prepare import Conversion
from .upload import CARRIED_FILES
from .verify import TensorError

TOOL_PARSER = "json_tools"  # mlx-lm's name of the format <tool_call>{"name": …, "arguments": …}</tool_call>


def write_config_and_tokenizer(folder: Path, conversion: Conversion) -> None:
    """Writes config.json and copies the tokenizer and licence files; removes those of an interrupted run first."""
    for file in folder.iterdir():
        if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in ("config.json", *CARRIED_FILES)):
            file.unlink()
    source = conversion.opened.folder
    config = read_json(source / "config.json") | conversion.opened.config.to_dict()
    for key in ("_name_or_path", "quantization", "quantization_config"):
        config.pop(key, None)
    dtype = read_dtype(conversion.request.dtype)
    if dtype is not None:
        name = next(name for name, known in FLOAT_DTYPES.items() if known == dtype)
        config |= {"dtype": name, "torch_dtype": name}
    config |= quantization_keys({t.name.removesuffix(".weight"): t.quantization for t in conversion.plan.tensors})
    write_text(folder / "config.json", json.dumps(dict(sorted(config.items())), indent=4))
    for pattern in CARRIED_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        values = read_json(file)
        values.pop("name_or_path", None)
        template = ChatTemplate.find(folder, values)
        if template is not None and "<tool_call>" in template.source:
            values.setdefault("tool_parser_type", TOOL_PARSER)
        write_text(file, json.dumps(values, indent=2, ensure_ascii=False))


def write_report(
    folder: Path,
    conversion: Conversion,
    measured: Mapping[str, Any],
    errors: tuple[TensorError, ...] | None,
    evaluation: Evaluation | None,
    digests: Mapping[str, str],
) -> None:
    """Writes report.json, the model card and, where matplotlib is installed, the picture of the errors.

    `measured` goes into the report's "conversion"; `digests` are the SHA-256 of the tensors.
    """
    by_name = {error.name: error for error in errors or ()}
    report: dict[str, Any] = {"conversion": conversion.describe() | {**measured, "plan": conversion.plan.digest}}
    for tensor in report["conversion"]["tensors"]:
        if error := by_name.get(tensor["name"]):
            sqnr = error.sqnr_db if math.isfinite(error.sqnr_db) else None  # JSON has no infinity
            tensor |= {"relative_error": error.relative_error, "sqnr_db": sqnr}
    if evaluation is not None:
        report["evaluation"] = asdict(evaluation)
    report["sha256"] = digests
    write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False))
    (folder / PLOT_NAME).unlink(missing_ok=True)  # of an interrupted run
    if errors and has_matplotlib():
        write_error_plot(folder / PLOT_NAME, report["conversion"]["tensors"])
    write_card(folder, conversion, report)


def write_card(folder: Path, conversion: Conversion, report: Mapping[str, Any]) -> None:
    """Writes the model card, README.md."""
    card = model_card(
        name=conversion.request.upload_repo or conversion.target.name,
        origin=conversion.origin,
        report=report,
        licence_files=sorted(file.name for pattern in ("LICENSE*", "NOTICE*") for file in folder.glob(pattern)),
        source_card=source_card(conversion.opened.folder),
        has_plot=(folder / PLOT_NAME).is_file(),
    )
    write_text(folder / "README.md", card)


def write_text(file: Path, text: str) -> None:
    file.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
