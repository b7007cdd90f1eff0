"""Every spelling of a config.json means the same; what is not implemented is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import LLAMA3, TINY

from exaone4_mlx import Exaone4Config
from exaone4_mlx.model.config import LayerAttention

OLD_ROPE = {
    "rope_parameters": None,
    "rope_theta": 10_000.0,
    "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
}
LOCAL, GLOBAL = LayerAttention(7, True), LayerAttention(None, False)
TYPES = {"L": "sliding_attention", "G": "full_attention"}


def config(**changes: Any) -> Exaone4Config:
    return Exaone4Config.from_dict(TINY | changes)


def types(letters: str) -> list[str]:
    return [TYPES[letter] for letter in letters]


@pytest.mark.parametrize("rope", [{}, OLD_ROPE, OLD_ROPE | {"rope_parameters": LLAMA3}], ids=["v5", "v4", "both"])
@pytest.mark.parametrize(
    "layers",
    [
        {"sliding_window_pattern": "LLLG"},
        {"sliding_window_pattern": 4},
        {"sliding_window_pattern": None, "layer_types": types("LLLG")},
        {"sliding_window_pattern": "LLLG", "layer_types": types("LLLG")},
    ],
    ids=["string", "int", "types", "types and string"],
)
def test_all_spellings_mean_the_same(rope: dict[str, Any], layers: dict[str, Any]) -> None:
    read = config(**rope, **layers)
    assert read.layers == (LOCAL, LOCAL, LOCAL, GLOBAL)
    assert read.rope_parameters == config().rope_parameters


@pytest.mark.parametrize(
    ("changes", "letters"),
    [
        ({"sliding_window_pattern": 4, "num_hidden_layers": 10}, "LLLGLLLGLG"),
        ({"sliding_window_pattern": "LLG", "num_hidden_layers": 5}, "LLGLG"),
        ({"sliding_window_pattern": "L", "num_hidden_layers": 3}, "LLG"),
        ({"sliding_window_pattern": 1, "num_hidden_layers": 3}, "GGG"),
        ({"sliding_window_pattern": 4, "layer_types": types("GLLL")}, "GLLL"),
    ],
)
def test_final_layer_is_global_unless_explicit_types_say_otherwise(changes: dict[str, Any], letters: str) -> None:
    assert config(**changes).layers == tuple({"L": LOCAL, "G": GLOBAL}[letter] for letter in letters)
    assert config(**changes).layer_types == tuple(types(letters)), "explicit types are never altered"


@pytest.mark.parametrize(
    "changes", [{"sliding_window": None}, {"sliding_window_pattern": None}, {"sliding_window_pattern": 0}]
)
def test_null_window_or_pattern_means_no_window_and_rope_everywhere(changes: dict[str, Any]) -> None:
    assert config(**changes).layers == (LayerAttention(None, True),) * 4


def test_explicit_global_layers_of_a_model_with_a_window_have_no_rope() -> None:
    """transformers' rule is about the config's window, not about whether any layer uses it."""
    assert config(layer_types=types("GGGG")).layers == (GLOBAL,) * 4


def test_defaults_are_the_documented_ones() -> None:
    read = Exaone4Config.from_dict({"model_type": "exaone4"})
    assert (read.vocab_size, read.hidden_size, read.intermediate_size, read.head_dim) == (102_400, 4096, 16_384, 128)
    assert (read.sliding_window, read.sliding_window_pattern, read.max_position_embeddings) == (4096, 4, 2048)
    assert read.rope_parameters.rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "not an EXAONE 4 model: model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        ({"attention_bias": True}, "attention_bias = True is not part of EXAONE 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, not 0"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 is no multiple of num_key_value_heads 2"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"sliding_window": 0}, "sliding_window must be a positive whole number, not 0"),
        ({"sliding_window_pattern": "LXG"}, "'LXG' must consist of the letters L and G"),
        ({"sliding_window_pattern": True}, "must be a string of L and G"),
        ({"layer_types": types("LG")}, "layer_types has 2 entries for 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, "not 'chunked_attention'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
        (
            {"rope_parameters": LLAMA3 | {"rope_type": "yarn"}},
            "unknown RoPE keys for type .yarn.: high_freq_factor, low",
        ),
        ({"rope_parameters": LLAMA3 | {"rope_type": "spiral"}}, "rope_type 'spiral' is unknown"),
        ({"rope_parameters": LLAMA3 | {"beta_fast": 3}}, "unknown RoPE keys for type 'llama3': beta_fast"),
        ({"rope_parameters": LLAMA3 | {"factor": None}}, "RoPE type 'llama3' needs factor"),
        ({"rope_parameters": LLAMA3 | {"factor": -1}}, "RoPE key factor must be a positive number"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor 4 must be below high_freq_factor 4"),
        ({"rope_parameters": LLAMA3 | {"type": "linear"}}, "given as rope_type 'llama3' and as type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 5.0}, "RoPE is given twice, and differently"),
        ({"rope_scaling": LLAMA3 | {"factor": 2.0}}, "RoPE is given twice, and differently"),
    ],
)
def test_what_would_change_the_numbers_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, message in (("{", "is not JSON"), ("[]", "does not hold a JSON object"), ("{}", "model_type is None")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"config.json.*{message}"):
            Exaone4Config.from_file(file)


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": None}, {"layer_types": types("GLLG")}, {"num_hidden_layers": 10}, OLD_ROPE]
)
def test_written_config_reads_back_the_same(changes: dict[str, Any]) -> None:
    written = json.loads(json.dumps(config(**changes).to_dict()))
    read = Exaone4Config.from_dict(written)
    assert read.layers == config(**changes).layers
    assert read.rope_parameters == config(**changes).rope_parameters
    assert {"rope_theta", "rope_scaling", "rope_parameters", "layer_types"} <= set(written)
    if written["sliding_window"]:
        assert set(written["sliding_window_pattern"]) <= {"L", "G"}, "mlx-lm reads strings only"


@pytest.mark.parametrize("size", ["1.2B", "32B"])
def test_published_configs_are_read(size: str, shared: Path) -> None:
    read = Exaone4Config.from_file(shared / "configs" / f"EXAONE-4.0-{size}.config.json")
    expected = {"1.2B": (LayerAttention(None, True),) * 30, "32B": ((LayerAttention(4096, True),) * 3 + (GLOBAL,)) * 16}
    assert read.layers == expected[size]
    assert read.stop_token_ids == {361}
