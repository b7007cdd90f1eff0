"""Adapters are read from and written into folders of mlx-lm's and of PEFT's format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from adapters import random_adapter
from conftest import tiny_model

from exaone4_mlx.files.safetensors import CheckpointError
from exaone4_mlx.model.adapter import Adapter, AdapterConfig
from exaone4_mlx.model.adapter_file import read_adapter, write_adapter

CONFIG = tiny_model().config


@pytest.mark.parametrize("layout", ["mlx-lm", "peft"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_written_is_read(tmp_path: Path, kind: str, layout: str) -> None:
    given = random_adapter(kind, keys=("self_attn.v_proj", "mlp.down_proj", "lm_head"))
    write_adapter(tmp_path / "new", given, layout)
    read = read_adapter(tmp_path / "new")
    assert read.config == given.config
    assert read.name == str(tmp_path / "new")
    assert read.arrays.keys() == given.arrays.keys()
    assert all(mx.array_equal(read.arrays[name], array) for name, array in given.arrays.items())
    read.check(CONFIG)


def test_layers_are_counted_from_the_last() -> None:
    config = AdapterConfig(num_layers=1, keys=("mlp.up_proj", "self_attn.q_proj"))
    assert config.modules(CONFIG) == ["model.layers.3.self_attn.q_proj", "model.layers.3.mlp.up_proj"]
    with pytest.raises(ValueError, match="num_layers is 5, and the model has 4 layers"):
        AdapterConfig(num_layers=5).modules(CONFIG)


def test_settings_of_peft_are_read(tmp_path: Path, edit_json: Callable[..., None]) -> None:
    write_adapter(tmp_path, random_adapter(), "peft")
    edit_json(tmp_path / "adapter_config.json", use_rslora=True, lora_alpha=6)
    assert read_adapter(tmp_path).config.scale == 6 / math.sqrt(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and only LORA is supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is {'q_proj': 4}, which is not supported"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which"),
        ({"bias": "all"}, "bias is 'all', which"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which"),
        ({"r": 2.5}, "r must be a whole number above 0, not 2.5"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
    ],
)
def test_settings_of_peft_that_are_not_supported_are_named(
    tmp_path: Path, edit_json: Callable[..., None], changes: dict[str, Any], message: str
) -> None:
    write_adapter(tmp_path, random_adapter(), "peft")
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_parameters": None}, r"it has neither lora_parameters \(mlx-lm\) nor peft_type \(PEFT\)"),
        ({"lora_parameters": {"rank": 3, "alpha": 6}}, "lora_parameters lacks scale"),
        ({"lora_parameters": {"rank": 0, "scale": 6}}, "rank must be a whole number above 0, not 0"),
        ({"lora_parameters": {"rank": 3, "scale": 1, "keys": "q_proj"}}, "keys must be a list of names, not 'q_proj'"),
        ({"lora_parameters": {"rank": 3, "scale": 1, "keys": ["model.embed_tokens"]}}, "not for 'model.embed_tokens'"),
        ({"fine_tune_type": "ia3"}, "fine_tune_type must be one of lora, dora, full, not 'ia3'"),
        ({"num_layers": "all"}, "num_layers must be a whole number, or -1 for all layers, not 'all'"),
    ],
)
def test_settings_of_mlx_lm_that_are_wrong_are_named(
    tmp_path: Path, edit_json: Callable[..., None], changes: dict[str, Any], message: str
) -> None:
    write_adapter(tmp_path, random_adapter())
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=f"adapter_config.json: .*{message}"):
        read_adapter(tmp_path)


def test_folders_that_lack_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json: it is not the folder of an adapter"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        read_adapter(tmp_path)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    good = random_adapter()
    name = "model.layers.2.self_attn.q_proj.lora_a"
    write_adapter(tmp_path, Adapter(good.config, {**good.arrays, name: good.arrays[name] * math.inf}))
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        read_adapter(tmp_path)
    write_adapter(tmp_path, Adapter(good.config, {**good.arrays, name: mx.array([1], dtype=mx.int32)}))
    with pytest.raises(CheckpointError, match=f"{name} has dtype I32, not one of BF16, F16, F32"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.layers.4.mlp.up_proj.lora_a": (32, 3)},
            r"has model.layers.4.mlp.up_proj.lora_a, which a LoRA of this",
        ),
        ({"model.embed_tokens.lora_a": (61, 3)}, "has model.embed_tokens.lora_a, which"),
        ({"model.layers.0.mlp.up_proj.m": (48,)}, "has model.layers.0.mlp.up_proj.m, which a LoRA"),
        ({"model.layers.0.mlp.up_proj.lora_a": (32, 4)}, r"\(32, 4\), and with rank 3 this model needs \(32, 3\)"),
        (
            {"model.layers.0.mlp.up_proj.lora_b": (3, 32)},
            r"\(3, 32\), and .* needs \(3, 48\); it was trained on me/tiny",
        ),
        ({"model.layers.0.mlp.up_proj.lora_b": None}, "the adapter lacks model.layers.0.mlp.up_proj.lora_b"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    given = random_adapter(keys=("mlp.up_proj",))
    arrays = {**given.arrays, **{name: shape and mx.zeros(shape) for name, shape in changes.items()}}
    with pytest.raises(ValueError, match=message):
        Adapter(given.config, {name: array for name, array in arrays.items() if array is not None}).check(CONFIG)


def test_an_adapter_without_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="the adapter has no arrays"):
        Adapter(AdapterConfig(), {}).check(CONFIG)


def test_whole_weights_have_no_form_in_peft(tmp_path: Path) -> None:
    full = Adapter(AdapterConfig("full"), {"model.norm.weight": mx.ones(32)})
    write_adapter(tmp_path / "full", full)
    assert read_adapter(tmp_path / "full").config.fine_tune_type == "full"
    with pytest.raises(ValueError, match="has whole weights, which PEFT does not read: fuse it with its base"):
        write_adapter(tmp_path / "peft", full, "peft")
    with pytest.raises(ValueError, match="the layout of an adapter is mlx-lm or peft, not 'gguf'"):
        write_adapter(tmp_path, full, "gguf")
