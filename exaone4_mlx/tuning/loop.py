"""The training loop: steps, validation, saves.

Notes:
- A step is two compiled functions: the gradient of a batch, and the update. Gradients of several batches are summed,
  and divided by the number of their learned tokens.
- Dropout draws from a key that follows from seed and step. So a step depends on nothing but the state before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Adam
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..model.network import Exaone4ForCausalLM
from .batches import Batches, TrainingBatch, in_order
from .examples import Example
from .request import TuningRequest
from .state import Arrays, TrainingProgress
from .trained import loss_sum

CLEAR_EVERY = 20  # steps; freed buffers of other lengths are returned


@dataclass(frozen=True)
class TuningStep:
    """What `progress` of `tune` gets after each step. Losses are in nats per learned token."""

    step: int
    steps: int
    loss: float
    valid_loss: float | None
    learning_rate: float
    tokens_per_second: float
    peak_bytes: int


class Loop:
    """A model that is in training, its optimizer and its progress. The trained arrays are those that are not frozen."""

    def __init__(
        self, model: Exaone4ForCausalLM, request: TuningRequest, train: Sequence[Example], valid: Sequence[Example]
    ) -> None:
        self.model, self.request = model, request
        self.batches = Batches(train, request.batch_size, request.seed)
        self.steps = request.steps(self.batches.per_epoch)
        self.valid = list(in_order(valid, request.batch_size))
        if 0 < request.val_batches < len(self.valid):
            count = request.val_batches
            self.valid = [self.valid[place * len(self.valid) // count] for place in range(count)]
        self.optimizer = Adam(request.learning_rate, bias_correction=True)
        self.optimizer.init(model.trainable_parameters())
        self.progress = TrainingProgress()
        self.best = self.trained()

    def trained(self) -> Arrays:
        """The trained arrays by name. Their order decides the bytes of a file, so it is always the same."""
        return dict(sorted(tree_flatten(self.model.trainable_parameters())))

    def resume(self, trained: Arrays, best: Arrays, progress: TrainingProgress) -> None:
        self.model.update(tree_unflatten(list(trained.items())))
        self.best, self.progress = best, progress

    def run(self) -> Iterator[TuningStep]:
        """Trains to the end, or until `patience` ends. It yields after each step.

        Raises FloatingPointError for a loss that is NaN or infinite.
        """
        request, progress = self.request, self.progress
        self._gradient, self._update = self._compiled()  # here: `resume` replaces the state of the optimizer
        every = request.evaluate_every(self.steps)
        if self.valid and not progress.valid_losses:
            progress.valid_losses.append((0, self.loss_of(self.valid)))
        while progress.step < self.steps and not self._is_stale():
            started = time.perf_counter()
            step = progress.step + 1
            loss, tokens, rate = self._step(step)
            seconds = time.perf_counter() - started
            progress.step = step
            progress.tokens += tokens
            progress.seconds += seconds
            progress.train_losses.append((step, loss))
            valid_loss = None
            if self.valid and (step % every == 0 or step == self.steps):
                valid_loss = self.loss_of(self.valid)
                progress.valid_losses.append((step, valid_loss))
            if progress.best_step == step:
                self.best = self.trained()
            if step % CLEAR_EVERY == 0:
                mx.clear_cache()
            yield TuningStep(step, self.steps, loss, valid_loss, rate, tokens / seconds, mx.get_peak_memory())

    def loss_of(self, groups: Sequence[Sequence[Example]]) -> float:
        """The mean loss of the learned tokens."""
        self.model.eval()
        total = learned = 0.0
        for group in groups:
            batch = TrainingBatch.of(group)
            loss: Any = loss_sum(self.model, False, batch.ids, batch.positions, batch.targets).item()
            total += loss
            learned += batch.learned_tokens
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss of the validation is {total} at step {self.progress.step}")
        return total / learned

    def _is_stale(self) -> bool:
        patience = self.request.patience
        return patience is not None and self.progress.validations_since_best >= patience

    def _step(self, step: int) -> tuple[float, int, float]:
        """One update: the loss before it, the tokens of its batches, and the learning rate."""
        request = self.request
        count, rate = request.grad_accumulation_steps, request.rate(step, self.steps)
        self.model.train()
        mx.random.seed((request.seed << 32) + step)
        self.optimizer.learning_rate = rate
        total, learned, tokens, gradient = 0.0, 0, 0, None
        for number in range((step - 1) * count, step * count):
            batch = self.batches[number]
            loss, found = self._gradient(batch.ids, batch.positions, batch.targets)
            gradient = found if gradient is None else tree_map(mx.add, gradient, found)
            mx.eval(loss, gradient)
            total, learned, tokens = total + loss.item(), learned + batch.learned_tokens, tokens + batch.tokens
        norm = self._update(gradient, mx.array(float(learned)))
        mx.eval(norm, self.model.trainable_parameters(), self.optimizer.state)
        if not math.isfinite(total) or not math.isfinite(norm.item()):
            raise FloatingPointError(
                f"the loss of step {step} is {total / learned:g}, and its gradient has the norm {norm.item():g}: lower "
                "learning_rate, or load the model in another dtype"
            )
        return total / learned, tokens, rate

    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The gradient of a batch, as (summed loss, gradients), and the update by summed gradients, as their norm."""
        model, optimizer, limit = self.model, self.optimizer, self.request.max_grad_norm
        with_gradient = nn.value_and_grad(model, partial(loss_sum, model, self.request.grad_checkpoint))
        state = [model.state, optimizer.state, mx.random.state]

        def gradient(ids: mx.array, positions: mx.array, targets: mx.array) -> Any:
            return with_gradient(ids, positions, targets)

        def update(gradients: Any, learned: mx.array) -> mx.array:
            squares = [mx.square(array.astype(mx.float32)).sum() for _, array in tree_flatten(gradients)]
            norm = mx.sqrt(mx.stack(squares).sum()) / learned
            factor = mx.minimum(1.0, limit / (norm + 1e-6)) / learned if limit else 1 / learned
            optimizer.update(model, tree_map(lambda array: (array * factor).astype(array.dtype), gradients))
            return norm

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return mx.compile(function, inputs=state, outputs=state)

        return compiled(gradient), compiled(update)
