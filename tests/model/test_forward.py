"""`forward` equals transformers on stored numbers, needs each documented rule for that, and refuses wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance, in_a_thread, random_ids, tiny_model
from documented import CALLS, GOLDENS, LENGTH, PADDED, POSITION, arrays, config_of, ours, rope_config, texts, token_ids

from exaone4_mlx import Exaone4Model
from exaone4_mlx.generation.prefill import prefill
from exaone4_mlx.model import context, inputs, network
from exaone4_mlx.model.layer import Layer
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
            setattr(read.context, field, None)
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
    patch.setattr(context.AttentionContext, "positions_of", lambda self, offset, length: (offset, offset + length))


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


def test_outputs_are_mappings_as_in_transformers() -> None:
    """field: `"logits" in output` was False. Outputs that were not requested are not there."""
    output = tiny_model(**config_of()).forward(random_ids(4), use_cache=False)
    assert output["logits"] is output.logits is output[0] is output.get("logits")
    assert "logits" in output and "loss" not in output and 0 not in output
    assert list(output) == list(output.keys()) == ["logits"] and len(output) == 1
    assert output.to_tuple() == tuple(output.values()) == (output.logits,)
    assert dict(output) == {"logits": output.logits} and dict(**output).keys() == {"logits"}
    for name in ("logit", "loss"):
        with pytest.raises(KeyError, match=name):
            output[name]


def test_return_dict_makes_tuples() -> None:
    labels = random_ids(4, batch=2) % 2
    for name, given in (
        ("Exaone4Model", {}),
        ("Exaone4ForCausalLM", {"labels": labels}),
        ("Exaone4ForSequenceClassification", {"labels": labels[:, 0]}),
        ("Exaone4ForTokenClassification", {"labels": labels}),
        ("Exaone4ForQuestionAnswering", {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}),
    ):
        model = ours(name, config_of())
        inputs = {"input_ids": random_ids(4, batch=2), "use_cache": None, **given}
        expected, found = model.forward(**inputs), model.forward(**inputs, return_dict=False)
        assert isinstance(found, tuple) and len(found) == len(expected), name
        assert distance(found[0], expected[0]) == 0, name
        model.config.update({"return_dict": False})
        assert (
            isinstance(model.forward(**inputs), tuple) and "loss" not in model.forward(**inputs, return_dict=True)[:0]
        )
        with pytest.raises(ValueError, match="return_dict must be True or False, not 'no'"):
            model.forward(**inputs, return_dict="no")


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
    exact = Layer.of(block).attention(x, "causal", None)
    assert distance(exact, Layer.of(block).attention(x, "causal", None)) == 0, "no dropout outside of training"
    block.train()
    draws = mx.stack([Layer.of(block).attention(x, "causal", None) for _ in range(400)])
    spread = mx.sqrt(mx.var(draws, axis=0))
    assert mx.min(spread[0, :, 1:]).item() > 0
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
