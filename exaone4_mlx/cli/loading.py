"""The model of a command line: its flags, whether this machine has room for it, and loading it.

What is peculiar here:
- What can be checked without the weights is checked before they are read: the memory, too, from headers.
- What will not fit is said, with what helps. Only weights that are more than the physical memory are refused, and
  `--ignore-memory` loads even those.
- A draft model must have the very same tokenizer: two that differ mean different texts by the same ids.
"""

from __future__ import annotations

import argparse
import math
import shlex
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import main as cli

if TYPE_CHECKING:
    from ..checkpoint.quantize import Quantization
    from ..measure.fit import Fit
    from ..measure.sizes import Sizes
    from ..model.config import Exaone4Config
    from ..model.kv import KVQuantization
    from ..model.network import Exaone4ForCausalLM
    from ..text.tokenizer import Tokenizer

DEFAULT_MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"
#: A part of the total below which saving it is no advice.
WORTH_IT = 0.05
#: MiB: in such steps Metal's limit is advised, and so much is left to the system.
LIMIT_STEP, LIMIT_SPARE = 512, 3072


# --- flags --------------------------------------------------------------------------------------------------------


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="PATH", help='a folder, a hub id, or "demo" (default: %(default)s)'
    )
    model.add_argument("--revision", help="branch, tag or commit of a hub id")
    model.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="cast the weights; float16 suits M1 and M2"
    )
    model.add_argument("--q-bits", type=int, metavar="N", help="quantize a full-precision checkpoint while it loads")
    model.add_argument(
        "--q-group-size", type=int, default=64, metavar="N", help="weights per scale (default: %(default)s)"
    )
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--max-kv-size",
        type=int,
        metavar="N",
        help="tokens that the caches hold at most, prompt and reply together; what is longer is refused or ends, and "
        "nothing is forgotten silently (default: the model's context)",
    )
    cli.add_kv_arguments(memory)
    memory.add_argument(
        "--ignore-memory", action="store_true", help="load a model that is too large, and say nothing of it"
    )


def add_draft_flags(parser: argparse.ArgumentParser) -> None:
    draft = parser.add_argument_group("speculation", "several tokens a step; the replies stay what they would be")
    drafter = draft.add_mutually_exclusive_group()
    drafter.add_argument("--draft-model", metavar="PATH", help="a smaller model with the same tokenizer, which drafts")
    drafter.add_argument("--prompt-lookup", action="store_true", help="draft what followed the same words before")
    draft.add_argument("--num-draft-tokens", type=int, metavar="N", help="tokens that are drafted at once, at most")


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program, with the usage, where flags lack those that they belong to."""
    if options.num_draft_tokens is not None and not (options.draft_model or options.prompt_lookup):
        parser.error("--num-draft-tokens needs --draft-model or --prompt-lookup")
    if (options.kv_group_size or options.kv_layers) and not (
        options.kv_bits or options.kv_bits_keys or options.kv_bits_values
    ):
        parser.error("--kv-group-size and --kv-layers need --kv-bits, --kv-bits-keys or --kv-bits-values")


def read_kv(config: Exaone4Config, options: argparse.Namespace) -> KVQuantization | None:
    """How the caches are quantized. Raises ValueError for what cannot be."""
    from ..model.kv import KVQuantization

    return KVQuantization.read(config, **cli.kv_options(options))


# --- before the weights are read ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Everything about a model but its weights; the draft model's folder, if there is one."""

    folder: Path
    config: Exaone4Config
    tokenizer: Tokenizer
    draft_folder: Path | None

    @cached_property
    def sizes(self) -> Sizes:
        """Of its weights, from their headers, which are read once."""
        from ..measure.sizes import read_sizes

        return read_sizes(self.folder)

    @cached_property
    def draft_sizes(self) -> Sizes | None:
        """Of the draft model's."""
        from ..measure.sizes import read_sizes

        return None if self.draft_folder is None else read_sizes(self.draft_folder)

    def context(self, options: argparse.Namespace) -> int:
        """Tokens that the caches hold at most. Raises ValueError for a --max-kv-size without meaning."""
        longest: int = self.config.max_position_embeddings
        if options.max_kv_size is None:
            return longest
        if not 2 <= options.max_kv_size <= longest:
            raise ValueError(
                f"--max-kv-size must be a number of tokens from 2 to the {longest} that this model reaches, "
                f"not {options.max_kv_size}"
            )
        return int(options.max_kv_size)


def find_model(options: argparse.Namespace) -> Found:
    """Downloads what is not there, unless it is too large for this machine.

    Raises ValueError where the draft model has another tokenizer, and for caches that cannot be quantized so.
    """
    from ..files.folders import find_folder
    from ..generation.options import Options
    from ..generation.request import check_drafting
    from ..measure.sizes import check_draft, read_sizes
    from ..model.config import Exaone4Config
    from ..model.load import vocabulary_warning
    from ..text.tokenizer import Tokenizer

    try:
        if not options.ignore_memory and _is_to_be_downloaded(options.model, options.revision):
            _check_weights(read_sizes(options.model, options.revision), options)
        folder = find_folder(options.model, options.revision)
        config = Exaone4Config.from_file(folder / "config.json")
        tokenizer = Tokenizer.from_pretrained(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --model demo needs no download") from error
    read_kv(config, options)
    found = Found(folder, config, tokenizer, find_folder(options.draft_model) if options.draft_model else None)
    if draft := found.draft_sizes:
        check_draft(found.sizes, draft, tokenizer)
    guessing = Options(prompt_lookup=options.prompt_lookup, num_draft_tokens=options.num_draft_tokens)
    check_drafting(config, guessing, draft.config if draft else None)
    if warning := vocabulary_warning(tokenizer, config):
        cli.say(f"warning: {warning}")
    return found


def _is_to_be_downloaded(model: str, revision: str | None) -> bool:
    """Whether it is a hub id whose weights are not in the hub's cache."""
    from ..files.folders import BUILT_IN

    if model in BUILT_IN or Path(model).expanduser().exists() or model.count("/") != 1:
        return False
    from huggingface_hub import try_to_load_from_cache  # here: its import costs more than a demo reply

    return not any(
        isinstance(try_to_load_from_cache(model, name, revision=revision), str)
        for name in ("model.safetensors", "model.safetensors.index.json")
    )


def check_memory(found: Found, options: argparse.Namespace, context: int, prompt: int | None = None) -> None:
    """Says it where `context` tokens, of which `prompt` are read before a reply, will not fit.

    Raises MemoryError where not even the weights can.
    """
    if options.ignore_memory:
        return
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..measure.fit import fit_sizes
    from ..model.kv import KVQuantization

    sizes, draft = found.sizes, found.draft_sizes
    bits, kv = _bits(options), read_kv(found.config, options)
    fit = partial(fit_sizes, sizes, context, None, read_dtype(options.dtype), draft=draft, prompt_tokens=prompt)
    needs = fit(bits, kv=kv)
    if not needs.fits:
        _check_weights(sizes, options)
        others = {}
        if kv is None and sizes.config.head_dim % 32 == 0:
            others["with --kv-bits 8"] = fit(bits, kv=KVQuantization.read(found.config, 8))
        if bits is None and not sizes.is_quantized:
            others["with --q-bits 4"] = fit(Quantization(4), kv=kv)
        if draft:
            others["without --draft-model"] = fit(bits, kv=kv, draft=None)
        _tell_needs(needs, others, (prompt or 1) + 1)


def _check_weights(sizes: Sizes, options: argparse.Namespace) -> None:
    """Raises MemoryError where the weights alone are more than there is."""
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..measure.fit import fit_sizes

    cast, bits = read_dtype(options.dtype), _bits(options)
    try:
        fit_sizes(sizes, 1, None, cast, bits).check_weights()
    except MemoryError as error:
        less = ""
        if bits is None and not sizes.is_quantized:
            less = f"; with --q-bits 4 they have {cli.size_text(sizes.weights_bytes(cast, Quantization(4)))}"
        raise MemoryError(f"{error}{less}; --ignore-memory loads them all the same") from error


def _bits(options: argparse.Namespace) -> Quantization | None:
    from ..checkpoint.quantize import Quantization

    return None if options.q_bits is None else Quantization(options.q_bits, options.q_group_size)


def _tell_needs(needs: Fit, others: dict[str, Fit], least: int) -> None:
    """The sum, and what makes it smaller."""
    helps = [f"--max-kv-size {needs.largest_context} fits"] if needs.largest_context >= least else []
    helps += [
        f"{cli.size_text(other.total_bytes)} {how}"
        for how, other in others.items()
        if needs.total_bytes - other.total_bytes > WORTH_IT * needs.total_bytes
    ]
    helps += [*_more_memory(needs.total_bytes), "--ignore-memory says nothing of it"]
    cli.say(f"warning: this may take {needs.arithmetic}")
    cli.say(f"({'; '.join(helps)})")


def _more_memory(needed: int) -> Iterator[str]:
    """How a Mac lets models have more, if it has more."""
    import mlx.core as mx

    from ..measure.machine import physical_memory

    limit = math.ceil(needed / 2**20 / LIMIT_STEP) * LIMIT_STEP
    if mx.metal.is_available() and limit + LIMIT_SPARE < physical_memory() / 2**20:
        yield f"sudo sysctl iogpu.wired_limit_mb={limit} lets models have as much"


# --- the weights --------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A model, and what holds for all that is done with it; the `settings` of a `Chat` say the same."""

    model: Exaone4ForCausalLM
    tokenizer: Tokenizer
    kv: KVQuantization | None
    draft: Exaone4ForCausalLM | None
    settings: dict[str, Any]


def load(found: Found, options: argparse.Namespace) -> Loaded:
    """The model and its draft, with bars while they load."""
    started = time.perf_counter()
    model = _load(found.folder, options, options.q_bits, options.q_group_size)
    if options.verbose:
        seconds, config = time.perf_counter() - started, found.config
        context = found.context(options)
        cli.say(
            f"{found.folder}: {config.num_hidden_layers} layers, context {context} tokens, loaded in {seconds:.2f} s"
        )
    if options.q_bits is not None:
        cli.say(
            f"quantized to {options.q_bits} bits while loading; for better ones that last: {_convert_command(options)}"
        )
    draft = _load(found.draft_folder, options) if found.draft_folder else None
    given = {
        "max_kv_size": options.max_kv_size,
        "kv": read_kv(found.config, options),
        "draft_model": draft,
        "num_draft_tokens": options.num_draft_tokens,
        "prompt_lookup": options.prompt_lookup or None,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    return Loaded(model, found.tokenizer, read_kv(found.config, options), draft, settings)


def _load(
    folder: Path, options: argparse.Namespace, q_bits: int | None = None, q_group_size: int = 64
) -> Exaone4ForCausalLM:
    from ..model.load import load_model

    with cli.progress_bar("loading", "B") as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(folder, dtype=options.dtype, q_bits=q_bits, q_group_size=q_group_size, progress=progress)
    for warning in caught:
        cli.say(f"warning: {warning.message}")
    return model


def _convert_command(options: argparse.Namespace) -> str:
    """The command that converts, with less error, what --q-bits quantized while loading."""
    chosen = {
        "--hf-path": options.model,
        "--mlx-path": "FOLDER",
        "--q-bits": options.q_bits,
        "--q-group-size": options.q_group_size,
        "--dtype": options.dtype,
        "--revision": options.revision,
    }
    return shlex.join(
        ["exaone4-mlx", "convert", *(str(x) for pair in chosen.items() if pair[1] is not None for x in pair)]
    )
