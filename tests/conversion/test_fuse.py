"""Adapters are fused into weights by the converter, and exported with their licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from adapters import random_adapter
from commands import errors
from conftest import distance
from conversions import random_checkpoint
from mlx.utils import tree_flatten

from exaone4_mlx import CheckpointError, Exaone4Config, convert, evaluate, export_adapter, fuse, load
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion.texts import HELD_OUT
from exaone4_mlx.files.folders import DEMO_FOLDER, read_json
from exaone4_mlx.model.adapter import Adapter, AdapterConfig
from exaone4_mlx.model.adapter_file import read_adapter, write_adapter

IDS = mx.array([[40, 50, 60, 70, 80, 90]])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoRA of the demo's last two layers."""
    folder = tmp_path_factory.mktemp("adapters") / "dora"
    write_adapter(folder, random_adapter("dora", Exaone4Config.from_pretrained("demo"), num_layers=2, scale=0.5))
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    write_adapter(folder, random_adapter("lora", Exaone4Config.from_pretrained("demo"), num_layers=2, scale=0.5))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    passages = [one["text"][:120] for one in map(json.loads, HELD_OUT.read_text().splitlines()) if "text" in one]
    file.write_text("".join(json.dumps({"kind": "some", "text": text}) + "\n" for text in passages[:12]))
    return file


def logits(path: Any, **options: Any) -> mx.array:
    return load(path, dtype="float32", **options)[0](IDS)


def test_a_fused_folder_computes_what_base_and_adapter_compute(adapter: Path, lora: Path, tmp_path: Path) -> None:
    given = {"adapter_path": [adapter, lora], "adapter_scale": [1.0, 0.5]}
    summary = fuse("demo", mlx_path=tmp_path / "out", dtype="float32", verify=True, **given)
    assert distance(logits(tmp_path / "out"), logits("demo", **given)) < 1e-3
    assert distance(logits(tmp_path / "out"), logits("demo")) > 0.1, "the adapters change nothing"
    assert summary.bits_per_weight == 32 and "quantization" not in read_json(tmp_path / "out" / "config.json")
    report = read_json(tmp_path / "out" / "report.json")["conversion"]
    assert report["adapters"] == [
        {"name": "dora", "type": "dora", "scale": 1.0, "rank": 3},
        {"name": "lora", "type": "lora", "scale": 0.5, "rank": 3},
    ]
    works = {tensor["name"]: tensor["work"] for tensor in report["tensors"]}
    assert works["model.layers.7.mlp.up_proj.weight"] == "fuse" and works["model.layers.5.mlp.up_proj.weight"] == "cast"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The weights have adapters fused into them: dora (dora, scale 1), lora (lora, scale 0.5)." in card


def test_without_options_the_form_is_that_of_the_base(adapter: Path, tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", recipe="mixed_4_6", search=False)
    fuse(tmp_path / "base", adapter, tmp_path / "out")
    base, fused = (read_json(tmp_path / name / "config.json")["quantization"] for name in ("base", "out"))
    assert base == fused
    (before, _), (after, _) = load(tmp_path / "base"), load(tmp_path / "out")
    first, last = ((one.layers[0].mlp.up_proj, one.layers[7].mlp.up_proj) for one in (before, after))
    assert mx.array_equal(first[0].weight, last[0].weight), "unchanged weights keep their codes"
    assert not mx.array_equal(first[1].weight, last[1].weight)
    fuse(tmp_path / "base", adapter, tmp_path / "full", dequantize=True, dtype="float32")
    exact = logits(tmp_path / "base", adapter_path=adapter)
    assert distance(logits(tmp_path / "full"), exact) < 0.05
    assert distance(logits(tmp_path / "out"), exact) < distance(logits(tmp_path / "base"), exact)


def test_an_adapter_beyond_the_range_of_the_new_weights_is_named(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight with .*/lora holds values beyond the range of float16; use bfl"):
        fuse("demo", mlx_path=tmp_path / "out", adapter_path=[lora], adapter_scale=1e7, dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_error_search_loses_less_than_minimum_and_maximum(adapter: Path, texts: Path, tmp_path: Path) -> None:
    found = {}
    for search in (True, False):
        summary = fuse(
            "demo", adapter, tmp_path / str(search), q_bits=4, search=search, evaluate=True, evaluation_data=texts
        )
        assert summary.evaluation is not None
        assert summary.evaluation.reference == "demo + dora", "compared with the base and the adapter"
        found[search] = summary.evaluation.rows[0].mean_kl
        again = evaluate(tmp_path / str(search), "demo", data=texts, reference_adapters=[(read_adapter(adapter), 1.0)])
        assert again.rows[0].mean_kl == pytest.approx(found[search], rel=1e-4)
    assert found[True] < found[False]


@pytest.mark.heavy
def test_evaluate_compares_with_the_model_without_the_adapter(adapter: Path, texts: Path, tmp_path: Path) -> None:
    found = evaluate("demo", adapter_path=adapter, data=texts)
    fuse("demo", adapter, tmp_path / "out", dtype="float32")
    assert found.rows[0].mean_kl == pytest.approx(
        evaluate(tmp_path / "out", "demo", data=texts).rows[0].mean_kl, rel=1e-3
    )
    assert found.model == f"demo + {adapter}" and found.reference == "demo"
    assert evaluate("demo", adapter_path=adapter, adapter_scale=0.0, data=texts).rows[0].mean_kl < 1e-6
    with pytest.raises(ValueError, match="reference is needed: the model to compare with"):
        evaluate("demo", data=texts)


def test_an_evaluation_that_computes_nan_names_the_adapter(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A short text.")
    with pytest.raises(ValueError, match=r"demo \+ .*/lora or demo computes NaN on these texts"):
        evaluate("demo", adapter_path=lora, adapter_scale=1e34, data=tmp_path / "text.txt")


def test_whole_weights_are_fused(tmp_path: Path) -> None:
    model, _ = load("demo")
    weights = dict(tree_flatten(model.parameters()))
    full = Adapter(
        AdapterConfig("full"),
        {name: weights[name] * 2 for name in ("model.norm.weight", "model.layers.3.mlp.up_proj.weight")},
    )
    fuse("demo", full, tmp_path / "out")
    model.set_adapters(full)
    assert distance(load(tmp_path / "out")[0](IDS), model(IDS)) < 0.1
    wrong = Adapter(AdapterConfig("full"), {"model.norm.weight": mx.ones(3)})
    with pytest.raises(ValueError, match=r"has model.norm.weight, which .* has in shape \(256,\), not \(3,\)"):
        fuse("demo", wrong, tmp_path / "wrong")


def test_another_adapter_is_another_conversion(adapter: Path, lora: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """An interrupted run is resumed by the same adapters and scales only."""
    from exaone4_mlx.conversion import convert as converter

    def fail(*given: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(converter, "write_report", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            fuse("demo", adapter, tmp_path / "out", notice=lambda text: None)
    assert (tmp_path / "out.partial").is_dir()
    for options in ({"adapter_path": lora}, {"adapter_path": adapter, "adapter_scale": 0.5}):
        with pytest.raises(FileExistsError, match="a conversion with other options"):
            fuse("demo", mlx_path=tmp_path / "out", **options)
    fuse("demo", adapter, tmp_path / "out")


@pytest.mark.heavy
def test_memory_does_not_depend_on_the_number_of_layers(tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 16):
        base = random_checkpoint(tmp_path / f"base {layers}", layers)
        given = random_adapter("dora", load(base)[0].config)
        mx.clear_cache()
        peaks.append(fuse(base, given, tmp_path / f"out {layers}", q_bits=4).peak_bytes - given.nbytes)
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("layout", ["peft", "mlx-lm"])
def test_an_adapter_is_exported_with_card_and_licence(
    lora: Path, layout: str, tmp_path: Path, edit_json: Callable[..., None]
) -> None:
    base = tmp_path / "EXAONE-tiny"
    shutil.copytree(DEMO_FOLDER, base, ignore=shutil.ignore_patterns("recipe", "draft", "README.md"))
    (base / "LICENSE").write_text("the licence")
    export_adapter(base, lora, tmp_path / "out", layout)
    given, read = read_adapter(lora), read_adapter(tmp_path / "out")
    assert all(mx.array_equal(given.arrays[name], array) for name, array in read.arrays.items())
    assert read.config.base == "EXAONE-tiny", "no path of this machine"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"in the format of {layout}" in card and 'name begins with "EXAONE"' in card
    assert (tmp_path / "out" / "LICENSE").read_text() == "the licence"
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export_adapter(base, lora, tmp_path / "out", layout)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_fuses_and_says_how_the_licence_names_derivatives(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "EXAONE-tiny"
    shutil.copytree(DEMO_FOLDER, base, ignore=shutil.ignore_patterns("recipe", "draft", "README.md"))
    for name, warns in (("fused", True), ("EXAONE-tiny-mine", False)):
        assert (
            main(["fuse", "--model", str(base), "--adapter-path", str(lora), "--save-path", str(tmp_path / name)]) == 0
        )
        assert ('begins with "EXAONE": rename fused' in capsys.readouterr().err) is warns
    flags = ["fuse", "--model", "demo", "--adapter-path", str(lora), "--mlx-path", str(tmp_path / "peft")]
    assert main([*flags, "--export", "peft"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'peft'}\n" and read_adapter(tmp_path / "peft").modules
    assert main([*flags[:-1], str(tmp_path / "plan"), "--q-bits", "4", "--dry-run"]) == 0
    assert not (tmp_path / "plan").exists()


def test_the_command_refuses_what_it_cannot_do(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--mlx-path", str(tmp_path / "out"))
    assert "--adapter-path is needed" in errors(capsys, "fuse", "--model", "demo", *out)
    flags = ("fuse", "--model", "demo", "--adapter-path", str(lora), *out)
    assert "takes one --adapter-path and no --adapter-scale" in errors(
        capsys, *flags, "--export", "peft", "--adapter-scale", "0.5"
    )
    assert "there is nothing to dequantize" in errors(capsys, *flags, "--dequantize")
    assert not (tmp_path / "out").exists()
