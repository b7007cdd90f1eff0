"""Flags that several commands share, and the values that follow from them.

Notes:
- The flags of a reply, their help and their defaults are derived from the fields of `Options`.
- Spellings are those of mlx-lm where it has the flag: `--temp`, `--max-tokens`, `-m`, `--max-kv-size`, `--kv-bits`.
- A flag that is not given is None or False, so that the default of the option, or the value of a saved chat, holds.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cluster import TIMEOUT
from ..files.attachments import read_text, without_line_end
from ..generation.options import OPTION_NAMES, Options
from .help import byte_count, counts, json_object

DEFAULT_MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"
DTYPES = ("bfloat16", "float16", "float32")
KV_NAMES = ("kv_bits", "kv_bits_keys", "kv_bits_values", "kv_group_size", "kv_layers")

#: Where a flag can be added.
Flags = argparse.ArgumentParser | argparse._ArgumentGroup


def add_model_flag(flags: Flags) -> None:
    flags.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="PATH", help='a folder, a hub id, or "demo" (default: %(default)s)'
    )


def add_checkpoint_flags(flags: Flags, dtype_help: str = "cast the weights (default: keep their type)") -> None:
    flags.add_argument("--revision", help="branch, tag or commit of a hub id")
    flags.add_argument("--dtype", choices=DTYPES, help=dtype_help)


def add_model_flags(parser: argparse.ArgumentParser) -> Flags:
    """Adds them, and returns the group of those about memory."""
    model = parser.add_argument_group("model")
    add_model_flag(model)
    add_checkpoint_flags(model, "cast the weights; float16 may be faster on M1 and M2, and an overflow is an error")
    add_q_bits_flag(model, "quantize a full-precision checkpoint while it loads")
    model.add_argument(
        "--q-group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        metavar="N",
        help="weights per scale (default: %(default)s)",
    )
    add_adapter_flags(model)
    memory = parser.add_argument_group("memory")
    add_max_kv_size_flag(
        memory,
        "maximum number of tokens of prompt and reply together; a longer prompt is refused, a longer reply is cut off, "
        "nothing is dropped (default: the context length)",
    )
    add_kv_flags(memory)
    add_ignore_memory_flag(memory)
    return memory


def add_q_bits_flag(flags: Flags, help: str) -> None:
    flags.add_argument("--q-bits", type=int, choices=(2, 3, 4, 5, 6, 8), metavar="N", help=help)


def add_max_kv_size_flag(flags: Flags, help: str) -> None:
    flags.add_argument("--max-kv-size", type=int, metavar="N", help=help)


def add_ignore_memory_flag(flags: Flags) -> None:
    flags.add_argument(
        "--ignore-memory", action="store_true", help="load a model that exceeds the memory, without a warning"
    )


def add_kv_flags(flags: Flags) -> None:
    flags.add_argument("--kv-bits", type=int, choices=(8, 4), help="quantize the KV caches (default: full precision)")
    flags.add_argument("--kv-bits-keys", type=int, choices=(8, 4), help="quantize the keys only, or to other bits")
    flags.add_argument("--kv-bits-values", type=int, choices=(8, 4), help="quantize the values only, or to other bits")
    flags.add_argument(
        "--kv-group-size", type=int, metavar="N", help="numbers per scale (default: the larger of 64 and 32 that fits)"
    )
    flags.add_argument(
        "--kv-layers", choices=("all", "global"), help="layers whose caches are quantized (default: global)"
    )


def add_adapter_flags(flags: Flags, with_scale: bool = True) -> None:
    flags.add_argument(
        "--adapter-path",
        action="append",
        default=[],
        metavar="PATH",
        help="an adapter: a folder or a hub id; may be repeated",
    )
    if not with_scale:
        flags.set_defaults(adapter_scale=None)
        return
    flags.add_argument(
        "--adapter-scale",
        action="append",
        type=float,
        metavar="X",
        help="multiplies what the adapter changes (default: 1); one for all, or one for each --adapter-path",
    )


def add_rank_flags(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group("several machines", "with mlx.launch: see docs/several-macs.md")
    several.add_argument(
        "--rank-timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help="a rank that is silent or makes no progress for so long ends the others (default: %(default)g)",
    )
    add_pipeline_flag(several, "give each rank some layers, not a part of each layer")


def add_pipeline_flag(flags: Flags, what: str) -> None:
    flags.add_argument(
        "--pipeline",
        nargs="?",
        const=True,
        default=False,
        type=counts,
        metavar="LAYERS",
        help=f"{what}: as many as LAYERS says (20,12: the last 20 in rank 0), or without it by memory",
    )


def add_prompt_cache_flags(flags: Flags, in_memory: bool = False) -> None:
    """Adds the flags of a prefix store; `in_memory` is for those that keep one without a folder, too."""
    if in_memory:
        flags.add_argument(
            "--prompt-cache-bytes",
            type=byte_count,
            metavar="SIZE",
            help="what was read for earlier prompts is kept in this much memory, such as 2GB (default: what is left of "
            "the memory, an eighth at least and 4 GiB at most)",
        )
    flags.add_argument(
        "--prompt-cache-dir",
        type=Path,
        metavar="FOLDER",
        help="keep what was read for prompts in FOLDER, for later ones that begin the same, also after a restart; the "
        "files hold the conversations (default: write nothing)",
    )
    flags.add_argument(
        "--prompt-cache-dir-bytes", type=byte_count, metavar="SIZE", help="the limit of FOLDER (default: 16 GiB)"
    )


def kv_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of quantized caches that were given, as keyword arguments."""
    return {name: value for name in KV_NAMES if (value := getattr(options, name)) is not None}


def adapter_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of adapters that were given, as keyword arguments of `load`."""
    if options.adapter_scale and not options.adapter_path:
        raise ValueError("--adapter-scale needs --adapter-path")
    scales = options.adapter_scale or [1.0]
    given = {"adapter_path": options.adapter_path, "adapter_scale": scales if len(scales) > 1 else scales[0]}
    return given if options.adapter_path else {}


def add_option_flags(flags: Flags, group: str, **defaults: Any) -> None:
    """Adds the flags of the fields of `Options` in one group; `defaults` replace those of the fields."""
    for field in dataclasses.fields(Options):
        about = field.metadata
        if about["group"] != group or not about["flags"]:
            continue
        default, help, kind = defaults.get(field.name, field.default), about["help"], about["type"]
        if isinstance(default, (int, float)) and default and kind is not bool:
            help += f" (default: {default})"
        arguments: dict[str, Any] = {"dest": field.name, "default": defaults.get(field.name), "help": help}
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": json_object if kind is dict else kind, "metavar": about["metavar"]}
            if isinstance(default, tuple):
                arguments |= {"action": "extend", "nargs": "+"}
        flags.add_argument(*about["flags"], **arguments)


def add_reply_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """The flags of a conversation and its replies, without those of their output."""
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system-prompt", metavar="TEXT", help="the system prompt of the conversation")
    system.add_argument("--system-prompt-file", type=Path, metavar="FILE", help="a text file that holds it")
    parser.add_argument(
        "--no-nfc",
        dest="nfc",
        action="store_false",
        help="give decomposed characters (NFD, as in file names of macOS) to the model as they are, not composed (NFC)",
    )
    add_option_flags(parser, "thinking", **defaults)
    tools = parser.add_argument_group("tools", "functions that the model can call")
    tools.add_argument("--tools", type=Path, metavar="FILE.py", help="the functions of this file; the file is executed")
    tools.add_argument(
        "--builtin-tools",
        action="store_true",
        help="calculator, current_time, roll_dice and convert_units, which have no side effects",
    )
    tools.add_argument("--mcp-config", type=Path, metavar="FILE", help="a file of MCP servers, with mcpServers in it")
    tools.add_argument(
        "--mcp-server",
        action="append",
        metavar="NAME",
        help="start this server only; may be repeated; `generate` needs it, and runs the calls without a question",
    )
    add_option_flags(tools, "tools", **defaults)
    add_model_flags(parser)
    add_draft_flags(parser, **defaults)
    sampling = parser.add_argument_group(
        "sampling", "defaults recommended by LG: temperature 0.6 and top-p 0.95 with --thinking, else temperature 0.1"
    )
    add_option_flags(sampling, "sampling", **defaults)


def add_draft_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    draft = parser.add_argument_group("speculative decoding", "several tokens per step; the replies stay the same")
    draft.add_argument("--draft-model", metavar="PATH", help="a small model with the same tokenizer, for drafts")
    add_option_flags(draft, "speculation", **defaults)


def check_flags(options: argparse.Namespace) -> None:
    """Reads --system-prompt-file. Ends the program with the usage if a flag lacks another flag that it needs."""
    error = options.parser.error
    if options.system_prompt_file:
        options.system_prompt = without_line_end(read_text(options.system_prompt_file))
    try:
        check_draft_flags(options)
    except ValueError as problem:
        error(str(problem))
    if (options.kv_group_size or options.kv_layers) and not (
        options.kv_bits or options.kv_bits_keys or options.kv_bits_values
    ):
        error("--kv-group-size and --kv-layers need --kv-bits, --kv-bits-keys or --kv-bits-values")
    if options.constrain_tools and not has_tools(options):
        error("--constrain-tools needs --tools, --builtin-tools or --mcp-config")
    if options.mcp_server and not options.mcp_config:
        error("--mcp-server needs --mcp-config FILE")


def check_draft_flags(options: argparse.Namespace) -> None:
    """Raises ValueError for two sources of drafts, and for a number of draft tokens without a source."""
    if options.draft_model and options.prompt_lookup:
        raise ValueError("--draft-model and --prompt-lookup exclude each other")
    if options.num_draft_tokens is not None and not (options.draft_model or options.prompt_lookup):
        raise ValueError("--num-draft-tokens needs --draft-model or --prompt-lookup")


def given_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Options` whose flags were given."""
    return {name: value for name in OPTION_NAMES if (value := getattr(options, name, None)) is not None}


def has_tools(options: argparse.Namespace) -> bool:
    return bool(options.tools or options.builtin_tools or options.mcp_config)


def read_tools(options: argparse.Namespace, failed: Callable[[str], None] | None = None) -> list[Callable[..., Any]]:
    """The tools of the flags: `tools.read_tools`."""
    if not has_tools(options):
        return []
    from . import tools

    return tools.read_tools(options, failed)
