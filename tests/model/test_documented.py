"""The documented model against transformers, live, in float32. Needs torch; run in CI."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, tiny_model, weights_of
from documented import (
    BATCH,
    CALLS,
    HEADS,
    LENGTH,
    PADDINGS,
    ROPES,
    SHAPES,
    config_of,
    labels_for,
    outputs_of,
    rope_config,
    texts,
    token_ids,
)
from mlx.utils import tree_flatten

import exaone4_mlx
from exaone4_mlx import Exaone4Config

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


def ours(name: str, config: dict[str, Any]) -> Any:
    return tiny_model(kind=getattr(exaone4_mlx, name), **config)


def theirs(name: str, config: dict[str, Any], attention: str = "sdpa") -> Any:
    """The same network, with the same weights, in transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    read = transformers.Exaone4Config(**{key: value for key, value in config.items() if key != "model_type"})
    model = getattr(transformers, name)._from_config(read, attn_implementation=attention).eval()
    state = model.state_dict()
    if read.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    weights = weights_of({key: tuple(tensor.shape) for key, tensor in state.items()}, seed=0)
    model.load_state_dict({key: torch.tensor(array.tolist()) for key, array in weights.items()}, strict=False)
    return model


def tensors(values: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in values.items()}


def arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {key: mx.array(value) if isinstance(value, list) else value for key, value in values.items()}


def to_mlx(tensor: Any) -> mx.array:
    return mx.array(tensor.detach().numpy())


def go_on(model: Any, asked: dict[str, Any], cache: Any) -> tuple[mx.array, Any]:
    """transformers' logits for the next tokens of a conversation, and its cache, whatever it calls that argument."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(**tensors(asked), **{name: cache}, use_cache=True)
    return to_mlx(output.logits), getattr(output, name)


def seen_rows(given: dict[str, Any]) -> mx.array:
    """[B, L], true for what is no padding."""
    return mx.array(given.get("attention_mask", [[1] * LENGTH] * BATCH)) != 0


def differences(theirs_out: Any, ours_out: Any, names: tuple[str, ...], rows: mx.array) -> dict[str, float]:
    """How far outputs are apart; of what has a row for each token, where it is no padding."""
    found = {}
    for name in names:
        a, b = to_mlx(getattr(theirs_out, name)), getattr(ours_out, name)
        if a.ndim >= 2 and a.shape[:2] == rows.shape:
            shape = rows.reshape(*rows.shape, *[1] * (a.ndim - 2))
            a, b = mx.where(shape, a, 0), mx.where(shape, b, 0)
        assert a.shape == b.shape, name
        found[name] = distance(a, b)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_logits_losses_and_hidden_states_equal_transformers(head: str, shape: str) -> None:
    """{no padding, left, right} x {ids, embeddings}; a loss counts padding rows too, as torch's attention has them."""
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
        assert scale > 2, "small logits prove nothing"
        apart = differences(expected, found, ("loss", *outputs_of(head)), seen_rows(given))
        assert max(apart.values()) < 1e-4, (padding, kind, apart)
        assert len(found.hidden_states) == len(expected.hidden_states) == our_model.config.num_hidden_layers + 1
        rows = seen_rows(given)[..., None]
        for layer, (a, b) in enumerate(zip(expected.hidden_states, found.hidden_states, strict=True)):
            assert distance(mx.where(rows, to_mlx(a), 0), mx.where(rows, b, 0)) < 1e-4, (padding, kind, layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_attentions_of_every_layer_equal_transformers(shape: str) -> None:
    config = config_of(**SHAPES[shape])
    their_model, our_model = theirs("Exaone4Model", config, "eager"), ours("Exaone4Model", config)
    for padding in PADDINGS:
        given = texts(padding)
        expected = their_model(**tensors(given), output_attentions=True).attentions
        found = our_model.forward(**arrays(given), output_attentions=True).attentions
        assert len(found) == len(expected) == our_model.config.num_hidden_layers
        rows = seen_rows(given)[:, None, :, None]
        for layer, (a, b) in enumerate(zip(expected, found, strict=True)):
            assert distance(mx.where(rows, to_mlx(a), 0), mx.where(rows, b, 0)) < 1e-5, (padding, layer)


@pytest.mark.parametrize("shape", ["hybrid LLLG", "all global"])
@pytest.mark.parametrize("where", CALLS)
@pytest.mark.parametrize("rope", ROPES)
def test_calls_of_a_conversation_equal_transformers_for_every_rope(rope: str, where: str, shape: str) -> None:
    """With caches, call by call: keys that were cached keep the rotation that they had."""
    config = rope_config(rope, **SHAPES[shape])
    their_model, our_model = theirs("Exaone4ForCausalLM", config), ours("Exaone4ForCausalLM", config)
    ids, start = token_ids(length=sum(CALLS[where])), 0
    their_cache = our_cache = None
    for number, length in enumerate(CALLS[where]):
        part = [row[start : start + length] for row in ids]
        expected, their_cache = go_on(their_model, {"input_ids": part}, their_cache)
        found = our_model.forward(mx.array(part), past_key_values=our_cache, use_cache=True)
        assert distance(expected, found.logits) < 1e-4, f"call {number}, at token {start}"
        our_cache, start = found.past_key_values, start + length
    whole = theirs("Exaone4ForCausalLM", config)(**tensors({"input_ids": ids})).logits
    assert distance(to_mlx(whole), our_model.forward(mx.array(ids)).logits) < 1e-4, "in one call"
    assert distance(our_model(mx.array(ids)), our_model.forward(mx.array(ids)).logits) == 0, "the plain call"


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_padded_batches_go_on_with_their_caches(shape: str, padding: str) -> None:
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
        expected, their_cache = go_on(their_model, asked, their_cache)
        found = our_model.forward(**arrays(asked), past_key_values=our_cache, use_cache=True)
        rows = seen_rows(given)[:, start : start + length, None]
        assert distance(mx.where(rows, expected, 0), mx.where(rows, found.logits, 0)) < 1e-4, start
        our_cache, start = found.past_key_values, start + length


@pytest.mark.parametrize("rope", ["llama3", "dynamic", "longrope"])
def test_position_ids_equal_transformers(rope: str) -> None:
    """Left padding with the positions of the text alone; packed texts; and positions that skip."""
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
        rows = seen_rows(asked)[..., None]
        assert distance(mx.where(rows, to_mlx(expected), 0), mx.where(rows, found, 0)) < 1e-4


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
            assert distance(to_mlx(expected[key]), grad) < 1e-4 * scale, (padding, key)


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
    assert distance(to_mlx(expected.loss), found.loss) < 1e-4
    assert distance(to_mlx(expected.logits), found.logits) < 1e-4


@pytest.mark.parametrize("kept", [1, 5, 100, [3, 7, 8], [-1, 0]])
def test_logits_to_keep_equal_transformers(kept: Any) -> None:
    config = config_of()
    asked = texts("none") | {"logits_to_keep": kept}
    expected = theirs("Exaone4ForCausalLM", config)(**tensors(asked)).logits
    found = ours("Exaone4ForCausalLM", config).forward(**arrays(asked)).logits
    assert found.shape == tuple(expected.shape)
    assert distance(to_mlx(expected), found) < 1e-4


@pytest.mark.parametrize("name", ["Exaone4Model", *(f"Exaone4For{head}" for head in HEADS)])
def test_checkpoints_go_both_ways(name: str, tmp_path: Path) -> None:
    """transformers' folder is read here, and what is written here transformers reads: config, names, weights."""
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
    rows = seen_rows(texts("right")).reshape(BATCH, LENGTH, *[1] * (expected.ndim - 2))
    rows = rows if expected.shape[:2] == (BATCH, LENGTH) else mx.array(True)
    assert distance(to_mlx(expected), to_mlx(getattr(again.eval()(**given), key))) == 0
    found = getattr(our_model.forward(**arrays(texts("right"))), key)
    assert distance(mx.where(rows, to_mlx(expected), 0), mx.where(rows, found, 0)) < 1e-4
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
