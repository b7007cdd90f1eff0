"""The parser of all commands: help on one screen, usage errors with a hint, types of flags, flags named in errors.

Notes:
- `--help` lists the common flags of a command and two examples. `--help-all` has all flags.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from difflib import get_close_matches
from typing import Any, NoReturn

from ..files.text import parse_json

WIDTH = 80
#: Command -> its common flags in order, and two examples.
COMMON = {
    "generate": (
        "--prompt --prompt-file --system-prompt --thinking --tools --temp --model --q-bits --adapter-path --json",
        "exaone4-mlx generate --model demo --thinking --prompt 'What is 17 * 23?'",
        "exaone4-mlx generate --q-bits 4 --prompt 'Summarize:' --prompt-file report.txt",
    ),
    "chat": (
        "--system-prompt --thinking --tools --builtin-tools --temp --load --model --q-bits --adapter-path",
        "exaone4-mlx chat --model demo --builtin-tools",
        "exaone4-mlx chat --q-bits 4 --system-prompt 'Answer in Korean.'",
    ),
    "convert": (
        "--hf-path --mlx-path --q-bits --recipe --calibrate --dry-run --evaluate",
        "exaone4-mlx convert --hf-path LGAI-EXAONE/EXAONE-4.0-1.2B --verify",
        "exaone4-mlx convert --hf-path demo --mlx-path demo-4bit --verify --evaluate",
    ),
    "fuse": (
        "--model --adapter-path --adapter-scale --mlx-path --q-bits --dequantize --evaluate --export",
        "exaone4-mlx fuse --model demo --adapter-path my-adapter --mlx-path fused",
        "exaone4-mlx fuse --model demo --adapter-path my-adapter --q-bits 4 --evaluate",
    ),
    "evaluate": (
        "--model --reference --adapter-path --data --replies-only --max-tokens --json",
        "exaone4-mlx evaluate --model mlx_model --reference LGAI-EXAONE/EXAONE-4.0-1.2B",
        "exaone4-mlx evaluate --model demo --reference demo --kv-bits 8",
    ),
    "fit": (
        "--model --max-kv-size --memory --metal --q-bits --kv-bits --json",
        "exaone4-mlx fit --model LGAI-EXAONE/EXAONE-4.0-32B --memory 48 --metal",
        "exaone4-mlx fit --model demo --max-kv-size 4096",
    ),
    "bench": (
        "--model --peer -p -g -d --repeat --format",
        "exaone4-mlx bench --model demo --peer mlx-lm",
        "exaone4-mlx bench --model mlx_model -p 512,4096 -g 128 -d 0,8192",
    ),
    "app": (
        "--model --host --port --password --tools --mcp-config --system-prompt --thinking",
        "exaone4-mlx app --model demo",
        "exaone4-mlx app --model mlx_model --host 0.0.0.0 --password",
    ),
    "serve": (
        "--model --host --port --api-key --thinking --max-kv-size --q-bits --adapter-path --max-running",
        "exaone4-mlx serve --model demo",
        "exaone4-mlx serve --q-bits 4 --host 0.0.0.0 --api-key-file keys.txt",
    ),
    "cluster": (
        "--hostfile --backend --model --json",
        "exaone4-mlx cluster check --hostfile hosts.json",
        "exaone4-mlx cluster check --hostfile hosts.json --model mlx_model",
    ),
    "lora": (
        "--model --data --adapter-path --num-layers --epochs --learning-rate --batch-size --q-bits --resume --show",
        "exaone4-mlx lora --model demo --data lessons --show 3",
        "exaone4-mlx lora --q-bits 4 --data lessons --adapter-path adapters",
    ),
    "doctor": (
        "--model --reference --output --json",
        "exaone4-mlx doctor",
        "exaone4-mlx doctor --model mlx_model --output report.json",
    ),
}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Names the value of an option once, and leaves out the flag that turns it off."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(name for name in action.option_strings if not name.startswith("--no-"))
        value = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{names} {value}".rstrip()


def short_help(parser: argparse.ArgumentParser, command: str) -> str:
    """The common flags of `command`, its examples, and where the rest is."""
    flags, *examples = COMMON[command]
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    formatter = _Formatter(parser.prog, width=WIDTH, max_help_position=26)
    formatter.add_usage(f"{parser.prog} [options]", (), ())
    formatter.add_text(textwrap.fill(parser.description or "", WIDTH))
    formatter.start_section("options")
    formatter.add_arguments([known[flag] for flag in flags.split()])
    formatter.end_section()
    formatter.add_text("\n".join(["examples:", *(f"  {example}" for example in examples)]))
    formatter.add_text("--help-all lists all options.")
    return formatter.format_help()


class CommandParser(argparse.ArgumentParser):
    """Prints a usage error as two lines: how to call the command, and the error with what was probably meant."""

    command = ""  # whose short help is printed

    def format_help(self) -> str:
        return short_help(self, self.command) if self.command else super().format_help()

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            known, words = re.findall(r"[\w-]+", choice[2]), [choice[1]]
        elif not message.startswith("unrecognized arguments"):
            words = []
        near = {word: get_close_matches(word, known, n=1) for word in words}
        hint = "".join(f"; did you mean {found[0]}?" for found in near.values() if found)
        command = " COMMAND" if self._subparsers else ""
        self.exit(2, f"usage: {self.prog}{command} [options]; --help lists them\n{self.prog}: error: {message}{hint}\n")


class HelpAll(argparse.Action):
    """`--help-all` prints the help of argparse, and `--help` that of `help.short_help`."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        parser._print_message(argparse.ArgumentParser.format_help(parser), sys.stdout)
        parser.exit()


def counts(text: str) -> tuple[int, ...]:
    """The type of a flag for whole numbers that are separated by commas."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers separated by commas") from None


def byte_count(text: str) -> int:
    """The type of a flag for a size: 500000, 500MB, 2GB, 2GiB."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must be a size such as 500MB or 2GB")
    power = " KMGT".index((found[2] or " ").upper())
    return round(float(found[1]) * (1024 if found[3] else 1000) ** power)


def json_object(text: str) -> dict[str, Any]:
    """The type of a flag that takes an object in JSON."""
    try:
        value = parse_json(text, repr(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be an object in JSON")
    return value


def with_flag_names(message: str, parser: argparse.ArgumentParser) -> str:
    """An error message of the package with the flags of a command in place of the names of Python arguments.

    A name without an underscore may be an ordinary word: it is replaced only before "must be" and after "needs".
    """
    long = [(action.dest, flag) for action in parser._actions for flag in action.option_strings if flag[:2] == "--"]
    flags = dict(reversed(long))  # the first long flag of each option

    names = re.compile(r"(?<![\w/.-])(?:[a-z]+(?:_[a-z]+)+(?![\w/.(])|[a-z]+(?= must be )|(?<= needs )[a-z]+\b)")
    return names.sub(lambda match: flags.get(match[0], match[0]), message)
