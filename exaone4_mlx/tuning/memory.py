"""The memory of a training, computed before it begins.

Notes:
- Nothing is computed but sizes: weights, trained arrays, what the layers keep for the gradient, logits.
- The factors are fits to peaks of MLX's CPU backend (0.32), where attention keeps its scores. The sum is 1.1 to 1.8
  times the measured peak there. Not measured on Apple silicon.
- Activations are counted in float32: the adapters make them so, also beside weights of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.adapter import KEYS, AdapterConfig, projection_shapes
from ..model.config import Exaone4Config
from ..text.format import size_text
from .batches import LENGTH_STEP, in_order, round_up
from .examples import Example
from .request import LAYERS, TuningRequest
from .trained import HEAD_POSITIONS

FLOAT_BYTES = 4
#: Copies of a trained array: itself, gradient, two moments of Adam, and two while they are updated.
COPIES = 6
LOGITS_COPIES = 4.5
#: DoRA keeps more for the gradient of a layer.
DORA_ACTIVATIONS = 1.4
#: Layers whose activations are in memory beside those that are kept: of the gradient that is computed.
WORKING_LAYERS, WORKING_CHECKPOINTED = 1.0, 2.5


@dataclass(frozen=True)
class TuningFit:
    """The memory of a training, in bytes. `adapter_bytes` are those of all copies of the trained arrays."""

    weights_bytes: int
    adapter_bytes: int
    activation_bytes: int
    logits_bytes: int
    memory_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.adapter_bytes + self.activation_bytes + self.logits_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.memory_bytes

    @property
    def arithmetic(self) -> str:
        """The sum and its parts, in words."""
        return (
            f"{size_text(self.total_bytes)} ({size_text(self.weights_bytes)} of weights, "
            f"{size_text(self.adapter_bytes)} of trained arrays with optimizer, {size_text(self.activation_bytes)} of "
            f"activations, {size_text(self.logits_bytes)} of logits), and a model may have "
            f"{size_text(self.memory_bytes)} here"
        )

    def check(self) -> None:
        """Raises MemoryError, with remedies, if it does not fit."""
        if not self.fits:
            raise MemoryError(
                f"the training needs {self.arithmetic}; less take grad_checkpoint, a smaller batch_size (with "
                "grad_accumulation_steps), max_seq_length or num_layers, and q_bits 4; ignore_memory trains anyway"
            )


def tuning_fit(
    config: Exaone4Config, weights_bytes: int, examples: Sequence[Example], request: TuningRequest
) -> TuningFit:
    """What the training of a model needs with the longest batch of `examples`."""
    from ..measure.fit import memory_of_this_machine

    layers = adapter_config(config, request).num_layers
    batches = list(in_order(examples, request.batch_size))
    tokens = max(round_up(len(batch[-1].ids), LENGTH_STEP) * len(batch) for batch in batches)
    longest = round_up(len(batches[-1][-1].ids), LENGTH_STEP)
    learned = max(sum(example.learned_tokens for example in batch) for batch in batches)
    heads, key_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = 5 * config.hidden_size + 7 * heads + 5 * key_heads + 6 * config.intermediate_size
    layer += round(1.25 * config.num_attention_heads * longest)  # scores
    layer = round(layer * DORA_ACTIVATIONS) if request.fine_tune_type == "dora" else layer
    if request.grad_checkpoint:
        elements = layers * config.hidden_size + WORKING_CHECKPOINTED * layer
    else:
        elements = (layers + WORKING_LAYERS) * layer
    trained = sum(map(math.prod, trained_shapes(config, request)))
    copies = COPIES - (request.fine_tune_type == "full")  # whose weights are counted already
    return TuningFit(
        weights_bytes,
        copies * trained * FLOAT_BYTES,
        round(tokens * elements * FLOAT_BYTES),
        round(min(learned, HEAD_POSITIONS) * config.vocab_size * LOGITS_COPIES * FLOAT_BYTES),
        memory_of_this_machine(),
    )


def adapter_config(config: Exaone4Config, request: TuningRequest) -> AdapterConfig:
    """The settings of the adapter. Raises ValueError for layers and projections that the model does not have."""
    layers = config.num_hidden_layers
    num_layers = min(LAYERS, layers) if request.num_layers is None else request.num_layers
    found = AdapterConfig(
        fine_tune_type=request.fine_tune_type,
        rank=request.rank,
        scale=float(request.scale),
        dropout=float(request.dropout),
        num_layers=layers if num_layers == -1 else num_layers,
        keys=KEYS if request.keys is None else request.keys,
    )
    if unknown := [name for name in found.modules(config) if name not in projection_shapes(config)]:
        raise ValueError(f"keys has {unknown[0]}, and this model's output head is its embedding")
    return found


def trained_shapes(config: Exaone4Config, request: TuningRequest) -> list[tuple[int, ...]]:
    """The shapes of the trained arrays."""
    found, shapes = adapter_config(config, request), projection_shapes(config)
    chosen = [shapes[name] for name in found.modules(config)]
    if found.fine_tune_type == "full":
        return [*chosen]  # norms are small
    return [shape for outputs, inputs in chosen for shape in ((inputs, found.rank), (found.rank, outputs))]
