"""`exaone4-mlx doctor`: checks that this machine, and a model on it, compute correctly."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.text import json_text
from ..text.format import size_text
from .output import note, show, show_json

if TYPE_CHECKING:
    from ..measure.doctor import Check

DESCRIPTION = (
    "Prints versions, device and memory, and checks with the demo model that this machine computes correctly; "
    "with --model also that this model does."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH", help="also check this model: a folder, a hub id, or demo")
    parser.add_argument(
        "--reference",
        choices=("transformers",),
        help="compare the logits of the model with those of transformers, which needs torch",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="also write a report, for an issue")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(options: argparse.Namespace) -> int:
    from ..measure.doctor import CHECKS, PACKAGES, examine
    from ..measure.machine import describe_machine

    if options.reference and not options.model:
        raise ValueError("--reference needs --model")
    if options.output and not options.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.output.absolute().parent} for --output")
    started, here, model = time.perf_counter(), describe_machine(PACKAGES), None
    if options.model:
        from ..files.folders import find_folder
        from ..measure.model_check import CheckedModel, examine_model

        model = CheckedModel(find_folder(options.model), options.reference)
    if not options.json:
        show(", ".join(f"{name} {version}" for name, version in here.versions.items()))
        show(f"{here.system}; {here.processor}; MLX on the {here.device.upper()}")
        memory, limit = size_text(here.memory_bytes), size_text(here.memory_limit_bytes)
        show(f"memory {memory}, of which a model can use {limit}\n")
    width = max(map(len, CHECKS))
    checks = _shown(examine(), width, options.json)
    if model is not None:
        if not options.json:
            show(f"\n{model.description}\n")
        checks += _shown(examine_model(model), width, options.json)
    failed, seconds = sum(not check.ok for check in checks), time.perf_counter() - started
    report = {
        "machine": dataclasses.asdict(here),
        "model": model and model.description,
        "checks": [dataclasses.asdict(check) for check in checks],
        "ok": not failed,
    }
    if options.output:
        options.output.write_text(json_text(report) + "\n", encoding="utf-8")
    if options.json:
        show_json(report)
    else:
        show(f"\n{failed} of {len(checks)} checks FAILED" if failed else f"\nall {len(checks)} checks passed")
        attach = f"attach {options.output}" if options.output else "paste all of the above"
        note(f"[{seconds:.1f} s] For an issue: {attach}, and the command that failed, with --debug, and its output.")
    return 1 if failed else 0


def _shown(found: Iterable[Check], width: int, quiet: bool) -> list[Check]:
    """Shows each check as it ends, unless `quiet`."""
    checks = []
    for check in found:
        checks.append(check)
        if not quiet:
            figure = check.error or check.figure + (f", at most {check.limit}" if check.limit else "")
            show(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:{width}}  {figure}")
    return checks
