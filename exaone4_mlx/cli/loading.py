"""The model of a command: its files, a check of the memory, its weights.

Notes:
- Everything that needs no weights is checked before they are read. Sizes come from the headers of the weight files.
- A model that does not fit gets a warning with remedies. Only weights that exceed the physical memory are refused, and
  `--ignore-memory` loads even those.
- A draft model must have the same tokenizer. With two tokenizers the same ids mean different texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..text.format import size_text
from .flags import adapter_options, kv_options
from .output import log, note, progress_bar

if TYPE_CHECKING:
    from ..checkpoint.quantize import Quantization
    from ..conversation.turn import Turn
    from ..generation.generate import Generation
    from ..generation.options import Options
    from ..generation.prefix_store import PrefixStore
    from ..generation.prompt_cache import PromptCache
    from ..generation.request import Prompt, Request
    from ..measure.fit import Fit
    from ..measure.sizes import Sizes
    from ..model.adapter import Adapter, WeightedAdapter
    from ..model.config import Exaone4Config
    from ..model.kv import KVQuantization
    from ..model.network import Exaone4ForCausalLM
    from ..text.tokenizer import Tokenizer
    from ..tools.describe import Tool

#: A remedy is listed if it saves at least this part of the total.
WORTH_LISTING = 0.05


@dataclass(frozen=True)
class ModelFiles:
    """Everything about a model except its weights: settings of caches, the folder of a draft model, adapters."""

    folder: Path
    config: Exaone4Config
    tokenizer: Tokenizer
    kv: KVQuantization | None
    max_kv_size: int | None
    draft_folder: Path | None
    adapters: tuple[WeightedAdapter, ...] = ()
    named_adapters: Mapping[str, Adapter] = field(default_factory=dict)  # of a server

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of its weights, from their headers, which are read once."""
        from ..measure.sizes import read_sizes

        return read_sizes(self.folder)

    @cached_property
    def draft_sizes(self) -> Sizes | None:
        from ..measure.sizes import read_sizes

        return None if self.draft_folder is None else read_sizes(self.draft_folder)

    @property
    def context(self) -> int:
        """The maximum number of tokens in the caches."""
        return self.max_kv_size or self.config.max_position_embeddings

    def request(self, prompt: Prompt, options: Options, tools: Sequence[Tool] | None = None) -> Request:
        """A reply to make. Raises ValueError for everything that can be checked without weights."""
        from ..generation.request import Request

        draft = self.draft_sizes.config if self.draft_sizes else None
        return Request.render(
            self.config,
            self.tokenizer,
            prompt,
            options,
            tools=tools,
            max_kv_size=self.max_kv_size,
            kv=self.kv,
            draft=draft,
        )


class ReadyModel(NamedTuple):
    """A model with its draft model and the settings of its caches."""

    model: Exaone4ForCausalLM
    tokenizer: Tokenizer
    kv: KVQuantization | None
    max_kv_size: int | None
    draft_model: Exaone4ForCausalLM | None
    prefix_store: PrefixStore | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a `Chat` needs besides model and tokenizer."""
        return {name: getattr(self, name) for name in ("kv", "max_kv_size", "draft_model", "prefix_store")}

    def reply(
        self, request: Request, messages: Any, tools: Sequence[Tool], cache: PromptCache | None = None
    ) -> Generation | Turn:
        """A reply of the model alone to `request`, or with tools the turn of a chat of `messages`, which runs them."""
        if not tools:
            from ..generation.generate import Generation, make_draft

            return Generation(self.model, request, prompt_cache=cache, draft=make_draft(self.draft_model))
        from ..conversation.chat import Chat

        given = {"tools": tools, "messages": messages, "settle": False, "prompt_cache": cache, **self.settings}
        chat = Chat(self.model, self.tokenizer, **given)
        begin = chat.continue_reply if request.options.continue_final_message else chat.reply
        return begin(**vars(request.options))


def find_model(options: argparse.Namespace) -> ModelFiles:
    """Downloads the files that are missing, unless the weights exceed the memory of this machine.

    Raises ValueError for a draft model with another tokenizer, and for caches that cannot be quantized as requested.
    """
    from ..files.folders import find_folder
    from ..files.hub_errors import DownloadError
    from ..generation.options import Options
    from ..generation.request import check_drafting, check_kv_size
    from ..measure.fit import check_draft
    from ..measure.sizes import read_sizes
    from ..model.config import Exaone4Config
    from ..model.kv import KVQuantization
    from ..text.tokenizer import Tokenizer

    try:
        if not options.ignore_memory and _needs_download(options.model, options.revision):
            _check_weights(_of_this_rank(read_sizes(options.model, options.revision), options), options)
        folder = find_folder(options.model, options.revision)
        config = Exaone4Config.from_file(folder / "config.json")
        tokenizer = Tokenizer.from_pretrained(folder, nfc=options.nfc)
    except DownloadError as error:
        raise DownloadError(f"{error}; --model demo needs no download") from error
    check_kv_size(options.max_kv_size, config)
    draft_folder = find_folder(options.draft_model) if options.draft_model else None
    adapters, kv = find_adapters(options, config), KVQuantization.read(config, **kv_options(options))
    files = ModelFiles(folder, config, tokenizer, kv, options.max_kv_size, draft_folder, adapters)
    if draft := files.draft_sizes:
        check_draft(files.sizes, draft, tokenizer)
    drafting = Options(prompt_lookup=bool(options.prompt_lookup), num_draft_tokens=options.num_draft_tokens)
    check_drafting(config, drafting, draft.config if draft else None)
    if warning := config.vocabulary_warning(tokenizer.vocab_size):
        log(f"warning: {warning}")
    return files


def find_adapters(options: argparse.Namespace, config: Exaone4Config) -> tuple[WeightedAdapter, ...]:
    """The adapters of the flags, with their scales. Raises ValueError for one that a model of `config` cannot have."""
    if not (given := adapter_options(options)):
        return ()
    from ..model.adapter import check_adapters
    from ..model.adapter_file import read_adapters

    adapters = read_adapters(**given)
    check_adapters(adapters, config)
    return adapters


def check_memory(files: ModelFiles, options: argparse.Namespace, context: int, prompt: int | None = None) -> Fit | None:
    """Warns if `context` tokens do not fit. At most `prompt` of them, by default all, are read as one prompt.

    Returns what the model needs; None with --ignore-memory. Raises MemoryError if the weights alone exceed the memory.
    """
    if options.ignore_memory:
        return None
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..measure.fit import fit_sizes
    from ..model.adapted import adapted_bytes
    from ..model.kv import KVQuantization

    sizes, draft = _of_this_rank(files.sizes, options), files.draft_sizes
    bits, kv, cast = quantization_of(options), files.kv, read_dtype(options.dtype)
    several = [files.adapters] * bool(files.adapters) + [((one, 1.0),) for one in files.named_adapters.values()]
    adapters = sum(adapted_bytes(given, files.config, sizes.activation_dtype(cast).size) for given in several)
    fit = partial(fit_sizes, sizes, context, None, cast, draft=draft, prompt_tokens=prompt, adapter_bytes=adapters)
    fit = partial(fit, prompt_cache_bytes=getattr(options, "prompt_cache_bytes", None) or 0)
    needs = fit(bits, kv=kv)
    if not needs.fits:
        _check_weights(sizes, options)
        remedies = {}
        if kv is None and sizes.config.head_dim % 32 == 0:
            remedies["with --kv-bits 8"] = fit(bits, kv=KVQuantization.read(files.config, 8))
        if bits is None and not sizes.is_quantized:
            remedies["with --q-bits 4"] = fit(Quantization(4), kv=kv)
        if draft:
            remedies["without --draft-model"] = fit(bits, kv=kv, draft=None)
        log(f"warning: this may take {needs.arithmetic}")
        log(f"({'; '.join(_remedies(needs, remedies, shortest=(prompt or 1) + 1))})")
    return needs


def load(files: ModelFiles, options: argparse.Namespace) -> ReadyModel:
    """Reads the weights of the model and its draft model, with progress bars."""
    started = time.perf_counter()
    ranks = getattr(options, "ranks", None)
    given = {"config": files.config, "q_bits": options.q_bits, "q_group_size": options.q_group_size, "ranks": ranks}
    model = _load(files.folder, options, **given)
    if files.adapters:
        model.set_adapters(*zip(*files.adapters, strict=True))
    if model.pipeline is not None:
        note(f"this is {model.part}")
    if options.verbose:
        note(
            f"{files.folder}: {files.config.num_hidden_layers} layers, context {files.context} tokens, "
            f"loaded in {time.perf_counter() - started:.2f} s"
        )
    if options.q_bits is not None:
        from .convert import convert_command

        note(
            f"quantized to {options.q_bits} bits while loading; this command stores the model with a smaller error: "
            f"{convert_command(options)}"
        )
    draft_folder = None if ranks is not None and ranks.rank else files.draft_folder  # rank 0 drafts alone
    draft = _load(draft_folder, options) if draft_folder else None
    return ReadyModel(model, files.tokenizer, files.kv, files.max_kv_size, draft)


def _load(folder: Path, options: argparse.Namespace, **given: Any) -> Exaone4ForCausalLM:
    from ..model.network import Exaone4ForCausalLM
    from ..model.pretrained import load_network

    with progress_bar("loading", "B") as progress:
        model = load_network(Exaone4ForCausalLM, folder, dtype=options.dtype, progress=progress, **given)
        model.fused()
        return model


def _needs_download(model: str, revision: str | None) -> bool:
    """Whether it is a hub id whose weights are not all in the cache of the hub."""
    from ..files.folders import BUILT_IN

    if model in BUILT_IN or Path(model).expanduser().exists() or model.count("/") != 1:
        return False
    from ..files.hub import is_cached

    return not is_cached(model, revision)


def _check_weights(sizes: Sizes, options: argparse.Namespace) -> None:
    """Raises MemoryError if the weights alone exceed the memory."""
    from ..checkpoint.quantize import Quantization
    from ..files.safetensors import read_dtype
    from ..measure.fit import fit_sizes

    cast, bits = read_dtype(options.dtype), quantization_of(options)
    try:
        fit_sizes(sizes, 1, None, cast, bits).check_weights()
    except MemoryError as error:
        remedy = ""
        if bits is None and not sizes.is_quantized:
            remedy = f"; --q-bits 4 reduces them to {size_text(sizes.weights_bytes(cast, Quantization(4)))}"
        raise MemoryError(f"{error}{remedy}; --ignore-memory loads them anyway") from error


def _of_this_rank(sizes: Sizes, options: argparse.Namespace) -> Sizes:
    """The sizes of the part that this process loads."""
    from ..measure.parts import ranked

    ranks = getattr(options, "ranks", None)
    return sizes if ranks is None else ranked(sizes, ranks, quantization_of(options))


def quantization_of(options: argparse.Namespace) -> Quantization | None:
    """The quantization of --q-bits."""
    from ..checkpoint.quantize import Quantization

    return None if options.q_bits is None else Quantization(options.q_bits, options.q_group_size)


def _remedies(needs: Fit, remedies: dict[str, Fit], shortest: int) -> Iterator[str]:
    from ..measure.fit import more_metal_memory

    if needs.largest_context >= shortest:
        yield f"--max-kv-size {needs.largest_context} fits"
    for how, fit in remedies.items():
        if needs.total_bytes - fit.total_bytes > WORTH_LISTING * needs.total_bytes:
            yield f"{size_text(fit.total_bytes)} {how}"
    yield from more_metal_memory(needs.total_bytes)
    yield "--ignore-memory hides this warning"
