"""How far a tuned model is from the untuned one, on texts that it was not trained on.

Notes:
- The untuned model's final hidden states are kept, and not its logits, which are fifty times larger. Its output head
  gives its predictions when they are compared.
- The texts are the held-out texts of the package, at most `TOKENS` tokens of them.

Shapes: L tokens of one text, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..conversion.evaluate import POSITIONS, divergence
from ..conversion.texts import HELD_OUT, encode, read_passages
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

TOKENS, WINDOW = 768, 48


class Untuned:
    """The predictions of a model before it is tuned."""

    def __init__(self, model: Exaone4ForCausalLM, tokenizer: Tokenizer) -> None:
        passages = read_passages(HELD_OUT)
        chosen = passages[:: max(1, len(passages) * WINDOW // TOKENS)]
        self._texts = [mx.array([encode(passage, tokenizer)[:WINDOW]]) for passage in chosen]
        self._states = [self._hidden(model, ids) for ids in self._texts]  # L E
        tied = model.config.tie_word_embeddings
        self._head: Any = model.model.embed_tokens.as_linear if tied else model.lm_head

    def divergence(self, model: Exaone4ForCausalLM) -> float:
        """KL(untuned ‖ model) in nats per token."""
        total, count = 0.0, 0
        for ids, before in zip(self._texts, self._states, strict=True):
            now = self._hidden(model, ids)
            for start in range(0, len(now), POSITIONS):
                part = slice(start, start + POSITIONS)
                logits, reference = model.logits(now[part]), self._head(before[part])  # positions V
                found: Any = divergence(logits.astype(mx.float32), reference.astype(mx.float32)).sum().item()
                total += found
            count += len(now)
        return total / count

    def _hidden(self, model: Exaone4ForCausalLM, ids: mx.array) -> mx.array:
        hidden = model.model(ids)[0]
        mx.eval(hidden)
        return hidden
