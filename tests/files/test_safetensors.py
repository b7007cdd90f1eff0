"""The tensors of a folder are found by their headers, and an error names the damaged file."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx import CheckpointError
from exaone4_mlx.files.safetensors import INDEX_NAME, Checkpoint, read_header

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
    "index with ..": (
        write(lambda data: b'{"weight_map": {"a": "../model.safetensors"}}', INDEX_NAME),
        CheckpointError, r"index.json lists '../model.safetensors', which is not the name of a safetensors file"),
    "index with an absolute path": (
        write(lambda data: b'{"weight_map": {"a": "/model.safetensors"}}', INDEX_NAME),
        CheckpointError, "lists '/model.safetensors', which is not the name of"),
    "index of another format": (
        write(lambda data: b'{"weight_map": {"a": "pytorch_model.bin"}}', INDEX_NAME),
        CheckpointError, "lists 'pytorch_model.bin', which is not the name of"),
    "deep index": (
        write(lambda data: b'{"weight_map": ' + b"[" * 99_999, INDEX_NAME), ValueError, "index.json is not JSON: .* recursion"),
    "index with a huge number": (
        write(lambda data: b'{"weight_map": ' + b"9" * 9999 + b"}", INDEX_NAME), ValueError, "index.json is not JSON: "),
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
        FileNotFoundError, r"has no model.safetensors; pytorch_model.bin is a PyTorch file. transformers converts it: "
        r"AutoModelForCausalLM.from_pretrained\(FOLDER\).save_pretrained"),
    "only gguf": (
        lambda f: shutil.move(f / "model.safetensors", f / "EXAONE-4.0-Q4_K_M.gguf"),
        FileNotFoundError, "has no model.safetensors; EXAONE-4.0-Q4_K_M.gguf is a GGUF file for llama.cpp, so take"),
    "a fifo": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        FileNotFoundError, "has no model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_errors_name_the_damaged_file(case: str, folder: Path) -> None:
    damage, error, message = DAMAGED[case]
    damage(folder)
    with pytest.raises(error, match=message):
        Checkpoint(folder)


def header_file(folder: Path, header: Any, data: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return folder / "model.safetensors"


def entry(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "overlap": ({"a": entry(), "b": entry()}, "tensor b begins at byte .*, and the one before ends at"),
    "gap": ({"a": entry(4, 8, [1])}, "tensor a begins at byte "),
    "rest": ({"a": entry(0, 4, [1])}, "bytes, and its tensors end at byte"),
    "no tensor": ({}, "bytes, and its tensors end at byte"),
    "fractions": ({"a": entry(0, 8, [2.0])}, "tensor a has a shape or an offset that is not a whole number"),
    "truth": ({"a": entry(0, 4, [True])}, "tensor a has a shape or an offset that is not a whole number"),
    "negative": ({"a": entry(0, 8, [-1, -2])}, "tensor a has a shape or an offset that is not a whole number"),
    "huge dimensions": ({"a": entry(0, 0, [2**40, 0])}, "tensor a has a dimension beyond 2147483647"),
    "huge offset": ({"a": entry(0, 2**62, [2**31 - 1, 2**29])}, "tensor a of shape .* does not fill its"),
    "list as a dtype": ({"a": entry(dtype=["F32"])}, "its header is malformed"),
    "metadata": ({"a": entry(), "__metadata__": {"a": 1}}, "its header is malformed"),
    "twice": (b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), "its header is malformed"),
    "deep": (b"[" * 99_999, "its header is malformed"),
    "many digits": (b'{"a":{"shape":[' + b"9" * 9999 + b"]}}", "its header is malformed"),
}


def test_impossible_headers_are_refused_as_the_safetensors_library_refuses_them(tmp_path: Path) -> None:
    from safetensors import safe_open

    assert read_header(header_file(tmp_path, {"a": entry()}))["a"].shape == (2,)
    for case, (header, message) in IMPOSSIBLE.items():
        file = header_file(tmp_path, header)
        with pytest.raises(CheckpointError, match=message) as raised:
            read_header(file)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value), case
        if case not in ("no tensor", "twice"):  # that library reads these
            with pytest.raises(Exception), safe_open(file, "np"):  # noqa: B017 (a class of its own)
                pass


def test_a_whole_file_counts_and_not_an_old_index_beside_it(folder: Path) -> None:
    """As in transformers."""
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.warns(UserWarning, match=r"model\.safetensors is loaded; .*index\.json lists model-a\.safetensors"):
        checkpoint = Checkpoint(folder)
    assert {info.file.name for info in checkpoint.tensors.values()} == {"model.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
    assert set(Checkpoint(folder).tensors) == set(TENSORS), "an index of the whole file is mlx-lm's"
