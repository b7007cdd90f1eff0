"""LG's quantized formats, end to end: loaded, converted, and read by mlx-lm."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import TINY, distance, mostly_heavy, tiny_model
from packing import PACKERS, SMALL, e4m3, known, tensor, write
from ranks import parts

from exaone4_mlx import Exaone4Config, Exaone4ForCausalLM, convert, fit, load
from exaone4_mlx.checkpoint.share import Share
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import fill, named_parameters

IDS = mx.array([[40, 50, 60, 70, 80, 90, 11, 12, 13, 14, 15]])
VOCABULARY = {"vocab_size": 3072, "dtype": "float16"}


def release(folder: Path, title: str) -> tuple[Path, Exaone4ForCausalLM]:
    """A release in one of LG's formats with the demo's tokenizer, and the model in float32 that its weights define."""
    config = TINY | SMALL | VOCABULARY
    model = Exaone4ForCausalLM(Exaone4Config.from_dict(config))
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("recipe", "*.safetensors", "config.json"))
    tensors: dict[str, Any] = {}
    exact: dict[str, mx.array] = {}
    quantization: dict[str, Any] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    others = dict(named_parameters(tiny_model(dtype=mx.float16, **SMALL, vocab_size=3072)))
    for i, (name, array) in enumerate(named_parameters(model).items()):
        if "_proj." not in name:
            tensors[name], exact[name] = tensor("F16", others[name].tolist()), others[name].astype(mx.float32)
            continue
        shape = (array.shape[0], array.shape[1])
        if title == "FP8 128x128":
            rng = random.Random(i)
            codes = [
                [rng.choice([b for b in range(256) if b & 127 < 96]) for _ in range(shape[1])] for _ in range(shape[0])
            ]
            tensors[name] = tensor("F8_E4M3", codes)
            tensors[f"{name}_scale_inv"] = tensor("F32", [[2.0**-6]])
            exact[name] = mx.array([[e4m3(code) * 2.0**-6 for code in row] for row in codes])
        else:
            weight = known(4, 32, shuffled=title == "GPTQ 4-bit", shape=shape, seed=i)
            files, quantization = PACKERS[title](weight, name.removesuffix(".weight"))
            tensors |= files
            exact[name] = weight.weight
    fill(model, iter(exact.items()))
    return write(folder, (tensors, quantization), **config), model


TITLES = ["AWQ 4-bit", "GPTQ 4-bit", "compressed-tensors 4-bit", "FP8 128x128"]


@pytest.mark.parametrize("title", TITLES)
def test_a_release_loads_as_the_model_with_its_weights(title: str, tmp_path: Path) -> None:
    folder, exact = release(tmp_path / "release", title)
    if title in ("GPTQ 4-bit", "FP8 128x128"):
        with pytest.warns(UserWarning, match=f"is {title}, which MLX has no kernels for: it is computed in full"):
            model, _ = load(folder, dtype="float32")
    else:
        model, _ = load(folder, dtype="float32")
        assert model.layers[0].mlp.down_proj.bits == 4, "MLX's kernels compute it"
    assert distance(model(IDS), exact(IDS)) < 0.05, "except for the rounding of weights or biases to float16"


@pytest.mark.parametrize("title", mostly_heavy(TITLES, 1))
@pytest.mark.filterwarnings("ignore:.*MLX has no kernels for")
def test_ranks_have_slices_of_a_release(title: str, tmp_path: Path) -> None:
    """With the same data types: the ranks add their outputs."""
    folder, _ = release(tmp_path / "release", title)
    whole, found, share = named_parameters(load(folder)[0]), parts(folder, 2), Share(0, 2)
    for name, array in whole.items():
        if cut := share.cut(name):
            joined = mx.concatenate([part[name] for part in found], axis=cut.axis)
            assert {part[name].dtype for part in found} == {array.dtype} and mx.array_equal(joined, array), name


@pytest.mark.parametrize("title", mostly_heavy(TITLES, 1))
@pytest.mark.heavy
def test_a_release_is_converted_and_read_by_mlx_lm(title: str, tmp_path: Path) -> None:
    folder, exact = release(tmp_path / "release", title)
    summary = convert(folder, tmp_path / "out", q_bits=8 if title == "FP8 128x128" else None, verify=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model, _ = load(tmp_path / "out", dtype="float32")
    lossless = title not in ("GPTQ 4-bit", "FP8 128x128")
    if lossless:
        assert config["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
        assert f"14 tensors keep their codes ({title})" in summary.notes[0]
        assert max(error.relative_error for error in summary.errors) < 1e-3, "except for biases rounded to float16"
        assert distance(model(IDS), exact(IDS)) < 0.05
    else:
        assert f"tensors are {title} and are quantized a second time" in summary.notes[0]
        assert config["quantization"]["group_size"] == 64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlx_lm = pytest.importorskip("mlx_lm")
        theirs, _ = mlx_lm.load(str(tmp_path / "out"))
    theirs.set_dtype(mx.float32)
    assert distance(model(IDS), theirs(IDS)) < 1e-3


def test_a_release_is_converted_to_full_precision(tmp_path: Path) -> None:
    folder, exact = release(tmp_path / "release", "GPTQ 4-bit")
    convert(folder, tmp_path / "out", dequantize=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and "quantization" not in config
    assert distance(load(tmp_path / "out", dtype="float32")[0](IDS), exact(IDS)) < 0.05


@pytest.mark.parametrize("title", TITLES)
def test_fit_counts_the_loaded_bytes(title: str, tmp_path: Path) -> None:
    folder, _ = release(tmp_path / "release", title)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = named_parameters(load(folder)[0])
    assert fit(folder, max_kv_size=64).weights_bytes == pytest.approx(sum(a.nbytes for a in loaded.values()), rel=0.01)
