"""Calibration of a whole model on texts: GPTQ block by block, then, if asked for, distillation.

Notes:
- The inputs of a block are the outputs of the quantized blocks before it, and the original's hidden states run along,
  so that a block can correct the errors before it. One block and its statistics are in memory at a time.
- The output head is quantized first, on the hidden states of the original: where it is also the embedding, all blocks
  depend on it.
- Each finished block is read back from the disk and run in that form. So a resumed run has the same hidden states as
  an uninterrupted one, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..files.folders import atomic_file
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import EMBEDDING, HEAD, OpenCheckpoint, load_network, open_checkpoint
from .distill import distill
from .gptq import DAMPING, HEAD_DAMPING, gptq, quantize_block
from .layerwise import LayerwiseModel, run_block
from .plan import ConversionPlan, PlannedTensor
from .shards import Shards

MAX_TOKENS = 512  # of one window
TUNED = "tuned.safetensors"  # the result of distillation, until it is in the shards
HEAD_WEIGHTS = 1 << 24  # weights of the head that are quantized in one step

#: (done, total, stage) -> None. Counts source bytes in the stages "converting" and "verifying", else steps.
StageProgress = Callable[[int, int, str], None]


@dataclass
class Calibration:
    """Fills the shards of a plan by a method, "gptq" or "distill" (GPTQ, then tuning).

    `sequences` are the windows of the texts, as token ids. `write` writes a tensor that needs no text. The folder of
    the shards must have its config.json already.
    """

    method: str
    sequences: Sequence[Sequence[int]]
    opened: OpenCheckpoint
    plan: ConversionPlan
    shards: Shards
    write: Callable[[PlannedTensor], None]
    progress: StageProgress | None = None

    def run(self) -> None:
        """Runs the method, or resumes an interrupted run."""
        tuned = self.shards.folder / TUNED
        if not tuned.exists() and not self.shards.is_tuned:
            self._quantize()
            if self.method == "distill":
                self._distill(tuned)
        if tuned.exists() and not self.shards.is_tuned:
            self.shards.replace(mx.load(str(tuned)))  # type: ignore[arg-type]
        tuned.unlink(missing_ok=True)

    @cached_property
    def _original(self) -> LayerwiseModel:
        return LayerwiseModel(self.opened.source, self.opened.config, unpacked=True)

    @cached_property
    def _targets(self) -> list[mx.array]:
        """The final hidden states [L, E] of the original, for each text."""
        return self._original.hidden_states(self.sequences, self._steps("reading the original"))

    @property
    def _head(self) -> str:
        return EMBEDDING if self.opened.config.tie_word_embeddings else HEAD

    def _quantize(self) -> None:
        for tensor in self.plan.tensors:
            if tensor.name == self._head and tensor.quantization and not self.shards.is_done(tensor):
                self._write_head(tensor)
            elif not tensor.name.startswith("model.layers."):
                self.write(tensor)
        # Many rows pass each weight, and unpacked weights are faster then.
        done = LayerwiseModel(
            open_checkpoint(self.shards.folder, Exaone4ForCausalLM).source, self.opened.config, unpacked=True
        )
        states, originals = done.embed(self.sequences), self._original.embed(self.sequences)
        progress = self._steps("calibrating")
        layers = self.opened.config.num_hidden_layers
        for number in range(layers):
            tensors = [tensor for tensor in self.plan.tensors if tensor.name.startswith(f"model.layers.{number}.")]
            if not all(self.shards.is_done(tensor) for tensor in tensors):
                self._write_block(number, states, originals, tensors)
            states = run_block(done.block(number), states)
            originals = run_block(self._original.block(number), originals)
            mx.clear_cache()
            if progress:
                progress(number + 1, layers)

    def _write_head(self, tensor: PlannedTensor) -> None:
        assert tensor.quantization is not None
        hessian = mx.array(0.0)
        for hidden in self._targets:
            hessian = hessian + hidden.T @ hidden
            mx.eval(hessian)
        damping = HEAD_DAMPING if tensor.name == EMBEDDING else DAMPING
        rows = max(1, HEAD_WEIGHTS // tensor.shape[1])
        for start in range(0, tensor.shape[0], rows):
            weight = self.opened.source.weight(tensor.name, start, start + rows)
            bits, group_size = tensor.quantization.bits, tensor.quantization.group_size
            parts = gptq(weight, hessian, bits, group_size, dtype=_scale_dtype(tensor), damping=damping)
            for output, part in zip(tensor.outputs, parts, strict=True):
                self.shards.write(output.name, part, start)
        self.shards.done(tensor.outputs)

    def _write_block(
        self, number: int, states: Sequence[mx.array], originals: Sequence[mx.array], tensors: Sequence[PlannedTensor]
    ) -> None:
        prefix = f"model.layers.{number}."
        quantized = [tensor for tensor in tensors if tensor.quantization is not None]
        settings = {
            tensor.name.removeprefix(prefix).removesuffix(".weight"): tensor.quantization
            for tensor in quantized
            if tensor.quantization is not None
        }
        block = self._original.block(number)
        if quantized:
            quantize_block(block, states, settings, originals=originals, dtype=_scale_dtype(quantized[0]))
        parameters = dict(tree_flatten(block.parameters()))
        for tensor in tensors:
            if tensor.quantization is None:
                self.write(tensor)
                continue
            for output in tensor.outputs:
                self.shards.write(output.name, parameters[output.name.removeprefix(prefix)].astype(output.dtype))
            self.shards.done(tensor.outputs)

    def _distill(self, file: Path) -> None:
        """Tunes the quantized model of the shards, and writes the tuned tensors to a file."""
        head = self.opened.source.weight(self._head)
        model = load_network(Exaone4ForCausalLM, self.shards.folder)
        tuned = distill(model, self.sequences, self._targets, head, progress=self._steps("distilling"))
        with atomic_file(file) as stream:
            mx.save_safetensors(stream, tuned)  # type: ignore[arg-type]

    def _steps(self, stage: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return (lambda done, total: progress(done, total, stage)) if progress else None


def _scale_dtype(tensor: PlannedTensor) -> mx.Dtype:
    return tensor.outputs[-1].dtype
