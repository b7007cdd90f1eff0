"""Calibration of a whole model on texts: weighted error search or GPTQ, block by block, then, if asked, distillation.

Notes:
- One block and its statistics are in memory at a time. Weighted search takes its inputs from the original.
- For GPTQ the inputs of a block are the outputs of the quantized blocks before it, and the original's hidden states run
  along, so that a block can correct the errors before it. The output head is quantized first, on the hidden states of
  the original: where it is also the embedding, all blocks depend on it.
- Each finished block is read back from the disk and run in that form. So a resumed run has the same hidden states as
  an uninterrupted one, and writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.share import EMBEDDING, HEAD
from ..files.folders import atomic_file
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import OpenCheckpoint, load_network, open_checkpoint
from ..text.tokenizer import Tokenizer
from .chats import make_chats
from .distill import distill
from .gptq import DAMPING, HEAD_DAMPING, gptq, quantize_block
from .importance import TOO_LARGE, block_importance, second_moment
from .layerwise import LayerwiseModel, run_block
from .plan import ConversionPlan, PlannedTensor
from .shards import Shards
from .texts import windows

MAX_TOKENS = 512  # of one window
TUNED = "tuned.safetensors"  # the result of distillation, until it is in the shards
CHATS = "chats.json"  # the ids of the chats, until the end of the calibration
TIED_SHARE = 1.0  # of the mean importance, added to each column of a head that is the embedding
HEAD_WEIGHTS = 1 << 24  # weights of the head that are quantized in one step

#: (done, total, stage) -> None. Counts source bytes in the stages of BYTE_STAGES, else steps.
StageProgress = Callable[[int, int, str], None]
#: Writes a tensor by the importance of its columns, or without.
Write = Callable[[PlannedTensor, mx.array | None], None]


@dataclass
class Calibration:
    """Fills the shards of a plan by a method: "weighted", "gptq", or "distill" (GPTQ, then tuning).

    `texts` are the windows of the texts, as token ids. With a `tokenizer`, chats that the original answers join them.
    `write` writes a tensor by error search. The folder of the shards must have its config.json already.
    """

    method: str
    texts: Sequence[list[int]]
    tokenizer: Tokenizer | None
    opened: OpenCheckpoint
    plan: ConversionPlan
    shards: Shards
    write: Write
    progress: StageProgress | None = None

    def run(self) -> None:
        """Runs the method, or resumes an interrupted run."""
        tuned = self.shards.folder / TUNED
        if self.method == "weighted":
            if not all(map(self.shards.is_done, self.plan.tensors)):
                self._search()
        elif not tuned.exists() and not self.shards.is_tuned:
            self._quantize()
            if self.method == "distill":
                self._distill(tuned)
        if tuned.exists() and not self.shards.is_tuned:
            self.shards.replace(mx.load(str(tuned)))  # type: ignore[arg-type]
        tuned.unlink(missing_ok=True)
        (self.shards.folder / CHATS).unlink(missing_ok=True)

    @cached_property
    def sequences(self) -> Sequence[list[int]]:
        """The windows of the texts and chats."""
        if self.tokenizer is None:
            return self.texts
        file = self.shards.folder / CHATS
        if not file.exists():
            chats = make_chats(self.opened, self.tokenizer, progress=self._steps("answering prompts"))
            mx.clear_cache()
            with atomic_file(file) as stream:
                stream.write(json.dumps([ids for ids, _ in chats]).encode())
        size = min(MAX_TOKENS, self.opened.config.max_position_embeddings)
        return [*self.texts, *(window for ids in json.loads(file.read_text()) for window in windows(ids, size))]

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

    def _search(self) -> None:
        """Writes block by block, then the rest. A resumed run measures all blocks again."""
        progress, layers = self._steps("calibrating"), self.opened.config.num_hidden_layers
        states = self._original.embed(self.sequences)
        for number in range(layers):
            importance, states = block_importance(self._original.block(number), states)
            if not mx.all(mx.isfinite(mx.concatenate(list(importance.values())))).item():
                raise ValueError(f"layer {number}: {TOO_LARGE}")
            for tensor in self._tensors(number):
                self.write(tensor, importance.get(tensor.name.removeprefix(_prefix(number))))
            mx.clear_cache()
            if progress:
                progress(number + 1, layers)
        energy = second_moment(map(self._original.norm(), states))
        if self._head == EMBEDDING:  # where the plain error of a row matters too
            energy = energy + TIED_SHARE * mx.mean(energy)
        for tensor in self.plan.tensors:
            if not tensor.name.startswith("model.layers."):
                self.write(tensor, energy if tensor.name == self._head else None)

    def _tensors(self, number: int) -> list[PlannedTensor]:
        return [tensor for tensor in self.plan.tensors if tensor.name.startswith(_prefix(number))]

    def _quantize(self) -> None:
        for tensor in self.plan.tensors:
            if tensor.name == self._head and tensor.quantization and not self.shards.is_done(tensor):
                self._write_head(tensor)
            elif not tensor.name.startswith("model.layers."):
                self.write(tensor, None)
        # Many rows pass each weight, and unpacked weights are faster then.
        done = LayerwiseModel(
            open_checkpoint(self.shards.folder, Exaone4ForCausalLM).source, self.opened.config, unpacked=True
        )
        states, originals = done.embed(self.sequences), self._original.embed(self.sequences)
        progress = self._steps("calibrating")
        layers = self.opened.config.num_hidden_layers
        for number in range(layers):
            tensors = self._tensors(number)
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
        prefix = _prefix(number)
        quantized = [tensor for tensor in tensors if tensor.quantization is not None]
        settings = {
            tensor.name.removeprefix(prefix).removesuffix(".weight"): tensor.quantization
            for tensor in quantized
            if tensor.quantization is not None
        }
        block = self._original.block(number)
        try:
            if quantized:
                quantize_block(block, states, settings, originals=originals, dtype=_scale_dtype(quantized[0]))
        except ValueError as error:
            raise ValueError(f"layer {number}: {error}") from error
        parameters = dict(tree_flatten(block.parameters()))
        for tensor in tensors:
            if tensor.quantization is None:
                self.write(tensor, None)
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


def _prefix(number: int) -> str:
    return f"model.layers.{number}."


def _scale_dtype(tensor: PlannedTensor) -> mx.Dtype:
    return tensor.outputs[-1].dtype
