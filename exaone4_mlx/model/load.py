"""`load`: (model, tokenizer) of a folder, a hub id, or the demo.

What is peculiar here:
- Tensors are read, cast, quantized and evaluated one by one: memory never holds a second copy of the model.
- Two kinds of extra tensor are known and harmless: stored rotary frequencies, which are computed here, and an
  output head beside tied embeddings, if it is equal to them.
- `from_pretrained` reads any network from the checkpoint of any other: what the names begin with is made the same, a
  head that the network has not is left, and one that the checkpoint lacks is new. `load` takes nothing but its own.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..checkpoint.formats import Source
from ..checkpoint.quantize import Quantization, quantize_layers
from ..files.folders import find_folder, read_json
from ..files.safetensors import FLOAT_DTYPES, Checkpoint, CheckpointError, check_names, fill, placeholders
from ..text.tokenizer import Tokenizer
from .config import Exaone4Config
from .network import Exaone4ForCausalLM
from .pretrained import Pretrained

#: (done, total) -> None; of `load` bytes
Progress = Callable[[int, int], None]

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
#: What the names of the heads' weights begin with.
HEAD_PREFIXES = ("lm_head.", "score.", "qa_outputs.")
Network = TypeVar("Network", bound=Pretrained)


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    progress: Progress | None = None,
) -> tuple[Exaone4ForCausalLM, Tokenizer]:
    """Loads an EXAONE 4 checkpoint: a folder in Hugging Face or MLX format, a hub id, or "demo".

    `dtype` (bfloat16, float16 or float32, as `mx.Dtype` or name) is what the floating-point weights are cast
    to; None keeps the checkpoint's. With `q_bits` a full-precision checkpoint is quantized while it loads,
    in groups of `q_group_size`. `progress(done, total)` counts bytes read.

    AWQ, and GPTQ and compressed-tensors where their groups lie side by side, are taken as they are; other GPTQ and
    FP8 are computed in full precision, with a warning.

    Raises FileNotFoundError for what is not there, and ValueError (CheckpointError for damaged weights) for
    what is no EXAONE 4 checkpoint, each naming the file; nothing is loaded in part.
    """
    folder = find_folder(path_or_repo, revision)
    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_model(folder, dtype=dtype, q_bits=q_bits, q_group_size=q_group_size, progress=progress)
    if warning := vocabulary_warning(tokenizer, model.config):
        warnings.warn(warning, stacklevel=2)
    return model, tokenizer


def load_as(
    kind: type[Network],
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    **changes: Any,
) -> Network:
    """One of the networks, without a tokenizer. What `Pretrained.from_pretrained` does."""
    folder = find_folder(path_or_repo, revision)
    config = Exaone4Config.from_file(folder / "config.json", **changes)
    return _filled(kind, open_source(folder, kind, config), dtype=dtype)


def vocabulary_warning(tokenizer: Tokenizer, config: Exaone4Config) -> str | None:
    """What to tell a user whose tokenizer knows more tokens than the model does."""
    if tokenizer.vocab_size <= config.vocab_size:
        return None
    return (
        f"the tokenizer knows {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
        "text that uses the others cannot be processed"
    )


def load_model(
    folder: Path,
    *,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    progress: Progress | None = None,
) -> Exaone4ForCausalLM:
    """The model of a local folder, without its tokenizer. Arguments and errors as for `load`."""
    opened = open_source(folder)
    return _filled(Exaone4ForCausalLM, opened, dtype=dtype, q_bits=q_bits, q_group_size=q_group_size, progress=progress)


def _filled(
    kind: type[Network],
    opened: Opened,
    *,
    dtype: mx.Dtype | str | None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    progress: Progress | None = None,
) -> Network:
    """A network with the weights of an opened checkpoint."""
    cast = read_dtype(dtype)
    if q_bits is None and q_group_size != 64:
        raise ValueError(f"q_group_size {q_group_size} needs q_bits beside it")
    quantization = None if q_bits is None else Quantization(q_bits, q_group_size)
    folder, source = opened.folder, opened.source
    if quantization is None:
        settings = {name: exact for name in opened.shapes if (exact := source.tensors[name].exact)}
    elif any(tensor.exact for tensor in source.tensors.values()):
        raise ValueError(f"{folder} is already quantized ({source.format}); load it without q_bits")
    else:
        settings = {name: quantization for name, shape in opened.shapes.items() if quantization.applies_to(name, shape)}
    if quantization is None and any(tensor.is_foreign for tensor in source.tensors.values()):
        warnings.warn(
            f"{folder} is {source.format}, which MLX has no kernels for: it is computed in full precision; "
            "convert it once, for a quarter of the memory",
            stacklevel=4,
        )
    model = kind(opened.config)
    quantize_layers(model, {name.removesuffix(".weight"): chosen for name, chosen in settings.items()})

    def weights() -> Iterator[tuple[str, mx.array]]:
        done = 0
        for name in opened.in_file_order():
            stored = source.tensors[name]
            if stored.exact:
                parts = opened.parts(name)
            else:
                weight = _cast(source.weight(name), cast)
                parts = settings[name].tensors(name, weight) if name in settings else [(name, weight)]
            yield from ((part, _cast(array, cast)) for part, array in parts)
            done += stored.nbytes
            if progress:
                progress(done, opened.nbytes)
        for name, array in opened.new.items():
            yield name, array.astype(cast or next(iter(source.tensors.values())).dtype)

    if opened.new:
        names = ", ".join(sorted(opened.new))
        warnings.warn(f"{folder} has no {names}: new here, and to be trained", stacklevel=4)
    fill(model, weights())
    model.merge()
    return model


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose headers are read and whose tensors are accounted for.

    `shapes` are the weights' that are read from it, `new` the head's that it lacks.
    """

    config: Exaone4Config
    checkpoint: Checkpoint
    source: Source
    shapes: Mapping[str, tuple[int, ...]]
    new: Mapping[str, mx.array] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def in_file_order(self) -> list[str]:
        """The names of the weights, so that each file is opened once."""
        first = {name: self.source.tensors[name].stored[0] for name in self.shapes}
        return sorted(first, key=lambda name: (self.checkpoint.tensors[first[name]].file.name, name))

    def parts(self, name: str) -> list[tuple[str, mx.array]]:
        """The tensors of MLX for a weight that is stored quantized: packed weight, scales, biases."""
        return [(part, _cast(array, self.source.scale_dtype(name))) for part, array in self.source.parts(name)]

    @property
    def nbytes(self) -> int:
        """Of the weights, as they are stored."""
        return sum(self.source.tensors[name].nbytes for name in self.shapes)

    @property
    def bits_per_weight(self) -> float:
        """As they are stored, scales and biases counted."""
        return 8 * self.nbytes / sum(math.prod(shape) for shape in self.shapes.values())


def open_source(folder: Path, kind: type[Pretrained] | None = None, config: Exaone4Config | None = None) -> Opened:
    """The tensors of a folder in any format that is read here, each accounted for.

    They are Exaone4ForCausalLM's, or brought under the names of any network, `kind`, from any other's. Raises
    CheckpointError for one missing, too much or misshapen, and ValueError for a format that is not read.
    """
    if config is None:
        config = Exaone4Config.from_file(folder / "config.json")
    checkpoint = Checkpoint(folder)
    source = Source(checkpoint, read_json(folder / "config.json"))
    wanted = placeholders((kind or Exaone4ForCausalLM)(config))
    _drop_harmless(source, config, folder)
    new = {} if kind is None else _fit_names(source, kind, wanted)
    shapes = {name: array.shape for name, array in wanted.items() if name not in new}
    check_names(source.tensors, shapes, folder)
    for name, shape in shapes.items():
        stored = source.tensors[name]
        first = checkpoint.tensors[stored.stored[0]]
        if stored.shape != shape:
            raise CheckpointError(f"{first.file}: {name} has shape {stored.shape}, not {shape}")
    return Opened(config, checkpoint, source, shapes, new)


def _fit_names(source: Source, kind: type[Pretrained], wanted: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Gives the tensors the names that they have in a network, and drops other heads'. Returns what is new of its head.

    transformers reads checkpoints so, too.
    """
    for name in list(source.tensors):
        if not name.startswith(HEAD_PREFIXES):
            source.rename(name, kind.backbone + name.removeprefix("model.").removeprefix("transformer."))
        elif name not in wanted:
            del source.tensors[name]
    return {name: wanted[name] for name in wanted if name.startswith(HEAD_PREFIXES) and name not in source.tensors}


def read_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """A floating-point dtype from its name, None passed through. Raises ValueError for any other."""
    if dtype is None or dtype in FLOAT_DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, not {dtype!r}")
    return FLOAT_DTYPES[str(dtype)]


def _cast(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    return array if dtype is None or not mx.issubdtype(array.dtype, mx.floating) else array.astype(dtype)


def _drop_harmless(source: Source, config: Exaone4Config, folder: Path) -> None:
    for name in [
        n
        for n in source.tensors
        if re.fullmatch(r"((model|transformer)\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", n)
    ]:
        del source.tensors[name]
    if config.tie_word_embeddings and HEAD in source.tensors and EMBEDDING in source.tensors:
        if not _equal(source, HEAD, EMBEDDING):
            raise CheckpointError(
                f"{folder}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; "
                "set it to false if the head is meant to be used"
            )
        source.close()
        del source.tensors[HEAD]


def _equal(source: Source, name: str, other: str) -> bool:
    """Some rows at a time: these are the largest tensors."""
    rows = source.tensors[name].shape[0]
    if source.tensors[name].shape != source.tensors[other].shape:
        return False
    return all(
        mx.array_equal(source.weight(name, start, start + 4096), source.weight(other, start, start + 4096)).item()
        for start in range(0, rows, 4096)
    )
