"""Arguments of `forward` are checked before anything is computed. Errors name the argument."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, tiny_model
from documented import config_of


def test_lists_are_converted_to_arrays() -> None:
    model = tiny_model(**config_of())
    assert distance(model.forward([[5, 6, 7]]).logits, model(mx.array([[5, 6, 7]]))) == 0


IDS = [[5, 6, 7, 8]]
FLOATS = mx.zeros((1, 4, 32))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give input_ids or inputs_embeds, not neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": FLOATS}, "give input_ids or inputs_embeds, not both"),
    "ids without a batch": ({"input_ids": [5, 6]}, r"input_ids must have the shape \[batch, tokens\], not \[2\]"),
    "no tokens": ({"input_ids": mx.zeros((1, 0), mx.int32)}, r"input_ids must have the shape .*, not \[1, 0\]"),
    "ids of floats": ({"input_ids": [[1.0]]}, "input_ids must be whole numbers, not float32"),
    "ids too large": ({"input_ids": [[5, 61]]}, "input_ids must be from 0 to 60, not 61"),
    "ids too small": ({"input_ids": [[-1]]}, "input_ids must be from 0 to 60, not -1"),
    "no array": ({"input_ids": "hello"}, "input_ids must be"),
    "embeddings of another size": ({"inputs_embeds": FLOATS[..., 1:]}, r"inputs_embeds must have the shape \[batch, tokens, 32\]"),
    "integer embeddings": ({"inputs_embeds": FLOATS.astype(mx.int32)}, "inputs_embeds must be floating-point numbers"),
    "a short mask": ({"attention_mask": [[1, 1, 1]]}, r"attention_mask \(0 cached tokens, 4 new\) must have the shape \[1, 4\], not \[1, 3\]"),
    "a mask of scores": ({"attention_mask": [[0, 1, 2, 3]]}, "attention_mask must be 1, or 0 for padding"),
    "a mask of floats": ({"attention_mask": [[0.5] * 4]}, "attention_mask must be 1, or 0 for padding"),
    "positions of another length": ({"position_ids": [[0, 1]]}, "position_ids must have the shape"),
    "negative positions": ({"position_ids": [[-1, 0, 1, 2]]}, "position_ids must be at least 0, not -1"),
    "wrong cache_position": ({"cache_position": [4, 5, 6, 7]}, "cache_position must be 0 to 3, the positions after the cached"),
    "no caches": ({"past_key_values": []}, "past_key_values must be one cache for each of 4 layers; take them from"),
    "use_cache as a word": ({"use_cache": "no"}, "use_cache must be True or False, not 'no'"),
    "kept, negative": ({"logits_to_keep": -1}, "logits_to_keep must not be negative"),
    "kept, beyond": ({"logits_to_keep": [4]}, "logits_to_keep must be from -4 to 3"),
    "kept, two lists": ({"logits_to_keep": [[1]]}, "logits_to_keep must be a number or one list"),
    "labels without their logits": ({"labels": IDS, "logits_to_keep": 1}, "labels need the logits"),
    "labels of another shape": ({"labels": [[1]]}, r"labels must have the shape \[1, 4\]"),
    "labels too large": ({"labels": [[1, 2, 3, 61]]}, "labels must be from 0 to 60, not 61"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_wrong_argument(case: str) -> None:
    asked, message = REFUSED[case]
    tokens = {} if case in ("nothing", "both") or {"input_ids", "inputs_embeds"} & asked.keys() else {"input_ids": IDS}
    with pytest.raises(ValueError, match=message):
        tiny_model(**config_of()).forward(**tokens, **asked)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match=r"forward\(\) got an unexpected keyword argument 'output_dict'"):
        tiny_model().forward(IDS, output_dict=False)


def test_an_error_leaves_the_caches_as_they_were() -> None:
    model = tiny_model(**config_of())
    cache = model.forward(IDS).past_key_values
    for asked in (
        {"labels": [[1]]},
        {"attention_mask": [[1] * 7]},
        {"logits_to_keep": [9]},
        {"cache_position": [0] * 4},
    ):
        with pytest.raises(ValueError, match=next(iter(asked))):
            model.forward(IDS, past_key_values=cache, **asked)
        assert {layer.offset for layer in cache} == {4}
    assert model.forward(IDS, past_key_values=cache, cache_position=[4, 5, 6, 7]).past_key_values[0].offset == 8


def test_caches_of_another_model_or_batch_are_refused() -> None:
    """One key head would be broadcast to two without an error."""
    model, windowless = tiny_model(**config_of()), config_of(sliding_window=None, layer_types=[])
    cache = model.forward(IDS).past_key_values
    for config, ids, caches, message in (
        ({}, IDS * 2, cache, "past_key_values hold a batch of 1, and the new tokens are 2"),
        (
            {},
            IDS,
            tiny_model(**config_of(sliding_window=9)).make_cache(),
            r"past_key_values\[0\] is not a cache for layer 0",
        ),
        ({}, IDS, [*cache[:3], model.make_cache()[3]], "past_key_values hold 4 and 0 tokens"),
        ({"num_key_value_heads": 1}, IDS, cache, r"past_key_values\[0\] has 2 key heads of 16"),
        ({"head_dim": 8}, IDS, cache, r"past_key_values\[0\] has 2 key heads of 16"),
        (windowless, IDS, tiny_model(**windowless).make_cache()[:1] * 4, "one cache for several layers"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model(**(config_of() | config)).forward(ids, past_key_values=caches)
