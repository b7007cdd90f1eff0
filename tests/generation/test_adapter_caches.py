"""Caches belong to the adapters that they were made with: in memory, in a conversation and on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from adapters import random_adapter
from conftest import distance

from exaone4_mlx import Chat, PrefixStore, load
from exaone4_mlx.generation.prompt_cache import PromptCache

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo", dtype="float32")


def adapter(model: Any, seed: int) -> Any:
    return random_adapter("lora", model.config, seed=seed, num_layers=2, scale=4.0)


def prompt(tokenizer: Any) -> list[int]:
    return tokenizer.encode("What is the capital of France? Which one is bigger, 3.12 or 3.9?")


def cold(model: Any, tokenizer: Any, ids: list[int]) -> mx.array:
    logits, reused = PromptCache(model, tokenizer).prefill(ids)
    assert reused == 0
    return logits


def test_a_cache_is_used_only_with_the_adapters_that_it_was_made_with(demo: Any) -> None:
    model, tokenizer = demo
    ids, cache = prompt(tokenizer), PromptCache(model, tokenizer)
    previous = None
    for seed in (1, 2, None, 1):
        model.set_adapters([] if seed is None else adapter(model, seed))
        logits, reused = cache.prefill(ids)
        assert reused == 0, "the cache of another adapter was reused"
        assert distance(logits, cold(model, tokenizer, ids)) < 1e-4
        assert previous is None or distance(logits, previous) > 0.1, "the adapters do not differ"
        previous = logits
        _, reused = cache.prefill(ids)
        assert reused == len(ids) - 1


def test_without_this_rule_the_logits_are_wrong(demo: Any) -> None:
    """The broken variant: a cache that takes any form of the model for its own."""
    model, tokenizer = demo
    ids, cache = prompt(tokenizer), PromptCache(model, tokenizer)
    model.set_adapters(adapter(model, 1))
    cache.prefill(ids)
    model.set_adapters(adapter(model, 2))
    cache._fused = model.fused()
    logits, reused = cache.prefill(ids)
    assert reused == len(ids) - 1
    assert distance(logits, cold(model, tokenizer, ids)) > 0.01


@pytest.mark.parametrize("in_files", [False, True])
def test_forms_with_other_adapters_share_a_prefix_store(demo: Any, tmp_path: Path, in_files: bool) -> None:
    model, tokenizer = demo
    ids, folder = prompt(tokenizer), tmp_path if in_files else None
    store, exact, given = PrefixStore(folder=folder), {}, {seed: adapter(model, seed) for seed in (1, 2)}
    for seed in (1, 2):
        model.set_adapters(given[seed])
        form, exact[seed] = model.fused(), cold(model, tokenizer, ids)
        model.set_adapters()
        for reused in (0, len(ids) - 1):
            cache = PromptCache(model, tokenizer, prefix_store=store, fused=form)
            logits, found = cache.prefill(ids)
            assert found == reused and distance(logits, exact[seed]) < 1e-4, (seed, reused)
    assert PromptCache(model, tokenizer, prefix_store=store).prefill(ids)[1] == 0, "the model without adapters"
    if in_files:  # files are found by the weights and adapters that they were made with
        store.flush()
        model.set_adapters(given[1])
        logits, found = PromptCache(model, tokenizer, prefix_store=PrefixStore(folder=folder)).prefill(ids)
        assert found == len(ids) - 1 and distance(logits, exact[1]) < 1e-4
        model.set_adapters()


def test_the_adapters_of_a_chat_are_swapped_between_replies(demo: Any) -> None:
    model, tokenizer = demo
    chat = Chat(model, tokenizer, settle=False)
    replies = []
    for seed in (1, 2, 1):
        model.set_adapters(adapter(model, seed))
        replies.append(chat.ask("What is the capital of France?", **GREEDY))
        again = Chat(model, tokenizer, settle=False, messages=chat.messages[:-2])
        assert again.ask("What is the capital of France?", **GREEDY).text == replies[-1].text
        assert replies[-1].cached_tokens == 0
    assert chat.ask("And of Spain?", **GREEDY).cached_tokens > 0, "with the same adapter the cache is reused"


@pytest.mark.parametrize("other", [None, "another adapter", "another scale"])
def test_a_cache_file_of_other_adapters_is_refused(demo: Any, tmp_path: Path, other: str | None) -> None:
    model, tokenizer = demo
    ids, first = prompt(tokenizer), adapter(model, 1)
    model.set_adapters(first)
    cache = PromptCache(model, tokenizer)
    exact, _ = cache.prefill(ids)
    cache.save(tmp_path / "cache")
    given = {None: (), "another adapter": adapter(model, 2), "another scale": first}[other]
    model.set_adapters(given, 0.5 if other == "another scale" else 1.0)
    with pytest.raises(ValueError, match="belongs to another model: weights differ"):
        PromptCache.load(tmp_path / "cache", model, tokenizer)
    model.set_adapters(first)
    logits, reused = PromptCache.load(tmp_path / "cache", model, tokenizer).prefill(ids)
    assert reused == len(ids) - 1 and distance(logits, exact) < 1e-4
