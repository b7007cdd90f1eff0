"""The documented heads beside the language model's: sequence and token classification, and question answering.

Notes:
- Parameters have the names that transformers saves: `score`, `qa_outputs`, and `transformer` for the backbone of
  question answering.
- A sequence is classified by its last token that is not the padding token, wherever the padding is.
- Calling a head calls its `forward`.

Shapes: B batch, L new tokens, E hidden size, N labels.
Source: transformers' `modeling_layers.py`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from .config import Exaone4Config
from .inputs import ForwardInputs, as_array, check_range, check_shape, read_inputs, read_integers, read_labels
from .losses import sequence_loss, span_loss, token_loss
from .network import Exaone4Model, with_return_dict
from .outputs import QuestionAnsweringModelOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput
from .pretrained import Pretrained, new_linear

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Exaone4ForSequenceClassification(Pretrained):
    """EXAONE 4 with a score for each of `num_labels` labels, computed from the last token of a sequence."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model = Exaone4Model(config)
        self.score = new_linear(config, config.hidden_size, config.num_labels)

    @with_return_dict
    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        *,
        labels: mx.array | None = None,
        **inputs: Unpack[ForwardInputs],
    ) -> SequenceClassifierOutputWithPast:
        """Logits [B, N]. Arguments and errors as for `Exaone4Model.forward`, and `labels`.

        `config.problem_type` selects the loss. If it is None, the labels do: integers [B] mean one label for each
        sequence (-100 is ignored), floating-point numbers [B, N] of 0 or 1 mean any number of labels, and with
        `num_labels=1` the problem is a regression [B].

        The last token that is not `config.pad_token_id` is pooled. A batch of several sequences needs a pad_token_id.
        With embeddings the last position is pooled, and a mask causes a warning.
        """
        read = read_inputs(self.config, self.training, input_ids, attention_mask, inputs)
        batch, length = read.shape
        if self.config.pad_token_id is None and batch > 1:
            raise ValueError(f"a batch of {batch} sequences needs a pad_token_id in the config, to find their ends")
        if read.ids is None and attention_mask is not None and length > 1:
            warnings.warn("inputs_embeds do not show the padding: the last position is pooled", stacklevel=2)
        if labels is not None:
            labels, problem_type = self._read_labels(labels, batch)
        outputs = self.model.run(read)
        logits = self.score(_pooled(outputs.last_hidden_state, read.ids, self.config.pad_token_id))
        loss = None if labels is None else sequence_loss(logits, labels, problem_type)
        return SequenceClassifierOutputWithPast(
            loss, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions
        )

    __call__ = forward

    def _read_labels(self, labels: Any, batch: int) -> tuple[mx.array, str]:
        """(checked labels, problem type)"""
        count, labels = self.config.num_labels, as_array("labels", labels)
        problem_type = self.config.problem_type
        if problem_type is None and count == 1:
            problem_type = "regression"
        elif problem_type is None:
            whole = mx.issubdtype(labels.dtype, mx.integer)
            problem_type = "single_label_classification" if whole else "multi_label_classification"
        if labels.ndim == 0 and batch == 1:
            labels = labels[None]
        if problem_type == "single_label_classification":
            if labels.shape == (batch, 1):
                labels = labels[:, 0]
            return read_labels("labels", labels, (batch,), count), problem_type
        shapes = [(batch, count)] + ([(batch,)] if count == 1 and problem_type == "regression" else [])
        inferred = "" if self.config.problem_type or count == 1 else " (inferred from their dtype)"
        check_shape(f"labels for {problem_type}{inferred}", labels, *shapes)
        if problem_type == "multi_label_classification":
            check_range("labels", labels, 0, 1)
        return labels, problem_type


def _pooled(hidden: mx.array, ids: mx.array | None, pad_token_id: int | None) -> mx.array:
    """Hidden states [B, L, E] -> those of the last token of each sequence, [B, E]."""
    if ids is None or pad_token_id is None:
        return hidden[:, -1]
    length = ids.shape[1]
    last = mx.where(ids != pad_token_id, mx.arange(length), 0).max(axis=1)
    return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


class Exaone4ForTokenClassification(Pretrained):
    """EXAONE 4 with a score for each of `num_labels` labels, for every token. Training uses `classifier_dropout`."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model = Exaone4Model(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = new_linear(config, config.hidden_size, config.num_labels, bias=True)

    @with_return_dict
    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        *,
        labels: mx.array | None = None,
        **inputs: Unpack[ForwardInputs],
    ) -> TokenClassifierOutput:
        """Logits [B, L, N]. Arguments and errors as for `Exaone4Model.forward`, and `labels` [B, L].

        A label of -100 is ignored. The output has no caches, but `past_key_values` are updated.
        """
        read = read_inputs(self.config, self.training, input_ids, attention_mask, inputs, returns_cache=False)
        if labels is not None:
            labels = read_labels("labels", labels, read.shape, self.config.num_labels)
        outputs = self.model.run(read)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    __call__ = forward


class Exaone4ForQuestionAnswering(Pretrained):
    """EXAONE 4 with two scores for every token: for the start and for the end of an answer."""

    backbone = "transformer."

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.transformer = Exaone4Model(config)
        self.qa_outputs = new_linear(config, config.hidden_size, 2, bias=True)

    @with_return_dict
    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        *,
        start_positions: mx.array | None = None,
        end_positions: mx.array | None = None,
        **inputs: Unpack[ForwardInputs],
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits [B, L]. Arguments and errors as for `Exaone4Model.forward`, and the positions.

        `start_positions` and `end_positions` [B] are the first and the last token of the answer. They are clamped to
        0 … L. The position L, beyond the text, is ignored. The loss is the mean of both. The output has no caches, but
        `past_key_values` are updated.
        """
        read = read_inputs(self.config, self.training, input_ids, attention_mask, inputs, returns_cache=False)
        if (start_positions is None) != (end_positions is None):
            raise ValueError("a loss needs start_positions and end_positions; give both or neither")
        spans = []
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None:
                spans.append(read_integers(name, positions).reshape(-1))
                check_shape(name, spans[-1], read.shape[:1])
        outputs = self.transformer.run(read)
        logits = self.qa_outputs(outputs.last_hidden_state)
        start_logits, end_logits = logits[..., 0], logits[..., 1]
        loss = span_loss(start_logits, end_logits, *spans) if spans else None
        return QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)

    __call__ = forward
