"""`exaone4-mlx convert`: a checkpoint to an MLX folder."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from . import main as cli
from .evaluate import print_table

if TYPE_CHECKING:
    from ..conversion.convert import Conversion, Summary
    from ..conversion.plan import Planned

HELP = "convert a checkpoint to an MLX folder"
DESCRIPTION = "Converts a checkpoint to an MLX folder, in four bits unless said otherwise."
#: What is counted in bytes; the other stages count steps.
IN_BYTES = ("converting", "verifying")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", required=True, metavar="PATH", help="the checkpoint: a folder, a hub id, or demo"
    )
    parser.add_argument(
        "--mlx-path", default="mlx_model", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights (default: keep theirs)"
    )

    bits = parser.add_argument_group("bits", "4 bits in groups of 64, unless the checkpoint is quantized already")
    bits.add_argument("-q", "--quantize", action=argparse.BooleanOptionalAction, default=True, help="default: yes")
    bits.add_argument("-d", "--dequantize", action="store_true", help="a quantized checkpoint back to full precision")
    bits.add_argument("--q-bits", type=int, metavar="N", help="bits per weight (default: 4; 8 for mxfp8)")
    bits.add_argument("--q-group-size", type=int, metavar="N", help="weights per scale (default: 64 for affine)")
    bits.add_argument("--q-mode", choices=("affine", "mxfp4", "nvfp4", "mxfp8"), help="default: affine")
    bits.add_argument(
        "--recipe",
        "--quant-predicate",
        metavar="NAME",
        help="4bit, 4bit-quality, 8bit, mxfp4, nvfp4, mxfp8, or mlx-lm's mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6",
    )
    bits.add_argument(
        "--target-bpw", type=float, metavar="X", help="bits per weight that 4bit-quality spends (default: 4.85)"
    )

    quality = parser.add_argument_group("quality at the same size")
    quality.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="scales and biases of least error; without it those from minimum to maximum, as mlx-lm's (default: yes)",
    )
    quality.add_argument(
        "--calibrate",
        choices=("gptq", "distill"),
        help="gptq makes up for errors on texts, block by block; distill then tunes scales, biases and norms",
    )
    quality.add_argument(
        "--calibration-data", metavar="FILE", help="texts to calibrate on: .txt or .jsonl (default: the package's)"
    )

    trust = parser.add_argument_group("trust")
    trust.add_argument("--dry-run", action="store_true", help="show what would become of every tensor, and stop")
    trust.add_argument("--verify", action="store_true", help="compare every tensor written with its source")
    trust.add_argument(
        "--evaluate", action="store_true", help="measure what it cost, for the model card; --verify included"
    )
    trust.add_argument(
        "--evaluation-data", metavar="FILE", help="texts to measure on: .txt or .jsonl (default: the package's)"
    )
    begun = trust.add_mutually_exclusive_group()
    begun.add_argument(
        "--resume", action="store_true", help="go on where a stopped run was (which is done without it too)"
    )
    begun.add_argument("--overwrite", action="store_true", help="replace the folder, and what a stopped run left")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--upload-repo", metavar="REPO", help="publish the result on the hub; an EXAONE's name begins with EXAONE"
    )
    output.add_argument("--json", action="store_true", help="the plan or the summary as one JSON object")
    output.add_argument("--debug", action="store_true", help="show tracebacks")


def run(options: argparse.Namespace) -> int:
    from ..conversion.convert import prepare
    from ..conversion.request import Request

    names = {field.name for field in dataclasses.fields(Request)}
    conversion = prepare(
        options.hf_path,
        options.mlx_path,
        Request(**{name: value for name, value in vars(options).items() if name in names}),
        options.revision,
        dry=options.dry_run,
    )
    for note in conversion.notes:
        cli.say(f"note: {note}")
    if warning := _memory_warning(conversion):
        cli.say(f"warning: {warning}")
    if options.dry_run:
        _show_plan(conversion, options.json)
        return 0
    try:
        with _stages() as progress:
            summary = conversion.run(progress, notice=cli.say)
    except KeyboardInterrupt:
        cli.say(f"stopped; the same command goes on with {conversion.target}.partial")
        return 130
    _show_summary(summary, options.json)
    return 0


def _memory_warning(conversion: Conversion) -> str | None:
    """What to tell a user whose machine has less memory than this takes."""
    from ..measure.fit import memory_of_this_machine

    needed, memory = conversion.peak_bytes, memory_of_this_machine()
    if needed <= memory:
        return None
    less = {
        "distill": "; --calibrate gptq takes less, and no --calibrate the least",
        "gptq": "; no --calibrate takes less",
    }
    return (
        f"this takes about {cli.size_text(needed)} of memory at its peak, and MLX may have {cli.size_text(memory)} here"
        f"{less.get(conversion.request.calibrate or '', '')}"
    )


def _show_plan(conversion: Conversion, as_json: bool) -> None:
    needs = {name: getattr(conversion, name) for name in ("peak_bytes", "disk_bytes", "free_bytes")}
    if as_json:
        cli.print_json(conversion.describe() | needs)
        return
    plan = conversion.plan
    width = max(len(tensor.name) for tensor in plan.tensors)
    for tensor in plan.tensors:
        shape = " x ".join(map(str, tensor.shape))
        size = cli.size_text(tensor.nbytes)
        cli.tell(f"{tensor.name:{width}}  {shape:>14}  {tensor.work:10}  {size:>8}  {_form(tensor)}")
    size, before, peak, disk, free = map(cli.size_text, (plan.nbytes, plan.source_bytes, *needs.values()))
    files = f"{len(plan.shards)} file{'s' * (len(plan.shards) > 1)}"
    cli.tell(
        f"\n{conversion.target}: {size} in {files} from {before} ({conversion.opened.source.format}), "
        f"{plan.bits_per_weight:.3f} bits per weight\n"
        f"memory at the peak about {peak}; disk needed {disk}, free {free}"
    )


def _form(tensor: Planned) -> str:
    if tensor.quantization is None:
        return str(tensor.outputs[0].dtype).removeprefix("mlx.core.")
    return f"{tensor.quantization.bits} bits, {tensor.quantization.mode}, groups of {tensor.quantization.group_size}"


def _show_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        cli.print_json(dataclasses.asdict(summary) | {"path": str(summary.path)})
        return
    cli.tell(
        f"{summary.path}: {cli.size_text(summary.bytes)} from {cli.size_text(summary.source_bytes)}, "
        f"{summary.bits_per_weight:.3f} bits per weight, {summary.seconds:.1f} s, "
        f"peak memory {cli.size_text(summary.peak_bytes)}"
    )
    if summary.errors:
        worst = max(summary.errors, key=lambda error: error.relative_error)
        cli.tell(
            f"verified; the largest error is {100 * worst.relative_error:.1f} % ({worst.sqnr_db:.1f} dB), {worst.name}"
        )
    if summary.evaluation:
        print_table(summary.evaluation)
    if summary.page:
        cli.tell(summary.page)
    cli.say(f"try it: {shlex.join(['exaone4-mlx', 'generate', '--model', str(summary.path), '--prompt', 'Hello'])}")


@contextmanager
def _stages() -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, stage) that draws one bar after the other, each with rate and time left."""
    with ExitStack() as stack:
        current: list[Any] = [None, None]

        def report(done: int, total: int, stage: str) -> None:
            if stage != current[0]:
                stack.close()
                current[:] = stage, stack.enter_context(cli.progress_bar(stage, "B" if stage in IN_BYTES else " steps"))
            current[1](done, total)

        yield report
