"""Every spelling of a config.json gives the same config. Unsupported settings are refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import LLAMA3, TINY, tiny_model
from documented import types

from exaone4_mlx import Exaone4Config
from exaone4_mlx.model.config import LayerAttention
from exaone4_mlx.model.rope import RopeParameters

SCALING = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
OLD_ROPE = {"rope_parameters": None, "rope_theta": 10_000.0, "rope_scaling": SCALING}
LOCAL, GLOBAL = LayerAttention(7, True), LayerAttention(None, False)


def config(**changes: Any) -> Exaone4Config:
    return Exaone4Config.from_dict(TINY | changes)


def test_all_spellings_mean_the_same() -> None:
    for rope in ({}, OLD_ROPE, OLD_ROPE | {"rope_parameters": LLAMA3}):
        for layers in (
            {"sliding_window_pattern": "LLLG"},
            {"sliding_window_pattern": 4},
            {"sliding_window_pattern": None, "layer_types": types("LLLG")},
            {"sliding_window_pattern": "LLLG", "layer_types": types("LLLG")},
        ):
            read = config(**rope, **layers)
            assert read.layers == (LOCAL, LOCAL, LOCAL, GLOBAL), (rope, layers)
            assert read.rope_parameters == config().rope_parameters, (rope, layers)


def test_final_layer_is_global_unless_explicit_types_say_otherwise() -> None:
    for changes, letters in (
        ({"sliding_window_pattern": 4, "num_hidden_layers": 10}, "LLLGLLLGLG"),
        ({"sliding_window_pattern": "LLG", "num_hidden_layers": 5}, "LLGLG"),
        ({"sliding_window_pattern": "L", "num_hidden_layers": 3}, "LLG"),
        ({"sliding_window_pattern": 1, "num_hidden_layers": 3}, "GGG"),
        ({"sliding_window_pattern": 4, "layer_types": types("GLLL")}, "GLLL"),  # explicit types are never altered
    ):
        read = config(**changes)
        assert read.layers == tuple({"L": LOCAL, "G": GLOBAL}[letter] for letter in letters), changes
        assert read.layer_types == tuple(types(letters)), changes


def test_null_window_or_pattern_means_no_window_and_rope_everywhere() -> None:
    for changes in ({"sliding_window": None}, {"sliding_window_pattern": None}, {"sliding_window_pattern": 0}):
        assert config(**changes).layers == (LayerAttention(None, True),) * 4, changes


def test_explicit_global_layers_have_no_rope_if_the_config_has_a_window() -> None:
    """In transformers the rule depends on the window of the config, whether or not a layer uses it."""
    assert config(layer_types=types("GGGG")).layers == (GLOBAL,) * 4


#: The documentation's signature. 32 key heads and an MLP of 16,384 follow from 32 heads and a size of 4,096.
DOCUMENTED = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 16_384, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-05, "use_cache": True,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
    "rope_theta": 10_000.0, "rope_scaling": None, "attention_dropout": 0.0,
    "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": tuple(types("LLLG") * 8),
    "num_labels": 2, "id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
}  # fmt: skip


def test_defaults_are_the_documented_ones() -> None:
    for read in (Exaone4Config(), Exaone4Config.from_dict({"model_type": "exaone4"})):
        assert {key: getattr(read, key) for key in DOCUMENTED} == DOCUMENTED
        assert read.model_type == "exaone4"


def test_absent_sizes_follow_from_others() -> None:
    """As documented: the MLP is four times the hidden size, and there are as many key heads as heads."""
    read = Exaone4Config(hidden_size=64, num_attention_heads=4)
    assert (read.intermediate_size, read.num_key_value_heads, read.head_dim) == (256, 4, 16)
    assert config(num_key_value_heads=None).num_key_value_heads == 4, "null means absent"


def test_the_constructor_takes_the_documented_arguments() -> None:
    """By name, with plain dicts and lists, in either spelling of RoPE."""
    older = Exaone4Config(rope_theta=500.0, rope_scaling=SCALING, layer_types=types("LLLG") * 8)
    newer = Exaone4Config(rope_parameters=LLAMA3 | {"rope_theta": 500.0})
    assert older.rope_parameters == newer.rope_parameters
    assert (older.rope_theta, newer.rope_theta) == (500.0, 500.0)
    assert older.rope_scaling == newer.rope_scaling == SCALING
    assert hash(older) != hash(newer) or older == newer


def test_labels_have_defaults() -> None:
    assert config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    named = config(id2label={"0": "no", "1": "yes", "2": "perhaps"})
    assert (named.num_labels, named.label2id) == (3, {"no": 0, "yes": 1, "perhaps": 2})
    assert config(hidden_dropout=0.3).classifier_dropout == 0.3, "the fallback of transformers' heads"
    assert config(hidden_dropout=0.3, classifier_dropout=0.2).classifier_dropout == 0.2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "not an EXAONE 4 model: model_type is 'llama'"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
    ({"attention_bias": True}, "attention_bias = True is not part of EXAONE 4"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, not 0"),
    ({"num_attention_heads": 3}, "num_attention_heads 3 is not a multiple of num_key_value_heads 2"),
    ({"head_dim": 15}, "head_dim 15 is odd"),
    ({"sliding_window": 0}, "sliding_window must be a positive whole number, not 0"),
    ({"sliding_window_pattern": "LXG"}, "'LXG' must consist of the letters L and G"),
    ({"sliding_window_pattern": True}, "must be a string of L and G"),
    ({"layer_types": types("LG")}, "layer_types has 2 entries for 4 layers"),
    ({"layer_types": ["chunked_attention"] * 4}, "not 'chunked_attention'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
    ({"rope_parameters": LLAMA3 | {"rope_type": "yarn"}}, "unknown RoPE keys for type .yarn.: high_freq_factor, low"),
    ({"rope_parameters": LLAMA3 | {"rope_type": "spiral"}}, "rope_type 'spiral' is unknown"),
    ({"rope_parameters": LLAMA3 | {"beta_fast": 3}}, "unknown RoPE keys for type 'llama3': beta_fast"),
    ({"rope_parameters": LLAMA3 | {"factor": None}}, "RoPE type 'llama3' needs factor"),
    ({"rope_parameters": LLAMA3 | {"factor": -1}}, "RoPE key factor must be a positive number"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor 4 must be below high_freq_factor 4"),
    ({"rope_parameters": LLAMA3 | {"type": "linear"}}, "RoPE has rope_type 'llama3' and type 'linear'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"attention_dropout": 1.0}, "attention_dropout must be a number from 0 to below 1, not 1.0"),
    ({"classifier_dropout": -0.1}, "classifier_dropout must be a number from 0 to below 1"),
    ({"initializer_range": "0.02"}, "initializer_range must be a positive number, not '0.02'"),
    ({"use_cache": "yes"}, "use_cache must be true or false, not 'yes'"),
    ({"pad_token_id": 1.5}, "pad_token_id must be a token id, not 1.5"),
    ({"eos_token_id": [2, "3"]}, "eos_token_id must be a token id"),
    ({"layer_types": "LLLG"}, "layer_types must be a list with one name for each layer"),
    ({"rope_parameters": [1]}, r"rope_parameters must be an object, not \[1\]"),
    ({"num_labels": 0}, "num_labels must be a positive whole number, not 0"),
    ({"num_labels": 3, "id2label": {"0": "a"}}, "num_labels is 3, but id2label names 1"),
    ({"id2label": {"1": "a", "2": "b"}}, r"id2label must name the labels from 0 on, each once, and names \[1, 2\]"),
    ({"id2label": ["a", "b"]}, "id2label must map 0, 1, … to names"),
    ({"label2id": {"a": 7}}, "label2id must map names to labels from 0 to 1"),
    ({"problem_type": "ranking"}, "problem_type must be one of regression, single_label_classification, multi_"),
    ({"original_max_position_embeddings": 64}, "original_max_position_embeddings is 64, but 32 in the RoPE"),
    ({"rope_theta": 5.0}, "RoPE has two definitions that differ"),
    ({"rope_scaling": LLAMA3 | {"factor": 2.0}}, "RoPE has two definitions that differ"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_errors_name_the_wrong_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    wrong = {"{": "is not JSON", "[]": "not hold a JSON object", "{}": "model_type is None", '"가"': "is not UTF-8"}
    for text, message in wrong.items():
        file.write_bytes(text.encode("cp949"))
        with pytest.raises(ValueError, match=f"config.json.*{message}"):
            Exaone4Config.from_file(file)


def written_and_read(read: Exaone4Config) -> Exaone4Config:
    return Exaone4Config.from_dict(json.loads(json.dumps(read.to_dict())))


def test_written_config_reads_back_the_same() -> None:
    windows = ({}, {"sliding_window": None}, {"layer_types": types("GLLG")}, {"num_hidden_layers": 10})
    for changes in (*windows, OLD_ROPE):
        written = config(**changes).to_dict()
        assert written_and_read(config(**changes)).layers == config(**changes).layers, changes
        assert {"rope_theta", "rope_scaling", "rope_parameters", "layer_types"} <= set(written)
        if written["sliding_window"]:
            assert set(written["sliding_window_pattern"]) <= {"L", "G"}, "mlx-lm reads strings only"
    for rope in (
        LLAMA3,
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "mscale": 0.5, "truncate": False},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 3.0},
    ):
        read = config(rope_parameters=rope)
        assert written_and_read(read).rope_parameters == read.rope_parameters, rope


def test_labels_and_dropout_are_written_unless_they_are_the_default() -> None:
    plain = config().to_dict()
    assert not {"id2label", "label2id", "problem_type", "classifier_dropout", "output_attentions"} & set(plain)
    changed = config(num_labels=3, problem_type="regression", output_attentions=True)
    assert written_and_read(changed) == changed


def test_configs_are_saved_and_read_by_folder_file_and_name(tmp_path: Path) -> None:
    config(num_labels=3).save_pretrained(tmp_path / "a" / "new folder")
    for path in (tmp_path / "a" / "new folder", str(tmp_path / "a" / "new folder" / "config.json")):
        assert Exaone4Config.from_pretrained(path).num_labels == 3
    assert Exaone4Config.from_pretrained("demo").num_hidden_layers == 8
    with pytest.raises(FileNotFoundError, match="no folder"):
        Exaone4Config.from_pretrained(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        Exaone4Config.from_pretrained(tmp_path)


def test_changes_replace_fields_in_every_spelling(tmp_path: Path) -> None:
    """Other spellings of the same value are removed: labels, RoPE, pattern."""
    config(num_labels=3).save_pretrained(tmp_path)
    assert Exaone4Config.from_pretrained(tmp_path, num_labels=5).num_labels == 5
    assert Exaone4Config.from_pretrained(tmp_path, id2label={0: "only"}).label2id == {"only": 0}
    assert (
        Exaone4Config.from_pretrained(tmp_path, num_labels=3, bos_token_id=1).id2label == config(num_labels=3).id2label
    )
    base = Exaone4Config.from_pretrained(tmp_path, rope_theta=5.0)
    assert (base.rope_theta, base.rope_scaling) == (5.0, config().rope_scaling), "a new base keeps the scaling"
    scaling = Exaone4Config.from_pretrained(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert (scaling.rope_theta, scaling.rope_parameters.rope_type) == (10_000.0, "linear"), (
        "a new scaling keeps the base"
    )
    plain = Exaone4Config.from_pretrained(tmp_path, rope_scaling=None)
    assert plain.rope_parameters == RopeParameters(rope_theta=10_000.0)
    whole = Exaone4Config.from_pretrained(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert whole.rope_parameters == RopeParameters(rope_theta=7.0)
    assert Exaone4Config.from_pretrained(tmp_path, sliding_window_pattern="LG").layers == (LOCAL, GLOBAL) * 2
    with pytest.raises(ValueError, match="a config has no num_label"):
        Exaone4Config.from_pretrained(tmp_path, num_label=5)
    with pytest.raises(ValueError, match=r"config\.json: num_labels must be a positive whole number"):
        Exaone4Config.from_pretrained(tmp_path, num_labels=-5)


def test_replace_changes_what_follows(tmp_path: Path) -> None:
    """Fields that follow from a changed one follow; nothing is ignored."""
    before = config()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    longer = before.replace(rope_scaling=yarn, max_position_embeddings=128)
    assert (longer.rope_parameters.rope_type, longer.rope_theta) == ("yarn", before.rope_theta)
    based = before.replace(rope_theta=5.0)
    assert (based.rope_parameters.rope_theta, based.rope_scaling) == (5.0, before.rope_scaling)
    assert before.replace(sliding_window_pattern="LG").layers == (LOCAL, GLOBAL) * 2
    assert before.replace(num_hidden_layers=8).layers == (LOCAL, LOCAL, LOCAL, GLOBAL) * 2
    assert before.replace(sliding_window=None).layers == (LayerAttention(None, True),) * 4
    assert before.replace(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert before.replace() == before == before.replace(layer_types=types("LLLG"))
    assert before.replace(layer_types=types("LLLG"), sliding_window_pattern=4).layers == before.layers
    assert config(sliding_window=None).replace(sliding_window=7) == before
    before.save_pretrained(tmp_path)
    for changes in ({"rope_theta": 5.0}, {"sliding_window": None}, {"num_hidden_layers": 8}, {"id2label": {0: "a"}}):
        assert Exaone4Config.from_pretrained(tmp_path, **changes) == before.replace(**changes), changes


def test_changes_without_effect_are_refused() -> None:
    flat = config(sliding_window_pattern=None)
    refused: list[tuple[Exaone4Config, dict[str, Any], str]] = [
        (config(), {"rope_base": 1.0}, "a config has no rope_base"),
        (config(), {"rope_theta": 5.0, "rope_parameters": LLAMA3}, "RoPE has two definitions that differ"),
        (flat, {"sliding_window": 9}, "sliding_window has no effect here without sliding_window_pattern"),
        (flat, {"sliding_window_pattern": 4}, "sliding_window_pattern has no effect here without sliding_window"),
        (config(sliding_window=None), {"sliding_window_pattern": 2}, "has no effect here without sliding_window"),
        (config(), {"layer_types": types("GLLG"), "sliding_window_pattern": 4}, "pattern 4 contradicts layer_types"),
    ]
    for before, changes, message in refused:
        with pytest.raises(ValueError, match=message):
            before.replace(**changes)
    for changes in (
        {"rope_theta": 5.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"sliding_window_pattern": "LG"},
        {"sliding_window": None},
        {"num_labels": 5},
    ):
        with pytest.raises(ValueError, match=rf"use config\.replace\({next(iter(changes))}=…\)"):
            dataclasses.replace(config(), **changes)
    assert dataclasses.replace(config(), max_position_embeddings=64).max_position_embeddings == 64


def test_update_works_in_place_and_not_beneath_a_model() -> None:
    changed = config()
    changed.update({"rope_theta": 5.0, "use_cache": False})
    assert changed == config().replace(rope_theta=5.0, use_cache=False)
    model = tiny_model()
    model.config.update({"use_cache": False, "eos_token_id": [3, 4]})
    assert not model.config.use_cache and model.config.stop_token_ids == {3, 4}
    with pytest.raises(ValueError, match=r"a model is built with this sliding_window; .* config\.replace"):
        model.config.update({"sliding_window": 3})
    assert model.config.sliding_window == 7
    with pytest.raises(ValueError, match="a config has no use_cach"):
        changed.update({"use_cach": True})


def test_the_json_string_is_the_written_config() -> None:
    text = config().to_json_string()
    assert Exaone4Config.from_dict(json.loads(text)) == config()
    assert text == json.dumps(config().to_dict(), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("size", ["1.2B", "32B"])
def test_published_configs_are_read(size: str, shared: Path) -> None:
    read = Exaone4Config.from_file(shared / "configs" / f"EXAONE-4.0-{size}.config.json")
    expected = {"1.2B": (LayerAttention(None, True),) * 30, "32B": ((LayerAttention(4096, True),) * 3 + (GLOBAL,)) * 16}
    assert read.layers == expected[size]
    assert read.stop_token_ids == {361}
