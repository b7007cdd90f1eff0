"""Converting: the same model under another name, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import distance
from mlx.utils import tree_flatten
from safetensors import safe_open

from exaone4_mlx import CheckpointError, Exaone4Config, Exaone4ForCausalLM, convert, load
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion import convert as converter, plan
from exaone4_mlx.conversion.prepare import prepare
from exaone4_mlx.conversion.request import ConversionRequest
from exaone4_mlx.conversion.upload import UploadError
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.parameters import named_parameters

IDS = mx.array([[40, 50, 60, 70, 80]])


def random_checkpoint(folder: Path, layers: int, vocabulary: int = 3072) -> Path:
    """The demo with other weights: as many layers and as long a vocabulary as wanted."""
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("recipe", "*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    pattern = ["sliding_attention"] * 3 + ["full_attention"]
    config |= {"num_hidden_layers": layers, "vocab_size": vocabulary, "layer_types": (pattern * layers)[:layers]}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = named_parameters(Exaone4ForCausalLM(Exaone4Config.from_dict(config)))
    weights = {name: mx.random.normal(array.shape, dtype=mx.bfloat16) for name, array in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def test_quantized_folder_equals_quantizing_while_loading(tmp_path: Path) -> None:
    summary = convert("demo", tmp_path / "out", q_bits=4, q_group_size=32, search=False)
    direct, _ = load("demo", q_bits=4, q_group_size=32)
    converted, _ = load(tmp_path / "out")
    assert distance(converted(IDS), direct(IDS)) == 0
    assert summary.bits_per_weight == pytest.approx(5.0, abs=0.02), "4 bits, and 32 for each group of 32"
    assert summary.parameters == sum(array.size for _, array in tree_flatten(load("demo")[0].parameters()))
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) >= summary.bytes


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [
        (8, 64, "affine"),
        *(pytest.param(*m, marks=pytest.mark.heavy) for m in ((4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8"))),
    ],
)
def test_every_mode_loads_back(bits: int, group: int, mode: str, tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", q_bits=bits, q_group_size=group, q_mode=mode)
    convert("demo", tmp_path / "default", q_mode=mode, q_bits=bits)
    model, _ = load(tmp_path / "out")
    assert model.layers[0].mlp.gate_proj.mode == mode
    assert mx.all(mx.isfinite(model(IDS))).item()


def test_unquantized_conversion_changes_no_weight(tmp_path: Path, demo: Any) -> None:
    convert("demo", tmp_path / "out", quantize=False, dtype="float32")
    model, _ = load(tmp_path / "out")
    assert distance(model(IDS), demo[0](IDS)) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def test_several_shards_hold_every_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert("demo", tmp_path / "single")
    monkeypatch.setattr(plan, "MAX_SHARD_BYTES", 1_000_000)
    convert("demo", tmp_path / "sharded")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    names: list[str] = []
    for file in files:
        with safe_open(file, framework="mlx") as opened:
            assert opened.metadata() == {"format": "mlx"}
            names += opened.keys()
    assert sorted(names) == sorted(index["weight_map"])
    assert distance(load(tmp_path / "single")[0](IDS), load(tmp_path / "sharded")[0](IDS)) == 0


def test_what_belongs_to_the_model_is_carried_over(tmp_path: Path, hf_folder: Path) -> None:
    (hf_folder / "LICENSE").write_text("LG's")
    (hf_folder / "notes.txt").write_text("not needed")
    convert(hf_folder, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (hf_folder / name).read_bytes()
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert "licence of the original weights applies" in (tmp_path / "out" / "README.md").read_text()


def test_config_carries_every_spelling(tmp_path: Path) -> None:
    convert("demo", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sliding_window_pattern"] == "LLLG"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"] == "llama3"
    assert config["quantization"] == config["quantization_config"] == {"bits": 4, "group_size": 64, "mode": "affine"}
    assert Exaone4Config.from_dict(config).layers == Exaone4Config.from_file(DEMO_FOLDER / "config.json").layers


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.heavy),
        pytest.param({"search": False}, marks=pytest.mark.heavy),
        {"quantize": False, "dtype": "float16"},
    ],
)
def test_memory_does_not_grow_with_layers_nor_with_tensors(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few rows are in memory at a time: the same for eight layers and for two, for long tables and for short ones."""
    monkeypatch.setattr(plan, "CHUNK_WEIGHTS", 1 << 16)
    peaks = []
    for layers, vocabulary in ((2, 3072), (8, 3072), (2, 12_288)):
        folder = random_checkpoint(tmp_path / f"{layers}-{vocabulary}", layers, vocabulary)
        mx.clear_cache()
        before = mx.get_active_memory()
        summary = convert(folder, tmp_path / f"out-{layers}-{vocabulary}", **options)
        assert summary.source_bytes > 3_000_000
        peaks.append(summary.peak_bytes - before)
        assert peaks[-1] < prepare(folder, tmp_path / "plan", ConversionRequest(**options)).peak_bytes
    assert max(peaks) < 1.1 * min(peaks), peaks


# --- nothing is half done ---------------------------------------------------


def test_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(done: int, total: int, stage: str) -> None:
        if done > total / 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        convert("demo", tmp_path / "new" / "parents" / "out", progress=full_disk)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_second_conversion_to_the_same_folder_waits_its_turn(tmp_path: Path) -> None:
    """Else one would rename the other's half-written folder."""

    def meanwhile(done: int, total: int, stage: str) -> None:
        with pytest.raises(FileExistsError, match=r"another conversion to .*out is running"):
            convert("demo", tmp_path / "out")

    convert("demo", tmp_path / "out", progress=meanwhile)
    load(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.docx", "README.md", "config.json", "Makefile"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_a_stranger_is_not_touched(tmp_path: Path, name: str, overwrite: bool) -> None:
    """One without our journal, whatever its files are called."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / name).write_text("years of work")
    with pytest.raises(FileExistsError, match=f"holds {name}, which no conversion wrote"):
        convert("demo", tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out.partial" / name).read_text() == "years of work"


def test_neighbours_are_not_touched(tmp_path: Path) -> None:
    for name in ("out.old", "out.replaced", ".out.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    convert("demo", tmp_path / "out")
    convert("demo", tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.old", "out.replaced", ".out.replaced"}


def test_what_came_to_be_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def meanwhile(done: int, total: int, stage: str) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"out was created meanwhile; the result is .*out.partial"):
        convert("demo", tmp_path / "out", progress=meanwhile)
    assert (tmp_path / "out" / "precious.txt").exists()
    (tmp_path / "out" / "precious.txt").unlink()
    (tmp_path / "out").rmdir()
    convert("demo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what was finished was only to be moved"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mlx_path": "exists"}, FileExistsError, "exists already exists; choose another folder"),
        ({"mlx_path": "source/inside"}, ValueError, "is inside its own source"),
        ({"q_bits": 9}, ValueError, "bits, not 9"),
        ({"q_mode": "int4"}, ValueError, "quantization mode 'int4' is unknown"),
        ({"q_mode": "mxfp4", "q_group_size": 64}, ValueError, "mxfp4 quantization has groups of 32, not 64"),
        ({"quantize": False, "q_bits": 4}, ValueError, "nothing is quantized here, so leave out q_bits"),
        ({"dequantize": True, "recipe": "4bit"}, ValueError, "nothing is quantized here, so leave out recipe"),
        ({"recipe": "3bit"}, ValueError, "recipe '3bit' is unknown; there are 4bit"),
        ({"recipe": "4bit", "q_bits": 4}, ValueError, "the recipe 4bit sets the bits: leave out"),
        ({"target_bpw": 5.0}, ValueError, "target_bpw needs the recipe 4bit-quality"),
        ({"calibrate": "awq"}, ValueError, "calibrate must be one of gptq, distill, not 'awq'"),
        ({"calibrate": "gptq", "q_mode": "mxfp4"}, ValueError, "needs affine scales and biases; mxfp4 has none"),
        ({"calibration_data": "texts.jsonl"}, ValueError, "calibration_data needs calibrate"),
        ({"evaluation_data": "texts.jsonl"}, ValueError, "evaluation_data needs evaluate"),
        ({"calibrate": "gptq", "calibration_data": "texts.jsonl"}, FileNotFoundError, "there is no file texts.jsonl"),
        ({"upload_repo": "me/EXAONE-tiny"}, ValueError, "says so; choose"),
        ({"mlx_path": "source"}, ValueError, "is inside its own source"),
        ({"mlx_path": ".", "overwrite": True}, ValueError, "is a parent of its own source"),
        ({"mlx_path": "exists", "overwrite": True, "hf_path": "nowhere"}, FileNotFoundError, "no folder nowhere"),
        ({"mlx_path": "dangling"}, FileExistsError, "dangling already exists"),
        ({"hf_path": "untold"}, FileNotFoundError, "has no tokenizer.json"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"hf_path": "nowhere"}, FileNotFoundError, "no folder nowhere"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], message: str, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf_folder.parent)
    hf_folder.rename("source")
    Path("exists").mkdir()
    Path("dangling").symlink_to("nowhere")
    shutil.copytree("source", "untold")
    Path("untold/tokenizer.json").unlink()
    before = sorted(path.name for path in Path().iterdir())
    with pytest.raises(error, match=message):
        convert(**({"hf_path": "source", "mlx_path": "out"} | options))
    assert sorted(path.name for path in Path().iterdir()) == before


# --- a source that is quantized already ---


def test_quantized_source_stays_as_it_is_unless_bits_are_asked_for(tmp_path: Path) -> None:
    convert("demo", tmp_path / "once")
    summary = convert(tmp_path / "once", tmp_path / "twice")
    assert "57 tensors keep their codes (MLX 4-bit)" in summary.notes[0]
    first, second = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("once", "twice"))
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_requantizing_says_that_it_loses_twice(tmp_path: Path) -> None:
    convert("demo", tmp_path / "once", q_bits=8)
    summary = convert(tmp_path / "once", tmp_path / "twice", q_bits=4)
    assert "57 tensors are MLX 8-bit and are quantized a second time" in summary.notes[0]
    assert summary.bits_per_weight == pytest.approx(4.5, abs=0.02)
    with pytest.raises(ValueError, match=r"is already quantized \(MLX 8-bit\); load it without q_bits"):
        load(tmp_path / "once", q_bits=4)


def test_dequantizing_gives_what_the_quantized_weights_stand_for(tmp_path: Path) -> None:
    convert("demo", tmp_path / "once", q_bits=8)
    convert(tmp_path / "once", tmp_path / "back", dequantize=True)
    quantized, full = load(tmp_path / "once", dtype="float32")[0], load(tmp_path / "back", dtype="float32")[0]
    assert "quantization" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert distance(quantized(IDS), full(IDS)) < 0.2, "but for the rounding to bfloat16"
    with pytest.raises(ValueError, match="is in full precision: there is nothing to dequantize"):
        convert("demo", tmp_path / "out", dequantize=True)
    with pytest.raises(ValueError, match=r"is stored as MLX 8-bit; use dequantize"):
        convert(tmp_path / "once", tmp_path / "out", quantize=False)


def test_layers_may_have_bits_of_their_own(tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """As in the folders of mlx-lm's mixed recipes."""
    convert("demo", tmp_path / "out")
    tensors = mx.load(str(tmp_path / "out" / "model.safetensors"))
    exact = mx.load(str(DEMO_FOLDER / "model.safetensors"))
    name = "model.layers.0.mlp.down_proj"
    parts = mx.quantize(exact[f"{name}.weight"], group_size=32, bits=8)
    tensors |= {f"{name}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)}
    mx.save_safetensors(str(tmp_path / "out" / "new.safetensors"), tensors)
    (tmp_path / "out" / "new.safetensors").rename(tmp_path / "out" / "model.safetensors")
    quantization = {"bits": 4, "group_size": 64, name: {"bits": 8, "group_size": 32}}
    edit_json(tmp_path / "out" / "config.json", quantization=quantization)
    model, _ = load(tmp_path / "out")
    assert model.layers[0].mlp.down_proj.bits == 8
    assert model.layers[1].mlp.down_proj.bits == 4


def test_failed_upload_is_tried_again_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Path] = []

    def upload(folder: Path, repo: str, notice: Any) -> str:
        sent.append(folder)
        if len(sent) == 1:
            raise UploadError("the hub is away")
        return f"https://hub/{repo}"

    monkeypatch.setattr(converter, "upload", upload)
    with pytest.raises(UploadError):
        convert("demo", tmp_path / "out", upload_repo="me/tiny-4bit")
    monkeypatch.setattr(converter, "quantize_mse", None)
    assert convert("demo", tmp_path / "out", upload_repo="me/tiny-4bit").page == "https://hub/me/tiny-4bit"
    assert sent == [tmp_path / "out"] * 2
    with pytest.raises(FileExistsError):
        convert("demo", tmp_path / "out", upload_repo="me/tiny-8bit", q_bits=8)


def test_weights_that_were_damaged_are_not_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(folder: Path, repo: str, notice: Any) -> str:
        raise UploadError("the hub is away")

    monkeypatch.setattr(converter, "upload", upload)
    with pytest.raises(UploadError):
        convert("demo", tmp_path / "out", upload_repo="me/tiny")
    data = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    data[-5000] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="was changed after the conversion; convert again"):
        convert("demo", tmp_path / "out", upload_repo="me/tiny")


def test_casting_what_is_packed_is_measured(tmp_path: Path) -> None:
    """Codes stay, scales are rounded: no bit-for-bit copy, and not told as one."""
    convert("demo", tmp_path / "once", q_bits=8, dtype="float32")
    summary = convert(tmp_path / "once", tmp_path / "twice", dtype="bfloat16", verify=True)
    assert 1e-4 < max(error.relative_error for error in summary.errors or ()) < 1e-2


def test_weights_that_a_dtype_makes_zero_are_noticed(tmp_path: Path, hf_folder: Path) -> None:
    weights = mx.load(str(hf_folder / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] * 1e-25
    mx.save_safetensors(str(hf_folder / "new.safetensors"), weights)
    (hf_folder / "new.safetensors").rename(hf_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"the error of {name} is larger than that of zeros"):
        convert(hf_folder, tmp_path / "out", dtype="float16", quantize=False, verify=True)


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "model.layers.7.mlp.down_proj.weight" in out and "4.511 bits per weight" in out and "disk needed" in out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list((tmp_path / "out").iterdir()) == []
    summary = convert("demo", tmp_path / "real", verify=True)
    assert told["bytes"] == summary.bytes and len(told["tensors"]) == 90
    assert main([*command[:4], str(tmp_path / "json"), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["errors"][0]["relative_error"] > 0


def test_paths_of_the_user_are_not_told(tmp_path: Path, hf_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(hf_folder / "tokenizer_config.json", name_or_path="/home/somebody/models")
    edit_json(hf_folder / "config.json", _name_or_path="/home/somebody/models")
    convert(hf_folder, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.[jm]*"):
        text = file.read_text()
        assert "somebody" not in text and str(tmp_path) not in text, file.name
