"""Adapters that mlx-lm and PEFT made give the same logits here as there, and ours load there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from adapters import random_adapter
from conftest import TINY, distance, random_ids, tiny_model
from mlx.utils import tree_flatten

from exaone4_mlx import load
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.adapter_file import write_adapter

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
ROPE = {"rope_theta": 10_000.0, "rope_scaling": None}
IDS = random_ids(24)
KINDS = ["lora", "dora"]


pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and PEFT


def ours(bits: int | None = None) -> Any:
    model = tiny_model(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    return model


def mlx_lm_model(bits: int | None = None) -> Any:
    """mlx-lm's own model with the same weights."""
    exaone4 = pytest.importorskip("mlx_lm.models.exaone4")
    model = exaone4.Model(exaone4.ModelArgs.from_dict(TINY | SIZES | ROPE))
    model.load_weights(tree_flatten(ours().parameters()))
    if bits is not None:
        nn.quantize(model, 32, bits)
    model.eval()
    return model


def save_as_mlx_lm_lora(model: Any, folder: Path, kind: str) -> None:
    """What `mlx_lm.lora` does around its training: layers, two files."""
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    parameters = {
        "rank": 4,
        "scale": 3.0,
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"],
    }
    model.freeze()
    linear_to_lora_layers(model, 3, parameters, use_dora=kind == "dora")
    for name, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name))) / 4
            if kind == "dora":
                module.m = module.m * 1.2
    trained = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), trained)
    settings = {
        "fine_tune_type": kind,
        "num_layers": 3,
        "lora_parameters": parameters,
        "model": "me/tiny",
        "train": True,
    }
    save_config(settings, folder / "adapter_config.json")


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_mlx_lm_gives_the_same_logits(tmp_path: Path, kind: str, bits: int | None) -> None:
    theirs, model = mlx_lm_model(bits), ours(bits)
    plain = model(IDS)
    save_as_mlx_lm_lora(theirs, tmp_path, kind)
    model.set_adapters(tmp_path)
    assert distance(theirs(IDS), plain) > 0.1, "the adapter changes nothing"
    assert distance(model(IDS), theirs(IDS)) < 1e-4
    assert distance(model.fused()(IDS, model.make_cache()), theirs(IDS)) < 1e-4


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_our_adapter_loads_in_mlx_lm(tmp_path: Path, kind: str, bits: int | None) -> None:
    from mlx_lm.tuner.utils import load_adapters

    model = ours(bits)
    write_adapter(
        tmp_path, random_adapter(kind, model.config, num_layers=2, keys=("mlp.down_proj", "self_attn.k_proj"))
    )
    model.set_adapters(tmp_path)
    theirs = load_adapters(mlx_lm_model(bits), str(tmp_path))
    assert distance(model(IDS), theirs(IDS)) < 1e-4


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [*KINDS, "full"])
def test_an_adapter_of_the_mlx_lm_lora_command_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    """Three steps of its training, on the demo."""
    pytest.importorskip("mlx_lm")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid"):
        lessons = [
            {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "A fact."}]}
            for i in range(4)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(lesson) + "\n" for lesson in lessons))
    base = tmp_path / "demo"
    shutil.copytree(DEMO_FOLDER, base, ignore=shutil.ignore_patterns("recipe", "draft"))
    command = [
        "lora",
        "--model",
        str(base),
        "--train",
        "--data",
        str(data),
        "--adapter-path",
        str(tmp_path / "adapter"),
    ]
    more = [
        "--fine-tune-type",
        kind,
        "--iters",
        "3",
        "--batch-size",
        "2",
        "--num-layers",
        "2",
        "--learning-rate",
        "1e-3",
    ]
    subprocess.run([sys.executable, "-m", "mlx_lm", *command, *more], check=True, capture_output=True, cwd=tmp_path)
    import mlx_lm

    theirs, _ = mlx_lm.load(str(base), adapter_path=str(tmp_path / "adapter"))
    theirs.set_dtype(mx.float32)
    model, _ = load("demo", dtype="float32", adapter_path=tmp_path / "adapter")
    plain, _ = load("demo", dtype="float32")
    ids = mx.array([load("demo")[1].encode("What is the capital of France?")])
    assert distance(theirs(ids), plain(ids)) > 1e-3, "the adapter changes nothing"
    assert distance(model(ids), theirs(ids)) < 1e-3


# --- PEFT -------------------------------------------------------------------------------------------------------------


def torch_model(folder: Path, bits: int | None) -> Any:
    """transformers' model with the same weights; those of a quantized one in full precision."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = ours(bits)
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            parts = module.weight, module.scales, module.biases, module.group_size, module.bits
            weights[f"{name}.weight"] = mx.dequantize(*parts)
        elif "weight" in module:
            weights[f"{name}.weight"] = module.weight
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return theirs.eval()


def their_logits(model: Any) -> mx.array:
    import torch

    with torch.no_grad():
        return mx.array(model(torch.tensor(IDS.tolist()), use_cache=False).logits.numpy())


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(("kind", "rslora"), [("lora", False), ("lora", True), ("dora", False)])
def test_an_adapter_of_peft_gives_the_same_logits(tmp_path: Path, kind: str, rslora: bool, bits: int | None) -> None:
    peft = pytest.importorskip("peft")
    import torch

    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "layers_to_transform": [1, 3],
    }
    config = peft.LoraConfig(use_dora=kind == "dora", use_rslora=rslora, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(torch_model(tmp_path / "base", bits), config)
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "magnitude" in name:
            parameter.data *= 1.2
    theirs.save_pretrained(tmp_path / "adapter")
    model = ours(bits)
    plain = model(IDS)
    model.set_adapters(tmp_path / "adapter")
    assert distance(their_logits(theirs), plain) > 0.1, "the adapter changes nothing"
    assert distance(model(IDS), their_logits(theirs)) < 1e-4
    assert distance(model.fused()(IDS, model.make_cache()), their_logits(theirs)) < 1e-4


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_our_adapter_loads_in_peft(tmp_path: Path, kind: str) -> None:
    peft = pytest.importorskip("peft")
    model = ours()
    write_adapter(tmp_path / "adapter", random_adapter(kind, model.config, num_layers=2), "peft")
    model.set_adapters(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(torch_model(tmp_path / "base", None), tmp_path / "adapter").eval()
    assert distance(model(IDS), their_logits(theirs)) < 1e-4


@pytest.mark.oracle
def test_two_adapters_with_scales_add_up_as_in_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = ours()
    for name, rank in {"first": 2, "second": 5}.items():
        write_adapter(tmp_path / name, random_adapter("lora", model.config, seed=rank, rank=rank), "peft")
    theirs = peft.PeftModel.from_pretrained(torch_model(tmp_path / "base", None), tmp_path / "first", "first")
    theirs.load_adapter(tmp_path / "second", "second")
    theirs.base_model.set_adapter(["first", "second"])
    for module in theirs.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("first", 0.5)
    model.set_adapters([tmp_path / "first", tmp_path / "second"], [0.5, 1.0])
    assert distance(model(IDS), their_logits(theirs.eval())) < 1e-4
