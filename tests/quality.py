"""Measures the table of docs/convert-and-measure.md of the quality loss of 4 bits: `python tests/quality.py`.

Each method converts the demo with the package's calibration texts, and the held-out texts measure the loss. MLX's CPU
backend multiplies 25 times faster with LD_PRELOAD of Debian's libopenblas.so.0.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exaone4_mlx import Evaluation, convert, evaluate

METHODS: dict[str, dict[str, Any]] = {
    "mlx-lm's plain 4 bits (`--no-search`: the same bytes)": {"search": False},
    "least error (the default)": {},
    "`--calibrate gptq`": {"calibrate": "gptq"},
    "`--calibrate distill`": {"calibrate": "distill"},
    "`--recipe 4bit-quality`": {"recipe": "4bit-quality"},
    "`--recipe 4bit-quality --calibrate gptq`": {"recipe": "4bit-quality", "calibrate": "gptq"},
    "`--recipe 4bit-quality --calibrate distill`": {"recipe": "4bit-quality", "calibrate": "distill"},
}


def measured(folder: Path) -> Iterator[tuple[str, Evaluation]]:
    for number, (name, options) in enumerate(METHODS.items()):
        convert("demo", folder / str(number), **options)
        yield name, evaluate(folder / str(number), "demo")
    yield "unquantized, computed in bfloat16: the noise floor", evaluate("demo", "demo", dtype="bfloat16")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = 0.0
        print("| the demo in four bits | bits per weight | mean KL | of plain | 99 % KL | same top-1 |")
        print("|---|---|---|---|---|---|")
        for name, found in measured(Path(folder)):
            row = found.rows[0]
            plain = plain or (row.mean_kl if "no-search" in name else 0.0)
            share = f"{row.mean_kl / plain:.2f}" if plain else ""
            print(
                f"| {name} | {found.bits_per_weight:.3f} | {row.mean_kl:.4f} | {share} | {row.p99_kl:.3f} "
                f"| {100 * row.top1_agreement:.1f} % |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
