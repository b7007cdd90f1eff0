"""`exaone4-mlx fuse`: adapters into the weights of their base, or an adapter into another program's format."""

from __future__ import annotations

import argparse

from .convert import add_request_flags, carry_out, request_of, stages
from .flags import adapter_options, add_adapter_flags
from .output import show

DESCRIPTION = (
    "Adds adapters to the weights of their base, and writes an MLX folder: in the form of the base or, with the "
    "options of convert, in another. --export writes the adapter alone, in the format of another program."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="the base: a folder, a hub id, or demo")
    add_adapter_flags(parser)
    parser.add_argument(
        "--mlx-path",
        "--save-path",
        default="fused_model",
        metavar="FOLDER",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument("--export", choices=("peft", "mlx-lm"), help="write the adapter alone, in this format")
    add_request_flags(parser, without="quantize")


def run(options: argparse.Namespace) -> int:
    from ..conversion.fuse import export_adapter
    from ..conversion.prepare import prepare
    from ..model.adapter_file import read_adapters

    if not options.adapter_path:
        raise ValueError("--adapter-path is needed: the adapter to fuse")
    if options.export:
        if len(options.adapter_path) > 1 or options.adapter_scale:
            raise ValueError("--export takes one --adapter-path and no --adapter-scale")
        path = options.adapter_path[0]
        show(str(export_adapter(options.model, path, options.mlx_path, options.export, options.revision)))
        return 0
    adapters, request = read_adapters(**adapter_options(options)), request_of(options)
    with stages() as progress:
        conversion = prepare(
            options.model, options.mlx_path, request, options.revision, options.dry_run, adapters, progress
        )
    return carry_out(conversion, options)
