"""`exaone4-mlx fit`: the memory that a model needs, computed without loading it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..text.format import size_text
from . import flags
from .help import byte_count
from .loading import find_adapters
from .output import show, show_json

if TYPE_CHECKING:
    import mlx.core as mx

    from ..checkpoint.quantize import Quantization
    from ..checkpoint.share import Stage
    from ..measure.fit import Fit
    from ..measure.sizes import Sizes
    from ..model.kv import KVQuantization

DESCRIPTION = "Computes the memory that a model needs, without loading it. The exit code is 1 if nothing fits."
#: A full-precision checkpoint is also shown with these bits per weight.
OTHER_BITS = (8, 4)
#: Quantized caches are mentioned if they save at least this part of the total.
WORTH_LISTING = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="a folder, a config.json, a hub id (its weights are not downloaded), or demo",
    )
    flags.add_checkpoint_flags(parser)
    flags.add_max_kv_size_flag(parser, "number of tokens in the caches (default: the context length of the model)")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="conversations at the same time (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=gigabytes,
        metavar="GB",
        help="memory of the machine, or with --pipeline of each, as in 64,32; Metal gives a model about three quarters "
        "of it (default: this machine)",
    )
    flags.add_q_bits_flag(parser, "show only these bits per weight, in groups of 64, for a full-precision checkpoint")
    flags.add_kv_flags(parser)
    flags.add_adapter_flags(parser, with_scale=False)
    parser.add_argument("--draft-model", metavar="PATH", help="also count this draft model")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="count for each of N machines that share the model (default: 1)"
    )
    flags.add_pipeline_flag(parser, "count for machines that have some layers each")
    parser.add_argument(
        "--prompt-cache-bytes",
        type=byte_count,
        default=0,
        metavar="SIZE",
        help="also count what a server keeps of prompts",
    )
    parser.add_argument("--metal", action="store_true", help="count as on a Mac, on any machine")
    parser.add_argument("--json", action="store_true", help="print the first column as one JSON object")


def run(options: argparse.Namespace) -> int:
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..generation.request import check_kv_size
    from ..measure.fit import check_draft, fit_sizes, read_memory
    from ..measure.parts import ranked, sizes_of_part
    from ..measure.sizes import read_sizes
    from ..model.adapted import adapted_bytes
    from ..model.kv import KVQuantization

    metal = True if options.metal else None
    memories = [read_memory(one, metal) for one in options.memory or [None]]
    cast, first = read_dtype(options.dtype), None if options.q_bits is None else Quantization(options.q_bits)
    sizes = read_sizes(options.model, options.revision)
    check_kv_size(options.max_kv_size, sizes.config)
    kv = KVQuantization.read(sizes.config, **flags.kv_options(options))
    draft = None if options.draft_model is None else read_sizes(options.draft_model)
    if draft:
        check_draft(sizes, draft)
    ranks = _rank_count(options)
    adapters = adapted_bytes(find_adapters(options, sizes.config), sizes.config, sizes.activation_dtype(cast).size)
    memories *= ranks if len(memories) == 1 else 1
    stages = _stages(options.pipeline, memories, sizes)

    def fit(quantization: Quantization | None, kv: KVQuantization | None, stage: Stage | None = None) -> Fit:
        return fit_sizes(
            sizes_of_part(sizes, stage, quantization) if stage else ranked(sizes, ranks, quantization),
            options.max_kv_size,
            memories[stage.rank if stage else 0],
            cast,
            quantization,
            metal,
            kv=kv,
            draft=None if stage and stage.rank else draft,
            prompt_cache_bytes=options.prompt_cache_bytes,
            batch_size=options.batch_size,
            adapter_bytes=adapters,
        )

    others = [] if first or sizes.is_quantized or options.json else map(Quantization, OTHER_BITS)
    notes = _notes(sizes, metal, options.memory)
    if stages:
        return _show_stages(options, [fit(first, kv, stage) for stage in stages], stages, notes)
    fits = {_heading(sizes, cast, quantization): fit(quantization, kv) for quantization in (first, *others)}
    if options.json:
        (found,) = fits.values()
        show_json(_values(found))
        return 0 if found.fits else 1
    print_table(fits)
    if kv:
        show(_cache_note(kv))
    elif sizes.config.head_dim % 32 == 0:
        total = next(iter(fits.values())).total_bytes
        saved = total - fit(first, KVQuantization.read(sizes.config, 8)).total_bytes
        if saved > WORTH_LISTING * total:
            show(f"--kv-bits 8 saves {size_text(saved)}.")
    if ranks > 1:
        show(f"This is what rank 0 of {ranks} needs. The others need no draft model and no output head.")
    for note in notes:
        show(note)
    return 0 if any(one.fits for one in fits.values()) else 1


def gigabytes(text: str) -> list[float]:
    """The values of --memory."""
    return [float(one) for one in text.split(",")]


def _rank_count(options: argparse.Namespace) -> int:
    """--ranks, or without it the length of --pipeline. Raises ValueError for what `generate` refuses on these ranks."""
    machines = len(options.memory or [0])
    stated = machines if isinstance(options.pipeline, bool) else len(options.pipeline)
    count: int = stated if options.ranks is None else options.ranks
    if options.pipeline and count < 2:
        raise ValueError("--pipeline needs several ranks: give --ranks N, or the layers of each, as in 20,12")
    if machines > 1 and not (options.pipeline and machines == count):
        raise ValueError("--memory has one number, or with --pipeline one for each rank")
    if count > 1 and options.adapter_path:
        raise ValueError("--adapter-path: a model of several ranks takes no adapters; fuse them into the weights first")
    return count


def _stages(pipeline: bool | tuple[int, ...], memories: list[int | None], sizes: Sizes) -> list[Stage]:
    """The parts of the ranks of --pipeline that have these memories."""
    from ..checkpoint.share import Stage, layers_of_ranks

    if not pipeline:
        return []
    stored = {name: tensor.nbytes for name, tensor in sizes.tensors.items()}
    layers = layers_of_ranks(pipeline, sizes.config, stored, [memory or 1 for memory in memories])
    return [Stage(rank, layers, sizes.config.tie_word_embeddings) for rank in range(len(memories))]


def _show_stages(options: argparse.Namespace, fits: list[Fit], stages: list[Stage], notes: Iterable[str]) -> int:
    """Shows what each rank of a pipeline holds."""
    if options.json:
        show_json({"ranks": [_values(one) | {"layers": n} for one, n in zip(fits, stages[0].layers, strict=True)]})
    else:
        print_table({f"rank {stage.rank}": one for stage, one in zip(stages, fits, strict=True)})
        for stage in stages:
            ends = ["the embedding"] * stage.is_first + ["the norm", "the output head"] * (stage.rank == 0)
            show(f"Rank {stage.rank} has {', '.join([f'layers {stage.own.start + 1} to {stage.own.stop}', *ends])}.")
        for note in notes:
            show(note)
    return 0 if all(one.fits for one in fits) else 1


def _values(fit: Fit) -> dict[str, Any]:
    """For JSON."""
    return dataclasses.asdict(fit) | {"total_bytes": fit.total_bytes, "fits": fit.fits}


def print_table(fits: dict[str, Fit]) -> None:
    """One column per fit, for the same context."""
    columns = list(fits.values())
    one, size = columns[0], size_text
    is_same = len({fit.memory_bytes for fit in columns}) == 1
    rows = {
        (f"{one.batch_size} × " if one.batch_size > 1 else "") + f"{one.max_kv_size:,} tokens": list(fits),
        **{name: [size(fit.parts.get(name, 0)) for fit in columns] for name in one.parts},
        **({} if is_same else {"memory for a model": [size(fit.memory_bytes) for fit in columns]}),
        f"fits into {size(one.memory_bytes) if is_same else 'it'}": ["yes" if fit.fits else "no" for fit in columns],
        "largest context that fits": [f"{fit.largest_context:,}" if fit.largest_context else "none" for fit in columns],
    }
    for name, cells in rows.items():
        show(f"{name:26}" + "".join(f"{cell:>12}" for cell in cells))


def _heading(sizes: Sizes, cast: mx.Dtype | None, quantization: Quantization | None) -> str:
    if sizes.is_quantized:
        return "as stored"
    return f"{quantization.bits if quantization else 8 * sizes.activation_dtype(cast).size} bits"


def _cache_note(kv: KVQuantization) -> str:
    """How quantized caches are counted."""
    if kv.key_bits == kv.value_bits:
        text = f"Keys and values are in {kv.key_bits} bits"
    else:
        parts = (("keys", kv.key_bits), ("values", kv.value_bits))
        text = " and ".join(f"{name} in {bits} bits" for name, bits in parts if bits)
        text = text[0].upper() + text[1:]
    layers = "every layer" if kv.layers == "all" else "global layers"
    return f"{text}, in groups of {kv.group_size}, in the caches of {layers}."


def _notes(sizes: Sizes, metal: bool | None, memory: list[float] | None) -> Iterator[str]:
    """The assumptions behind the figures."""
    import mlx.core as mx

    from ..files.folders import physical_memory
    from ..measure.fit import uses_metal
    from ..measure.sizes import has_fused_attention

    if sizes.has_no_files:
        yield "There are no weight files: their size is computed from config.json."
    if not has_fused_attention(sizes.config, metal):
        on_a_mac = not metal and has_fused_attention(sizes.config, True)
        yield "Attention is not fused on this machine: the prefill transient includes all attention scores." + (
            " On a Mac it is fused: --metal counts it so." if on_a_mac else ""
        )
    if memory is None and mx.metal.is_available():
        which = "Metal's recommended working set on this machine"
    elif uses_metal(metal):
        whole = [physical_memory()] if memory is None else [one * 1e9 for one in memory]
        sizes_of = " or ".join(size_text(round(one)) for one in whole)
        which = f"what Metal gives a model by default, about three quarters of {sizes_of}"
    else:
        if memory is None:
            yield "The memory is the physical memory of this machine."
        return
    yield f"The memory is {which}; sudo sysctl iogpu.wired_limit_mb=N raises it to N MiB until the next restart."
