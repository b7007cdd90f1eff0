"""`exaone4-mlx fit`: the memory that a model needs, before it is loaded."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import main as cli

if TYPE_CHECKING:
    import mlx.core as mx

    from ..checkpoint.quantize import Quantization
    from ..measure.fit import Fit
    from ..measure.sizes import Sizes
    from ..model.kv import KVQuantization

HELP = "tell the memory that a model needs"
DESCRIPTION = "Tells the memory that a model needs at a context length, without loading it."
#: The bits that a checkpoint in full precision is shown in, beside its own.
OTHER_BITS = (8, 4)
#: The part of a total below which what quantized caches save is not told.
WORTH_IT = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="PATH", help="a folder, a config.json, a hub id (nothing else of it), or demo"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--context", type=int, metavar="N", help="tokens (default: the most that the model reaches)")
    parser.add_argument("--memory", type=float, metavar="GB", help="what there is (default: what this machine gives)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights (default: keep theirs)"
    )
    parser.add_argument(
        "--q-bits", type=int, metavar="N", help="only these bits, in groups of 64, of a checkpoint in full precision"
    )
    cli.add_kv_arguments(parser)
    parser.add_argument("--draft-model", metavar="PATH", help="count this model, too, which drafts for the first")
    parser.add_argument("--metal", action="store_true", help="count the prefill as on a Mac, whatever this machine is")
    parser.add_argument("--json", action="store_true", help="the first column as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(options: argparse.Namespace) -> int:
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..measure.fit import check_request, fit_sizes
    from ..measure.sizes import check_draft, read_sizes
    from ..model.kv import KVQuantization

    memory = None if options.memory is None else _bytes(options.memory)
    check_request(options.context, memory)
    cast, first = read_dtype(options.dtype), None if options.q_bits is None else Quantization(options.q_bits)
    metal = True if options.metal else None
    sizes = read_sizes(options.model, options.revision)
    kv = KVQuantization.read(sizes.config, **cli.kv_options(options))
    draft = None if options.draft_model is None else read_sizes(options.draft_model)
    if draft:
        check_draft(sizes, draft)

    def fit(quantization: Quantization | None, kv: KVQuantization | None) -> Fit:
        return fit_sizes(sizes, options.context, memory, cast, quantization, metal, kv=kv, draft=draft)

    others = [] if first or sizes.is_quantized or options.json else map(Quantization, OTHER_BITS)
    fits = {_heading(sizes, cast, quantization): fit(quantization, kv) for quantization in (first, *others)}
    if options.json:
        (found,) = fits.values()
        cli.print_json(dataclasses.asdict(found) | {"total_bytes": found.total_bytes, "fits": found.fits})
        return 0
    print_table(fits)
    if kv:
        cli.tell(_cache_note(kv))
    elif sizes.config.head_dim % 32 == 0:
        total = next(iter(fits.values())).total_bytes
        saved = total - fit(first, KVQuantization.read(sizes.config, 8)).total_bytes
        if saved > WORTH_IT * total:
            cli.tell(f"With --kv-bits 8 it would be {cli.size_text(saved)} less.")
    for note in _notes(sizes, metal, memory_was_given=memory is not None):
        cli.tell(note)
    return 0


def print_table(fits: dict[str, Fit]) -> None:
    """A column for each of `fits`, under its name, all for one context and one memory."""
    columns = list(fits.values())
    one, size = columns[0], cli.size_text
    rows = {
        f"{one.context:,} tokens": list(fits),
        "weights": [size(fit.weights_bytes) for fit in columns],
        "global cache": [size(fit.global_cache_bytes) for fit in columns],
        "local windows": [size(fit.local_window_bytes) for fit in columns],
        "rewind reserve and slack": [size(fit.local_reserve_bytes) for fit in columns],
        "prefill transient": [size(fit.prefill_bytes) for fit in columns],
        "draft model, its caches": [size(fit.draft_bytes) for fit in columns],
        "total": [size(fit.total_bytes) for fit in columns],
        f"fits into {size(one.memory_bytes)}": ["yes" if fit.fits else "no" for fit in columns],
        "largest context that fits": [f"{fit.largest_context:,}" if fit.largest_context else "none" for fit in columns],
    }
    if not one.draft_bytes:
        del rows["draft model, its caches"]
    for name, cells in rows.items():
        cli.tell(f"{name:26}" + "".join(f"{cell:>12}" for cell in cells))


def _heading(sizes: Sizes, cast: mx.Dtype | None, quantization: Quantization | None) -> str:
    if sizes.is_quantized:
        return "as stored"
    return f"{quantization.bits if quantization else 8 * sizes.activation_dtype(cast).size} bits"


def _cache_note(kv: KVQuantization) -> str:
    """How the caches are counted that are quantized."""
    if kv.key_bits == kv.value_bits:
        told = f"Keys and values are in {kv.key_bits} bits"
    else:
        parts = (("keys", kv.key_bits), ("values", kv.value_bits))
        told = " and ".join(f"{name} in {bits} bits" for name, bits in parts if bits)
        told = told[0].upper() + told[1:]
    layers = "every layer" if kv.layers == "all" else "global layers"
    return f"{told}, in groups of {kv.group_size}, in the caches of {layers}."


def _notes(sizes: Sizes, metal: bool | None, memory_was_given: bool) -> Iterator[str]:
    """What the figures rest on."""
    import mlx.core as mx

    from ..measure.allocation import has_fused_attention

    if sizes.has_no_files:
        yield "There are no weight files: their size follows from config.json."
    if not has_fused_attention(sizes.config, metal):
        there = (
            "" if metal or not has_fused_attention(sizes.config, True) else " On a Mac it is: --metal counts as there."
        )
        yield f"Attention is not fused here: the prefill transient counts all of its scores.{there}"
    if memory_was_given:
        return
    if mx.metal.is_available():
        yield (
            "The memory is Metal's recommended working set on this machine; sudo sysctl iogpu.wired_limit_mb=N "
            "raises it to N MiB until the next start."
        )
    else:
        yield "The memory is the physical memory of this machine."


def _bytes(gigabytes: float) -> int:
    if not 1 <= gigabytes * 1e9 < float("inf"):
        raise ValueError(f"memory must be a positive number of gigabytes, not {gigabytes:g}")
    return int(gigabytes * 1e9)
