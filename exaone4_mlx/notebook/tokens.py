"""Tokens of a text, with the probabilities that a model gave them.

Notes:
- Functions of this room compute in the caller's thread, and return numbers, texts and evaluated arrays.
- The text of a token is whole characters, or else its bytes: Korean letters and emoji are often split into tokens.

Shapes: L tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

POSITIONS = 64  # whose logits are in memory at a time


@dataclass(frozen=True)
class Candidate:
    """A possible token and its probability."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenRow:
    """One token, and the distribution that the model predicted for its position.

    `text` is the text of the token, or its bytes in hexadecimal if they are not whole characters; `completes` is the
    character that such a token completes, or "". `entropy_bits` is the entropy of the distribution, `rank` the rank of
    the token in it, 0 for the most probable one; `alternatives` are the most probable tokens. The first token has no
    distribution.
    """

    id: int
    text: str
    completes: str
    probability: float | None = None
    entropy_bits: float | None = None
    rank: int | None = None
    alternatives: tuple[Candidate, ...] = ()

    @property
    def surprise_bits(self) -> float | None:
        """-log2 of the probability; None for the first token."""
        if self.probability is None:
            return None
        return -math.log2(self.probability) if self.probability > 0 else math.inf


@dataclass(frozen=True)
class InspectedTokens(Sequence[TokenRow]):
    """The result of `inspect_tokens`: a row for each token. A slice has the same type."""

    rows: tuple[TokenRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> TokenRow: ...

    @overload
    def __getitem__(self, place: slice) -> InspectedTokens: ...

    def __getitem__(self, place: int | slice) -> TokenRow | InspectedTokens:
        return InspectedTokens(self.rows[place]) if isinstance(place, slice) else self.rows[place]

    @property
    def mean_surprise_bits(self) -> float:
        """Bits per token, without the first one; 0 for a single token."""
        bits = [row.surprise_bits for row in self.rows if row.surprise_bits is not None]
        return sum(bits) / len(bits) if bits else 0.0

    def __repr__(self) -> str:
        return f"InspectedTokens({len(self)} tokens, {self.mean_surprise_bits:.2f} bits each)"


def inspect_tokens(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, text_or_ids: str | Sequence[int], *, top: int = 5
) -> InspectedTokens:
    """The probability of each token of a text, given the tokens before it.

    A text is encoded as it is, with its control tokens and without a chat template. `top` is the number of
    alternatives. Raises ValueError for an empty text, a text longer than the context, and unknown ids.
    """
    check_count("top", top, 1, model.config.vocab_size)
    ids = text_ids(model.config, tokenizer, text_or_ids)
    texts = _texts(tokenizer, ids)
    rows = [TokenRow(ids[0], *next(texts))]
    hidden = model.model(mx.array([ids]))  # 1 L E
    for start in range(0, len(ids) - 1, POSITIONS):
        following = ids[start + 1 : start + 1 + POSITIONS]
        logits = model.logits(hidden[:, start : start + len(following)])[0].astype(mx.float32)  # L V
        logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logs, mx.array(following)[:, None], axis=-1)  # L 1
        likely = mx.exp(logs)
        entropy = -mx.sum(mx.where(likely > 0, likely * logs, 0), axis=-1) / math.log(2)
        ranks = mx.sum(logs > chosen, axis=-1)
        best = mx.argsort(-logs, axis=-1)[:, :top]
        parts = (mx.exp(chosen)[:, 0], entropy, ranks, best, mx.take_along_axis(likely, best, axis=-1))
        found: list[Any] = [part.tolist() for part in parts]
        for id, probability, bits, rank, others, theirs in zip(following, *found, strict=True):
            alternatives = tuple(
                Candidate(other, token_text(tokenizer, other), p) for other, p in zip(others, theirs, strict=True)
            )
            rows.append(TokenRow(id, *next(texts), probability, bits, rank, alternatives))
    return InspectedTokens(tuple(rows))


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """The text of one token, or its bytes in hexadecimal if they are not whole characters: `<0xED><0x95>`."""
    held = tokenizer.token_bytes(id)
    try:
        return held.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in held)


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The text of each token, and the text that it completes if it is a part of a character."""
    decoder = tokenizer.stream_decoder()
    for id in ids:
        text, completed = token_text(tokenizer, id), decoder.feed(id)
        yield text, "" if completed == text else completed


def text_ids(config: Exaone4Config, tokenizer: Tokenizer, text: str | Sequence[int]) -> list[int]:
    """The ids of a text or of ids. Raises ValueError as `check_ids` does."""
    ids = tokenizer.encode(text) if isinstance(text, str) else [int(id) for id in text]
    check_ids(config, ids)
    return ids


def check_ids(config: Exaone4Config, ids: Sequence[int], more: int = 0) -> None:
    """Raises ValueError for no ids, unknown ids, and ids that with `more` tokens exceed the context."""
    if not ids:
        raise ValueError("there are no tokens: the text is empty")
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise ValueError(f"there is no token {wrong[0]}: this model has ids 0 to {config.vocab_size - 1}")
    if len(ids) + more > config.max_position_embeddings:
        raise ValueError(f"there are {len(ids) + more} tokens, and the context holds {config.max_position_embeddings}")


def check_count(name: str, value: Any, low: int, high: int) -> None:
    """Raises ValueError for a value that is not a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
