"""The error of a weight's rounding: that of its block's outputs."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from conversions import random_checkpoint

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.conversion import sensitivity
from exaone4_mlx.conversion.prepare import prepare
from exaone4_mlx.conversion.request import ConversionRequest
from exaone4_mlx.conversion.sensitivity import block_errors
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import open_checkpoint


@pytest.mark.heavy
def test_each_projection_has_the_error_of_its_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(random_checkpoint(tmp_path / "source", 2), Exaone4ForCausalLM)
    texts = [[3 * i % 60 for i in range(40)] for _ in range(6)]
    two, four, eight = (block_errors(opened, texts, Quantization(bits, 32)) for bits in (2, 4, 8))
    assert len(four) == 14 and all(two[name] > 10 * four[name] > 100 * eight[name] > 0 for name in four)
    read = sensitivity.LayerwiseModel.embed
    monkeypatch.setattr(
        sensitivity.LayerwiseModel, "embed", lambda model, given: seen.append(len(given)) or read(model, given)
    )
    monkeypatch.setattr(sensitivity, "TOKENS", 80)
    seen: list[int] = []
    block_errors(opened, texts, Quantization(4, 32))
    assert seen == [2], "240 tokens are read in part"


def test_outputs_that_are_zero_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(random_checkpoint(tmp_path / "source", 1), Exaone4ForCausalLM)
    one, size = mx.random.normal((1, 4, opened.config.hidden_size)), Quantization(4, 32)
    found = []
    for states in (one, mx.concatenate([mx.zeros_like(one), one], axis=1)):
        monkeypatch.setattr(sensitivity.LayerwiseModel, "embed", lambda *_, states=states: [states])
        found.append(block_errors(opened, [[1]], size))
    assert all(0 < error < 1 for errors in found for error in errors.values()), found


@pytest.mark.heavy
def test_quality_takes_its_bits_from_errors_where_there_are_texts(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("Which one is bigger, 3.12 vs 3.9? 3.9 is bigger than 3.12.\n---\n대한민국의 수도는 서울입니다.")
    plans = [
        prepare(DEMO_FOLDER, tmp_path / "out", ConversionRequest(recipe="4bit-quality", **more)).plan
        for more in (
            {},
            {"calibrate": "gptq", "calibration_data": texts},
            {"calibrate": "gptq", "calibration_data": texts},
        )
    ]
    rule, measured, again = ([tensor.quantization for tensor in plan.tensors] for plan in plans)
    assert measured != rule and measured == again and plans[1].digest == plans[2].digest
    assert all(4.8 < plan.bits_per_weight <= 4.85 for plan in plans)
