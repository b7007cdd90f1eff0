"""A tree of next tokens has the probabilities of the model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from conftest import random_ids

from exaone4_mlx.notebook import token_tree, token_view


def test_a_tree_holds_the_probabilities_of_each_path(unread: Any) -> None:
    model, tokenizer = unread
    ids = random_ids(20)[0].tolist()
    tree = token_tree(model, tokenizer, ids, depth=3, width=2)

    def check(nodes: Any, path: list[int]) -> int:
        likely = mx.softmax(model(mx.array([path]))[0, -1])
        assert [node.id for node in nodes] == mx.argsort(-likely)[:2].tolist()
        for node in nodes:
            assert node.probability == pytest.approx(likely[node.id].item(), rel=1e-3), path
        return 1 + max(check(node.children, [*path, node.id]) if node.children else 1 for node in nodes)

    assert check(tree.children, ids) == 4
    paths = tree.paths()
    assert len(paths) == 8 and paths[0][1] == max(probability for _, probability in paths)
    assert token_view.tree_html(tree).count("min-width") == 2 + 4 + 8


def test_a_tree_ends_with_the_turn_and_takes_the_prompts_of_generate(demo: Any) -> None:
    tree = token_tree(*demo, "What is the capital of South Korea?", depth=1, width=1)
    assert tree.children[0].text == "The"
    assert tree.prompt.endswith("</think>\n\n") and "…&lt;think&gt;⏎⏎&lt;/think&gt;⏎⏎</span>" in token_view.tree_html(
        tree
    )
    said = demo[1].apply_chat_template([{"role": "user", "content": "Hello!"}]) + demo[1].encode(
        "Hello! How can I help you?"
    )
    (end,) = token_tree(*demo, said, depth=5, width=1).children
    assert end.ends_turn and end.children == () and "(end)" in token_view.tree_html(token_tree(*demo, said, 1, 1))


def test_a_large_tree_raises(unread: Any) -> None:
    with pytest.raises(ValueError, match="has 11,110 nodes; at most 4,096"):
        token_tree(*unread, [5], depth=4, width=10)
    with pytest.raises(ValueError, match="depth must be a whole number from 1 to 64"):
        token_tree(*unread, [5], depth=65, width=1)
