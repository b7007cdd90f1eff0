"""The tree of the most probable next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..generation.options import Options
from ..generation.prefill import prefill
from ..generation.request import Prompt, prompt_ids
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer
from .tokens import check_count, check_ids, token_text

TREE_NODES = 4096


@dataclass(frozen=True)
class TokenNode:
    """A possible token, its probability after the tokens before it, and its children, most probable first."""

    id: int
    text: str
    probability: float
    ends_turn: bool = False
    children: tuple[TokenNode, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class TokenTree:
    """The result of `token_tree`, and the text of its prompt."""

    children: tuple[TokenNode, ...] = field(repr=False)
    prompt: str = field(default="", repr=False)

    def __repr__(self) -> str:
        best = ", ".join(f"{node.text!r} {node.probability:.3g}" for node in self.children)
        return f"TokenTree({best})"

    def paths(self) -> list[tuple[str, float]]:
        """The text and the probability of each path from the prompt to a leaf, most probable first."""
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
    """A tree of the `width` most probable next tokens at each node, `depth` tokens deep.

    A prompt is a text (one user turn), messages, or token ids, as for `generate`. A token that ends the turn has no
    children. Raises ValueError for an invalid prompt, and for a tree of more than 4,096 nodes.
    """
    check_count("width", width, 1, model.config.vocab_size)
    check_count("depth", depth, 1, 64)  # the number of tokens that the cache of a local layer can take back
    if (nodes := sum(width**level for level in range(1, depth + 1))) > TREE_NODES:
        raise ValueError(f"a tree of depth {depth} and width {width} has {nodes:,} nodes; at most {TREE_NODES:,}")
    ids, _ = prompt_ids(tokenizer, prompt, Options(thinking=thinking))
    check_ids(model.config, ids, more=depth)
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
