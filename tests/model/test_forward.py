"""`forward` equals transformers on stored numbers, needs each documented rule for that, and refuses wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, in_a_thread, random_ids, tiny_model
from documented import (
    CALLS,
    GOLDENS,
    LENGTH,
    PADDED,
    POSITION,
    arrays,
    config_of,
    rope_config,
    texts,
    token_ids,
)

import exaone4_mlx
from exaone4_mlx import Exaone4ForCausalLM, Exaone4Model
from exaone4_mlx.generation.decode import prefill
from exaone4_mlx.model import forward, inputs, network
from exaone4_mlx.model.rope import RopeParameters

Patch = pytest.MonkeyPatch


def layer_distance() -> float:
    """The largest distance of hidden states and attention weights from transformers'."""
    model = tiny_model(kind=Exaone4Model, **config_of())
    output = model.forward(**arrays(texts("left")), output_hidden_states=True, output_attentions=True)
    states = [state[0, POSITION] for state in output.hidden_states]
    weights = [weights[0, :, POSITION].flatten() for weights in output.attentions]
    assert (len(states), len(weights)) == (5, 4)
    found, expected = [*states, *weights], [*GOLDENS["hidden_states"], *GOLDENS["attentions"]]
    return max(distance(a, mx.array(b)) for a, b in zip(found, expected, strict=True))


def rope_distance(case: str) -> float:
    """The distance of the logits of the last call of a conversation from transformers'."""
    rope, where = case.split(", ")
    model = tiny_model(**rope_config(rope))
    ids, start, cache = mx.array(token_ids(batch=1, length=sum(CALLS[where]))), 0, None
    for length in CALLS[where]:
        output = model.forward(ids[:, start : start + length], past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, start + length
    return distance(output.logits[0, -1], mx.array(GOLDENS["ropes"][case]))


def position_distance(case: str) -> float:
    golden = GOLDENS["positions"][case]
    logits = tiny_model(**config_of()).forward(**arrays(golden["asked"])).logits
    return distance(logits[0, POSITION], mx.array(golden["logits"]))


def test_hidden_states_and_attentions_equal_transformers() -> None:
    assert layer_distance() < 1e-4


@pytest.mark.parametrize("case", GOLDENS["ropes"])
def test_every_rope_equals_transformers_call_by_call(case: str) -> None:
    assert rope_distance(case) < 1e-4


@pytest.mark.parametrize("case", GOLDENS["positions"])
def test_explicit_positions_equal_transformers(case: str) -> None:
    assert position_distance(case) < 1e-4


def without(field: str) -> Callable[[Patch], None]:
    """The layers do not get one field."""

    def apply(patch: Patch) -> None:
        def read(*args: Any, **kwargs: Any) -> Any:
            read = inputs.read_inputs(*args, **kwargs)
            setattr(read.details, field, None)
            return read

        patch.setattr(network, "read_inputs", read)

    return apply


def rope_with(**changes: Any) -> Callable[[Patch], None]:
    """RoPE parameters with a wrong value."""
    original = RopeParameters.from_dict

    def apply(patch: Patch) -> None:
        patch.setattr(RopeParameters, "from_dict", lambda *args: replace(original(*args), **changes))

    return apply


def always_short(patch: Patch) -> None:
    patch.setattr(RopeParameters, "depends_on_length", property(lambda self: False))


def rotate_by_index(patch: Patch) -> None:
    patch.setattr(forward.Details, "places", lambda self, offset, length: (offset, offset + length))


def unnormalized(patch: Patch) -> None:
    original = Exaone4Model.run

    def run(self: Any, inputs: Any) -> Any:
        output = original(self, inputs)
        return replace(output, hidden_states=(*output.hidden_states[1:], output.hidden_states[-1]))

    patch.setattr(Exaone4Model, "run", run)


BROKEN: dict[str, tuple[Callable[[Patch], None], Callable[[], float]]] = {
    "padding is attended to": (without("padding"), layer_distance),
    "hidden states shifted": (unnormalized, layer_distance),
    "positions instead of indices": (rotate_by_index, lambda: position_distance("every other")),
    "packed texts attend to each other": (without("segments"), lambda: position_distance("packed")),
    "linear: factor": (rope_with(factor=3.0), lambda: rope_distance("linear, inside")),
    "dynamic: longer sequences": (always_short, lambda: rope_distance("dynamic, across")),
    "dynamic: factor": (rope_with(factor=3.0), lambda: rope_distance("dynamic, across")),
    "yarn: attention_factor": (rope_with(attention_factor=1.0), lambda: rope_distance("yarn, inside")),
    "yarn: beta_fast": (rope_with(beta_fast=32.0), lambda: rope_distance("yarn, inside")),
    "yarn: beta_slow": (rope_with(beta_slow=0.5), lambda: rope_distance("yarn, inside")),
    "yarn: original length": (rope_with(original_max_position_embeddings=99), lambda: rope_distance("yarn, inside")),
    "longrope: longer sequences": (always_short, lambda: rope_distance("longrope, across")),
    "longrope: attention_factor": (rope_with(attention_factor=1.0), lambda: rope_distance("longrope, inside")),
    "longrope: short_factor": (rope_with(short_factor=(1.0,) * 8), lambda: rope_distance("longrope, inside")),
    "longrope: long_factor": (rope_with(long_factor=(1.0,) * 8), lambda: rope_distance("longrope, across")),
    "llama3: low_freq_factor": (rope_with(low_freq_factor=2.0), lambda: rope_distance("llama3, inside")),
    "llama3: high_freq_factor": (rope_with(high_freq_factor=9.0), lambda: rope_distance("llama3, inside")),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_breaking_a_documented_rule_is_caught(rule: str, monkeypatch: Patch) -> None:
    break_it, difference = BROKEN[rule]
    break_it(monkeypatch)
    assert difference() > 1e-2, f"the goldens do not depend on: {rule}"


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_cached_keys_keep_their_rotation_when_the_frequencies_change(rope: str) -> None:
    """So calls that cross the original length differ from one call with the whole text, as in transformers."""
    model = tiny_model(**rope_config(rope))
    ids, cache = mx.array(token_ids(batch=1, length=40)), model.make_cache()
    apart = mx.concatenate([model(ids[:, :30], cache), model(ids[:, 30:], cache)], axis=1)
    whole = model(ids)
    assert distance(apart[:, :30], model(ids[:, :30])) < 1e-4, "before the switch"
    assert distance(apart[:, 30:], whole[:, 30:]) > 1e-2
    assert distance(whole, model(ids)) == 0, "calls are independent"


def test_the_plain_call_and_forward_are_the_same_network() -> None:
    model, ids = tiny_model(), random_ids(30, batch=2)
    assert distance(model(ids), model.forward(ids).logits) == 0
    assert distance(model.model(ids), model.model.forward(ids).last_hidden_state) == 0
    ones = mx.ones((2, 30), mx.int32)
    assert distance(model(ids), model.forward(ids, attention_mask=ones).logits) < 1e-5
    assert distance(model(ids), model.forward(ids, output_attentions=True).logits) < 1e-4, (
        "attention with explicit weights"
    )
    embeds = model.model.embed_tokens(ids)
    assert distance(model(ids), model.forward(inputs_embeds=embeds).logits) == 0


def test_use_cache_decides_what_is_returned() -> None:
    model, ids = tiny_model(**config_of()), random_ids(8)
    assert model.forward(ids).past_key_values[0].offset == 8, "the config's default"
    assert model.forward(ids, use_cache=False).past_key_values is None
    assert tiny_model(**config_of(use_cache=False)).forward(ids).past_key_values is None
    cache = model.make_cache()
    assert model.forward(ids, past_key_values=cache).past_key_values is cache
    assert model.forward(ids, past_key_values=cache, use_cache=False).past_key_values is None
    assert cache[3].offset == 16, "changed in place"
    model.train()
    assert model.forward(ids).past_key_values is None, "in training only on request"
    assert model.forward(ids, use_cache=True).past_key_values is not None


def test_the_config_can_request_outputs() -> None:
    model = tiny_model(**config_of(output_hidden_states=True, output_attentions=True))
    output = model.forward(random_ids(8))
    assert (len(output.hidden_states), len(output.attentions)) == (5, 4)
    assert output.attentions[0].shape == (1, 4, 8, 8)
    assert model.forward(random_ids(8), output_attentions=False).attentions is None


def test_attention_weights_of_a_layer_have_a_column_for_each_cached_row() -> None:
    model = tiny_model(**config_of())
    cache = model.forward(random_ids(20)).past_key_values
    output = model.forward(random_ids(3, seed=1), past_key_values=cache, output_attentions=True)
    assert [weights.shape[-1] for weights in output.attentions] == [9, 9, 9, 23], "windows of 7, and all"
    assert distance(output.attentions[3].sum(axis=-1), mx.ones(())) < 1e-5


def test_outputs_are_read_by_name_and_by_index() -> None:
    output = tiny_model(**config_of()).forward(random_ids(4), use_cache=False)
    assert output["logits"] is output.logits is output[0]
    assert output.to_tuple() == (output.logits,)
    with pytest.raises(KeyError, match="logit"):
        output["logit"]


def test_padding_that_attends_to_nothing_is_zero() -> None:
    """Otherwise its row, and a loss with it, would be NaN."""
    output = tiny_model(kind=Exaone4Model, **config_of()).forward(**arrays(texts("left")), output_attentions=True)
    assert mx.all(mx.isfinite(output.last_hidden_state)).item()
    assert [mx.max(weights[0, :, :PADDED]).item() for weights in output.attentions] == [0, 0, 0, 0]
    right = texts("right")["attention_mask"]
    right[0] = [1] * 4 + [0] * (LENGTH - 4)  # more padding than the window of 7
    output = tiny_model(kind=Exaone4Model, **config_of()).forward(mx.array(token_ids()), mx.array(right))
    assert mx.all(mx.isfinite(output.last_hidden_state)).item()


def test_padding_does_not_change_other_tokens() -> None:
    """With positions that count the text only, the logits equal those without padding."""
    model, given = tiny_model(**config_of()), texts("left")
    counted = mx.array([[max(0, i - PADDED) for i in range(LENGTH)], list(range(LENGTH))])
    padded = model.forward(**arrays(given), position_ids=counted).logits
    alone = model(mx.array(given["input_ids"])[:1, PADDED:])
    assert distance(padded[:1, PADDED:], alone) < 1e-4


def test_attention_dropout_applies_in_training_and_keeps_the_mean() -> None:
    """Over many draws of one layer, in the plain call and in forward."""
    mx.random.seed(7)
    model = tiny_model(attention_dropout=0.4, **config_of())
    block, x = model.layers[0], mx.random.normal((1, 6, 32))
    exact = block.ready().attended(x, "causal", None)
    assert distance(exact, block.ready().attended(x, "causal", None)) == 0, "no dropout outside of training"
    block.train()
    draws = mx.stack([block.ready().attended(x, "causal", None) for _ in range(400)])
    spread = mx.sqrt(mx.var(draws, axis=0))
    assert mx.min(spread[0, 1:]).item() > 0
    assert mx.max(mx.abs(draws.mean(axis=0) - exact) / (spread + 1e-6)).item() < 6 / 400**0.5
    model.train()
    ids = random_ids(6)
    assert distance(model(ids), model(ids)) > 0
    assert distance(model.forward(ids).logits, model.forward(ids).logits) > 0


@pytest.mark.heavy  # on a CPU MLX runs a C++ compiler
def test_a_training_step_can_be_compiled() -> None:
    """Inside, values are unknown and not checked. The loss is the same."""
    model, ids = tiny_model(**config_of()), random_ids(12)
    mask = mx.array([[0] * 3 + [1] * 9])
    step = mx.compile(lambda ids, mask: model.forward(ids, mask, labels=ids).loss)
    assert distance(step(ids, mask), model.forward(ids, mask, labels=ids).loss) < 1e-5


def test_forward_runs_in_any_thread() -> None:
    model, ids = tiny_model(**rope_config("dynamic")), token_ids(length=40)
    here = model.forward(ids).logits.tolist()
    assert in_a_thread(lambda: model.forward(ids).logits.tolist()) == here


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
    with pytest.raises(TypeError, match=r"forward\(\) got an unexpected keyword argument 'return_dict'"):
        tiny_model().forward(IDS, return_dict=False)


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


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_a_chunked_prompt_rotates_as_in_one_call(rope: str) -> None:
    """As in transformers' generate. The next call continues from there."""
    model = tiny_model(**rope_config(rope))
    ids = token_ids(batch=1, length=50)[0]
    whole, chunked = model.make_cache(), model.make_cache()
    expected = model(mx.array([ids]), whole)[:, -1]
    assert distance(prefill(model, ids, chunked, step_size=7), expected) < 1e-4
    assert distance(model(mx.array([[5]]), chunked), model(mx.array([[5]]), whole)) < 1e-4


def test_packing_follows_use_cache_as_in_transformers() -> None:
    """Also in training, where a cache is made only on request."""
    model = tiny_model(**config_of())
    packed = mx.array([[0, 1, 2, 0, 1, 2]])
    ids = random_ids(6)
    alone = model(ids[:, 3:])
    for training in (False, True):
        model.train(training)
        assert distance(model.forward(ids, position_ids=packed, use_cache=False).logits[:, 3:], alone) < 1e-4
        assert distance(model.forward(ids, position_ids=packed).logits[:, 3:], alone) > 1e-2


def test_new_weights_follow_initializer_range() -> None:
    """As in transformers: projections and embeddings are normal, norms one, the padding token's embedding zero."""
    config = exaone4_mlx.Exaone4Config.from_dict(config_of(vocab_size=2000, initializer_range=0.5))
    model = Exaone4ForCausalLM(config)
    for weight in (model.lm_head.weight, model.model.embed_tokens.weight, model.layers[0].mlp.up_proj.weight):
        assert mx.sqrt(mx.var(weight)).item() == pytest.approx(0.5, rel=0.1)
    assert mx.array_equal(model.model.norm.weight, mx.ones(32))
    assert mx.max(mx.abs(model.model.embed_tokens.weight[0])).item() == 0
