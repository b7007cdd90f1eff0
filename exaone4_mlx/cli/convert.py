"""`exaone4-mlx convert`: a checkpoint to an MLX folder."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..conversion.request import BYTE_STAGES
from ..text.format import size_text
from .evaluate import print_table
from .output import log, note, progress_bar, show, show_json

if TYPE_CHECKING:
    from ..conversion.convert import ConversionSummary
    from ..conversion.plan import PlannedTensor
    from ..conversion.prepare import Conversion
    from ..conversion.request import ConversionRequest

DESCRIPTION = "Converts a checkpoint to an MLX folder, by default in 4 bits."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", required=True, metavar="PATH", help="the checkpoint: a folder, a hub id, or demo"
    )
    parser.add_argument(
        "--mlx-path", default="mlx_model", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    add_request_flags(parser)


def add_request_flags(parser: argparse.ArgumentParser, without: str = "") -> None:
    """The flags of the fields of `ConversionRequest` but one, and those of every run."""
    from ..conversion.request import ConversionRequest

    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    bits = parser.add_argument_group("bits", "4 bits in groups of 64, unless the checkpoint is quantized already")
    whether = bits.add_mutually_exclusive_group()
    quality = parser.add_argument_group("quality at the same size")
    calibrate = quality.add_mutually_exclusive_group()
    trust = parser.add_argument_group("trust")
    trust.add_argument("--dry-run", action="store_true", help="show the plan of every tensor, and stop")
    rerun = trust.add_mutually_exclusive_group()
    rerun.add_argument("--resume", action="store_true", help="resume an interrupted run (the default does so too)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="the plan or the summary as one JSON object")
    groups = {"": parser, "bits": bits, "whether": whether, "quality": quality, "trust": trust, "rerun": rerun}
    groups |= {"output": output, "calibrate": calibrate}
    for option in dataclasses.fields(ConversionRequest):
        if option.name == without:
            parser.set_defaults(**{without: option.default})
            continue
        names = ("--" + option.name.replace("_", "-"), *option.metadata["names"])
        flags = sorted(names, key=lambda name: name.startswith("--"))  # short ones first
        keywords = {"default": option.default, "help": option.metadata["help"], **option.metadata["argument"]}
        if isinstance(option.default, bool):
            keywords["action"] = argparse.BooleanOptionalAction if option.default else "store_true"
        groups[option.metadata["group"]].add_argument(*flags, **keywords)
    calibrate.add_argument(
        "--no-calibrate", dest="calibrate", action="store_const", const=None, help="use no texts, also on a GPU"
    )


def run(options: argparse.Namespace) -> int:
    from ..conversion.prepare import prepare

    request = request_of(options)
    with stages() as progress:
        conversion = prepare(
            options.hf_path, options.mlx_path, request, options.revision, options.dry_run, progress=progress
        )
    return carry_out(conversion, options)


def request_of(options: argparse.Namespace) -> ConversionRequest:
    """The request of the flags. Raises ValueError for flags that contradict each other."""
    from ..conversion.request import ConversionRequest

    return ConversionRequest(
        **{option.name: getattr(options, option.name) for option in dataclasses.fields(ConversionRequest)}
    )


def carry_out(conversion: Conversion, options: argparse.Namespace) -> int:
    """Runs a prepared conversion, or shows its plan for --dry-run."""
    from ..conversion.convert import run_conversion

    for remark in conversion.notes:
        note(f"note: {remark}")
    if warning := _memory_warning(conversion):
        log(f"warning: {warning}")
    if options.dry_run:
        _show_plan(conversion, options.json)
        return 0
    try:
        with stages() as progress:
            summary = run_conversion(conversion, progress, notice=note)
    except KeyboardInterrupt:
        log(f"stopped; the same command resumes from {conversion.target}.partial")
        return 130
    _show_summary(summary, options.json)
    return 0


def _memory_warning(conversion: Conversion) -> str | None:
    """A warning where the machine has less memory than the conversion needs."""
    from ..measure.fit import memory_of_this_machine

    needed, memory = conversion.peak_bytes, memory_of_this_machine()
    if needed <= memory:
        return None
    less = "; --no-calibrate needs less" if conversion.request.calibrate else ""
    return f"this needs about {size_text(needed)} of memory at its peak, and MLX may use {size_text(memory)} here{less}"


def _show_plan(conversion: Conversion, as_json: bool) -> None:
    needs = {name: getattr(conversion, name) for name in ("peak_bytes", "disk_bytes", "free_bytes")}
    if as_json:
        show_json(conversion.describe() | needs)
        return
    plan = conversion.plan
    width = max(len(tensor.name) for tensor in plan.tensors)
    for tensor in plan.tensors:
        shape = " x ".join(map(str, tensor.shape))
        size = size_text(tensor.nbytes)
        show(f"{tensor.name:{width}}  {shape:>14}  {tensor.work:10}  {size:>8}  {_form(tensor)}")
    size, before, peak, disk, free = map(size_text, (plan.nbytes, plan.source_bytes, *needs.values()))
    files = f"{len(plan.shards)} file{'s' * (len(plan.shards) > 1)}"
    show(
        f"\n{conversion.target}: {size} in {files} from {before} ({conversion.opened.source.format}), "
        f"{plan.bits_per_weight:.3f} bits per weight\n"
        f"memory at the peak about {peak}; disk needed {disk}, free {free}"
    )


def _form(tensor: PlannedTensor) -> str:
    if tensor.quantization is None:
        return str(tensor.outputs[0].dtype).removeprefix("mlx.core.")
    return f"{tensor.quantization.bits} bits, {tensor.quantization.mode}, groups of {tensor.quantization.group_size}"


def _show_summary(summary: ConversionSummary, as_json: bool) -> None:
    if as_json:
        show_json(dataclasses.asdict(summary) | {"path": str(summary.path)})
        return
    show(
        f"{summary.path}: {size_text(summary.bytes)} from {size_text(summary.source_bytes)}, "
        f"{summary.bits_per_weight:.3f} bits per weight, {summary.seconds:.1f} s, "
        f"peak memory {size_text(summary.peak_bytes)}"
    )
    if summary.errors:
        worst = max(summary.errors, key=lambda error: error.relative_error)
        show(
            f"verified; the largest error is {100 * worst.relative_error:.1f} % ({worst.sqnr_db:.1f} dB), {worst.name}"
        )
    if summary.evaluation:
        print_table(summary.evaluation)
    if summary.page:
        show(summary.page)
    note(f"try it: {shlex.join(['exaone4-mlx', 'generate', '--model', str(summary.path), '--prompt', 'Hello'])}")


@contextmanager
def stages() -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, stage) that draws one bar after the other, each with rate and time left."""
    with ExitStack() as stack:
        current: list[Any] = [None, stack.enter_context(progress_bar("preparing", " steps"))]

        def report(done: int, total: int, stage: str) -> None:
            if stage != current[0]:
                stack.close()
                bar = progress_bar(stage, "B" if stage in BYTE_STAGES else " steps")
                current[:] = stage, stack.enter_context(bar)
            current[1](done, total)

        yield report


def convert_command(options: argparse.Namespace) -> str:
    """The command that converts the model as --q-bits quantized it, with a smaller error."""
    flags = {
        "--hf-path": options.model,
        "--mlx-path": "FOLDER",
        "--q-bits": options.q_bits,
        "--q-group-size": options.q_group_size,
        "--dtype": options.dtype,
        "--revision": options.revision,
    }
    return shlex.join(
        ["exaone4-mlx", "convert", *(str(x) for pair in flags.items() if pair[1] is not None for x in pair)]
    )
