"""`exaone4-mlx doctor`: checks that this machine computes correctly."""

from __future__ import annotations

import argparse
import dataclasses
import time

from ..text.format import size_text
from .output import note, show, show_json

DESCRIPTION = "Prints versions, device and memory, and checks with the demo model that this machine computes correctly."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(options: argparse.Namespace) -> int:
    from ..measure.doctor import CHECKS, PACKAGES, examine
    from ..measure.machine import describe_machine

    started, here = time.perf_counter(), describe_machine(PACKAGES)
    if not options.json:
        show(", ".join(f"{name} {version}" for name, version in here.versions.items()))
        show(f"{here.system}; {here.processor}; MLX on the {here.device.upper()}")
        memory, limit = size_text(here.memory_bytes), size_text(here.memory_limit_bytes)
        show(f"memory {memory}, of which a model can use {limit}\n")
    width = max(map(len, CHECKS))
    checks = []
    for check in examine():
        checks.append(check)
        if options.json:
            continue
        found = check.error or check.figure + (f", at most {check.limit}" if check.limit else "")
        show(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:{width}}  {found}")
    failed, seconds = sum(not check.ok for check in checks), time.perf_counter() - started
    if options.json:
        results = [dataclasses.asdict(check) for check in checks]
        show_json({"machine": dataclasses.asdict(here), "checks": results, "ok": not failed})
    else:
        show(f"\n{failed} of {len(checks)} checks FAILED" if failed else f"\nall {len(checks)} checks passed")
        note(
            f"[{seconds:.1f} s] In an issue, paste all of the above and, if a command failed, the command with "
            "--debug and its output."
        )
    return 1 if failed else 0
