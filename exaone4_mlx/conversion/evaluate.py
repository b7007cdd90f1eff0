"""`evaluate`: the quality loss of a conversion, by the change of the model's next-token probabilities.

Notes:
- Both models run block by block, and neither is ever whole in memory. So a machine can measure the 32B that cannot
  load it in full precision.
- Probabilities are compared over the whole vocabulary, in float32, at every position that has a next token. The
  reference always computes in float32; `dtype` is the candidate's.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..files.folders import find_folder
from ..files.safetensors import read_dtype
from ..model.adapter import WeightedAdapter
from ..model.adapter_file import AdapterPaths, Scales, read_adapters
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import OpenCheckpoint, Progress, open_checkpoint
from ..text.tokenizer import Tokenizer
from .adapted_source import with_adapters
from .chats import HELD_OUT_PROMPTS, Chat, make_chats
from .evaluation import Evaluation, TextResult, rows_of
from .layerwise import LayerwiseModel
from .texts import HELD_OUT, Passage, encode_reply, read_passages, windows

OWN_CHATS = "own-chats"  # in place of a file of texts
PART_NAMES: dict[str | Path | None, str] = {None: "held-out texts of exaone4_mlx", OWN_CHATS: "chats of the reference"}
MAX_TOKENS = 512  # of one window
BATCH_TOKENS = 1 << 15  # whose hidden states are in memory at a time
POSITIONS = 64  # whose logits are in memory at a time


@dataclass(frozen=True)
class _Window:
    """A part of a text: the text's kind and number, the token ids, and the places of the first token that counts and
    of the first of the last reply."""

    kind: str
    number: int
    ids: list[int]
    first: int
    reply: int


def evaluate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    adapter_path: AdapterPaths = (),
    adapter_scale: Scales = 1.0,
    reference_adapters: Sequence[WeightedAdapter] = (),
    data: str | Path | None = None,
    dtype: mx.Dtype | str = "float32",
    max_tokens: int = MAX_TOKENS,
    replies_only: bool = False,
    revision: str | None = None,
    kv: KVQuantization | int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compares a converted model with its source, or a model with an adapter with the one without, on held-out texts.

    `model` and `reference` are folders, hub ids or "demo". `adapter_path` and `adapter_scale` are adapters of the
    model, as for `load`; with them the reference may be None for the model without them. `reference_adapters` are
    those of the reference. `data` is a file of texts (default: the package's held-out texts), or "own-chats": prompts
    of the package that the reference answers itself, in memory. A longer text is read in
    windows of `max_tokens`, each without the ones before. The last row counts the last replies of the conversations;
    `replies_only` counts nothing else, and leaves texts without one out. `revision` is the reference's. `kv` (8, 4 or a
    `KVQuantization`) quantizes the candidate's cache. `progress(done, total)` counts blocks of both models.

    Raises FileNotFoundError and ValueError as `load` does, and ValueError for two models with different vocabularies.
    """
    started = time.perf_counter()
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 2:
        raise ValueError(f"max_tokens must be a whole number of at least 2, not {max_tokens!r}")
    adapters = read_adapters(adapter_path, adapter_scale)
    if reference is None and not adapters:
        raise ValueError("reference is needed: the model to compare with")
    file = HELD_OUT if data is None else Path(data).expanduser()
    passages = [] if data == OWN_CHATS else read_passages(file)
    base = find_folder(model if reference is None else reference, revision)
    folders = base if reference is None else find_folder(model), base
    candidate, original = (
        with_adapters(open_checkpoint(folder, Exaone4ForCausalLM), own)
        for folder, own in zip(folders, (adapters, reference_adapters), strict=True)
    )
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    if data == OWN_CHATS:
        prompts = HELD_OUT_PROMPTS.read_text("utf-8")
        _check_same_ids([tokenizer.encode(prompts) for tokenizer in tokenizers], folders)
        chats = make_chats(original, tokenizers[1], HELD_OUT_PROMPTS)
        parts = [part for chat in enumerate(chats) for part in _windows("chat", *chat, max_tokens, replies_only)]
    else:
        parts = _encode(passages, tokenizers, folders, max_tokens, replies_only)
    if not parts:
        raise ValueError(f"no {'conversation' if replies_only else 'text'} of {file} has two tokens")
    _check_comparable(candidate, original, parts)
    kv = KVQuantization.coerce(kv, candidate.config)

    mx.reset_peak_memory()
    computed = read_dtype(dtype) or mx.float32
    sides = (
        # In float32 unpacked weights give the same results, and many rows pass them faster.
        LayerwiseModel(candidate.source, candidate.config, computed, unpacked=computed == mx.float32),
        LayerwiseModel(original.source, original.config, mx.float32),
    )
    results, replies, seconds = _measure(*sides, parts, kv, progress)
    compared = (model, adapters), (reference or model, reference_adapters)
    names = [" + ".join([str(name), *(adapter.name for adapter, _ in own)]) for name, own in compared]
    if any(math.isnan(value) for result in results for value in result.kl):
        raise ValueError(f"{' or '.join(names)} computes NaN on these texts")
    tokens = sum(len(result.kl) for result in results)
    return Evaluation(
        model=names[0],
        reference=names[1],
        data=PART_NAMES.get(data, file.name) + ", replies only" * replies_only,
        dtype=str(computed).removeprefix("mlx.core."),
        kv=str(kv or ""),
        documents=len(results),
        tokens=tokens,
        bits_per_weight=candidate.bits_per_weight,
        reference_bits_per_weight=original.bits_per_weight,
        rows=rows_of(results, [] if replies_only else replies),
        seconds=time.perf_counter() - started,
        tokens_per_second=tokens / seconds,
        peak_bytes=mx.get_peak_memory(),
    )


def _encode(
    passages: Sequence[Passage],
    tokenizers: Sequence[Tokenizer],
    folders: tuple[Path, Path],
    max_tokens: int,
    replies_only: bool,
) -> list[_Window]:
    """The windows with tokens that count. Raises ValueError where the two tokenizers differ."""
    parts: list[_Window] = []
    for number, passage in enumerate(passages):
        if replies_only and not passage.messages:
            continue
        (ids, reply), (reference_ids, _) = (encode_reply(passage, tokenizer) for tokenizer in tokenizers)
        _check_same_ids((ids, reference_ids), folders)
        chat = ids, reply if passage.messages else len(ids)
        parts += _windows(passage.kind, number, chat, max_tokens, replies_only)
    return parts


def _windows(kind: str, number: int, chat: Chat, max_tokens: int, replies_only: bool) -> list[_Window]:
    ids, reply = chat
    parts = []
    for place, window in enumerate(windows(ids, max_tokens)):
        start = max(1, reply - place * max_tokens)
        first = start if replies_only else 1
        if len(window) > first:
            parts.append(_Window(kind, number, window, first, start))
    return parts


def _check_same_ids(ids: Sequence[list[int]], folders: tuple[Path, Path]) -> None:
    if ids[0] != ids[1]:
        raise ValueError(f"{folders[0]} and {folders[1]} have different tokenizers")


def _check_comparable(candidate: OpenCheckpoint, original: OpenCheckpoint, parts: Sequence[_Window]) -> None:
    if candidate.config.vocab_size != original.config.vocab_size:
        raise ValueError(
            f"{candidate.folder} has a vocabulary of {candidate.config.vocab_size} tokens, "
            f"{original.folder} one of {original.config.vocab_size}"
        )
    context = min(candidate.config.max_position_embeddings, original.config.max_position_embeddings)
    longest = max(len(part.ids) for part in parts)
    if longest > context:
        raise ValueError(f"a window of {longest} tokens is longer than the context of {context}; lower max_tokens")


def _measure(
    candidate: LayerwiseModel,
    reference: LayerwiseModel,
    parts: Sequence[_Window],
    kv: KVQuantization | None,
    progress: Progress | None,
) -> tuple[list[TextResult], list[TextResult], float]:
    """The results of all texts, those of the last replies, and the seconds that the candidate's blocks took."""
    batches = _batches(parts)
    layers = candidate.config.num_hidden_layers + reference.config.num_hidden_layers
    steps, total = itertools.count(1), layers * len(batches)
    counter: Progress | None = (lambda *_: progress(next(steps), total)) if progress else None
    results: dict[int, TextResult] = {}  # by the number of the text
    replies: dict[int, TextResult] = {}
    seconds = 0.0
    for batch in batches:
        sequences = [part.ids for part in batch]
        reference_states = reference.hidden_states(sequences, counter)
        before = time.perf_counter()
        states = candidate.hidden_states(sequences, counter, kv)
        seconds += time.perf_counter() - before
        heads = candidate.head(), reference.head()
        for part, *hidden in zip(batch, states, reference_states, strict=True):
            counted = [(part.first, results)] + [(part.reply, replies)] * (part.reply < len(part.ids))
            found = [(first, to.setdefault(part.number, TextResult(part.kind))) for first, to in counted]
            _compare(found, part.ids, heads, hidden)
        mx.clear_cache()
    return list(results.values()), list(replies.values()), seconds


def divergence(logits: mx.array, reference: mx.array) -> mx.array:
    """KL(reference ‖ candidate) in nats at each position, from logits [..., V] in float32."""
    log_p = reference - mx.logsumexp(reference, axis=-1, keepdims=True)
    log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.sum(mx.exp(log_p) * (log_p - log_q), axis=-1)


def _compare(
    results: Sequence[tuple[int, TextResult]],
    ids: list[int],
    heads: Sequence[Callable[[mx.array], mx.array]],
    states: Sequence[mx.array],
) -> None:
    """Adds a window to `results`, to each the tokens from a place on. `states` are the final hidden states [L, E]."""
    for start in range(results[0][0] - 1, len(ids) - 1, POSITIONS):
        stop = min(start + POSITIONS, len(ids) - 1)
        following = mx.array(ids[start + 1 : stop + 1])[:, None]
        q, p = (head(state[start:stop]) for head, state in zip(heads, states, strict=True))  # [positions, V]
        divergences = divergence(q, p)
        agrees = mx.argmax(q, axis=-1) == mx.argmax(p, axis=-1)
        nll = [mx.logsumexp(x, axis=-1) - mx.take_along_axis(x, following, axis=-1)[:, 0] for x in (q, p)]
        mx.eval(divergences, agrees, nll)
        for first, result in results:
            skipped = max(0, first - 1 - start)
            if skipped < stop - start:
                result.kl += divergences[skipped:].tolist()  # type: ignore[arg-type]
                result.agrees += _sum(agrees[skipped:])
                result.nll += _sum(nll[0][skipped:])
                result.reference_nll += _sum(nll[1][skipped:])


def _sum(array: mx.array) -> float:
    return mx.sum(array.astype(mx.float32)).item()  # type: ignore[return-value]


def _batches(parts: Sequence[_Window]) -> list[list[_Window]]:
    """Consecutive windows, together at most BATCH_TOKENS."""
    batches: list[list[_Window]] = [[]]
    size = 0
    for part in parts:
        if batches[-1] and size + len(part.ids) > BATCH_TOKENS:
            batches.append([])
            size = 0
        batches[-1].append(part)
        size += len(part.ids)
    return batches
