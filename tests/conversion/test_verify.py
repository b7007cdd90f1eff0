"""Damage is noticed: on the disk, in the source, and in a result before it is uploaded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conversions import edit_weights

from exaone4_mlx import CheckpointError, convert
from exaone4_mlx.conversion import convert as converter
from exaone4_mlx.conversion.upload import UploadError

NORM, UP_PROJ = "model__norm__weight", "model__layers__3__mlp__up_proj__weight"


def flip_a_bit(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_bytes_that_change_on_the_disk_are_noticed_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = converter.check_written

    def damaged(shards: Any, plan: Any) -> None:
        flip_a_bit(shards.folder / "model.safetensors", -1000)
        check(shards, plan)

    monkeypatch.setattr(converter, "check_written", damaged)
    notices: list[str] = []
    with pytest.raises(CheckpointError, match="differs from the written bytes; check the disk"):
        convert("demo", tmp_path / "out", search=False, notice=notices.append)
    assert notices == [
        f"the weights are complete and stay in {tmp_path}/out.partial; the same conversion resumes there"
    ]
    monkeypatch.setattr(converter, "check_written", check)
    convert("demo", tmp_path / "out", search=False)


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"has 0.00 GB free, and 0.05 GB are needed"):
        convert("demo", tmp_path / "out", search=False)
    assert list(tmp_path.iterdir()) == []


def ending_with(value: float) -> Callable[[mx.array], mx.array]:
    def change(weight: mx.array) -> mx.array:
        weight[-1] = value
        return weight

    return change


def times(factor: float) -> Callable[[mx.array], mx.array]:
    return lambda weight: weight * factor


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        (UP_PROJ, ending_with(math.nan), {}, "model.layers.3.mlp.up_proj.weight holds NaN or infinity"),
        (NORM, ending_with(math.inf), {}, "model.norm.weight holds NaN or infinity"),
        (UP_PROJ, ending_with(math.nan), {"calibrate": "gptq"}, "model.layers.3.mlp.up_proj.weight holds NaN or infi"),
        (NORM, times(1e6), {"dtype": "float16"}, "model.norm.weight holds values beyond the range of float16; use bfloat16"),
        (UP_PROJ, times(1e-25), {"dtype": "float16", "quantize": False, "verify": True},
         "the error of model.layers.3.mlp.up_proj.weight is larger than that of zeros"),
    ],
)  # fmt: skip
def test_values_that_the_result_cannot_hold_are_refused(
    name: str, change: Any, options: dict[str, Any], message: str, tmp_path: Path, hf_folder: Path
) -> None:
    edit_weights(hf_folder, **{name: change})
    if "calibrate" in options:
        (tmp_path / "texts.txt").write_text("Hello")
        options = options | {"calibration_data": tmp_path / "texts.txt"}
    with pytest.raises(CheckpointError, match=message):
        convert(hf_folder, tmp_path / "out", notice=lambda text: None, **options)
    assert (tmp_path / "out.partial").exists() == ("verify" in options), "only complete weights are kept"


def test_damaged_weights_are_not_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(folder: Path, repo: str, notice: Any) -> str:
        raise UploadError("the hub is away")

    monkeypatch.setattr(converter, "upload", upload)
    with pytest.raises(UploadError):
        convert("demo", tmp_path / "out", upload_repo="me/tiny", search=False)
    flip_a_bit(tmp_path / "out" / "model.safetensors", -5000)
    with pytest.raises(CheckpointError, match="was changed after the conversion; convert again"):
        convert("demo", tmp_path / "out", upload_repo="me/tiny", search=False)


def test_the_error_of_cast_scales_is_measured(tmp_path: Path) -> None:
    """Codes stay and scales are rounded, which is not a bit-for-bit copy."""
    convert("demo", tmp_path / "once", q_bits=8, dtype="float32", search=False)
    summary = convert(tmp_path / "once", tmp_path / "twice", dtype="bfloat16", verify=True)
    assert 1e-4 < max(error.relative_error for error in summary.errors or ()) < 1e-2
