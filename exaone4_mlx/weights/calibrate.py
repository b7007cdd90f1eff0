"""The methods that need text: what is rounded in one weight is made up for in others.

What is peculiar here:
- A block is quantized on the hidden states that the quantized blocks before it give, so that it can make up for
  their errors too. One block and its statistics are in memory at a time.
- Each finished block is read back from the disk and run as it stands there. So a run that was stopped sees the
  same hidden states as one that was not, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..model.files import atomic_file
from ..text.tokenizer import Tokenizer
from .blocks import Blocks, run
from .checkpoint import EMBEDDING, HEAD, Opened, load_model, open_source
from .plan import Plan, Planned
from .shards import Shards
from .texts import Passage, encode

MAX_TOKENS = 512  # of one text
TUNED = "tuned.safetensors"  # what distillation found, until it stands in the shards

#: (done, total, what is being done) -> None
Progress = Callable[[int, int, str], None]


def calibrate(
    method: str,
    passages: Sequence[Passage],
    opened: Opened,
    plan: Plan,
    shards: Shards,
    write: Callable[[Planned], None],
    progress: Progress | None,
) -> None:
    """Fills the shards by GPTQ, and by "distill" tunes what stands there then.

    `write` writes a tensor without text. The folder of the shards must hold config and tokenizer already.
    """
    tuned = shards.folder / TUNED
    if not tuned.exists() and not shards.is_tuned:
        tokenizer = Tokenizer.from_pretrained(opened.folder)
        sequences = [encode(passage, tokenizer, MAX_TOKENS) for passage in passages]
        _gptq(sequences, opened, plan, shards, write, progress)
        if method == "distill":
            _distill(sequences, opened, plan, tuned, progress)
    if tuned.exists() and not shards.is_tuned:
        shards.replace(mx.load(str(tuned)))  # type: ignore[arg-type]
    tuned.unlink(missing_ok=True)


def _gptq(
    sequences: Sequence[list[int]],
    opened: Opened,
    plan: Plan,
    shards: Shards,
    write: Callable[[Planned], None],
    progress: Progress | None,
) -> None:
    whole = Blocks(opened.source, opened.config, unpacked=True)
    done = Blocks(open_source(shards.folder).source, opened.config, unpacked=True)  # many rows: unpacking pays
    layers = opened.config.num_hidden_layers
    for tensor in plan.tensors:
        if not tensor.name.startswith("model.layers."):
            write(tensor)
    states = done.embed(sequences)
    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors = [tensor for tensor in plan.tensors if tensor.name.startswith(prefix)]
        if not all(shards.is_done(tensor) for tensor in tensors):
            _write_block(whole, number, states, tensors, shards, write)
        states = run(done.block(number), states)
        mx.clear_cache()
        if progress:
            progress(number + 1, layers, "calibrating")


def _write_block(
    whole: Blocks,
    number: int,
    states: Sequence[mx.array],
    tensors: Sequence[Planned],
    shards: Shards,
    write: Callable[[Planned], None],
) -> None:
    prefix = f"model.layers.{number}."
    settings = {
        tensor.name.removeprefix(prefix).removesuffix(".weight"): tensor.quantization
        for tensor in tensors
        if tensor.quantization is not None and tensor.quantization.mode == "affine"
    }
    from .gptq import quantized_block

    block = whole.block(number)
    dtype = next(output.dtype for tensor in tensors for output in tensor.outputs if output.name.endswith(".scales"))
    quantized_block(block, states, settings, dtype)
    made = dict(tree_flatten(block.parameters()))
    for tensor in tensors:
        if tensor.name.removeprefix(prefix).removesuffix(".weight") not in settings:
            write(tensor)
            continue
        for output in tensor.outputs:
            shards.write(output.name, made[output.name.removeprefix(prefix)].astype(output.dtype))
        shards.done(tensor.outputs)


def _distill(sequences: Sequence[list[int]], opened: Opened, plan: Plan, file: Path, progress: Progress | None) -> None:
    """Tunes the quantized model of the file's folder, and writes what it found into the file."""

    def steps(stage: str) -> Callable[[int, int], None] | None:
        return (lambda done, total: progress(done, total, stage)) if progress else None

    original = Blocks(opened.source, opened.config, unpacked=True)
    targets = original.hidden_states(sequences, steps("reading the original"))
    head = opened.source.weight(EMBEDDING if opened.config.tie_word_embeddings else HEAD)
    model = load_model(file.parent, dtype=mx.float32)
    from .distill import distill

    found = distill(model, sequences, targets, head, progress=steps("distilling"))
    dtypes = {output.name: output.dtype for tensor in plan.tensors for output in tensor.outputs}
    stored = {name: array.astype(dtypes[name]) for name, array in found.items()}
    with atomic_file(file) as stream:
        mx.save_safetensors(stream, stored)  # type: ignore[arg-type]
