"""A command on several machines: `mlx.launch` starts it on each of them, and the processes are ranks of one model.

Notes:
- Rank 0 runs the command. It alone reads standard input, prints, runs tools and listens to clients.
- The other ranks load their part of the model and follow. They ignore Ctrl-C, which is for rank 0; they end with it.
"""

from __future__ import annotations

import argparse
import signal
import warnings
from typing import TYPE_CHECKING

from .. import __version__
from . import loading
from .output import set_quiet

if TYPE_CHECKING:
    from ..cluster.ranks import Ranks
    from ..model.network import Exaone4ForCausalLM

#: The commands that several ranks can run, and why others cannot.
RANKED = ("generate", "chat", "serve", "bench", "app")
A_LAYER = "it has one layer at a time in memory, so that one machine is enough"
ALONE = {"convert": A_LAYER, "fuse": A_LAYER, "evaluate": A_LAYER, "lora": "gradients are not summed over ranks"}
REFUSED = dict.fromkeys(("adapter_path", "adapter_model"), "fuse the adapter into the weights first") | {
    "peer": "other engines run in one process"
}
#: Values of a command that ranks do not compare: secrets, which rank 0 alone uses, and those that are no flags.
NOT_COMPARED = {"api_key", "password", "run", "parser", "ranks", "load_part"}


def run(options: argparse.Namespace) -> int:
    """Runs a command, where it was launched beside others as one of several ranks. Returns its exit code."""
    if not _is_one_of_several() or options.command == "cluster":  # which joins by itself
        if options.command in RANKED and options.pipeline:
            raise ValueError("--pipeline needs several ranks: start them by mlx.launch (see docs/several-macs.md)")
        return int(options.run(options))
    from ..cluster.ranks import join_ranks

    check_command(options.command)
    for name, reason in REFUSED.items():
        if getattr(options, name, None):
            raise ValueError(f"--{name.replace('_', '-')} is not available with several ranks: {reason}")
    ranks = join_ranks(options.rank_timeout, options.pipeline)
    assert ranks is not None
    options.ranks = ranks
    if ranks.rank:
        return _follow(options, ranks)
    try:
        ranks.agree("the command and its versions", _command(options))
        code = int(options.run(options))
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave()
    return code


def _is_one_of_several() -> bool:
    from ..cluster.ranks import Place

    return Place.of_process() is not None


def check_command(command: str) -> None:
    """Raises ValueError for a command that several ranks cannot run."""
    if command not in RANKED:
        reason = f": {ALONE[command]}" if command in ALONE else ""
        raise ValueError(
            f"{command} runs in one process{reason}; start it without mlx.launch ({', '.join(RANKED)} take ranks)"
        )


def _follow(options: argparse.Namespace, ranks: Ranks) -> int:
    from ..generation.follow import follow

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_quiet(True)
    warnings.simplefilter("ignore")  # rank 0 gives the same ones
    try:
        ranks.agree("the command and its versions", _command(options))
        follow(getattr(options, "load_part", _load_part)(options))
    except Exception as error:
        ranks.watchdog.end_by(error)
    return 0


def _load_part(options: argparse.Namespace) -> Exaone4ForCausalLM:
    """The part of this rank. A command that loads its model in another way has a `load_part` of its own."""
    files = loading.find_model(options)
    loading.check_memory(files, options, context=2)
    return loading.load(files, options).model


def _command(options: argparse.Namespace) -> dict[str, str]:
    """What all ranks must have in common."""
    from importlib.metadata import version

    flags = {name: str(value) for name, value in vars(options).items() if name not in NOT_COMPARED}
    return {"exaone4_mlx": __version__, "mlx": version("mlx"), **flags}
