"""`exaone4-mlx chat`: a conversation in the terminal.

Notes:
- On a terminal replies are drawn as Markdown, and lines can be edited. Without one, a line of standard input is a turn,
  and answers are printed as text, or as one JSON object for each turn. Both use the same loop.
- Everything that needs no weights is checked before they are read.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..generation.options import Options
from ..terminal.commands import completions
from ..terminal.repl import Repl
from ..terminal.status import extras_text
from . import flags, loading
from .output import can_draw, log, reply_json, results, results_alone, show_json
from .prompt_cache import open_prefix_store

if TYPE_CHECKING:
    from ..terminal.input import TerminalInput
    from ..terminal.pipe import PipeInput, PipeScreen
    from ..terminal.screen import Screen

DESCRIPTION = "A conversation in the terminal. Without a terminal, a line of standard input is a turn."
#: Options that a saved chat does not hold.
UNSAVED = tuple(field.name for field in dataclasses.fields(Options) if not field.metadata["kept"])
STEP_SIZE = 512  # prompt tokens between two checks of Ctrl-C, and between two reports of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    chat = parser.add_argument_group("chat")
    chat.add_argument(
        "--overflow",
        choices=("error", "drop_oldest"),
        help="when the context is full, refuse the turn or hide the oldest turns from the model (default: drop_oldest)",
    )
    chat.add_argument(
        "--load",
        type=Path,
        metavar="FILE",
        help="continue a conversation that /save wrote, or the desktop chat (an export, or one of its files)",
    )
    chat.add_argument(
        "--ask-tools",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ask before a tool runs (default: ask, except for the built-in tools)",
    )
    chat.add_argument("--no-markdown", action="store_true", help="print replies without Markdown formatting")
    chat.add_argument(
        "--no-history",
        action="store_true",
        help="keep typed lines in memory only, not in the history file (EXAONE4_MLX_HISTORY=FILE chooses another one)",
    )
    chat.add_argument(
        "--commands", action="store_true", help="without a terminal: lines that begin with a slash are commands"
    )
    chat.add_argument("--json", action="store_true", help="without a terminal: print one JSON object for each turn")
    chat.add_argument("-v", "--verbose", action="store_true", help="print the model")
    flags.add_prompt_cache_flags(parser)
    flags.add_reply_flags(parser, prefill_step_size=STEP_SIZE)
    flags.add_rank_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Loads the model and runs the conversation. Errors in flags and files are raised before that."""
    flags.check_flags(options)
    terminal = sys.stdin.isatty() and can_draw(sys.stdout)
    if terminal and options.json:
        options.parser.error("--json needs standard input or output that is no terminal")
    if terminal:
        signal.signal(signal.SIGTERM, _exit)
    with _kept_warnings() as kept, nullcontext() if terminal else results_alone():
        repl = _repl(options, terminal)
        repl.warned = kept
        if terminal:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on the loop handles every Ctrl-C
        return repl.loop()


def _exit(signal_number: int, frame: Any) -> None:
    """Leaves through Python's cleanup, which restores the settings of the terminal."""
    raise SystemExit(128 + signal_number)


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Keeps the warnings of all threads in a list until they can be shown."""
    kept: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *rest, **more: kept.append(str(message))
        yield kept


def _repl(options: argparse.Namespace, terminal: bool) -> Repl:
    given = flags.given_options(options)
    Options(**given)  # raises ValueError for a value out of range
    if options.load is not None and not options.load.is_file():
        raise FileNotFoundError(f"--load: there is no file {options.load}")
    tools = flags.read_tools(options, lambda text: log(f"warning: {text}"))
    asks = _asking(tools, options.ask_tools)
    if asks and not terminal:
        raise ValueError("a tool that asks before it runs needs a terminal: add --no-ask-tools")
    files = loading.find_model(options)
    needs = loading.check_memory(files, options, files.context)
    store = open_prefix_store(options, needs) if options.prompt_cache_dir else None
    made = loading.load(files, options)._replace(prefix_store=store)

    from ..conversation.chat import Chat

    others = {"overflow": options.overflow, "system_prompt": options.system_prompt}
    given |= {name: value for name, value in others.items() if value is not None}
    chat = Chat(made.model, made.tokenizer, tools=tools, **made.settings, **({"overflow": "drop_oldest"} | given))
    screen = _screen(terminal, options, bool(tools), lambda text: len(files.tokenizer.encode(text)))
    keys = _input(terminal, lambda text: completions(repl, text), screen.note, not options.no_history)
    unsaved = {name: value for name, value in given.items() if name in UNSAVED} | made.settings
    commands = sys.stdin.isatty() or options.commands
    repl = Repl(chat, screen, keys, asks=asks, unsaved=unsaved, commands=commands, debug=options.debug)
    if options.load is not None:
        repl.load(options.load, **given)
    if terminal:
        extras = extras_text(made.kv, options.draft_model, options.prompt_lookup)
        screen.note(
            f"exaone4_mlx {__version__}, {options.model}: {files.config.num_hidden_layers} layers, "
            f"context {chat.max_kv_size:,} tokens{extras}. /help lists the commands, Ctrl-D exits.\n"
        )
    return repl


def _asking(tools: Iterable[Callable[..., Any]], ask: bool | None) -> set[str]:
    """The names of the tools that ask before they run: by default all except the built-in tools."""
    from ..tools.builtin import BUILTIN_TOOLS

    asking = {True: tools, False: (), None: [tool for tool in tools if tool not in BUILTIN_TOOLS]}[ask]
    return {tool.__name__ for tool in asking}


def _screen(
    terminal: bool, options: argparse.Namespace, has_tools: bool, count_tokens: Callable[[str], int]
) -> Screen | PipeScreen:
    if terminal:
        from ..terminal.screen import Screen

        return Screen(count_tokens, markdown=not options.no_markdown)
    from ..terminal.pipe import JsonScreen, PipeScreen

    if options.json:
        return JsonScreen(
            lambda events: show_json({"model": options.model} | reply_json(events, False, has_tools)),
            lambda error: show_json({"error": error}),
            results(),
        )
    return PipeScreen(results())


def _input(
    terminal: bool,
    complete: Callable[[str], Iterable[tuple[str, int]]],
    warn: Callable[[str], None],
    stores_history: bool,
) -> TerminalInput | PipeInput:
    if terminal:
        from ..terminal.input import TerminalInput

        return TerminalInput(complete, warn, stores_history)
    from ..terminal.pipe import PipeInput

    return PipeInput()
