"""The documented heads beside the language model's: a class for a text, for each token, and an answer's span.

What is peculiar here:
- Parameters are named as transformers saves them: `score`, `qa_outputs`, and the network of question answering is
  called `transformer`.
- A text is classified by its last token that is not the padding token, wherever the padding stands.
- Calling a head is its `forward`.

Shapes: B batch, L new tokens, E hidden size, N labels.
Source: transformers' `modeling_layers.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .cache import Cache
from .config import Exaone4Config
from .forward import as_array, check_range, read_inputs, read_integers, read_labels
from .losses import sequence_loss, span_loss, token_loss
from .network import Exaone4Model
from .outputs import QuestionAnsweringModelOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput
from .pretrained import Pretrained, new_linear


class Exaone4ForSequenceClassification(Pretrained):
    """EXAONE 4 with a score for each of `num_labels` labels, from a text's last token."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model = Exaone4Model(config)
        self.score = new_linear(config, config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Cache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutputWithPast:
        """Logits [B, N]; arguments and errors as for `Exaone4Model.forward`, and `labels`.

        Which loss, `config.problem_type` says, or else the labels: one label [B] out of several (whole numbers, -100
        does not count), any number of them [B, N] (0 or 1, as floating-point numbers), or, if there is but one, a
        regression [B]. Pooled is the last token that is not `config.pad_token_id`; a batch of several texts needs one.
        Embeddings do not tell: of those the last position is pooled, with a warning where there is a mask.
        """
        inputs = read_inputs(
            self.config,
            self.training,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            cache_position,
            output_hidden_states,
            output_attentions,
        )
        batch, length = inputs.shape
        if self.config.pad_token_id is None and batch > 1:
            raise ValueError(f"a batch of {batch} texts needs a pad_token_id in the config, to find where each ends")
        if inputs.ids is None and attention_mask is not None and length > 1:
            warnings.warn("inputs_embeds do not tell what is padding: the last position is pooled", stacklevel=2)
        if labels is not None:
            labels, problem_type = self._read_labels(labels, batch)
        outputs = self.model.run(inputs)
        logits = self.score(_pooled(outputs.last_hidden_state, inputs.ids, self.config.pad_token_id))
        loss = None if labels is None else sequence_loss(logits, labels, problem_type)
        return SequenceClassifierOutputWithPast(
            loss, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions
        )

    __call__ = forward

    def _read_labels(self, labels: Any, batch: int) -> tuple[mx.array, str]:
        """The labels, checked, and the type of the problem."""
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
        if labels.shape not in shapes:
            raise ValueError(
                f"labels of a {problem_type} must have the shape {list(shapes[-1])}, not {list(labels.shape)} "
                "(floating-point numbers mean any number of labels, whole numbers one)"
            )
        if problem_type == "multi_label_classification":
            check_range("labels", labels, 0, 1)
        return labels, problem_type


def _pooled(hidden: mx.array, ids: mx.array | None, pad_token_id: int | None) -> mx.array:
    """Hidden states [B, L, E] -> those of each text's last token, [B, E]."""
    if ids is None or pad_token_id is None:
        return hidden[:, -1]
    length = ids.shape[1]
    last = mx.where(ids != pad_token_id, mx.arange(length), 0).max(axis=1)
    return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


class Exaone4ForTokenClassification(Pretrained):
    """EXAONE 4 with a score for each of `num_labels` labels, for every token. `classifier_dropout` is for training."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.model = Exaone4Model(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = new_linear(config, config.hidden_size, config.num_labels, bias=True)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Cache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> TokenClassifierOutput:
        """Logits [B, L, N]; arguments and errors as for `Exaone4Model.forward`, and `labels` [B, L].

        A label of -100 does not count. The output holds no cache; one that is given goes on all the same.
        """
        inputs = read_inputs(
            self.config,
            self.training,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            cache_position,
            output_hidden_states,
            output_attentions,
            returns_cache=False,
        )
        if labels is not None:
            labels = read_labels("labels", labels, inputs.shape, self.config.num_labels)
        outputs = self.model.run(inputs)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    __call__ = forward


class Exaone4ForQuestionAnswering(Pretrained):
    """EXAONE 4 with two scores for every token: that an answer begins there, and that it ends there."""

    backbone = "transformer."

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__(config)
        self.transformer = Exaone4Model(config)
        self.qa_outputs = new_linear(config, config.hidden_size, 2, bias=True)

    def forward(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Cache] | None = None,
        inputs_embeds: mx.array | None = None,
        start_positions: mx.array | None = None,
        end_positions: mx.array | None = None,
        use_cache: bool | None = None,
        cache_position: mx.array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits [B, L]; arguments and errors as for `Exaone4Model.forward`, and the positions.

        `start_positions` and `end_positions` [B] are the answer's first and last token. They are clamped to 0 … L; at
        L, beyond the text, they do not count. The loss is the mean of both. The output holds no cache; one that is
        given goes on all the same.
        """
        inputs = read_inputs(
            self.config,
            self.training,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            cache_position,
            output_hidden_states,
            output_attentions,
            returns_cache=False,
        )
        if (start_positions is None) != (end_positions is None):
            raise ValueError("a loss needs start_positions and end_positions; give both or neither")
        spans = []
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None:
                spans.append(read_integers(name, positions))
                if spans[-1].size != inputs.shape[0]:
                    raise ValueError(f"{name} must have the shape [{inputs.shape[0]}], not {list(spans[-1].shape)}")
        outputs = self.transformer.run(inputs)
        logits = self.qa_outputs(outputs.last_hidden_state)
        start_logits, end_logits = logits[..., 0], logits[..., 1]
        loss = span_loss(start_logits, end_logits, *(span.reshape(-1) for span in spans)) if spans else None
        return QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)

    __call__ = forward
