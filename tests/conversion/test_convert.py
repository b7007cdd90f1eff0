"""Conversion: the same model in MLX's layout, quantized or not, with limited memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import mlx.core as mx
import pytest
from conftest import distance
from conversions import peak_memory, random_checkpoint, weights_of
from mlx.utils import tree_flatten
from safetensors import safe_open

from exaone4_mlx import Exaone4Config, convert, load
from exaone4_mlx.cli.main import main
from exaone4_mlx.conversion import convert as converter, plan
from exaone4_mlx.conversion.request import ConversionOptions, ConversionRequest
from exaone4_mlx.conversion.upload import UploadError
from exaone4_mlx.files.folders import DEMO_FOLDER, read_json

IDS = mx.array([[40, 50, 60, 70, 80]])


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 4 bits. Tests must not change it."""
    return convert("demo", tmp_path_factory.mktemp("four bit") / "out", search=False).path


@pytest.fixture(scope="module")
def eight_bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 8 bits. Tests must not change it."""
    return convert("demo", tmp_path_factory.mktemp("eight bit") / "out", q_bits=8, search=False).path


def test_a_quantized_folder_equals_quantization_at_load(tmp_path: Path) -> None:
    summary = convert("demo", tmp_path / "out", q_bits=4, q_group_size=32, search=False)
    direct, _ = load("demo", q_bits=4, q_group_size=32)
    converted, _ = load(tmp_path / "out")
    assert distance(converted(IDS), direct(IDS)) == 0
    assert summary.bits_per_weight == pytest.approx(5.0, abs=0.02), "4 bits, and 32 bits per group of 32"
    assert summary.parameters == sum(array.size for _, array in tree_flatten(load("demo")[0].parameters()))
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) >= summary.bytes


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [
        (8, 64, "affine"),
        (4, 32, "mxfp4"),
        pytest.param(4, 16, "nvfp4", marks=pytest.mark.heavy),
        pytest.param(8, 32, "mxfp8", marks=pytest.mark.heavy),
    ],
)
def test_every_mode_is_loaded_again(bits: int, group: int, mode: str, tmp_path: Path) -> None:
    convert("demo", tmp_path / "out", q_bits=bits, q_group_size=group, q_mode=mode, search=False)
    convert("demo", tmp_path / "default", q_mode=mode, q_bits=bits, search=False)
    model, _ = load(tmp_path / "out")
    assert model.layers[0].mlp.gate_proj.mode == mode
    assert mx.all(mx.isfinite(model(IDS))).item()


def test_an_unquantized_conversion_changes_no_weight(tmp_path: Path, demo: Any) -> None:
    convert("demo", tmp_path / "out", quantize=False, dtype="float32")
    model, _ = load(tmp_path / "out")
    assert distance(model(IDS), demo[0](IDS)) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def test_several_shards_hold_every_tensor_once(four_bit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_SHARD_BYTES", 1_000_000)
    convert("demo", tmp_path / "sharded", search=False)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    names: list[str] = []
    for file in files:
        with safe_open(file, framework="mlx") as opened:
            assert opened.metadata() == {"format": "mlx"}
            names += opened.keys()
    assert sorted(names) == sorted(index["weight_map"])
    assert distance(load(four_bit)[0](IDS), load(tmp_path / "sharded")[0](IDS)) == 0


def test_tokenizer_and_licence_files_are_copied(tmp_path: Path, hf_folder: Path) -> None:
    (hf_folder / "LICENSE").write_text("LG's")
    (hf_folder / "notes.txt").write_text("not needed")
    convert(hf_folder, tmp_path / "out", search=False)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (hf_folder / name).read_bytes()
    added = {"tool_parser_type": "json_tools"}  # for mlx-lm's server
    assert (
        read_json(tmp_path / "out" / "tokenizer_config.json") == read_json(hf_folder / "tokenizer_config.json") | added
    )
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert "licence of the original weights applies" in (tmp_path / "out" / "README.md").read_text()


def test_the_config_has_every_spelling(four_bit: Path) -> None:
    config = json.loads((four_bit / "config.json").read_text())
    assert config["sliding_window_pattern"] == "LLLG"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"] == "llama3"
    assert config["quantization"] == config["quantization_config"] == {"bits": 4, "group_size": 64, "mode": "affine"}
    assert Exaone4Config.from_dict(config).layers == Exaone4Config.from_file(DEMO_FOLDER / "config.json").layers


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{}, {"search": False}, {"quantize": False, "dtype": "float16"}])
def test_peak_memory_does_not_depend_on_layers_or_tensor_size(options: dict[str, Any], tmp_path: Path) -> None:
    """A few rows of one tensor are in memory at a time."""
    conversions = []
    for layers, vocabulary in ((2, 3072), (6, 3072), (2, 9216)):
        folder = random_checkpoint(tmp_path / f"{layers}-{vocabulary}", layers, vocabulary)
        assert (folder / "model.safetensors").stat().st_size > 3_000_000
        conversions.append((folder, tmp_path / f"out-{layers}-{vocabulary}", options))
    peaks = peak_memory(*conversions, chunk=1 << 16)
    assert max(peaks) < 1.1 * min(peaks), peaks


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
        ({"recipe": "3bit"}, ValueError, "recipe must be one of 4bit, .*, not '3bit'"),
        ({"recipe": "4bit", "q_bits": 4}, ValueError, "the recipe 4bit sets the bits: leave out"),
        ({"target_bpw": 5.0}, ValueError, "target_bpw needs the recipe 4bit-quality"),
        ({"calibrate": "awq"}, ValueError, "calibrate must be one of auto, weighted, gptq, distill, not 'awq'"),
        ({"calibrate": "gptq", "q_mode": "mxfp4"}, ValueError, "must be affine to calibrate, not mxfp4"),
        (
            {"calibrate": None, "calibration_data": "x.jsonl"},
            ValueError,
            "calibration_data has no effect without calib",
        ),
        ({"calibrate": None, "num_samples": 2}, ValueError, "num_samples has no effect without calibration"),
        ({"num_samples": 0}, ValueError, "num_samples must be a whole number from 1 on, not 0"),
        ({"evaluation_data": "texts.jsonl"}, ValueError, "evaluation_data needs evaluate"),
        ({"calibrate": "gptq", "calibration_data": "texts.jsonl"}, FileNotFoundError, "there is no file texts.jsonl"),
        ({"upload_repo": "me/EXAONE-tiny"}, ValueError, "says so; choose"),
        ({"mlx_path": ".", "overwrite": True}, ValueError, "is a parent of its own source"),
        ({"mlx_path": "exists", "overwrite": True, "hf_path": "nowhere"}, FileNotFoundError, "no folder nowhere"),
        ({"mlx_path": "dangling"}, FileExistsError, "dangling already exists"),
        ({"hf_path": "no tokenizer"}, FileNotFoundError, "has no tokenizer.json"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
    ],
)
def test_invalid_requests_are_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], message: str, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf_folder.parent)
    hf_folder.rename("source")
    Path("exists").mkdir()
    Path("exists", "config.json").touch()
    Path("dangling").symlink_to("nowhere")
    shutil.copytree("source", "no tokenizer")
    Path("no tokenizer/tokenizer.json").unlink()
    before = sorted(path.name for path in Path().iterdir())
    with pytest.raises(error, match=message):
        convert(**({"hf_path": "source", "mlx_path": "out"} | options))
    assert sorted(path.name for path in Path().iterdir()) == before


# --- a quantized source ---------------------------------------------------------


def test_a_quantized_source_keeps_its_codes_unless_bits_are_given(four_bit: Path, tmp_path: Path) -> None:
    summary = convert(four_bit, tmp_path / "twice")
    assert "57 tensors keep their codes (MLX 4-bit)" in summary.notes[0]
    first, second = weights_of(four_bit), weights_of(tmp_path / "twice")
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_a_second_quantization_is_noted(eight_bit: Path, tmp_path: Path) -> None:
    summary = convert(eight_bit, tmp_path / "twice", q_bits=4, search=False)
    assert "57 tensors are MLX 8-bit and are quantized a second time" in summary.notes[0]
    assert summary.bits_per_weight == pytest.approx(4.5, abs=0.02)
    with pytest.raises(ValueError, match=r"is already quantized \(MLX 8-bit\); load it without q_bits"):
        load(eight_bit, q_bits=4)


def test_dequantized_weights_equal_the_quantized_ones(eight_bit: Path, tmp_path: Path) -> None:
    convert(eight_bit, tmp_path / "back", dequantize=True)
    quantized, full = load(eight_bit, dtype="float32")[0], load(tmp_path / "back", dtype="float32")[0]
    assert "quantization" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert distance(quantized(IDS), full(IDS)) < 0.2, "except for the rounding to bfloat16"
    with pytest.raises(ValueError, match="is in full precision: there is nothing to dequantize"):
        convert("demo", tmp_path / "out", dequantize=True)
    with pytest.raises(ValueError, match=r"is stored as MLX 8-bit; use dequantize"):
        convert(eight_bit, tmp_path / "out", quantize=False)


def test_layers_may_have_different_bits(four_bit: Path, tmp_path: Path, edit_json: Callable[..., None]) -> None:
    """As in the folders of mlx-lm's mixed recipes."""
    shutil.copytree(four_bit, tmp_path / "out")
    tensors, exact = weights_of(four_bit), weights_of(DEMO_FOLDER)
    name = "model.layers.0.mlp.down_proj"
    parts = mx.quantize(exact[f"{name}.weight"], group_size=32, bits=8)
    tensors |= {f"{name}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=True)}
    mx.save_safetensors(str(tmp_path / "out" / "model.safetensors"), tensors)
    quantization = {"bits": 4, "group_size": 64, name: {"bits": 8, "group_size": 32}}
    edit_json(tmp_path / "out" / "config.json", quantization=quantization)
    model, _ = load(tmp_path / "out")
    assert model.layers[0].mlp.down_proj.bits == 8
    assert model.layers[1].mlp.down_proj.bits == 4


@pytest.mark.heavy
def test_a_failed_upload_is_repeated_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    command = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "model.layers.7.mlp.down_proj.weight" in out and "4.511 bits per weight" in out and "disk needed" in out
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list((tmp_path / "out").iterdir()) == []
    summary = convert("demo", tmp_path / "real", search=False)
    assert values["bytes"] == summary.bytes and len(values["tensors"]) == 90
    assert main([*command[:4], str(tmp_path / "json"), "--verify", "--json"]) == 0
    values = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["errors"][0]["relative_error"] > 0


def test_no_path_of_the_user_is_written(tmp_path: Path, hf_folder: Path, edit_json: Callable[..., None]) -> None:
    edit_json(hf_folder / "tokenizer_config.json", name_or_path="/home/somebody/models")
    edit_json(hf_folder / "config.json", _name_or_path="/home/somebody/models")
    convert(hf_folder, tmp_path / "out", search=False)
    for file in (tmp_path / "out").glob("*.[jm]*"):
        text = file.read_text()
        assert "somebody" not in text and str(tmp_path) not in text, file.name


def test_options_are_the_fields_of_the_request() -> None:
    names = {"mx": mx, "Path": Path}  # which the module imports for type checkers only
    assert get_type_hints(ConversionOptions, None, names) == get_type_hints(ConversionRequest, None, names)
    with pytest.raises(TypeError, match="no option 'bits'; did you mean q_bits"):
        convert("demo", bits=4)
