"""The documented model equals transformers, compared live in float32. Needs torch; CI runs it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance
from documented import (
    BATCH,
    CALLS,
    HEADS,
    LENGTH,
    PADDINGS,
    ROPES,
    SHAPES,
    arrays,
    config_of,
    continued,
    labels_for,
    ours,
    outputs_of,
    rope_config,
    tensors,
    texts,
    theirs,
    to_mlx,
    token_ids,
)
from mlx.utils import tree_flatten

import exaone4_mlx
from exaone4_mlx import Exaone4Config

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


def seen_rows(given: dict[str, Any]) -> mx.array:
    """[B, L], false for padding."""
    return mx.array(given.get("attention_mask", [[1] * LENGTH] * BATCH)) != 0


def apart(expected: Any, found: mx.array, rows: mx.array | None = None, axis: int = 1) -> float:
    """The distance of an output from transformers', without padding. `axis` is that of the tokens."""
    a = expected if isinstance(expected, mx.array) else to_mlx(expected)
    assert a.shape == found.shape
    if rows is None or a.ndim <= axis or (a.shape[0], a.shape[axis]) != rows.shape:
        return distance(a, found)
    seen = rows.reshape(BATCH, *[1] * (axis - 1), -1, *[1] * (a.ndim - axis - 1))
    return distance(mx.where(seen, a, 0), mx.where(seen, found, 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_logits_losses_and_hidden_states_equal_transformers(head: str, shape: str) -> None:
    """{no padding, left, right} x {ids, embeddings}."""
    name = f"Exaone4For{head}"
    config = config_of(**SHAPES[shape])
    their_model, our_model = theirs(name, config), ours(name, config)
    backbone = their_model.transformer if head == "QuestionAnswering" else their_model.model
    for padding, kind in itertools.product(PADDINGS, ("ids", "embeddings")):
        given = texts(padding)
        asked = given | labels_for(head, given) | {"output_hidden_states": True}
        their_asked, our_asked = tensors(asked), arrays(asked)
        if kind == "embeddings":
            table = backbone.embed_tokens(their_asked.pop("input_ids")).detach()
            our_asked.pop("input_ids")
            their_asked["inputs_embeds"], our_asked["inputs_embeds"] = table, to_mlx(table)
        expected, found = their_model(**their_asked), our_model.forward(**our_asked)
        scale = max(mx.max(mx.abs(to_mlx(getattr(expected, key)))).item() for key in outputs_of(head))
        assert scale > 2, "small logits would prove nothing"
        rows = seen_rows(given)
        for key in ("loss", *outputs_of(head)):
            assert apart(getattr(expected, key), found[key], rows) < 1e-4, (padding, kind, key)
        assert len(found.hidden_states) == len(expected.hidden_states) == our_model.config.num_hidden_layers + 1
        for layer, (a, b) in enumerate(zip(expected.hidden_states, found.hidden_states, strict=True)):
            assert apart(a, b, rows) < 1e-4, (padding, kind, layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_attentions_of_every_layer_equal_transformers(shape: str) -> None:
    config = config_of(**SHAPES[shape])
    their_model, our_model = theirs("Exaone4Model", config, "eager"), ours("Exaone4Model", config)
    for padding in PADDINGS:
        given = texts(padding)
        expected = their_model(**tensors(given), output_attentions=True).attentions
        found = our_model.forward(**arrays(given), output_attentions=True).attentions
        assert len(found) == len(expected) == our_model.config.num_hidden_layers
        for layer, (a, b) in enumerate(zip(expected, found, strict=True)):
            assert apart(a, b, seen_rows(given), axis=2) < 1e-5, (padding, layer)


@pytest.mark.parametrize("shape", ["hybrid LLLG", "all global"])
@pytest.mark.parametrize("where", CALLS)
@pytest.mark.parametrize("rope", ROPES)
def test_calls_of_a_conversation_equal_transformers_for_every_rope(rope: str, where: str, shape: str) -> None:
    """With caches, call by call. Cached keys keep their rotation."""
    config = rope_config(rope, **SHAPES[shape])
    their_model, our_model = theirs("Exaone4ForCausalLM", config), ours("Exaone4ForCausalLM", config)
    ids, start = token_ids(length=sum(CALLS[where])), 0
    their_cache = our_cache = None
    for number, length in enumerate(CALLS[where]):
        part = [row[start : start + length] for row in ids]
        expected, their_cache = continued(their_model, {"input_ids": part}, their_cache)
        found = our_model.forward(mx.array(part), past_key_values=our_cache, use_cache=True)
        assert distance(expected, found.logits) < 1e-4, f"call {number}, at token {start}"
        our_cache, start = found.past_key_values, start + length
    whole = theirs("Exaone4ForCausalLM", config)(**tensors({"input_ids": ids})).logits
    assert apart(whole, our_model.forward(mx.array(ids)).logits) < 1e-4, "in one call"
    assert distance(our_model(mx.array(ids)), our_model.forward(mx.array(ids)).logits) == 0, "the plain call"


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_padded_batches_continue_with_their_caches(shape: str, padding: str) -> None:
    config = config_of(**SHAPES[shape])
    their_model, our_model = theirs("Exaone4ForCausalLM", config), ours("Exaone4ForCausalLM", config)
    given = texts(padding)
    mask = given.get("attention_mask", [[1] * LENGTH] * BATCH)
    their_cache = our_cache = None
    start = 0
    for length in (11, 1, 5, 1, 6):
        asked = {
            "input_ids": [row[start : start + length] for row in given["input_ids"]],
            "attention_mask": [row[: start + length] for row in mask],
        }
        expected, their_cache = continued(their_model, asked, their_cache)
        found = our_model.forward(**arrays(asked), past_key_values=our_cache, use_cache=True)
        assert apart(expected, found.logits, seen_rows(given)[:, start : start + length]) < 1e-4, start
        our_cache, start = found.past_key_values, start + length


@pytest.mark.parametrize("rope", ["llama3", "dynamic", "longrope"])
def test_position_ids_equal_transformers(rope: str) -> None:
    """Left padding with positions that count the text only, packed texts, and large positions."""
    config = rope_config(rope)
    given = texts("left")
    counted = [[max(0, sum(row[: i + 1]) - 1) for i in range(LENGTH)] for row in given["attention_mask"]]
    packed = [[i if i < 10 else i - 10 for i in range(LENGTH)]] * BATCH
    far = [[i + 30 for i in range(LENGTH)]]
    for asked in (
        given | {"position_ids": counted},
        texts("none") | {"position_ids": packed, "use_cache": False},
        texts("none") | {"position_ids": packed, "use_cache": True},
        texts("none") | {"position_ids": far},
    ):
        expected = theirs("Exaone4ForCausalLM", config)(**tensors(asked)).logits
        found = ours("Exaone4ForCausalLM", config).forward(**arrays(asked)).logits
        assert apart(expected, found, seen_rows(asked)) < 1e-4


@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_every_weight_equal_torch(head: str) -> None:
    name = f"Exaone4For{head}"
    config = config_of(tie_word_embeddings=head == "CausalLM", attention_dropout=0.0)
    for padding in PADDINGS:
        their_model, our_model = theirs(name, config), ours(name, config)
        given = texts(padding)
        asked = given | labels_for(head, given)
        their_model(**tensors(asked)).loss.backward()
        expected = {key: value.grad for key, value in their_model.named_parameters()}
        loss_and_grad = nn.value_and_grad(our_model, lambda model, asked: model.forward(**asked).loss)
        _, grads = loss_and_grad(our_model, arrays(asked))
        found = dict(tree_flatten(grads))
        assert len(found) > 40
        for key, grad in found.items():
            scale = max(1.0, mx.max(mx.abs(to_mlx(expected[key]))).item())
            assert apart(expected[key], grad) < 1e-4 * scale, (padding, key)


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        ([0.5, -1.25], {"id2label": {"0": "score"}}),
        ([0, -100], {}),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], {}),
        ([[1.0, 0.0, 1.0], [0.0, 0.5, 1.0]], {"problem_type": "regression"}),
        ([2, 1], {"problem_type": "single_label_classification"}),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], {"problem_type": "multi_label_classification"}),
    ],
    ids=["one label", "several", "any number", "regression of three", "named single", "named multi"],
)
def test_problem_types_equal_transformers(labels: list[Any], changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    asked = texts("right") | {"labels": labels}
    expected = theirs("Exaone4ForSequenceClassification", config)(**tensors(asked))
    found = ours("Exaone4ForSequenceClassification", config).forward(**arrays(asked))
    assert apart(expected.loss, found.loss) < 1e-4
    assert apart(expected.logits, found.logits) < 1e-4


@pytest.mark.parametrize("kept", [1, 5, 100, [3, 7, 8], [-1, 0]])
def test_logits_to_keep_equal_transformers(kept: Any) -> None:
    config = config_of()
    asked = texts("none") | {"logits_to_keep": kept}
    expected = theirs("Exaone4ForCausalLM", config)(**tensors(asked)).logits
    found = ours("Exaone4ForCausalLM", config).forward(**arrays(asked)).logits
    assert apart(expected, found) < 1e-4


@pytest.mark.parametrize("name", ["Exaone4Model", *(f"Exaone4For{head}" for head in HEADS)])
def test_each_side_reads_the_checkpoints_of_the_other(name: str, tmp_path: Path) -> None:
    """Config, names and weights."""
    transformers = pytest.importorskip("transformers")
    given = tensors(texts("right"))
    key = "last_hidden_state" if name == "Exaone4Model" else outputs_of(name.removeprefix("Exaone4For"))[0]
    their_model = theirs(name, config_of())
    their_model.save_pretrained(tmp_path / "theirs")
    our_model = getattr(exaone4_mlx, name).from_pretrained(tmp_path / "theirs")
    our_model.save_pretrained(tmp_path / "ours")
    again, information = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    expected = getattr(their_model(**given), key)
    assert distance(to_mlx(expected), to_mlx(getattr(again.eval()(**given), key))) == 0
    found = our_model.forward(**arrays(texts("right")))[key]
    assert apart(expected, found, seen_rows(texts("right"))) < 1e-4
    assert again.config.id2label == our_model.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("rope", ROPES)
def test_transformers_reads_every_config_that_we_write(rope: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = rope_config(rope, problem_type="regression", attention_dropout=0.25, eos_token_id=[2, 3])
    Exaone4Config.from_dict(config).save_pretrained(tmp_path)
    written = transformers.AutoConfig.from_pretrained(tmp_path)
    plain = transformers.Exaone4Config(**{key: value for key, value in config.items() if key != "model_type"})
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_key_value_heads", "head_dim", "pad_token_id")
    for key in (*sizes, "problem_type", "attention_dropout", "eos_token_id", "id2label", "layer_types"):
        assert getattr(written, key) == getattr(plain, key), key
    rotary = transformers.models.exaone4.modeling_exaone4.Exaone4RotaryEmbedding
    assert rotary(written).inv_freq.tolist() == rotary(plain).inv_freq.tolist()
    assert rotary(written).attention_scaling == pytest.approx(rotary(plain).attention_scaling)
