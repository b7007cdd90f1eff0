"""Flags that several commands share, and the values that follow from them.

Notes:
- The flags of a reply, their help and their defaults are derived from the fields of `Options`.
- Spellings are those of mlx-lm where it has the flag: `--temp`, `--max-tokens`, `-m`, `--max-kv-size`, `--kv-bits`.
- A flag that is not given is None or False, so that the default of the option, or the value of a saved chat, holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.text import parse_json
from ..generation.options import OPTION_NAMES, Options
from ..text.input_messages import check_messages
from .adapter_flags import add_adapter_flags

if TYPE_CHECKING:
    from ..model.config import Exaone4Config
    from ..model.kv import KVQuantization

DEFAULT_MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"
DTYPES = ("bfloat16", "float16", "float32")
KV_NAMES = ("kv_bits", "kv_bits_keys", "kv_bits_values", "kv_group_size", "kv_layers")

#: Where a flag can be added.
Flags = argparse.ArgumentParser | argparse._ArgumentGroup


def add_checkpoint_flags(flags: Flags, dtype_help: str = "cast the weights (default: keep their type)") -> None:
    flags.add_argument("--revision", help="branch, tag or commit of a hub id")
    flags.add_argument("--dtype", choices=DTYPES, help=dtype_help)


def add_model_flags(parser: argparse.ArgumentParser) -> Flags:
    """Adds them, and returns the group of those about memory."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="PATH", help='a folder, a hub id, or "demo" (default: %(default)s)'
    )
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


def add_prompt_cache_flags(flags: Flags) -> None:
    """Adds the flags of a prefix store."""
    flags.add_argument(
        "--prompt-cache-bytes",
        type=byte_count,
        metavar="SIZE",
        help="what was read for earlier prompts is kept in this much memory, such as 2GB (default: what is left of the "
        "memory, an eighth at least and 4 GiB at most)",
    )
    add_prompt_cache_dir_flags(flags)


def add_prompt_cache_dir_flags(flags: Flags) -> None:
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


def byte_count(text: str) -> int:
    """The type of a flag for a size: 500000, 500MB, 2GB, 2GiB."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be a size such as 500MB or 2GB")
    power = " KMGT".index((found[2] or " ").upper())
    return round(float(found[1]) * (1024 if found[3] else 1000) ** power)


def kv_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of quantized caches that were given, as keyword arguments."""
    return {name: value for name in KV_NAMES if (value := getattr(options, name)) is not None}


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
            arguments |= {"type": _json_object if kind is dict else kind, "metavar": about["metavar"]}
            if isinstance(default, tuple):
                arguments |= {"action": "extend", "nargs": "+"}
        flags.add_argument(*about["flags"], **arguments)


def _json_object(text: str) -> dict[str, Any]:
    """The type of a flag that takes an object in JSON."""
    try:
        value = parse_json(text, repr(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be an object in JSON")
    return value


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


def read_kv(config: Exaone4Config, options: argparse.Namespace) -> KVQuantization | None:
    """How the caches are quantized. Raises ValueError if those of this model cannot be quantized so."""
    from ..model.kv import KVQuantization

    return KVQuantization.read(config, **kv_options(options))


def has_tools(options: argparse.Namespace) -> bool:
    return bool(options.tools or options.builtin_tools or options.mcp_config)


def read_tools(options: argparse.Namespace, failed: Callable[[str], None] | None = None) -> list[Callable[..., Any]]:
    """The tools of the flags: `tools.read_tools`."""
    if not has_tools(options):
        return []
    from . import tools

    return tools.read_tools(options, failed)


def read_text(path: Path | None) -> str:
    """The text of a text file or of a PDF, or of standard input. Errors name the source."""
    from ..files.pdf import read_pdf
    from ..files.text import decode_text

    source = "standard input" if path is None else str(path)
    try:
        data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {source}: {error.strerror}") from error
    return read_pdf(data, source) if data.startswith(b"%PDF-") else decode_text(data, source)


def as_messages(given: str | list[dict[str, Any]], system_prompt: str | None) -> list[dict[str, Any]]:
    """A prompt or messages as checked messages, the system prompt first."""
    if isinstance(given, str):
        if not given.strip():
            raise ValueError("the prompt is empty")
        given = [{"role": "user", "content": given}]
    given = check_messages(given)
    if system_prompt is None:
        return given
    if given[0]["role"] == "system":
        raise ValueError("the messages begin with a system prompt, and --system-prompt gives another one")
    return [{"role": "system", "content": system_prompt}, *given]


def without_line_end(text: str) -> str:
    """The text without the line end that closes a file or a pipe."""
    return text.removesuffix("\n").removesuffix("\r")
