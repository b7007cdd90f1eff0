"""Hugging Face checkpoint -> MLX folder, quantized or not.

What is peculiar here:
- One tensor is in memory at a time: shapes and sizes of the result are known before anything is read, so each
  shard's header is written first and the tensors follow.
- The result appears under its name only when it is whole. Until then it is `NAME.partial`.
- Its config.json carries every spelling, so that mlx-lm and transformers of any age read it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..model.config import read_json
from ..model.files import DTYPE_NAMES, DTYPES, FLOAT_DTYPES, INDEX_NAME, Checkpoint, find_folder, placeholders
from .checkpoint import Progress, converted, open_checkpoint, read_dtype
from .quantize import Quantization

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
    q_bits: int = 4,
    q_group_size: int = 64,
    q_mode: str = "affine",
    quantize: bool = True,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Converts a full-precision EXAONE 4 checkpoint (folder or hub id) to a folder that MLX loads fast.

    The weights are cast to `dtype` (None keeps theirs) and, unless `quantize` is false, the projections and
    the embedding are quantized to `q_bits` in groups of `q_group_size`. The layout is mlx-lm's.
    `progress(done, total)` counts source bytes.

    Raises FileExistsError where `mlx_path` exists, FileNotFoundError and ValueError as `load` does, and
    OSError when the disk is full. Nothing half done is left behind.
    """
    started = time.perf_counter()
    quantization = Quantization(q_bits, q_group_size, q_mode) if quantize else None
    cast = read_dtype(dtype)
    target = Path(mlx_path).expanduser()
    if target.exists():
        raise FileExistsError(f"{target} exists already; choose another --mlx-path or remove it")
    source = find_folder(hf_path, revision)
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} would lie inside its own source {source}; choose another --mlx-path")
    checkpoint, model, stored = open_checkpoint(source)
    if stored:
        raise ValueError(f"{source} is already quantized, to {stored['bits']} bits; convert the original checkpoint")

    parameters = sum(array.size for array in placeholders(model).values())
    plan = _plan(checkpoint, cast, quantization)
    partial = _fresh_partial(target)
    mx.reset_peak_memory()
    try:
        _write_weights(partial, checkpoint, plan, cast, quantization, progress, parameters)
        config = _config(source, model.config.to_dict(), cast, quantization)
        _write_text(partial / "config.json", json.dumps(dict(sorted(config.items())), indent=4))
        _carry_files(source, partial, str(hf_path))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
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


def _carry_files(source: Path, target: Path, origin: str) -> None:
    for pattern in CARRIED_FILES:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, target / file.name)
    hub_id = f"base_model: {origin}\n" if not Path(origin).exists() and "/" in origin else ""
    card = (
        f"---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n{hub_id}---\n\n"
        f"Converted from {origin} with exaone4_mlx. The licence of the original weights applies to these too.\n"
    )
    _write_text(target / "README.md", card)


def _fresh_partial(target: Path) -> Path:
    """An empty folder beside `target`. One left by a killed run is replaced; a stranger's is not touched."""
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        foreign = [
            p.name
            for p in partial.iterdir()
            if p.is_dir() or p.suffix not in {".safetensors", ".json", ".jinja", ".txt", ".md", ""}
        ]
        if foreign:
            raise FileExistsError(
                f"{partial} is in the way and holds {foreign[0]}, which no conversion wrote; remove it"
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def _write_text(file: Path, text: str) -> None:
    file.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
