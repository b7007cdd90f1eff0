"""The result of `evaluate`: the measurements of single texts -> a table with intervals.

Notes:
- The interval of the perplexity ratio is a bootstrap over whole texts, because tokens of one text depend on each
  other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

RESAMPLES = 1000


@dataclass(frozen=True)
class EvaluationRow:
    """One row of the table. KL is in nats per token; the interval of the ratio holds 95 % of the resamples.

    `kind` is "all", a kind of text, or "replies" for the last replies of all conversations.

    One text alone has no interval: low and high are None.
    """

    kind: str
    documents: int
    tokens: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_low: float | None
    perplexity_ratio_high: float | None

    @property
    def interval(self) -> str:
        """The interval as a text, or "–"."""
        low, high = self.perplexity_ratio_low, self.perplexity_ratio_high
        return "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"


@dataclass(frozen=True)
class Evaluation:
    """A comparison of two models: a row for all texts, one for each kind of text, and one for the replies.

    `kv` describes the quantization of the candidate's cache. `tokens_per_second` is the candidate's, block by block;
    `peak_bytes` is MLX's own peak.
    """

    model: str
    reference: str
    data: str
    dtype: str
    kv: str
    documents: int
    tokens: int
    bits_per_weight: float
    reference_bits_per_weight: float
    rows: tuple[EvaluationRow, ...]
    seconds: float
    tokens_per_second: float
    peak_bytes: int

    def __repr__(self) -> str:
        total = self.rows[0]
        return (
            f"Evaluation({self.model!r} against {self.reference!r}: mean KL {total.mean_kl:.5f} nats, "
            f"same top-1 {100 * total.top1_agreement:.2f} %, {self.documents:,} texts of {self.tokens:,} tokens)"
        )


@dataclass
class TextResult:
    """The measurements of one text: KL at each position, and sums over the positions."""

    kind: str
    kl: list[float] = field(default_factory=list)
    agrees: float = 0.0
    nll: float = 0.0
    reference_nll: float = 0.0


def rows_of(texts: Sequence[TextResult], replies: Sequence[TextResult] = ()) -> tuple[EvaluationRow, ...]:
    """A row for all texts; if there are several kinds, one for each; and one for the `replies`, if there are any."""
    kinds = list(dict.fromkeys(text.kind for text in texts))
    groups = [("all", list(texts))] + [(kind, [t for t in texts if t.kind == kind]) for kind in kinds if len(kinds) > 1]
    return tuple(_row(kind, group) for kind, group in [*groups, ("replies", list(replies))] if group)


def _row(kind: str, texts: Sequence[TextResult]) -> EvaluationRow:
    kl = sorted(value for text in texts for value in text.kl)
    count = len(kl)
    low = high = None
    if len(texts) > 1:
        rng = random.Random(0)
        log_ratios = sorted(_log_ratio(rng.choices(texts, k=len(texts))) for _ in range(RESAMPLES))
        low, high = _exp(log_ratios[math.floor(0.025 * RESAMPLES)]), _exp(log_ratios[math.ceil(0.975 * RESAMPLES) - 1])
    return EvaluationRow(
        kind=kind,
        documents=len(texts),
        tokens=count,
        mean_kl=math.fsum(kl) / count,
        p99_kl=kl[math.ceil(0.99 * count) - 1],
        top1_agreement=sum(text.agrees for text in texts) / count,
        perplexity=_exp(sum(text.nll for text in texts) / count),
        reference_perplexity=_exp(sum(text.reference_nll for text in texts) / count),
        perplexity_ratio=_exp(_log_ratio(texts)),
        perplexity_ratio_low=low,
        perplexity_ratio_high=high,
    )


def _log_ratio(texts: Sequence[TextResult]) -> float:
    """The logarithm of the candidate's perplexity / the reference's."""
    return sum(text.nll - text.reference_nll for text in texts) / sum(len(text.kl) for text in texts)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
