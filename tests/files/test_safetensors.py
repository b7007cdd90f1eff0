"""The tensors of a folder are found by their headers, and an error names the damaged file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx import CheckpointError
from exaone4_mlx.files.safetensors import INDEX_NAME, Checkpoint

TENSORS = {"a": mx.arange(12, dtype=mx.float32).reshape(4, 3), "b": mx.ones((2,), mx.bfloat16), "c": mx.zeros((1, 5))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), TENSORS)
    return tmp_path


def shard(folder: Path) -> None:
    """Each tensor in a file of its own, with an index."""
    (folder / "model.safetensors").unlink()
    for name, array in TENSORS.items():
        mx.save_safetensors(str(folder / f"model-{name}.safetensors"), {name: array})
    (folder / INDEX_NAME).write_text(
        json.dumps({"weight_map": {name: f"model-{name}.safetensors" for name in TENSORS}})
    )


def test_tensors_are_read_whole_and_by_rows_from_one_file_or_several(folder: Path) -> None:
    for prepare in (lambda folder: None, shard):
        prepare(folder)
        checkpoint = Checkpoint(folder)
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a": (4, 3), "b": (2,), "c": (1, 5)}
        assert checkpoint.nbytes == 4 * 3 * 4 + 2 * 2 + 5 * 4
        for name, array in TENSORS.items():
            assert mx.array_equal(checkpoint.read(name), array) and checkpoint.read(name).dtype == array.dtype
        assert mx.array_equal(checkpoint.read("a", 1, 3), TENSORS["a"][1:3])
        assert mx.array_equal(checkpoint.read("a", 2), TENSORS["a"][2:])


def write(content: Callable[[bytes], bytes], name: str = "model.safetensors") -> Callable[[Path], Any]:
    """Writes a file whose content depends on that of model.safetensors."""
    return lambda folder: (folder / name).write_bytes(content((folder / "model.safetensors").read_bytes()))


def shard_absent(folder: Path) -> None:
    shard(folder)
    (folder / "model-b.safetensors").unlink()


def wrong_index(folder: Path) -> None:
    shard(folder)
    weight_map = {"a": "model-a.safetensors", "b": "model-c.safetensors", "c": "model-c.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


DAMAGED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "truncated": (write(lambda data: data[:-1]), CheckpointError, "model.safetensors is truncated: tensor"),
    "truncated in the header": (write(lambda data: data[:50]), CheckpointError, "is not a safetensors file, or is truncated in its"),
    "not safetensors": (write(lambda data: b"hello, " * 9), CheckpointError, "is not a safetensors file"),
    "malformed header": (write(lambda data: b"\x02" + bytes(7) + b"[]"), CheckpointError, "its header is malformed"),
    "unknown dtype": (write(lambda data: data.replace(b'"F32"', b'"F64"')), CheckpointError, "has dtype F64, which is not supported"),
    "wrong size": (write(lambda data: data.replace(b"[4,3]", b"[4,4]")), CheckpointError, r"of shape \(4, 4\) does not fill its 48 bytes"),
    "empty file": (write(lambda data: b""), CheckpointError, "is not a safetensors file"),
    "tensor in two files": (write(lambda data: data, "model-2.safetensors"), CheckpointError, "is in model-2.safetensors and in model.safe"),
    "shard absent": (shard_absent, FileNotFoundError, f"lacks model-b.safetensors, listed in {INDEX_NAME}"),
    "wrong index": (wrong_index, CheckpointError, "lists tensor b in model-c.safetensors, which does not hold it"),
    "index without map": (lambda f: (f / INDEX_NAME).write_text("{}"), CheckpointError, "has no weight_map"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors"),
    "only pytorch": (
        lambda f: shutil.move(f / "model.safetensors", f / "pytorch_model.bin"),
        FileNotFoundError, "has no model.safetensors; the format of pytorch_model.bin is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_errors_name_the_damaged_file(case: str, folder: Path) -> None:
    damage, error, message = DAMAGED[case]
    damage(folder)
    with pytest.raises(error, match=message):
        Checkpoint(folder)
