"""`evaluate`: what a conversion cost, in how far the model's next-token probabilities moved.

What is peculiar here:
- Both models pass block by block: neither is ever whole in memory, so the 32B is measured on a machine that
  could not load it in full precision.
- Probabilities are compared over the whole vocabulary, in float32, where a token follows. The reference is
  always computed in float32; `dtype` is the candidate's.
- The interval of the perplexity ratio is a bootstrap over whole texts, since tokens of one text depend on
  each other.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.folders import find_folder
from ..files.safetensors import read_dtype
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..model.source import Progress, open_checkpoint
from ..text.tokenizer import Tokenizer
from .layerwise import Blocks
from .texts import HELD_OUT, encode, read_passages

MAX_TOKENS = 512  # of one text
BATCH_TOKENS = 1 << 15  # whose hidden states are in memory at a time
POSITIONS = 64  # whose logits are in memory at a time
RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """One line of the table. KL in nats per token; the ratio's interval holds 95 % of the resamples."""

    kind: str
    documents: int
    tokens: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_low: float
    perplexity_ratio_high: float


@dataclass(frozen=True)
class Evaluation:
    """What was compared, and the table: a row for all texts, then one for each kind of text.

    `kv` says how the candidate's cache was quantized. `tokens_per_second` is the candidate's, block by block;
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
    rows: tuple[Row, ...]
    seconds: float
    tokens_per_second: float
    peak_bytes: int

    def __repr__(self) -> str:
        total = self.rows[0]
        return (
            f"Evaluation({self.model!r} against {self.reference!r}: mean KL {total.mean_kl:.5f} nats, "
            f"same top-1 {100 * total.top1_agreement:.2f} %, {self.documents:,} texts of {self.tokens:,} tokens)"
        )


@dataclass(frozen=True)
class _Text:
    """What was measured on one text, per position."""

    kind: str
    kl: list[float]
    agrees: float
    nll: float
    reference_nll: float


def evaluate(
    model: str | Path,
    reference: str | Path,
    *,
    data: str | Path | None = None,
    dtype: mx.Dtype | str = "float32",
    max_tokens: int = MAX_TOKENS,
    revision: str | None = None,
    progress: Progress | None = None,
    kv_bits: int | None = None,
    kv_bits_keys: int | None = None,
    kv_bits_values: int | None = None,
    kv_group_size: int | None = None,
    kv_layers: str | None = None,
) -> Evaluation:
    """Compares a converted model with the checkpoint that it was made from, on texts that neither was tuned on.

    `model` and `reference` are folders, hub ids or "demo"; `data` is a file of texts, the package's held-out ones
    if not given; each text is cut to `max_tokens`. `revision` is the reference's. `progress(done, total)` counts
    blocks of both models. The `kv_` options, as of `stream_generate`, quantize the candidate's cache.

    Raises FileNotFoundError and ValueError as `load` does, and ValueError where the two are not of one vocabulary.
    """
    started = time.perf_counter()
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 2:
        raise ValueError(f"max_tokens must be a whole number of at least 2, not {max_tokens!r}")
    file = HELD_OUT if data is None else Path(data).expanduser()
    passages = read_passages(file)
    folders = find_folder(model), find_folder(reference, revision)
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    sequences = [encode(passage, tokenizers[1], max_tokens) for passage in passages]
    for passage, ids in zip(passages, sequences, strict=True):
        if encode(passage, tokenizers[0], max_tokens) != ids:
            raise ValueError(f"{model} and {reference} do not read text alike: they have different tokenizers")
    texts = [(passage.kind, ids) for passage, ids in zip(passages, sequences, strict=True) if len(ids) > 1]
    if not texts:
        raise ValueError(f"no text of {file} has two tokens")
    candidate, original = (open_checkpoint(folder, Exaone4ForCausalLM) for folder in folders)
    if candidate.config.vocab_size != original.config.vocab_size:
        raise ValueError(
            f"{model} has a vocabulary of {candidate.config.vocab_size} tokens, "
            f"{reference} one of {original.config.vocab_size}"
        )
    kv = KVQuantization.read(candidate.config, kv_bits, kv_bits_keys, kv_bits_values, kv_group_size, kv_layers)
    longest = min(candidate.config.max_position_embeddings, original.config.max_position_embeddings)
    if any(len(ids) > longest for _, ids in texts):
        raise ValueError(f"texts of {max_tokens} tokens are longer than the context of {longest}; give max_tokens")

    mx.reset_peak_memory()
    own = read_dtype(dtype) or mx.float32
    sides = (
        # In float32 unpacked weights are the same, and many rows pass them faster.
        Blocks(candidate.source, candidate.config, own, unpacked=own == mx.float32),
        Blocks(original.source, original.config, mx.float32),
    )
    batches = _batches(texts)
    layers = candidate.config.num_hidden_layers + original.config.num_hidden_layers
    counted = _counter(progress, layers * len(batches))
    measured: list[_Text] = []
    seconds = 0.0
    for batch in batches:
        sequences = [ids for _, ids in batch]
        theirs = sides[1].hidden_states(sequences, counted)
        before = time.perf_counter()
        ours = sides[0].hidden_states(sequences, counted, kv)
        seconds += time.perf_counter() - before
        heads = sides[0].head(), sides[1].head()
        for (kind, text), hidden, other in zip(batch, ours, theirs, strict=True):
            measured.append(_compare(kind, text, heads[0], heads[1], hidden, other))
        mx.clear_cache()
    if any(math.isnan(value) for text in measured for value in text.kl):
        raise ValueError(f"{model} or {reference} gives no numbers (NaN) on these texts")
    tokens = sum(len(text.kl) for text in measured)
    return Evaluation(
        model=str(model),
        reference=str(reference),
        data="held-out texts of exaone4_mlx" if file == HELD_OUT else file.name,
        dtype=str(sides[0].dtype).removeprefix("mlx.core."),
        kv=str(kv or ""),
        documents=len(texts),
        tokens=tokens,
        bits_per_weight=candidate.bits_per_weight,
        reference_bits_per_weight=original.bits_per_weight,
        rows=_rows(measured),
        seconds=time.perf_counter() - started,
        tokens_per_second=tokens / seconds,
        peak_bytes=mx.get_peak_memory(),
    )


def divergence(logits: mx.array, reference: mx.array) -> mx.array:
    """KL(reference ‖ candidate) in nats at each position, from logits [..., V] in float32."""
    log_p = reference - mx.logsumexp(reference, axis=-1, keepdims=True)
    log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.sum(mx.exp(log_p) * (log_p - log_q), axis=-1)


def _compare(
    kind: str,
    ids: Sequence[int],
    head: Callable[[mx.array], mx.array],
    reference_head: Callable[[mx.array], mx.array],
    hidden: mx.array,
    reference: mx.array,
) -> _Text:
    kl: list[float] = []
    agrees, nll, reference_nll = 0.0, 0.0, 0.0
    for start in range(0, len(ids) - 1, POSITIONS):
        stop = min(start + POSITIONS, len(ids) - 1)
        following = mx.array(list(ids[start + 1 : stop + 1]))[:, None]
        q, p = head(hidden[start:stop]), reference_head(reference[start:stop])  # [positions, V]
        figures: list[mx.array] = [
            divergence(q, p),
            mx.argmax(q, axis=-1) == mx.argmax(p, axis=-1),
            *(mx.logsumexp(x, axis=-1) - mx.take_along_axis(x, following, axis=-1)[:, 0] for x in (q, p)),
        ]
        mx.eval(figures)
        kl += figures[0].tolist()  # type: ignore[arg-type]
        agrees += _number(figures[1])
        nll += _number(figures[2])
        reference_nll += _number(figures[3])
    return _Text(kind, kl, agrees, nll, reference_nll)


def _number(array: mx.array) -> float:
    return mx.sum(array.astype(mx.float32)).item()  # type: ignore[return-value]


def _rows(texts: Sequence[_Text]) -> tuple[Row, ...]:
    kinds = list(dict.fromkeys(text.kind for text in texts))
    groups = [("all", list(texts))] + [(kind, [t for t in texts if t.kind == kind]) for kind in kinds if len(kinds) > 1]
    return tuple(_row(kind, group) for kind, group in groups)


def _row(kind: str, texts: Sequence[_Text]) -> Row:
    kl = sorted(value for text in texts for value in text.kl)
    count = len(kl)
    log_ratios = sorted(_log_ratio(sample) for sample in _resamples(texts))
    return Row(
        kind=kind,
        documents=len(texts),
        tokens=count,
        mean_kl=math.fsum(kl) / count,
        p99_kl=kl[math.ceil(0.99 * count) - 1],
        top1_agreement=sum(text.agrees for text in texts) / count,
        perplexity=_exp(sum(text.nll for text in texts) / count),
        reference_perplexity=_exp(sum(text.reference_nll for text in texts) / count),
        perplexity_ratio=_exp(_log_ratio(texts)),
        perplexity_ratio_low=_exp(log_ratios[math.floor(0.025 * RESAMPLES)]),
        perplexity_ratio_high=_exp(log_ratios[math.ceil(0.975 * RESAMPLES) - 1]),
    )


def _log_ratio(texts: Sequence[_Text]) -> float:
    """Logarithm of the candidate's perplexity over the reference's."""
    return sum(text.nll - text.reference_nll for text in texts) / sum(len(text.kl) for text in texts)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _resamples(texts: Sequence[_Text]) -> list[list[_Text]]:
    rng = random.Random(0)
    return [rng.choices(texts, k=len(texts)) for _ in range(RESAMPLES)]


def _batches(texts: Sequence[tuple[str, list[int]]]) -> list[list[tuple[str, list[int]]]]:
    """Consecutive texts, together at most BATCH_TOKENS."""
    batches: list[list[tuple[str, list[int]]]] = [[]]
    size = 0
    for text in texts:
        if batches[-1] and size + len(text[1]) > BATCH_TOKENS:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text[1])
    return batches


def _counter(progress: Progress | None, total: int) -> Progress | None:
    """Of all blocks together, whichever pass they belong to."""
    if progress is None:
        return None
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return count
