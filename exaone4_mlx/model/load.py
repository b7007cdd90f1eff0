"""`load`: a folder, a hub id or "demo" -> (model, tokenizer)."""

from __future__ import annotations

import warnings
from pathlib import Path

import mlx.core as mx

from ..cluster.ranks import Ranks
from ..files.folders import find_folder
from ..text.tokenizer import Tokenizer
from .adapter_file import AdapterPaths, Scales, read_adapters
from .generation_config import GenerationConfig
from .network import Exaone4ForCausalLM
from .pretrained import Progress, load_network


def load(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | str | None = None,
    q_bits: int | None = None,
    q_group_size: int = 64,
    adapter_path: AdapterPaths = (),
    adapter_scale: Scales = 1.0,
    progress: Progress | None = None,
    group: Ranks | None = None,
) -> tuple[Exaone4ForCausalLM, Tokenizer]:
    """Loads an EXAONE 4 checkpoint: a folder in Hugging Face or MLX format, a hub id, or "demo".

    `dtype` (bfloat16, float16 or float32, as `mx.Dtype` or name) is the dtype of the floating-point weights; None keeps
    the checkpoint's. With `q_bits` a full-precision checkpoint is quantized while it loads, in groups of
    `q_group_size`. `adapter_path` and `adapter_scale` are as for `set_adapters` of the model.
    `progress(done, total)` counts bytes read.

    AWQ weights keep their codes, and so do GPTQ and compressed-tensors weights whose groups are contiguous. Other GPTQ
    weights and FP8 weights are computed in full precision, with a warning.

    `group` is what `join_ranks()` returns in a process of `mlx.launch`: each rank reads and keeps its part of the
    weights. Then rank 0 uses the model as any other, and the other ranks call `follow(model)`. All ranks must have the
    same package, checkpoint and options.

    Raises FileNotFoundError for a missing folder or file, and ValueError (CheckpointError for damaged weights) for a
    folder that is no EXAONE 4 checkpoint. Each error names the file. No model is loaded in part.
    """
    folder, adapters = find_folder(path_or_repo, revision), read_adapters(adapter_path, adapter_scale)
    if adapters and group is not None:
        raise ValueError("a model of several ranks takes no adapters: fuse them into the weights first")
    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_network(
        Exaone4ForCausalLM,
        folder,
        dtype=dtype,
        q_bits=q_bits,
        q_group_size=q_group_size,
        progress=progress,
        ranks=group,
    )
    model.generation_config = GenerationConfig.from_folder(folder)
    if adapters:
        model.set_adapters(*zip(*adapters, strict=True))
    model.fused()
    if warning := model.config.vocabulary_warning(tokenizer.vocab_size):
        warnings.warn(warning, stacklevel=2)
    return model, tokenizer
