"""Hugging Face checkpoint -> MLX folder, quantized or not.

What is peculiar here:
- One tensor is in memory at a time: shapes and sizes of the result are known before anything is read, so each
  shard's header is written first and the tensors follow.
- The result appears under its name only when it is whole. Until then it is `NAME.partial`.
- Its config.json carries every spelling, so that mlx-lm and transformers of any age read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..model.config import read_json
from ..model.files import DTYPE_NAMES, DTYPES, FLOAT_DTYPES, INDEX_NAME, Checkpoint, find_folder, placeholders
from ..text.tokenizer import Tokenizer
from .checkpoint import Progress, converted, open_checkpoint, read_dtype
from .quantize import DEFAULTS, Quantization

MAX_SHARD_BYTES = 5 << 30  # mlx-lm's
#: What is carried over as it is, beside the weights and the config.
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True)
class Summary:
    """What a conversion made. `peak_bytes` is MLX's own peak, `bits_per_weight` counts scales and biases."""

    path: Path
    parameters: int
    source_bytes: int
    bytes: int
    bits_per_weight: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Planned:
    """One tensor to be written; its bytes are made from the source tensor `source`."""

    name: str
    source: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    nbytes: int


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    quantize: bool = True,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Converts a full-precision EXAONE 4 checkpoint (folder or hub id) to a folder that MLX loads fast.

    The weights are cast to `dtype` (None keeps theirs) and, unless `quantize` is false, the projections and
    the embedding are quantized to `q_bits` in groups of `q_group_size` (4 and 64 in affine mode, the only ones
    there are in the others). The layout is mlx-lm's.
    `progress(done, total)` counts source bytes.

    Raises FileExistsError where `mlx_path` exists, FileNotFoundError and ValueError as `load` does, and
    OSError when the disk is full. Nothing half done is left behind.
    """
    started = time.perf_counter()
    quantization = _requested(q_bits, q_group_size, q_mode) if quantize else None
    if not quantize and (q_bits is not None or q_group_size is not None or q_mode != "affine"):
        raise ValueError("q_bits, q_group_size and q_mode have no meaning where nothing is quantized")
    cast = read_dtype(dtype)
    target = Path(mlx_path).expanduser()
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; choose another folder or remove it")
    source = find_folder(hf_path, revision)
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} would lie inside its own source {source}; choose another folder")
    checkpoint, model, stored = open_checkpoint(source)
    if stored:
        raise ValueError(f"{source} is already quantized, to {stored['bits']} bits; convert the original checkpoint")
    Tokenizer.from_pretrained(source)  # or the result could not be loaded

    parameters = sum(array.size for array in placeholders(model).values())
    plan = _plan(checkpoint, cast, quantization)
    mx.reset_peak_memory()
    with _partial_folder(target) as partial:
        _write_weights(partial, checkpoint, plan, cast, quantization, progress, parameters)
        config = _config(source, model.config.to_dict(), cast, quantization)
        _write_text(partial / "config.json", json.dumps(dict(sorted(config.items())), indent=4))
        _carry_files(source, partial)
        _write_card(partial, str(hf_path))
    written = sum(tensor.nbytes for tensor in plan)
    return Summary(
        path=target,
        parameters=parameters,
        source_bytes=checkpoint.nbytes,
        bytes=written,
        bits_per_weight=8 * written / parameters,
        seconds=time.perf_counter() - started,
        peak_bytes=mx.get_peak_memory(),
    )


def _plan(checkpoint: Checkpoint, dtype: mx.Dtype | None, quantization: Quantization | None) -> list[Planned]:
    """Every tensor of the result, in the order in which the source is read. Nothing is evaluated."""
    plan = []
    for source in checkpoint.in_file_order(checkpoint.tensors):
        info = checkpoint.tensors[source]
        stand_in = mx.zeros(info.shape, DTYPES[info.dtype][0])
        for name, array in converted(source, stand_in, dtype, quantization):
            plan.append(Planned(name, source, array.dtype, array.shape, array.nbytes))
    return plan


def _write_weights(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Sequence[Planned],
    dtype: mx.Dtype | None,
    quantization: Quantization | None,
    progress: Progress | None,
    parameters: int,
) -> None:
    shards = _shards(plan)
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        file_name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= {tensor.name: file_name for tensor in shard}
        with (folder / file_name).open("wb") as stream:
            stream.write(_header(shard))
            for source in dict.fromkeys(tensor.source for tensor in shard):
                made = converted(source, checkpoint.read(source), dtype, quantization)
                for _, array in made:
                    stream.write(memoryview(mx.contiguous(array).view(mx.uint8)))  # type: ignore[arg-type]
                del made, array
                mx.clear_cache()
                done += checkpoint.tensors[source].nbytes
                if progress:
                    progress(done, checkpoint.nbytes)
            stream.flush()
            os.fsync(stream.fileno())
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in plan), "total_parameters": parameters},
        "weight_map": dict(sorted(weight_map.items())),
    }
    _write_text(folder / INDEX_NAME, json.dumps(index, indent=4))


def _shards(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Consecutive tensors, together at most MAX_SHARD_BYTES; what comes of one source tensor stays together."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for source in dict.fromkeys(tensor.source for tensor in plan):
        made = [tensor for tensor in plan if tensor.source == source]
        added = sum(tensor.nbytes for tensor in made)
        if shards[-1] and size + added > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += made
        size += added
    return shards


def _header(shard: Sequence[Planned]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _config(
    source: Path, spelled_out: dict[str, Any], dtype: mx.Dtype | None, quantization: Quantization | None
) -> dict[str, Any]:
    config = read_json(source / "config.json") | spelled_out
    config.pop("_name_or_path", None)
    if dtype is not None:
        name = next(name for name, known in FLOAT_DTYPES.items() if known == dtype)
        config |= {"dtype": name, "torch_dtype": name}
    if quantization is not None:
        config["quantization"] = config["quantization_config"] = quantization.as_dict()
    return config


def _carry_files(source: Path, target: Path) -> None:
    for pattern in CARRIED_FILES:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, target / file.name)


def _write_card(target: Path, origin: str) -> None:
    from_hub = origin != "demo" and not Path(origin).expanduser().exists()
    base = f"base_model: {origin}\n" if from_hub else ""
    _write_text(
        target / "README.md",
        f"---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n{base}---\n\n"
        f"Converted from {origin} with exaone4_mlx. The licence of the original weights applies to these too.\n",
    )


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that takes its name when the block ends well, and else disappears.

    It is locked for this process. What a killed run left there is replaced; a stranger's files are not touched.
    """
    partial = target.with_name(target.name + ".partial")
    made_parents = [folder for folder in partial.parents if not folder.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, partial, target)
        _clear(partial)
        try:
            yield partial
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made_parents:
                with suppress(OSError):
                    folder.rmdir()
            raise
    finally:
        os.close(lock)


def _lock(lock: int, partial: Path, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FileExistsError(f"another conversion to {target} is under way") from error
    if not partial.exists() or os.stat(partial).st_ino != os.fstat(lock).st_ino:
        raise FileExistsError(f"another conversion to {target} has just ended")


def _clear(partial: Path) -> None:
    ours = {".safetensors", ".json", ".jinja", ".txt", ".md", ""}
    entries = list(partial.iterdir())
    if foreign := [entry.name for entry in entries if entry.is_dir() or entry.suffix not in ours]:
        raise FileExistsError(f"{partial} is in the way and holds {foreign[0]}, which no conversion wrote; remove it")
    for entry in entries:
        entry.unlink()


def _requested(bits: int | None, group_size: int | None, mode: str) -> Quantization:
    default_bits, default_group_size = DEFAULTS.get(mode, (0, 0))
    return Quantization(
        default_bits if bits is None else bits, default_group_size if group_size is None else group_size, mode
    )


def _write_text(file: Path, text: str) -> None:
    file.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
