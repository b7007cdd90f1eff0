"""`load`: (model, tokenizer) of a folder, a hub id, or the demo.

What is peculiar here:
- Tensors are read, cast, quantized and evaluated one by one: memory never holds a second copy of the model.
- Two kinds of extra tensor are known and harmless: stored rotary frequencies, which are computed here, and an
  output head beside tied embeddings, if it is equal to them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..model.config import Exaone4Config, read_json
from ..model.files import (
    FLOAT_DTYPES,
    Checkpoint,
    CheckpointError,
    check_names,
    check_shapes,
    fill,
    find_folder,
    placeholders,
)
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .quantize import Quantization, quantize_layers, read_quantization

#: (bytes read, bytes in all) -> None
Progress = Callable[[int, int], None]

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


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

    Raises FileNotFoundError for what is not there, and ValueError (CheckpointError for damaged weights) for
    what is no EXAONE 4 checkpoint, each naming the file; nothing is loaded in part.
    """
    folder = find_folder(path_or_repo, revision)
    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_model(folder, dtype=dtype, q_bits=q_bits, q_group_size=q_group_size, progress=progress)
    if warning := vocabulary_warning(tokenizer, model.config):
        warnings.warn(warning, stacklevel=2)
    return model, tokenizer


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
    cast = read_dtype(dtype)
    if q_bits is None and q_group_size != 64:
        raise ValueError(f"q_group_size {q_group_size} needs q_bits beside it")
    quantization = None if q_bits is None else Quantization(q_bits, q_group_size)
    checkpoint, model, stored = open_checkpoint(folder)
    if stored and quantization:
        raise ValueError(f"{folder} is already quantized, to {stored['bits']} bits; load it without q_bits")
    names = checkpoint.in_file_order(placeholders(model))
    if quantization:
        shapes = {name: checkpoint.tensors[name].shape for name in names}
        layers = {name.removesuffix(".weight") for name in names if quantization.applies_to(name, shapes[name])}
        quantize_layers(model, quantization.as_dict(), layers)

    def weights() -> Iterator[tuple[str, mx.array]]:
        done = 0
        for name in names:
            yield from converted(name, checkpoint.read(name), cast, quantization)
            done += checkpoint.tensors[name].nbytes
            if progress:
                progress(done, checkpoint.nbytes)

    fill(model, weights())
    return model


def open_checkpoint(folder: Path) -> tuple[Checkpoint, Exaone4ForCausalLM, Mapping[str, Any] | None]:
    """The tensors of a folder, the model that they belong to, still unfilled, and how they are quantized.

    Every tensor is accounted for: raises CheckpointError for one missing, too much or misshapen.
    """
    config = Exaone4Config.from_file(folder / "config.json")
    checkpoint = Checkpoint(folder)
    stored = read_quantization(read_json(folder / "config.json"))
    model = Exaone4ForCausalLM(config)
    _drop_harmless(checkpoint, config)
    if stored:
        layers = {name.removesuffix(".scales") for name in checkpoint.tensors if name.endswith(".scales")}
        quantize_layers(model, stored, layers)
    wanted = placeholders(model)
    check_names(checkpoint.tensors, wanted, folder)
    check_shapes(checkpoint.tensors, wanted)
    return checkpoint, model, stored


def converted(
    name: str, array: mx.array, dtype: mx.Dtype | None, quantization: Quantization | None
) -> list[tuple[str, mx.array]]:
    """What becomes of one stored tensor: cast to `dtype` if it is floating-point, quantized where that applies."""
    if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(dtype)
    if quantization is not None and quantization.applies_to(name, array.shape):
        return quantization.tensors(name, array)
    return [(name, array)]


def read_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """A floating-point dtype from its name, None passed through. Raises ValueError for any other."""
    if dtype is None or dtype in FLOAT_DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, not {dtype!r}")
    return FLOAT_DTYPES[str(dtype)]


def _drop_harmless(checkpoint: Checkpoint, config: Exaone4Config) -> None:
    for name in [
        n for n in checkpoint.tensors if re.fullmatch(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", n)
    ]:
        del checkpoint.tensors[name]
    if config.tie_word_embeddings and HEAD in checkpoint.tensors and EMBEDDING in checkpoint.tensors:
        if not mx.array_equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING)).item():
            raise CheckpointError(
                f"{checkpoint.folder}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; "
                "set it to false if the head is meant to be used"
            )
        checkpoint.close()
        del checkpoint.tensors[HEAD]
