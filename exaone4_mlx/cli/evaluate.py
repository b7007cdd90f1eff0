"""`exaone4-mlx evaluate`: what a conversion cost."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from . import main as cli

if TYPE_CHECKING:
    from ..conversion.evaluate import Evaluation


HELP = "measure what a conversion cost"
DESCRIPTION = "Compares a converted model's next-token probabilities with the original's."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="the converted model: a folder or a hub id")
    parser.add_argument(
        "--reference", required=True, metavar="PATH", help="what it was made from: a folder, a hub id, or demo"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the reference, if that is a hub id")
    parser.add_argument(
        "--data", metavar="FILE", help="texts to measure on: .txt or .jsonl (default: the package's held-out ones)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of each text (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="float32",
        help="what the model computes in; the reference always in float32 (default: %(default)s)",
    )
    cli.add_kv_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the table as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(options: argparse.Namespace) -> int:
    from ..conversion.evaluate import evaluate

    with cli.progress_bar("evaluating", " blocks") as progress:
        found = evaluate(
            options.model,
            options.reference,
            data=options.data,
            dtype=options.dtype,
            max_tokens=options.max_tokens,
            revision=options.revision,
            progress=progress,
            **cli.kv_options(options),
        )
    if options.json:
        cli.print_json(dataclasses.asdict(found))
    else:
        print_table(found)
    return 0


def print_table(found: Evaluation) -> None:
    """The rows, and under them what was compared."""
    cli.tell(f"{'':8}{'mean KL':>10}{'99 % KL':>10}{'same top-1':>12}{'perplexity':>12}{'ratio':>9}  95 % interval")
    for row in found.rows:
        cli.tell(
            f"{row.kind:8}{row.mean_kl:10.5f}{row.p99_kl:10.4f}{100 * row.top1_agreement:11.2f}%{row.perplexity:12.4g}"
            f"{row.perplexity_ratio:9.4f}  {row.perplexity_ratio_low:.4f} to {row.perplexity_ratio_high:.4f}"
        )
    kv = f"; {found.kv}" if found.kv else ""
    cli.tell(
        f"{found.model} ({found.bits_per_weight:.3f} bits per weight, computed in {found.dtype}{kv}) against "
        f"{found.reference} ({found.reference_bits_per_weight:.3f}, float32)\non {found.documents} texts, "
        f"{found.tokens} tokens: {found.data}; {found.seconds:.1f} s, {found.tokens_per_second:.0f} tokens/s, "
        f"peak memory {cli.size_text(found.peak_bytes)}"
    )
