"""`exaone4-mlx doctor`: whether everything computes right on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import time

from . import main as cli

HELP = "check that everything computes right here"
DESCRIPTION = "Tells versions, device and memory, and checks with the demo model that this machine computes right."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(options: argparse.Namespace) -> int:
    from ..measure.doctor import CHECKS, PACKAGES, examine
    from ..measure.machine import describe_machine

    started, here = time.perf_counter(), describe_machine(PACKAGES)
    if not options.json:
        cli.tell(", ".join(f"{name} {version}" for name, version in here.versions.items()))
        cli.tell(f"{here.system}; {here.processor}; MLX on the {here.device.upper()}")
        memory, limit = cli.size_text(here.memory_bytes), cli.size_text(here.memory_limit_bytes)
        cli.tell(f"memory {memory}, of which a model can have {limit}\n")
    width = max(map(len, CHECKS))
    checks = []
    for check in examine():
        checks.append(check)
        if options.json:
            continue
        found = check.error or check.figure + (f", at most {check.limit}" if check.limit else "")
        cli.tell(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:{width}}  {found}")
    failed, seconds = sum(not check.ok for check in checks), time.perf_counter() - started
    if options.json:
        told = [dataclasses.asdict(check) for check in checks]
        cli.print_json({"machine": dataclasses.asdict(here), "checks": told, "ok": not failed})
    else:
        cli.tell(f"\n{failed} of {len(checks)} checks FAILED" if failed else f"\nall {len(checks)} checks passed")
        cli.say(
            f"[{seconds:.1f} s] In an issue, paste all of the above and, if a command went wrong, the command with "
            "--debug and what it printed."
        )
    return 1 if failed else 0
