"""Networks are read from the checkpoint of any other network, and saved as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import distance, random_ids, tiny_model
from documented import config_of
from mlx.utils import tree_flatten

import exaone4_mlx
from exaone4_mlx import (
    CheckpointError,
    Exaone4Config,
    Exaone4ForCausalLM,
    Exaone4ForQuestionAnswering,
    Exaone4ForSequenceClassification,
    Exaone4ForTokenClassification,
    Exaone4Model,
)
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.files.safetensors import Checkpoint
from exaone4_mlx.model.pretrained import load_network


def test_saved_names_are_those_of_transformers(tmp_path: Path) -> None:
    tiny_model(kind=Exaone4ForQuestionAnswering, **config_of()).save_pretrained(tmp_path)
    names = set(Checkpoint(tmp_path).tensors)
    assert {"qa_outputs.weight", "qa_outputs.bias", "transformer.embed_tokens.weight"} <= names
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Exaone4ForQuestionAnswering"]
    assert (written["dtype"], written["id2label"]) == ("float32", {"0": "a", "1": "b", "2": "c"})


def test_a_new_head_starts_from_the_checkpoint_of_a_language_model() -> None:
    """As fine-tuning starts. A hub id or a folder works like the demo."""
    with pytest.warns(UserWarning, match=r"has no score\.weight: new here, and to be trained"):
        model = Exaone4ForSequenceClassification.from_pretrained("demo", num_labels=3, dtype="float32")
    with pytest.warns(UserWarning, match=r"has no qa_outputs\.bias, qa_outputs\.weight"):
        answering = Exaone4ForQuestionAnswering.from_pretrained("demo", dtype="float32")
    language, ids = Exaone4ForCausalLM.from_pretrained("demo", dtype="float32"), random_ids(9)
    assert model(ids).logits.shape == (1, 3)
    expected = language.model(ids)
    assert distance(model.model(ids), expected) == distance(answering.transformer(ids), expected) == 0
    assert distance(Exaone4Model.from_pretrained(DEMO_FOLDER, dtype="float32")(ids), expected) == 0


def test_each_network_is_read_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    ids = random_ids(9)
    tagger = tiny_model(kind=Exaone4ForTokenClassification, **config_of())
    tagger.save_pretrained(tmp_path / "tagger")
    base = Exaone4Model.from_pretrained(tmp_path / "tagger")
    assert distance(base(ids), tagger.model(ids)) == 0
    base.save_pretrained(tmp_path / "base")
    assert "embed_tokens.weight" in Checkpoint(tmp_path / "base").tensors
    with pytest.warns(UserWarning, match=r"has no score\.bias, score\.weight"):
        again = Exaone4ForTokenClassification.from_pretrained(tmp_path / "base")
    assert distance(again.model(ids), tagger.model(ids)) == 0
    with pytest.warns(UserWarning, match=r"has no lm_head\.weight: new here"):
        language = Exaone4ForCausalLM.from_pretrained(tmp_path / "base")
    assert distance(language.model(ids), base(ids)) == 0
    with pytest.raises(CheckpointError, match="lacks tensors"):
        load_network(Exaone4ForCausalLM, tmp_path / "base")  # a model that generates gets no untrained head
    scorer = Exaone4ForSequenceClassification.from_pretrained(tmp_path / "tagger")
    assert mx.array_equal(scorer.score.weight, tagger.score.weight), "the bias is ignored"
    with pytest.raises(CheckpointError, match=r"score\.weight has shape \(3, 32\), not \(5, 32\)"):
        Exaone4ForTokenClassification.from_pretrained(tmp_path / "tagger", num_labels=5)


def test_new_heads_have_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    tiny_model(kind=Exaone4Model, dtype=mx.bfloat16, **config_of()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for dtype, expected in ((None, mx.bfloat16), ("float16", mx.float16)):
        with pytest.warns(UserWarning, match="new here"):
            model = Exaone4ForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
        assert {array.dtype for _, array in tree_flatten(model.parameters())} == {expected}


def test_stored_frequencies_are_ignored_in_any_network(tmp_path: Path) -> None:
    model = tiny_model(kind=Exaone4ForQuestionAnswering, **config_of())
    model.save_pretrained(tmp_path)
    weights = mx.load(str(tmp_path / "model.safetensors"))
    for name in ("transformer.rotary_emb.inv_freq", "transformer.layers.0.self_attn.rotary_emb.inv_freq"):
        weights[name] = mx.zeros(8)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    again = Exaone4ForQuestionAnswering.from_pretrained(tmp_path)
    assert distance(again(random_ids(5)).start_logits, model(random_ids(5)).start_logits) == 0


def test_weights_are_not_saved_beside_other_weight_files(tmp_path: Path) -> None:
    """The index and its files would be read instead."""
    model = tiny_model(**config_of())
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # again, as after each epoch
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    before = (tmp_path / "model.safetensors").read_bytes()
    model.model.norm.weight *= 2
    with pytest.raises(FileExistsError, match=r"holds another checkpoint \(model\.safetensors\.index\.json\)"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    model = tiny_model(**config_of())
    mx.random.seed(3)
    model.save_pretrained(tmp_path)
    drawn = mx.random.normal((4,))
    mx.random.seed(3)
    assert mx.array_equal(drawn, mx.random.normal((4,)))


@pytest.mark.heavy
def test_a_quantized_folder_is_read_as_any_network_and_saved(tmp_path: Path, hf_folder: Path) -> None:
    exaone4_mlx.convert(hf_folder, tmp_path / "mlx")
    model = exaone4_mlx.load(tmp_path / "mlx")[0]
    base = Exaone4Model.from_pretrained(tmp_path / "mlx")
    ids = random_ids(9)
    assert isinstance(base.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert distance(base(ids), model.model(ids)) == 0
    base.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {"bits": 4, "group_size": 64, "mode": "affine"}
    assert config["dtype"] == "bfloat16"
    assert distance(Exaone4Model.from_pretrained(tmp_path / "again")(ids), base(ids)) == 0


def test_quantized_networks_are_saved_with_the_settings_of_each_layer(tmp_path: Path) -> None:
    wide = config_of(hidden_size=64, intermediate_size=64, head_dim=32)
    for kind in (Exaone4ForCausalLM, Exaone4ForSequenceClassification):
        model = tiny_model(kind=kind, dtype=mx.float16, **wide)
        nn.quantize(model, 32, 4, mode="mxfp4", class_predicate=lambda name, _: name.endswith("gate_proj"))
        nn.quantize(model, 64, 8, class_predicate=lambda name, _: name.endswith("up_proj"))
        nn.quantize(model, 32, 4, class_predicate=lambda name, part: type(part) in (nn.Linear, nn.Embedding))
        model.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__)
        assert [str(module) for module in again.modules()] == [str(module) for module in model.modules()]
        for (name, ours), (_, theirs) in zip(
            tree_flatten(again.parameters()), tree_flatten(model.parameters()), strict=True
        ):
            assert ours.dtype == theirs.dtype and mx.array_equal(ours, theirs), name


def test_errors_of_from_pretrained_name_the_cause(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Exaone4Model.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a config has no num_label"):
        Exaone4ForSequenceClassification.from_pretrained("demo", num_label=3)
    Exaone4Config.from_dict(config_of()).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        Exaone4Model.from_pretrained(tmp_path)


def test_new_weights_follow_initializer_range() -> None:
    """As in transformers: projections and embeddings are normal, norms one, the padding token's embedding zero."""
    config = exaone4_mlx.Exaone4Config.from_dict(config_of(vocab_size=2000, initializer_range=0.5))
    model = Exaone4ForCausalLM(config)
    for weight in (model.lm_head.weight, model.model.embed_tokens.weight, model.layers[0].mlp.up_proj.weight):
        assert mx.sqrt(mx.var(weight)).item() == pytest.approx(0.5, rel=0.1)
    assert mx.array_equal(model.model.norm.weight, mx.ones(32))
    assert mx.max(mx.abs(model.model.embed_tokens.weight[0])).item() == 0
