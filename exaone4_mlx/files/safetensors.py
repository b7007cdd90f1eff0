"""A folder -> its tensors, one at a time, each checked before it is read.

Notes:
- The header of every safetensors file is read and checked first. So an error names a damaged file before gigabytes are
  read. MLX reads a tensor from the file when the array is evaluated.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .folders import other_format, read_json, without_middle

WHOLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSION = 2**31 - 1  # of an MLX array
#: safetensors dtype -> (MLX dtype, bytes per element)
DTYPES = {
    "BF16": (mx.bfloat16, 2),
    "F16": (mx.float16, 2),
    "F32": (mx.float32, 4),
    "U8": (mx.uint8, 1),
    "I8": (mx.int8, 1),
    "U16": (mx.uint16, 2),
    "U32": (mx.uint32, 4),
    "I32": (mx.int32, 4),
    "I64": (mx.int64, 8),
    "F8_E4M3": (mx.uint8, 1),
}
FLOATS = ("BF16", "F16", "F32")
DTYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint8: "U8", mx.uint32: "U32"}
#: The bits of a float as signed and as unsigned integer, and the exponent of NaN and infinity.
EXPONENTS = {
    mx.bfloat16: (mx.int16, mx.uint16, 0x7F80),
    mx.float16: (mx.int16, mx.uint16, 0x7C00),
    mx.float32: (mx.int32, mx.uint32, 0x7F800000),
}
FLOAT_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


class CheckpointError(ValueError):
    """A damaged or incomplete checkpoint, or one of another architecture."""

    def __init__(self, message: str) -> None:
        super().__init__(without_middle(message))


@dataclass(frozen=True)
class TensorInfo:
    """The position and the kind of a tensor in a file. `dtype` is its name in safetensors."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int  # of the first byte in the file


class Checkpoint:
    """The tensors of a model folder, by name. Only headers are read before `read`."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError or CheckpointError that names the file, for an incomplete folder."""
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        listed, files = self._locate(_read_index(folder))
        for file in files:
            for name, info in read_header(file).items():
                if name in self.tensors:
                    raise CheckpointError(f"tensor {name} is in {self.tensors[name].file.name} and in {file.name}")
                self.tensors[name] = info
        for name, file_name in listed.items():
            if name not in self.tensors or self.tensors[name].file != folder / file_name:
                raise CheckpointError(f"{INDEX_NAME} lists tensor {name} in {file_name}, which does not hold it")
        self._open: tuple[Path, dict[str, mx.array]] | None = None

    def _locate(self, listed: dict[str, str]) -> tuple[dict[str, str], list[Path]]:
        """The index, empty if it does not count, and the files with weights."""
        names = sorted(set(listed.values()))
        if names and WHOLE_NAME not in names and (self.folder / WHOLE_NAME).is_file():  # as transformers decides
            warnings.warn(f"{self.folder / WHOLE_NAME} is loaded; {INDEX_NAME} lists {names[0]}, not it", stacklevel=4)
            return {}, [self.folder / WHOLE_NAME]
        if names:
            if missing := [name for name in names if not (self.folder / name).is_file()]:
                raise FileNotFoundError(f"{self.folder} lacks {', '.join(missing)}, listed in {INDEX_NAME}")
            return listed, [self.folder / name for name in names]
        for pattern in ("model*.safetensors", "gptq_model*.safetensors"):
            if files := sorted(file for file in self.folder.glob(pattern) if file.is_file()):
                return {}, files
        raise FileNotFoundError(f"{self.folder} has no {WHOLE_NAME}{other_format(self.folder)}")

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> mx.array:
        """A tensor, or its rows from `start` to `stop`.

        A whole tensor is not yet evaluated: MLX reads it from the file on evaluation. For rows, no other byte is read.
        """
        info = self.tensors[name]
        if start or (stop is not None and stop < info.shape[0]):
            return _read_rows(info, start, info.shape[0] if stop is None else min(stop, info.shape[0]))
        if self._open is None or self._open[0] != info.file or name not in self._open[1]:
            loaded = mx.load(str(info.file), format="safetensors")
            assert isinstance(loaded, dict)
            self._open = (info.file, loaded)
        return self._open[1].pop(name)

    def read_columns(self, name: str, start: int, stop: int) -> mx.array:
        """The columns `start` to `stop` of a tensor [rows, columns]. No other byte is read."""
        info = self.tensors[name]
        rows, columns = info.shape
        size = info.nbytes // max(rows * columns, 1)
        part = (stop - start) * size
        data = bytearray(rows * part)
        view = memoryview(data)
        with info.file.open("rb") as stream:
            for row in range(rows):
                place = info.offset + row * columns * size + start * size
                if os.preadv(stream.fileno(), [view[row * part : (row + 1) * part]], place) != part:
                    raise CheckpointError(f"{info.file} is truncated")
        return mx.array(view).view(DTYPES[info.dtype][0]).reshape(rows, stop - start)  # type: ignore[arg-type]

    def close(self) -> None:
        """Closes the open file."""
        self._open = None


def _read_index(folder: Path) -> dict[str, str]:
    """The name of the file of each tensor; empty without an index."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return {}
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{index} has no weight_map")
    if wrong := [name for name in listed.values() if not re.fullmatch(r"[^/\\\0]+\.safetensors", name)]:
        raise CheckpointError(f"{index} lists {wrong[0]!r}, which is not the name of a safetensors file")
    return listed


def _read_rows(info: TensorInfo, start: int, stop: int) -> mx.array:
    """Reads into new memory: the pages of a mapped file would stay resident."""
    row_bytes = info.nbytes // max(info.shape[0], 1)
    data = bytearray((stop - start) * row_bytes)
    with info.file.open("rb") as stream:
        stream.seek(info.offset + start * row_bytes)
        if stream.readinto(data) != len(data):
            raise CheckpointError(f"{info.file} is truncated")
    array = mx.array(memoryview(data))  # type: ignore[arg-type]
    return array.view(DTYPES[info.dtype][0]).reshape(stop - start, *info.shape[1:])


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, checked against its size. Raises CheckpointError that names the file.

    The format: eight bytes of header length, a JSON header, the data, which the tensors fill without gaps. (The
    safetensors package would import numpy, which takes longer than loading the demo.)
    """
    return read_whole_header(file)[0]


def read_whole_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The same, and the metadata."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} is not a safetensors file, or is truncated in its header")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            metadata = header.get("__metadata__") or {}
            if not all(isinstance(value, str) for value in metadata.values()):
                raise TypeError("metadata other than text")
            found = {name: _read_entry(file, name, entry, 8 + length, size) for name, entry in entries.items()}
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise CheckpointError(f"{file} is not a safetensors file: its header is malformed") from error
    end = 8 + length
    for name, info in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            raise CheckpointError(
                f"{file}: tensor {name} begins at byte {info.offset}, and the one before ends at {end}"
            )
        end += info.nbytes
    if end != size:
        raise CheckpointError(f"{file} has {size} bytes, and its tensors end at byte {end}")
    return found, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is there twice")
    return values


def _read_entry(file: Path, name: str, entry: dict[str, Any], data_start: int, file_bytes: int) -> TensorInfo:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {dtype}, which is not supported")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise CheckpointError(f"{file}: tensor {name} has a shape or an offset that is not a whole number")
    if max(shape, default=0) > MAX_DIMENSION:
        raise CheckpointError(f"{file}: tensor {name} has a dimension beyond {MAX_DIMENSION}")
    if end - begin != math.prod(shape) * DTYPES[dtype][1]:
        raise CheckpointError(f"{file}: tensor {name} of shape {shape} does not fill its {end - begin} bytes")
    if data_start + end > file_bytes:
        raise CheckpointError(f"{file} is truncated: tensor {name} ends at byte {data_start + end} of {file_bytes}")
    return TensorInfo(file, dtype, shape, end - begin, data_start + begin)


def all_finite(array: mx.array) -> mx.array:
    """Whether a floating-point array holds neither NaN nor infinity, not evaluated.

    Their exponent has all bits set, so they are the largest floats if the bits are read as integers. MLX's CPU backend
    compares integers of 16 bits more than ten times as fast as floats, and no array of the size of `array` is made.
    """
    signed, unsigned, exponent = EXPONENTS[array.dtype]
    positive, negative = mx.max(array.view(signed)), mx.max(array.view(unsigned))
    return (positive < exponent) & (negative < (exponent | 1 << (8 * array.dtype.size - 1)))


def is_finite(array: mx.array) -> bool:
    """The same, evaluated. Arrays of integers are finite."""
    return array.dtype not in EXPONENTS or not array.size or bool(all_finite(array).item())


def check_finite(array: mx.array, name: str, stored: Callable[[], Iterable[mx.array]] | None = None) -> None:
    """Raises CheckpointError for NaN and infinity, which would spread through the network.

    `stored` reads the arrays again that `array` was cast or quantized from.
    """
    if is_finite(array):
        return
    if stored is not None and all(map(is_finite, stored())):
        dtype = str(array.dtype).removeprefix("mlx.core.")
        raise CheckpointError(f"{name} holds values beyond the range of {dtype}; use bfloat16 or float32")
    raise CheckpointError(f"{name} holds NaN or infinity: the checkpoint is damaged")


def read_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype | None:
    """A floating-point dtype from its name. None passes through. Raises ValueError for any other."""
    if dtype is None or dtype in FLOAT_DTYPES.values():
        return dtype  # type: ignore[return-value]
    if not isinstance(dtype, str) or dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, not {dtype!r:.99}")
    return FLOAT_DTYPES[dtype]
