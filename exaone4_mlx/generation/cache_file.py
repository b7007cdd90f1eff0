"""The file of a prompt cache: token ids, keys and values of every layer, and checkpoints.

Notes:
- The file is a safetensors file. Its metadata holds a digest of the content and fingerprints of everything that the
  numbers depend on: config, weights, tokenizer, chat template, cache layout.
- Each of several ranks has a file with its part of the rows, and says which part: see `rank_files.py`.
- A file of another model is refused. A damaged file raises CheckpointError. Neither gives wrong tokens.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..cluster.ranks import Ranks
from ..files.folders import atomic_file
from ..files.safetensors import CheckpointError, is_finite, read_header
from ..model.cache import Cache, KVCache, RotatingKVCache, Snapshot
from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..model.network import Exaone4ForCausalLM
from ..text.tokenizer import Tokenizer

FILE_FORMAT = "exaone4_mlx prompt cache, version 1"

DIGEST_BLOCK = 1 << 24  # weights per step of `weights_digest`


@dataclass(frozen=True)
class Part:
    """An array of a file: its name, and its bytes in `data`."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    data: memoryview

    @classmethod
    def of(cls, name: str, array: mx.array) -> Part:
        """It shares the memory of an evaluated array, unless that has gaps."""
        bits: Any = mx.contiguous(array).view(mx.uint8)
        return cls(name, array.dtype, array.shape, memoryview(bits).cast("B") if array.size else memoryview(b""))


@dataclass(frozen=True)
class CacheContent:
    """What a file holds. `layers` are whole snapshots, `checkpoints` have one snapshot per layer each.

    `mark` is the same in the files that several ranks wrote together.
    """

    ids: list[int]
    layers: list[Snapshot]
    checkpoints: list[tuple[Snapshot, ...]]
    mark: str = ""


def place_of(path: Path, ranks: Ranks | None) -> Path:
    """The file of this process: `path`, or of rank 0 of 2 `path` with ".rank0of2" at the end."""
    return path if ranks is None else path.with_name(f"{path.name}.{ranks.name}")


def check_count(path: Path, ranks: Ranks | None) -> None:
    """Raises ValueError where the files of `path` are those of another number of ranks."""
    if place_of(path, ranks).exists():
        return
    parts = path.parent.glob(f"{glob.escape(path.name)}.rank*of*")
    if found := next((file for file in (path, *sorted(parts)) if file.is_file()), None):
        count, here = found.name.rpartition("of")[2] if found != path else 1, 1 if ranks is None else ranks.size
        raise ValueError(
            f"the prompt cache {found} was written by {count} rank{'s' * (found != path)}, and here "
            f"{'are' if here > 1 else 'is'} {here}: start as many, or give another file"
        )


def write_cache(path: Path, content: CacheContent, about: Mapping[str, str], layers: Sequence[Cache]) -> None:
    """Writes the file, whole or not at all. `layers` are the caches that the content comes from, `about` fingerprints.

    Raises ValueError for an existing file that is not a prompt cache, and FloatingPointError for NaN and infinity.
    """
    _check_file_kind(path)
    arrays = {"ids": mx.array(content.ids, dtype=mx.int32)}
    for i, (snapshot, layer) in enumerate(zip(content.layers, layers, strict=True)):
        arrays |= named_arrays(f"{i}", snapshot, layer)
    for k, checkpoint in enumerate(content.checkpoints):
        for i, (snapshot, layer) in enumerate(zip(checkpoint, layers, strict=True)):
            arrays |= named_arrays(f"checkpoint {k}.{i}", snapshot, layer)
    if wrong := [name for name, array in arrays.items() if not is_finite(array)]:
        raise FloatingPointError(f"the prompt cache is not saved: its layer {wrong[0]} holds NaN or infinity")
    metadata = {
        "format": FILE_FORMAT,
        "fingerprints": json.dumps(dict(about)),
        "mark": content.mark,
        "checkpoints": json.dumps([checkpoint[0].offset for checkpoint in content.checkpoints]),
    }
    metadata["digest"] = _digest(arrays, metadata)
    with atomic_file(path) as stream:
        mx.save_safetensors(stream, arrays, metadata)  # type: ignore[arg-type]


def read_cache(path: Path, about: Mapping[str, str], layers: Sequence[Cache], config: Exaone4Config) -> CacheContent:
    """Reads and checks the file. `layers` are the empty caches that the content is for, `config` is of their sizes.

    Raises FileNotFoundError if there is no file, ValueError for a file that is not a prompt cache or belongs to another
    model or cache layout, and CheckpointError for a damaged file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no prompt cache {path}")
    _check_file_kind(path)
    arrays, metadata = read_arrays(path, FILE_FORMAT)
    written = json.loads(metadata.get("fingerprints", "{}"))
    if different := [name for name, digest in about.items() if dict(written).get(name) != digest]:
        if different == ["cache layout"]:
            raise ValueError(
                f"the prompt cache {path} has another cache layout (other kv_bits, say): give those, or another file"
            )
        if "ranks" in different:
            raise ValueError(
                f"the prompt cache {path} is of {written.get('ranks', 'one process')}, and here is {about['ranks']}: "
                "divide the model as then, or give another file"
            )
        raise ValueError(f"the prompt cache {path} belongs to another model: {', '.join(different)} differ")
    try:
        content = _content(arrays, json.loads(metadata["checkpoints"]), layers, config)
        return replace(content, mark=metadata.get("mark", ""))
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the prompt cache {path} is damaged ({error})") from error


def _check_file_kind(path: Path) -> None:
    """Raises ValueError for an existing file that is not a prompt cache, so that it is not overwritten."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as stream:
            if FILE_FORMAT.encode() not in stream.read(1 << 20):
                raise ValueError(f"{path} is there already and is no prompt cache; choose another name, or delete it")


def fingerprints(
    model: Exaone4ForCausalLM,
    tokenizer: Tokenizer,
    layers: Sequence[Cache],
    kv: KVQuantization | None,
    weights: str | None = None,
) -> dict[str, str]:
    """Digests of everything that the numbers depend on.

    Without `weights`, the digest of the weights, it reads every weight once, as one decode step does.
    """
    layout = [
        "global" if isinstance(layer, KVCache) else f"window {layer.window} reserve {layer.rewind_capacity}"
        for layer in layers
    ]
    if kv is not None:
        layout.append(str(kv))
    found = {
        "config": hashlib.sha256(json.dumps(model.config.to_dict()).encode()).hexdigest(),
        "weights": weights or weights_digest(tree_flatten(model.parameters())),
        **tokenizer.fingerprints,
        "cache layout": ", ".join(layout),
    }
    return found if model.ranks is None else found | {"ranks": str(model.part)}


def weights_digest(parameters: Iterable[tuple[str, mx.array]]) -> str:
    """A digest of named weights: the sum of the bits of each column, where each row has a factor of its own.

    It takes the time to read the weights, which is less than hashing gigabytes. It detects every accidental change.
    """
    digest = hashlib.sha256()
    for name, array in sorted(parameters):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bits = array.view(mx.uint8 if array.dtype.size == 1 else mx.uint16).reshape(-1, array.shape[-1])
        for start in range(0, bits.shape[0], rows := max(1, DIGEST_BLOCK // bits.shape[1])):
            block = bits[start : start + rows].astype(mx.uint32)
            row_numbers = mx.arange(start + 1, start + 1 + block.shape[0]).astype(mx.uint32)
            sums = mx.sum(block * (row_numbers * 2654435761 | 1)[:, None], axis=0)  # odd numbers without a pattern
            digest.update(memoryview(sums.view(mx.uint8)))  # type: ignore[arg-type]
    return digest.hexdigest()


def read_arrays(path: Path, file_format: str) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and the metadata. Raises CheckpointError for any damage."""
    try:
        read_header(path)
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        mx.eval(arrays)
        is_whole = metadata.get("format") == file_format and metadata.get("digest") == _digest(arrays, metadata)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the prompt cache {path} is damaged ({error})") from error
    if not is_whole:
        raise CheckpointError(f"the prompt cache {path} is damaged or of another version")
    return arrays, metadata


def _digest(arrays: dict[str, mx.array], metadata: dict[str, str]) -> str:
    return digest_of_parts((Part.of(name, array) for name, array in sorted(arrays.items())), metadata)


def digest_of_parts(parts: Iterable[Part], metadata: dict[str, str]) -> str:
    """The digest of a file with these parts, in the order of their names."""
    digest = hashlib.sha256(json.dumps({key: metadata[key] for key in sorted(metadata) if key != "digest"}).encode())
    for part in parts:
        digest.update(f"{part.name} {part.dtype} {part.shape}".encode())
        digest.update(part.data)
    return digest.hexdigest()


def named_arrays(name: str, snapshot: Snapshot, layer: Cache) -> dict[str, mx.array]:
    return {f"{name} {kind}": array for kind, array in zip(layer.rows.layout(0), snapshot.arrays, strict=False)}


def _content(
    arrays: dict[str, mx.array], lengths: list[int], layers: Sequence[Cache], config: Exaone4Config
) -> CacheContent:
    """The checked content. `lengths` are the numbers of tokens of the checkpoints."""

    def snapshots(prefix: str, length: int) -> list[Snapshot]:
        found = [read_rows(arrays, f"{prefix}{i}", length, layer, config) for i, layer in enumerate(layers)]
        for snapshot, layer in zip(found, layers, strict=True):
            _check_window(snapshot, layer)
        return found

    ids: Any = arrays["ids"].tolist()
    whole = snapshots("", len(ids))
    for i, (snapshot, layer) in enumerate(zip(whole, layers, strict=True)):
        if isinstance(layer, KVCache) and snapshot.rows != len(ids):
            raise CheckpointError(f"layer {i} holds {snapshot.rows} rows of {len(ids)} tokens")
    checkpoints = []
    for k, length in enumerate(lengths):
        if not 0 < length <= len(ids):
            raise CheckpointError(f"a checkpoint after {length} of {len(ids)} tokens")
        checkpoints.append(tuple(snapshots(f"checkpoint {k}.", length)))
    return CacheContent(ids, whole, checkpoints)


def read_rows(arrays: Mapping[str, mx.array], name: str, offset: int, layer: Cache, config: Exaone4Config) -> Snapshot:
    """The snapshot that `named_arrays` named. Raises CheckpointError if shapes, dtypes or values do not fit `layer`."""
    names = [f"{name} {kind}" for kind in layer.rows.layout(0)]
    snapshot = Snapshot(offset, tuple(arrays[name] for name in names if name in arrays))
    layout = layer.rows.layout(config.head_dim).values()
    shapes = [(1, config.num_key_value_heads if width else 0, snapshot.rows, width) for width, _ in layout]
    found = [array.shape for array in snapshot.arrays]
    if found and found != shapes:
        raise CheckpointError(f"rows of shape {found}, not {shapes}")
    for array, (_, kind) in zip(snapshot.arrays, layout, strict=False):
        if not mx.issubdtype(array.dtype, kind):
            raise CheckpointError(f"rows of {array.dtype}")
        if not is_finite(array):
            raise CheckpointError("rows with NaN or infinity")
    return snapshot


def _check_window(snapshot: Snapshot, layer: Cache) -> None:
    if isinstance(layer, RotatingKVCache):
        least = min(snapshot.offset, layer.window - 1)
        if not least <= snapshot.rows <= snapshot.offset:
            raise CheckpointError(f"a window of {snapshot.rows} rows after {snapshot.offset} tokens")
