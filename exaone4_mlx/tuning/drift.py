"""How far a tuned model is from the untuned one, on texts that it was not trained on.

Notes:
- The untuned model's final hidden states are kept, and not its logits, which are fifty times larger. Its output head
  gives its predictions when they are compared.
- The texts are the beginnings of held-out texts of the package, two of each kind. Which texts these are changes the
  result by about an eighth (standard deviation, on the demo).

Shapes: B texts, L tokens of each, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..conversion.evaluate import divergence
from ..conversion.texts import HELD_OUT, encode, read_passages
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

TEXTS, LENGTH = 12, 24
STEP = 5  # between the texts; the file has six kinds in turn


class Untuned:
    """The predictions of a model before it is tuned."""

    def __init__(self, model: Exaone4ForCausalLM, tokenizer: Tokenizer) -> None:
        texts = [encode(passage, tokenizer) for passage in read_passages(HELD_OUT)[::STEP][:TEXTS]]
        length = min(LENGTH, *map(len, texts))
        self._ids = mx.array([ids[:length] for ids in texts])  # B L
        self._before = self._hidden(model)  # B L E
        tied = model.config.tie_word_embeddings
        self._head: Any = model.model.embed_tokens.as_linear if tied else model.lm_head

    def divergence(self, model: Exaone4ForCausalLM) -> float:
        """KL(untuned ‖ model) in nats per token."""
        total = 0.0
        for now, before in zip(self._hidden(model), self._before, strict=True):  # L E
            logits, reference = model.logits(now), self._head(before)  # L V
            found: Any = divergence(logits.astype(mx.float32), reference.astype(mx.float32)).sum().item()
            total += found
        return total / self._ids.size

    def _hidden(self, model: Exaone4ForCausalLM) -> mx.array:
        hidden = model.model(self._ids)
        mx.eval(hidden)
        return hidden
