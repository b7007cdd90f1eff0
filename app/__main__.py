"""`exaone4-mlx app`, and `python -m app` in a clone: the desktop chat.

Notes:
- Everything that can be checked without the weights is checked before they are read, the address included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exaone4_mlx.cli import ranks
from exaone4_mlx.cli.flags import (
    adapter_options,
    add_adapter_flags,
    add_draft_flags,
    add_ignore_memory_flag,
    add_kv_flags,
    add_max_kv_size_flag,
    add_model_flag,
    add_prompt_cache_flags,
    add_rank_flags,
    check_draft_flags,
    kv_options,
)
from exaone4_mlx.cli.help import CommandParser, HelpAll, with_flag_names
from exaone4_mlx.cli.program import run
from exaone4_mlx.cli.prompt_cache import open_prefix_store
from exaone4_mlx.server.address import Address

from .server import PageAddress, data_folder, password_of, say, serve

if TYPE_CHECKING:
    from exaone4_mlx import Exaone4ForCausalLM, Fit

    from .state import AppState


def main(arguments: Sequence[str] | None = None, program: str = "python -m app") -> int:
    """Runs the app until Ctrl-C, and returns the exit code. `program` is its name in the usage."""
    options = parser(program).parse_args(arguments)
    try:
        return ranks.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        say(f"error: {with_flag_names(message, parser())}")
        return 1


def _run(options: argparse.Namespace) -> int:
    address = PageAddress.with_password(
        Address.checked(options.host, options.port, options.allowed_host), password_of(options)
    )
    state = _state(options)
    serve(state, address, folder=options.data_dir or data_folder(), opens_browser=not options.no_browser)
    return 0


def _load_part(options: argparse.Namespace) -> Exaone4ForCausalLM:
    """The model in a rank other than 0."""
    from exaone4_mlx import load

    return load(options.model, group=options.ranks)[0]


def parser(program: str = "python -m app") -> argparse.ArgumentParser:
    parser = CommandParser(prog=program, description="EXAONE 4.0 as a chat in the browser, on this computer.")
    parser.command = "app"
    add_model_flag(parser)
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="where converted models lie that can be chosen on the page; may be repeated (default: this folder)",
    )
    add_max_kv_size_flag(
        parser,
        "maximum number of tokens of a conversation, and in its caches; the page marks the turns that the model no "
        "longer sees (default: the context length of the model)",
    )
    add_adapter_flags(parser)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host",
        default="127.0.0.1",
        help="default: %(default)s, this computer only; 0.0.0.0 is every network of this computer",
    )
    network.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    network.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this computer besides its IP addresses, such as mac.local; may be repeated",
    )
    network.add_argument(
        "--password",
        nargs="?",
        const="",
        metavar="TEXT",
        help="ask every browser for this password; without TEXT it is read from the terminal, or from the environment "
        "variable EXAONE4_MLX_PASSWORD",
    )
    network.add_argument("--no-password", action="store_true", help="serve other computers without a password")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    parser.add_argument("--tools", type=Path, metavar="FILE.py", help="offer the functions of this file, which is run")
    parser.add_argument(
        "--mcp-config", type=Path, metavar="FILE", help="MCP servers, each of which is started by a switch on the page"
    )
    parser.add_argument(
        "--api-tools", action="store_true", help="let programs use tools over the API, without a question (default: no)"
    )
    parser.add_argument("--system-prompt", default="", metavar="TEXT", help="what new conversations begin with")
    parser.add_argument("--thinking", action="store_true", help="let new conversations think first (default: no)")
    parser.add_argument(
        "--data-dir", type=Path, metavar="FOLDER", help="where conversations are kept (default: the user's data folder)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--help-all", action=HelpAll, nargs=0, help="show all options and exit")
    memory = parser.add_argument_group("memory")
    add_kv_flags(memory)
    add_prompt_cache_flags(memory, in_memory=True)
    add_ignore_memory_flag(memory)
    add_draft_flags(parser)
    add_rank_flags(parser)
    parser.set_defaults(command="app", run=_run, load_part=_load_part, ranks=None)
    return parser


def _state(options: argparse.Namespace) -> AppState:
    """The state of the app for the options. It reads the model last."""
    from exaone4_mlx import BUILTIN_TOOLS, KVQuantization, Options, fit, load_tools, mcp_servers

    tools: list[Any] = []
    if options.tools:
        if options.tools.is_file():
            say(f"running {options.tools} for its tools")
        tools += load_tools(options.tools)
    servers = mcp_servers(options.mcp_config) if options.mcp_config else []
    names = {tool.__name__ for tool in tools}
    tools += [tool for tool in BUILTIN_TOOLS if tool.__name__ not in names]
    folder = options.data_dir or data_folder()

    from exaone4_mlx import ConversationStore
    from exaone4_mlx.measure.model_jobs import ModelJobs

    from .engine import ChatEngine, LoadedModel
    from .models import Draft, Loading, choices, step_size
    from .settings import Settings
    from .state import AppState

    kv = kv_options(options)
    adapters = adapter_options(options)
    drafting = _given(options, "num_draft_tokens", "prompt_lookup")
    check_draft_flags(options)
    Options(**drafting)  # raises for wrong values
    needs = fit(
        options.model,
        max_kv_size=options.max_kv_size,
        draft_model=options.draft_model,
        ranks=options.ranks or 1,
        kv=KVQuantization.from_flags(**kv),
    )
    if not options.ignore_memory:
        _check_memory(needs)
    prefixes = open_prefix_store(options, needs)
    started = time.monotonic()
    say(f"loading {options.model}")
    loading = Loading(options.model, group=options.ranks, **adapters)
    model, tokenizer = loading.result()
    draft = None
    if options.draft_model:
        say(f"loading {options.draft_model}, which drafts")
        draft = Draft(options.draft_model, *Loading(options.draft_model).result())
    step = step_size(model, tokenizer)
    for warning in loading.warnings:
        say(f"warning: {warning}")
    say(f"ready after {time.monotonic() - started:.1f} s")
    jobs = ModelJobs(folder / "models")
    folders = [*(options.models or [Path.cwd()]), jobs.folder]
    choice = choices(options.model, folders)[0]
    settings = Settings(system=options.system_prompt, thinking=options.thinking, ask=bool(options.tools or servers))
    engine = ChatEngine(
        LoadedModel(choice, model, tokenizer, needs, step, draft, tuple(loading.warnings)),
        folders=folders,
        given=options.model,
        kv=kv,
        drafting=drafting,
        draft=draft,
        prefixes=prefixes,
        ignores_memory=options.ignore_memory,
        adapters=adapters,
        shared="several ranks compute" if options.ranks else "",
    )
    store = ConversationStore(folder / "conversations")
    store.trash.empty()
    own = {"tools": tools, "servers": servers, "api_tools": options.api_tools, "settings": settings}
    return AppState(engine, store, **own, makes_titles=True, jobs=jobs)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) not in (None, False)}


def _check_memory(needs: Fit) -> None:
    """Warns if the model will not fit. Raises MemoryError if its weights alone do not."""
    try:
        needs.check_weights()
    except MemoryError as error:
        raise MemoryError(f"{error}; fewer bits take less; --ignore-memory loads it anyway") from error
    if not needs.fits:
        say(f"warning: this may take {needs.arithmetic}")
        fitting = f"--max-kv-size {needs.largest_context} fits; " if needs.largest_context > 1 else ""
        say(f"({fitting}--kv-bits 8 and fewer bits of weights take less; --ignore-memory hides this warning)")


if __name__ == "__main__":
    run(main)
