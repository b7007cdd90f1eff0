"""The weight files of a result while they are written, in any order, and resumed after a kill.

Notes:
- Headers are written first, then each tensor at its planned offset, some rows at a time.
- A tensor is done when a line of the journal has the hashes of its bytes. A resumed run reads the bytes: those that do
  not match their hashes, after a loss of power, are written again. So they are synchronized with the disk at the end.
- The files contain no times and no paths: a resumed result equals an uninterrupted one, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.folders import atomic_file
from ..files.safetensors import DTYPE_NAMES, INDEX_NAME, Checkpoint, TensorInfo
from .plan import ConversionPlan, OutputTensor, PlannedTensor

JOURNAL = "conversion.journal"
READ_BYTES = 1 << 24


class Shards:
    """The weight files of a plan in a folder, and the journal of finished tensors. `written` reads the files."""

    def __init__(self, folder: Path, plan: ConversionPlan) -> None:
        """Creates the files, or resumes those of an interrupted run of the same plan. The journal must exist."""
        self.folder = folder
        self._offsets: dict[str, tuple[int, int, OutputTensor]] = {}  # name -> (descriptor, byte offset, output)
        self._descriptors: list[int] = []
        self._hashes: dict[str, Any] = {}
        self.digests: dict[str, str] = {}  # output name -> SHA-256 of its bytes, for finished outputs
        self.is_tuned = False  # whether `replace` has finished
        lines, valid_bytes = _lines(folder / JOURNAL)
        for file_name, tensors in plan.shards.items():
            self._open(folder / file_name, tensors, fresh=len(lines) == 1)
        _write_index(folder, plan)
        self.written = Checkpoint(folder)
        for line in lines[1:]:
            self.digests |= {name: digest for name, digest in line["sha256"].items() if name in self._offsets}
            self.is_tuned |= line.get("tuned") is True
        intact = {name: digest for name, digest in self.digests.items() if self.digest(name) == digest}
        if self.is_tuned and intact != self.digests:  # tuning reads the untuned values of all tensors: it starts again
            intact, self.is_tuned = {}, False
            begin_journal(folder, lines[0]["plan"])
        else:
            os.truncate(folder / JOURNAL, valid_bytes)
        self.digests = intact
        self._journal = (folder / JOURNAL).open("a", encoding="utf-8")

    def is_done(self, tensor: PlannedTensor) -> bool:
        return all(output.name in self.digests for output in tensor.outputs)

    def write(self, name: str, array: mx.array, row: int = 0) -> None:
        """Writes the rows of an output from `row` on. Rows must come in order, because they are hashed."""
        self.write_bytes(name, self.bytes_of(name, array), row)

    def bytes_of(self, name: str, array: mx.array) -> mx.array:
        """The bytes of rows of an output, not yet evaluated."""
        output = self._offsets[name][2]
        assert array.dtype == output.dtype and array.shape[1:] == output.shape[1:], f"{name} differs from the plan"
        return mx.contiguous(array).view(mx.uint8)

    def write_bytes(self, name: str, array: mx.array, row: int) -> None:
        """Writes what `bytes_of` returned. If it is evaluated, this waits for no other work of MLX."""
        descriptor, offset, output = self._offsets[name]
        data = memoryview(array).cast("B")  # type: ignore[arg-type]
        if row == 0:
            self._hashes[name] = hashlib.sha256()
        self._hashes[name].update(data)
        place = offset + row * (output.nbytes // output.shape[0])
        while data:
            written = os.pwrite(descriptor, data, place)
            data, place = data[written:], place + written

    def done(self, outputs: Iterable[OutputTensor]) -> None:
        """Adds the outputs to the journal."""
        self._note([output.name for output in outputs])

    def replace(self, tuned: Mapping[str, mx.array]) -> None:
        """Overwrites outputs with tuned ones. An interrupted call can be repeated."""
        for name, array in tuned.items():
            self.write(name, array)
        self._note(list(tuned), tuned=True)
        self.is_tuned = True

    def _note(self, names: Sequence[str], **more: bool) -> None:
        digests = {name: self._hashes.pop(name).hexdigest() for name in names}
        self._journal.write(json.dumps({"sha256": digests} | more) + "\n")
        self._journal.flush()
        self.digests |= digests

    def digest(self, name: str) -> str:
        """SHA-256 of an output's bytes on the disk."""
        return digest_of(self.written.tensors[name])

    def close(self) -> None:
        self._journal.close()
        for descriptor in self._descriptors:
            os.fsync(descriptor)
            os.close(descriptor)
        self._descriptors = []

    def _open(self, file: Path, tensors: Sequence[PlannedTensor], fresh: bool) -> None:
        outputs = [output for tensor in tensors for output in tensor.outputs]
        header = _header(outputs)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o666)
        self._descriptors.append(descriptor)
        os.pwrite(descriptor, header, 0)
        offset = len(header)
        for output in outputs:
            self._offsets[output.name] = (descriptor, offset, output)
            offset += output.nbytes
        os.ftruncate(descriptor, offset)


def digest_of(info: TensorInfo) -> str:
    """SHA-256 of a stored tensor's bytes."""
    digest = hashlib.sha256()
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        for start in range(0, info.nbytes, READ_BYTES):
            digest.update(stream.read(min(READ_BYTES, info.nbytes - start)))
    return digest.hexdigest()


def begin_journal(folder: Path, digest: str) -> None:
    """Writes the journal with the plan's digest. It is the first file of the folder."""
    with atomic_file(folder / JOURNAL) as stream:
        stream.write(json.dumps({"plan": digest}).encode() + b"\n")


def journal_of(folder: Path) -> str | None:
    """The digest of the plan of an interrupted run in this folder, or None without a journal."""
    journal = folder / JOURNAL
    lines = _lines(journal)[0] if journal.is_file() else []
    return str(lines[0]["plan"]) if lines else None


def _lines(journal: Path) -> tuple[list[dict[str, Any]], int]:
    """The valid lines of a journal, and their size in bytes. The last line may be incomplete or damaged."""
    lines: list[dict[str, Any]] = []
    size = 0
    for line in journal.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        value = entry.get("sha256" if lines else "plan") if isinstance(entry, dict) else None
        if not line.endswith(b"\n") or not isinstance(value, dict if lines else str):
            break
        lines.append(entry)
        size += len(line)
    return lines, size


def _header(outputs: Sequence[OutputTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for output in outputs:
        entries[output.name] = {
            "dtype": DTYPE_NAMES[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [offset, offset + output.nbytes],
        }
        offset += output.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_index(folder: Path, plan: ConversionPlan) -> None:
    places = {o.name: file for file, tensors in plan.shards.items() for tensor in tensors for o in tensor.outputs}
    index = {
        "metadata": {"total_size": plan.nbytes, "total_parameters": plan.parameters},
        "weight_map": dict(sorted(places.items())),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")
