"""Calibrated conversions: less loss at the same size, and the same bytes after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conversions import digests, interrupted, killed, peak_memory, random_checkpoint, weights_of

from exaone4_mlx import ConversionSummary, Exaone4ForCausalLM, Tokenizer, convert, evaluate, load
from exaone4_mlx.conversion import calibrate, convert as converter, prepare as prepared, settings
from exaone4_mlx.conversion.importance import block_importance
from exaone4_mlx.conversion.layerwise import LayerwiseModel, run_block
from exaone4_mlx.conversion.prepare import prepare
from exaone4_mlx.conversion.request import ConversionRequest
from exaone4_mlx.conversion.shards import Shards
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import named_parameters, open_checkpoint

TEXTS = (
    "Which one is bigger, 3.12 vs 3.9? 3.9 is bigger than 3.12.",
    "대한민국의 수도는 서울입니다. 부산의 날씨는 비가 오고 11도입니다.",
    "La capital de Italia es Roma. 348 más 275 son 623, y 7 más son 630.",
    "def roll_dice(max_num: int) -> int:\n    return random.randint(1, max_num)",
)
OTHERS = ("What is the capital of Peru? The capital of Peru is Lima.", "3.7과 3.65 중 어느 것이 더 큰가요?")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, texts in {"calibration": TEXTS, "evaluation": OTHERS}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


@pytest.fixture(scope="module")
def converted(data: Path) -> dict[str | None, Path]:
    """The demo, converted by each method."""
    texts = {"calibration_data": str(data / "calibration.jsonl")}
    options: dict[str | None, dict[str, str]] = {None: {}} | {
        m: texts | {"calibrate": m} for m in ("weighted", "gptq", "distill")
    }
    peak_memory(*(("demo", data / str(method), chosen) for method, chosen in options.items()))
    return {method: data / str(method) for method in options}


def loss(folder: Path, texts: Path) -> float:
    return evaluate(folder, "demo", data=texts).rows[0].mean_kl


@pytest.mark.heavy
def test_each_method_reduces_the_loss_at_the_same_size(converted: dict[str | None, Path], data: Path) -> None:
    """On a few texts, which are also the evaluation texts. The README has figures on disjoint texts."""
    losses = {method: loss(folder, data / "calibration.jsonl") for method, folder in converted.items()}
    assert losses["distill"] <= losses["gptq"] < min(losses["weighted"], losses[None])
    sizes = {json.loads((folder / "report.json").read_text())["conversion"]["bytes"] for folder in converted.values()}
    assert len(sizes) == 1


@pytest.mark.heavy
def test_calibrated_folders_have_the_usual_layout(converted: dict[str | None, Path]) -> None:
    """The same names, shapes and dtypes as without calibration."""
    plain, *others = map(weights_of, converted.values())
    for weights in others:
        assert {name: (a.shape, a.dtype) for name, a in weights.items()} == {
            name: (a.shape, a.dtype) for name, a in plain.items()
        }
    for folder in converted.values():
        assert load(folder)[0].layers[0].mlp.up_proj.bits == 4
        assert sorted(file.name for file in folder.glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.heavy
def test_distillation_tunes_scales_biases_and_norms_only(converted: dict[str | None, Path]) -> None:
    before, after = (weights_of(converted[method]) for method in ("gptq", "distill"))
    changed = {name for name in before if not mx.array_equal(before[name], after[name]).item()}
    assert all(name.endswith((".scales", ".biases", "norm.weight")) for name in changed)


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["weighted", "distill"])
def test_a_resumed_calibration_writes_the_same_bytes(
    converted: dict[str | None, Path], data: Path, tmp_path: Path, method: str
) -> None:
    options = {"calibrate": method, "calibration_data": str(data / "calibration.jsonl")}
    assert killed(tmp_path / "out", options, number=4)
    interrupted(tmp_path / "out", number=6, **options)
    convert("demo", tmp_path / "out", **options)
    assert digests(tmp_path / "out") | {"README.md": ""} == digests(converted[method]) | {"README.md": ""}


@pytest.fixture
def small(tmp_path: Path, data: Path) -> Callable[..., ConversionSummary]:
    """Distills a model of one layer into tmp_path / "out"."""
    source = random_checkpoint(tmp_path / "source", 1)
    options = {"calibrate": "distill", "calibration_data": data / "evaluation.jsonl"}
    return lambda **more: convert(source, tmp_path / "out", **options, **more)


def tune_all(model: Exaone4ForCausalLM, *_: Any, **__: Any) -> dict[str, mx.array]:
    """Distillation that changes every tuned value."""
    tuned = {name: array for name, array in named_parameters(model).items() if not name.endswith(".weight")}
    tuned |= {name: array for name, array in named_parameters(model).items() if name.endswith("norm.weight")}
    return {name: (1.1 * array).astype(array.dtype) for name, array in tuned.items()}


@pytest.mark.heavy
def test_tuned_norms_are_verified_as_tuned(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not copies, although they have the dtype of the source."""
    monkeypatch.setattr(calibrate, "distill", tune_all)
    errors = {error.name: error.relative_error for error in small(verify=True).errors}
    assert errors["model.norm.weight"] == pytest.approx(0.1, abs=0.01)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {tensor["work"] for tensor in report["conversion"]["tensors"]} == {"quantize", "tune"}


@pytest.mark.heavy
def test_a_failed_distillation_keeps_the_weights_of_gptq(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(calibrate, "distill", fail)
    with pytest.raises(MemoryError), pytest.warns(UserWarning, match="the weights are complete and stay in"):
        small()
    monkeypatch.setattr(calibrate, "distill", tune_all)
    monkeypatch.setattr(calibrate, "gptq", None)
    monkeypatch.setattr(calibrate, "quantize_block", None)
    small()


@pytest.mark.heavy
def test_damage_after_the_tuning_starts_the_calibration_again(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "distill", tune_all)
    whole = digests(small().path)
    shutil.rmtree(tmp_path / "out")

    def damage(shards: Shards, plan: Any) -> None:
        file = shards.folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100] + bytes(100))
        raise OSError("away")

    monkeypatch.setattr(converter, "check_written", damage)
    with pytest.raises(OSError, match="away"):
        small(notice=lambda text: None)
    monkeypatch.setattr(converter, "check_written", lambda shards, plan: None)
    small()
    assert digests(tmp_path / "out") == whole


@pytest.mark.heavy
def test_chats_are_answered_once_in_a_conversion(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept beside the weights for a resumed run, and are not in the result."""
    source, made = random_checkpoint(tmp_path / "source", 1), []

    def answer(*_: Any, **__: Any) -> list[tuple[list[int], int]]:
        made.append(1)
        return [([5, 6, 7] * 300, 1)]

    monkeypatch.setattr(calibrate, "make_chats", answer)
    monkeypatch.setattr(settings, "CALIBRATION", data / "calibration.jsonl")
    partial = interrupted(tmp_path / "out", number=1, source=source, calibrate="gptq")
    assert (partial / "chats.json").exists()
    folder = convert(source, tmp_path / "out", calibrate="gptq").path
    assert len(made) == 1 and not (folder / "chats.json").exists()
    assert "gptq, also on the model's own chats" in (folder / "README.md").read_text()
    with_chats = {
        method: "chats" in prepare(source, tmp_path / "x", ConversionRequest(calibrate=method)).plan.options
        for method in ("weighted", "gptq", "distill")
    }
    assert with_chats == {"weighted": False, "gptq": True, "distill": True}
    given = ConversionRequest(calibrate="gptq", calibration_data=data / "calibration.jsonl")
    assert not prepare(source, tmp_path / "x", given).has_chats, "texts that are given are the only ones"
    monkeypatch.setattr(prepared, "can_answer", lambda opened: False)
    assert not prepare(source, tmp_path / "x", ConversionRequest(calibrate="gptq")).has_chats


def test_auto_is_gptq_on_some_texts_on_a_gpu(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = data / "calibration.jsonl"

    def method(**options: Any) -> tuple[str | None, int | None, str]:
        found = prepare("demo", tmp_path / "out", ConversionRequest(**options))
        assert not found.has_chats
        return found.request.calibrate, found.request.num_samples, " ".join(found.notes)

    assert method()[0] is None and "no GPU here; --calibrate gptq --num-samples 48 loses" in method()[2]
    assert method(calibration_data=texts)[:2] == ("weighted", None), "few tokens, but given to be used"
    monkeypatch.setattr(settings, "LEAST_TOKENS", 100)
    assert method(calibration_data=texts)[:2] == ("gptq", None)
    assert method(num_samples=3)[:2] == ("gptq", 3)
    assert method(calibrate="weighted") == ("weighted", 48, ""), "who asks for a method gets no advice"
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert method()[:2] == ("gptq", 48) and "--calibrate gptq reads all" in method()[2]
    none = ({"q_bits": 8}, {"search": False}, {"recipe": "mxfp4"}, {"quantize": False}, {"calibrate": None})
    assert {method(**options) for options in none} == {(None, None, "")}
    for given in ({"calibration_data": texts}, {"num_samples": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} has no effect: there is no search for scales"):
            method(recipe="mxfp4", **given)
    monkeypatch.setattr(settings, "memory_of_this_machine", lambda: 1 << 20)
    assert method()[:2] == ("weighted", 48) and "GPTQ needs more of them, or takes long" in method()[2]
    monkeypatch.setattr(settings, "memory_of_this_machine", lambda: 1 << 40)
    monkeypatch.setattr(settings, "QUICK_PARAMETERS", 1 << 20)
    assert method()[:2] == ("weighted", 48)


def test_texts_and_config_are_part_of_the_plan(data: Path, tmp_path: Path) -> None:
    def plan(source: Any = "demo", texts: Path = data / "calibration.jsonl", n: int | None = None) -> tuple[int, str]:
        request = ConversionRequest(calibrate="gptq", calibration_data=texts, num_samples=n)
        found = prepare(source, tmp_path / "out", request)
        return len(found.sequences), found.plan.digest

    (every, whole), (few, part) = plan(), plan(n=2)
    assert few == 2 < every and whole != part
    assert plan(n=99) == (every, whole), "all texts are all texts"
    (tmp_path / "same.txt").write_bytes((data / "calibration.jsonl").read_bytes())
    assert plan(texts=tmp_path / "same.txt")[1] != whole
    source = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "source"))
    before, config = plan(source)[1], json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert plan(source)[1] != before, "other hidden states"


def test_columns_that_matter_lose_less(data: Path, tmp_path: Path) -> None:
    """The columns of a projection count by the second moment of their input."""
    opened = open_checkpoint(DEMO_FOLDER, Exaone4ForCausalLM)
    model = LayerwiseModel(opened.source, opened.config)
    states = model.embed([Tokenizer.from_pretrained(DEMO_FOLDER).encode(text) for text in TEXTS])
    importance, outputs = block_importance(model.block(0), states)
    assert mx.allclose(outputs[0], run_block(model.block(0), states[:1])[0], atol=1e-5).item()
    options = {"calibrate": "weighted", "calibration_data": data / "calibration.jsonl"}
    folders = [convert("demo", tmp_path / str(number), **o).path for number, o in enumerate((options, {}))]
    for projection, weights in importance.items():
        name = f"model.layers.0.{projection}"
        read = [open_checkpoint(folder, Exaone4ForCausalLM).source.weight(name, dtype=mx.float32) for folder in folders]
        change = [mx.sum(mx.square(one - opened.source.weight(name)) * weights).item() for one in read]
        assert change[0] < change[1], name


def test_every_token_of_a_long_text_is_calibrated_on(tmp_path: Path, demo: Any) -> None:
    text = " ".join(TEXTS * 10)
    (tmp_path / "book.txt").write_text(text)
    request = ConversionRequest(calibrate="distill", calibration_data=tmp_path / "book.txt")
    sequences = prepare("demo", tmp_path / "out", request).sequences
    assert len(sequences) > 1 and max(map(len, sequences)) == 512
    assert demo[1].decode([id for ids in sequences for id in ids]) == text
    (tmp_path / "book.txt").write_text(TEXTS[0])
    with pytest.raises(
        ValueError, match=r"distill needs two texts, or one of more than 512 .* 1 short text of .*book.txt"
    ):
        prepare("demo", tmp_path / "out", request)


def test_other_texts_are_another_plan(data: Path) -> None:
    partial = interrupted(data / "other", number=2, calibrate="gptq", calibration_data=data / "calibration.jsonl")
    with pytest.raises(FileExistsError, match="belongs to a conversion with other options"):
        convert("demo", data / "other", calibrate="gptq", calibration_data=data / "evaluation.jsonl")
    assert partial.exists()


def test_evaluation_on_calibration_texts_is_refused(data: Path) -> None:
    texts = data / "calibration.jsonl"
    with pytest.raises(ValueError, match=r"share .which one is bigger.*the measured loss would be too small"):
        convert("demo", data / "x", calibrate="gptq", calibration_data=texts, evaluate=True, evaluation_data=texts)


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{"recipe": "4bit-quality"}, {"q_bits": 3}, {"dtype": "float16"}], ids=str)
def test_calibration_works_with_recipes_and_dtypes(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    texts = data / "evaluation.jsonl"
    summary = convert("demo", tmp_path / "out", calibrate="gptq", calibration_data=texts, verify=True, **options)
    assert summary.errors is not None
    assert max(error.relative_error for error in summary.errors) < 0.5
    convert("demo", tmp_path / "plain", **options)
    assert loss(tmp_path / "out", texts) < loss(tmp_path / "plain", texts)
