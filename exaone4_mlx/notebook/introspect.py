"""A look inside: how sure a model was of each token, what it attends to, what a cache holds, what may come next.

What is peculiar here:
- Everything is computed at once, in the caller's thread, and kept as numbers, texts and evaluated arrays.
- A token's text is a whole number of characters or its bytes: Korean letters and emoji often come in pieces.
- What a cache holds follows from `RotatingKVCache`'s rules, for tokens that come one by one; no cache is filled for it.

Shapes: H query heads, L tokens, S attended tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import mlx.core as mx

from ..generation.decode import prefill
from ..generation.request import Prompt, prompt_ids
from ..model.cache import RotatingKVCache
from ..model.config import Exaone4Config, LayerAttention
from ..model.kv import grown_capacity
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS = 64  # whose logits are in memory at a time
ATTENTION_TOKENS = 512  # the weights of all layers are made, [H, L, L] each
TREE_NODES = 4096


@dataclass(frozen=True)
class Candidate:
    """A token that could have come, and its probability."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenRow:
    """One token, and what the model expected in its place from the tokens before.

    `text` is its text, or its bytes in hexadecimal where they are no whole characters; `completes` is then the
    character that is complete with it, "" before. `entropy_bits` is the expectation's, `rank` the token's place in it,
    0 for the most probable; `alternatives` are the most probable ones. The first token has none of these.
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
        """-log2 of the probability; None of the first token."""
        if self.probability is None:
            return None
        return -math.log2(self.probability) if self.probability > 0 else math.inf


@dataclass(frozen=True)
class InspectedTokens(Sequence[TokenRow]):
    """What `inspect_tokens` found, a row for each token; a slice is shown as the whole is."""

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
        """Bits per token, the first one aside; 0 for a single token."""
        bits = [row.surprise_bits for row in self.rows if row.surprise_bits is not None]
        return sum(bits) / len(bits) if bits else 0.0

    def __repr__(self) -> str:
        return f"InspectedTokens({len(self)} tokens, {self.mean_surprise_bits:.2f} bits each)"


def inspect_tokens(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, text_or_ids: str | Sequence[int], *, top: int = 5
) -> InspectedTokens:
    """How probable each token of a text was to the model, given those before it.

    A text is taken as it is, control tokens included, without a chat template; ids are taken as they are. `top` is the
    number of alternatives. Raises ValueError for an empty text, one longer than the context, and ids that the model
    does not have.
    """
    _check_count("top", top, 1, model.config.vocab_size)
    ids = _ids(model.config, tokenizer, text_or_ids)
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
    """The text of one token; its bytes in hexadecimal where they are no whole characters: `<0xED><0x95>`."""
    held = tokenizer.token_bytes(id)
    try:
        return held.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in held)


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Each token's text, and what is complete with it where it is but a piece."""
    decoder = tokenizer.stream_decoder()
    for id in ids:
        text, completed = token_text(tokenizer, id), decoder.feed(id)
        yield text, "" if completed == text else completed


# --- attention --------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionMaps:
    """How much each token takes from each one before, in one layer: `weights` [H, L, S], float32, S = L.

    `weights[h, i, j]` is what token i takes from token j in head h; each row adds up to 1.
    """

    tokens: tuple[str, ...]
    layer: int
    attention: LayerAttention
    weights: mx.array = field(repr=False, compare=False)

    def __repr__(self) -> str:
        heads, length, _ = self.weights.shape
        window = "" if self.attention.window is None else f", window {self.attention.window}"
        return f"AttentionMaps(layer {self.layer}{window}, {heads} heads, {length} tokens)"

    def plot(self, heads: Sequence[int] | None = None) -> Figure:
        """A matplotlib figure with a map for each of `heads` (all, unless given).

        Raises ImportError without matplotlib, and ValueError for heads that are not there.
        """
        from .pictures import attention_figure

        return attention_figure(self, range(self.weights.shape[0]) if heads is None else heads)


def attention_maps(
    model: Exaone4ForCausalLM, tokenizer: Tokenizer, text: str | Sequence[int], layer: int
) -> AttentionMaps:
    """What one layer attends to in a text (or ids), taken as it is, without a chat template.

    `layer` counts from 0. Raises ValueError for a layer that is not there, an empty text, and one of more than
    512 tokens.
    """
    config = model.config
    _check_count("layer", layer, 0, config.num_hidden_layers - 1)
    ids = _ids(config, tokenizer, text)
    if len(ids) > ATTENTION_TOKENS:
        raise ValueError(
            f"the text has {len(ids)} tokens; weights of attention are shown of at most {ATTENTION_TOKENS}"
        )
    output = model.model.forward(mx.array([ids]), use_cache=False, output_attentions=True)
    assert output.attentions is not None
    weights = output.attentions[layer][0].astype(mx.float32)
    mx.eval(weights)
    return AttentionMaps(tuple(token_text(tokenizer, id) for id in ids), layer, config.layers[layer], weights)


# --- caches -----------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCache:
    """What the cache of one layer holds after `tokens` tokens that came one by one. Tokens count from 0.

    The tokens from `held_from` on are in its buffer of `capacity` rows, which can grow to `max_rows`; the next token
    attends to those from `attended_from` on, and to itself. `reserve` rows are kept to go back, and `slack` ones are
    appended in place before the rows still needed move to the front, as they did when each of `compactions` came, and
    will when `next_compaction` comes. A global layer has no window, holds all and never compacts.
    """

    layer: int
    window: int | None
    tokens: int
    held_from: int
    attended_from: int
    capacity: int
    max_rows: int
    reserve: int
    slack: int
    compactions: range
    next_compaction: int | None

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.tokens - self.held_from


@dataclass(frozen=True)
class CacheDrawing:
    """What `draw_cache` found, for each layer that it was asked for."""

    layers: tuple[LayerCache, ...]

    def __repr__(self) -> str:
        held = ", ".join(f"layer {one.layer}: {one.rows} of {one.tokens} tokens" for one in self.layers)
        return f"CacheDrawing({held})"


def draw_cache(
    model_or_config: Exaone4ForCausalLM | Exaone4Config, tokens: int, layer: int | None = None
) -> CacheDrawing:
    """What the cache of a layer holds after `tokens` tokens that came one by one, as they do while a reply is made.

    Without `layer` the first one of each kind, local and global, is drawn. Raises ValueError for what is neither a
    model nor a configuration, for a layer that is not there, and for more tokens than the model reaches.
    """
    config = getattr(model_or_config, "config", model_or_config)
    if not isinstance(config, Exaone4Config):
        raise ValueError(
            "draw_cache takes a model, as load() returns it, or an Exaone4Config, not "
            f"{model_or_config if isinstance(model_or_config, str) else type(model_or_config).__name__!r}"
        )
    _check_count("tokens", tokens, 0, config.max_position_embeddings)
    if layer is not None:
        _check_count("layer", layer, 0, config.num_hidden_layers - 1)
        return CacheDrawing((layer_cache(config, tokens, layer),))
    first = {attention: number for number, attention in reversed(list(enumerate(config.layers)))}
    return CacheDrawing(tuple(layer_cache(config, tokens, number) for number in sorted(first.values())))


def layer_cache(config: Exaone4Config, tokens: int, layer: int) -> LayerCache:
    """The same of one layer."""
    window, limit = config.layers[layer].window, config.max_position_embeddings
    if window is None:
        capacity = _capacity(tokens, limit)
        return LayerCache(layer, None, tokens, 0, 0, capacity, limit, 0, 0, range(0), None)
    cache = RotatingKVCache(window)
    full, kept = cache.max_rows, cache.needed_rows
    slack = full - kept
    compactions = range(full, tokens, slack)  # these tokens found the buffer full
    rows = tokens if not compactions else kept + tokens - compactions[-1]
    following = full + len(compactions) * slack
    return LayerCache(
        layer,
        window,
        tokens,
        tokens - rows,
        max(0, tokens - (window - 1)),
        _capacity(min(tokens, full), full),
        full,
        cache.rewind_capacity,
        slack,
        compactions,
        following if following < limit else None,
    )


def _capacity(rows: int, limit: int) -> int:
    """Rows of a buffer that has grown one by one to hold `rows`."""
    capacity = 0
    while capacity < rows:
        capacity = grown_capacity(capacity + 1, capacity, limit)
    return capacity


# --- what may come next -----------------------------------------------------------


@dataclass(frozen=True)
class TokenNode:
    """A token that may come, its probability after those before, and what may follow it, most probable first."""

    id: int
    text: str
    probability: float
    ends_turn: bool = False
    children: tuple[TokenNode, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class TokenTree:
    """What `token_tree` found, and the prompt, as text, that it goes on from."""

    children: tuple[TokenNode, ...] = field(repr=False)
    prompt: str = field(default="", repr=False)

    def __repr__(self) -> str:
        best = ", ".join(f"{node.text!r} {node.probability:.3g}" for node in self.children)
        return f"TokenTree({best})"

    def paths(self) -> list[tuple[str, float]]:
        """Each way from the prompt to a leaf: its text and its probability, most probable first."""
        found: list[tuple[str, float]] = []

        def walk(nodes: Sequence[TokenNode], text: str, probability: float) -> None:
            for node in nodes:
                here = text + node.text, probability * node.probability
                if node.children:
                    walk(node.children, *here)
                else:
                    found.append(here)

        walk(self.children, "", 1.0)
        return sorted(found, key=lambda path: -path[1])


def token_tree(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    depth: int = 3,
    width: int = 3,
    *,
    thinking: bool = False,
) -> TokenTree:
    """The `width` most probable next tokens, and after each of them again, `depth` tokens deep.

    A prompt is a text (one user turn), messages, or token ids, as for `generate`. What ends the turn has no children.
    Raises ValueError for a prompt that `generate` refuses, and for a tree of more than 4,096 nodes.
    """
    _check_count("width", width, 1, model.config.vocab_size)
    _check_count("depth", depth, 1, 64)  # as far as a cache of a local layer goes back
    if (nodes := sum(width**level for level in range(1, depth + 1))) > TREE_NODES:
        raise ValueError(f"a tree of depth {depth} and width {width} has {nodes:,} nodes; at most {TREE_NODES:,}")
    ids = prompt_ids(tokenizer, prompt, thinking=thinking)
    _check_ids(model.config, ids, more=depth)
    ends = model.config.stop_token_ids | tokenizer.stop_token_ids
    caches = model.make_cache()

    def children(logits: mx.array, level: int) -> tuple[TokenNode, ...]:
        likely = mx.softmax(logits[0].astype(mx.float32))  # V
        best = mx.argsort(-likely)[:width]
        ids: Any = best.tolist()
        probabilities: Any = likely[best].tolist()
        found = []
        for id, probability in zip(ids, probabilities, strict=True):
            below: tuple[TokenNode, ...] = ()
            if level < depth and id not in ends:
                below = children(model(mx.array([[id]]), caches)[:, -1], level + 1)
                for cache in caches:
                    cache.rewind(1)
            found.append(TokenNode(id, token_text(tokenizer, id), probability, id in ends, below))
        return tuple(found)

    return TokenTree(children(prefill(model, ids, caches), 1), "".join(token_text(tokenizer, id) for id in ids))


# --- what is asked for, checked -----------------------------------------------------


def _ids(config: Exaone4Config, tokenizer: Tokenizer, text: str | Sequence[int]) -> list[int]:
    ids = tokenizer.encode(text) if isinstance(text, str) else [int(id) for id in text]
    _check_ids(config, ids)
    return ids


def _check_ids(config: Exaone4Config, ids: Sequence[int], more: int = 0) -> None:
    if not ids:
        raise ValueError("there are no tokens: the text is empty")
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise ValueError(f"there is no token {wrong[0]}: this model has ids 0 to {config.vocab_size - 1}")
    if len(ids) + more > config.max_position_embeddings:
        raise ValueError(f"there are {len(ids) + more} tokens, and the context holds {config.max_position_embeddings}")


def _check_count(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
