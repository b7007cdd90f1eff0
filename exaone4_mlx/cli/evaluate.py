"""`exaone4-mlx evaluate`: the quality loss of a conversion."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from ..text.format import size_text
from .flags import DTYPES, adapter_options, add_adapter_flags, add_kv_flags, kv_options
from .output import progress_bar, show, show_json

if TYPE_CHECKING:
    from ..conversion.evaluation import Evaluation


DESCRIPTION = (
    "Compares the next-token probabilities of a converted model with those of the original, or of a model with an "
    "adapter with those of the model without."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="the converted model: a folder or a hub id")
    parser.add_argument(
        "--reference",
        metavar="PATH",
        help="the original model: a folder, a hub id, or demo (default: with --adapter-path, the model without it)",
    )
    add_adapter_flags(parser)
    parser.add_argument("--revision", help="branch, tag or commit of the original model, if it is a hub id")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="texts to measure on: .txt or .jsonl, or own-chats: prompts that the original answers itself, in memory "
        "(default: the held-out texts of the package)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=512,
        metavar="N",
        help="tokens of a window: a longer text is read in several, each without the ones before "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--replies-only",
        action="store_true",
        help="count the last reply of each conversation only, and leave texts without one out",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="the type of computation of the model; the reference always uses float32 (default: %(default)s)",
    )
    add_kv_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from ..conversion.evaluate import evaluate
    from ..model.kv import KVQuantization

    with progress_bar("evaluating", " blocks") as progress:
        found = evaluate(
            options.model,
            options.reference,
            **adapter_options(options),
            data=options.data,
            dtype=options.dtype,
            max_tokens=options.max_tokens,
            replies_only=options.replies_only,
            revision=options.revision,
            progress=progress,
            kv=KVQuantization.from_flags(**kv_options(options)),
        )
    if options.json:
        show_json(dataclasses.asdict(found))
    else:
        print_table(found)
    return 0


def print_table(found: Evaluation) -> None:
    """The table, and below it the models and texts."""
    show(f"{'':8}{'mean KL':>10}{'99 % KL':>10}{'same top-1':>12}{'perplexity':>12}{'ratio':>9}  95 % interval")
    for row in found.rows:
        show(
            f"{row.kind:8}{row.mean_kl:10.5f}{row.p99_kl:10.4f}{100 * row.top1_agreement:11.2f}%{row.perplexity:12.4g}"
            f"{row.perplexity_ratio:9.4f}  {row.interval}"
        )
    kv = f"; {found.kv}" if found.kv else ""
    show(
        f"{found.model} ({found.bits_per_weight:.3f} bits per weight, computed in {found.dtype}{kv}) against "
        f"{found.reference} ({found.reference_bits_per_weight:.3f}, float32)\non {found.documents} texts, "
        f"{found.tokens} tokens: {found.data}; {found.seconds:.1f} s, {found.tokens_per_second:.0f} tokens/s, "
        f"peak memory {size_text(found.peak_bytes)}"
    )
