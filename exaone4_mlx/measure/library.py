"""The models on this machine and those on the hub, and the removal of one.

Notes:
- Listing models never fails: folders that cannot be read are left out. Only loading reports errors.
- A folder counts if it has EXAONE 4's config.json and weights, a repository in the cache of the hub if its main
  revision is complete, which is what `load` takes without a network.
- The list of known repositories is a file of the package. The hub is asked only by `search_hub`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..conversion.staging import remove_result, staging_path
from ..files.folders import BUILT_IN, read_json
from ..files.hub_errors import DownloadError as DownloadError, download_error
from ..files.resumable import discard_incomplete
from .fit import fit, memory_of_this_machine as memory_of_this_machine

MAX_MODELS = 100
MAX_FOUND = 50  # repositories of a search
PARTIAL = ".partial"  # the suffix of a conversion in progress
FULL_BITS = 16
#: Bits of a scale and a bias for each weight, in groups of 64.
SCALE_BITS = 0.5


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. `path` is what `load` takes.

    `folder` holds the weights; None if it is not known. `weights_bytes` is None for weights that are damaged or
    incomplete, `bits` for full precision. `repo` is the hub id of a model in the cache of the hub.
    """

    name: str
    path: str
    folder: Path | None = None
    repo: str = ""
    weights_bytes: int | None = None
    bits: int | None = None
    is_quantized: bool = False


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub. `bytes` is the size of the download; numbers that are not known are 0.

    `loaded_bits` are those of a weight in memory: weights in FP8 and GPTQ format are loaded in full precision.
    """

    repo: str
    parameters: int = 0
    bits: int = 0
    bytes: int = 0
    loaded_bits: int = 0

    @property
    def weights_bytes(self) -> int:
        """The approximate bytes of the weights in memory; 0 if they are not known."""
        bits = self.loaded_bits or self.bits
        return int(self.parameters * (bits + SCALE_BITS * (bits < FULL_BITS)) / 8)


def find_models(given: str, folders: Sequence[Path] = ()) -> list[LocalModel]:
    """The models at hand, each once: `given`, "demo", those in `folders` and one level below, those in the hub's cache.

    Paths of folders are absolute, because "demo" is a name of its own.
    """
    cached = sorted(_in_the_hub_cache())
    found = sorted(one for folder in folders for one in _in_folder(Path(folder).expanduser()))
    unique: dict[str, tuple[str, str, Path | None]] = {}
    for one in (_given(given, cached), ("demo", "demo", None), *found, *cached):
        unique.setdefault(_identity(one[1]), one)
    cached_paths = {path for _, path, _ in cached}
    return [
        LocalModel(name, path, folder, path if path in cached_paths else "", *_facts(folder or BUILT_IN.get(path)))
        for name, path, folder in list(unique.values())[:MAX_MODELS]
    ]


@cache
def known_models() -> tuple[HubModel, ...]:
    """The repositories with EXAONE 4.0 that this package knows, the most useful first."""
    content = Path(__file__).with_name("known_models.json").read_text(encoding="utf-8")
    return tuple(HubModel(**entry) for entry in json.loads(content))


def search_hub(text: str = "") -> list[HubModel]:
    """Repositories of the hub with models of this architecture whose names match `text`. Raises DownloadError."""
    from huggingface_hub import HfApi

    try:
        found = list(HfApi().list_models(filter="exaone4", search=text or None, sort="downloads", limit=MAX_FOUND))
    except Exception as error:  # connections fail in many classes
        raise download_error("the list of models", error) from error
    known = {model.repo: model for model in known_models()}
    return [known.get(one.id) or HubModel(one.id, bits=_bits(one)) for one in found if "gguf" not in (one.tags or ())]


def discard_conversion(target: Path) -> int:
    """Removes what an interrupted conversion to `target` left. Returns the bytes freed."""
    with suppress(FileNotFoundError):
        return remove_result(staging_path(target))
    return 0


def can_remove(model: LocalModel, made_in: Path) -> bool:
    """Whether `remove_model` removes this model: one in the hub's cache, or a folder that a conversion made there."""
    folder = model.folder
    return bool(model.repo) or (folder is not None and folder.parent == made_in.resolve() and not folder.is_symlink())


def remove_model(model: LocalModel, made_in: Path) -> int:
    """Removes a model from the disk, and returns the number of bytes freed.

    Raises ValueError for any folder that `can_remove` refuses, or that holds a file that no conversion wrote.
    """
    if not can_remove(model, made_in) or model.folder is None:
        raise ValueError(f"{model.path} was not made here, so it is not removed")
    if not model.repo:
        return remove_result(model.folder)
    from huggingface_hub import constants, scan_cache_dir

    scan = scan_cache_dir(constants.HF_HUB_CACHE)
    hashes = [
        revision.commit_hash
        for repository in scan.repos
        for revision in repository.revisions
        if repository.repo_id == model.repo and revision.snapshot_path.resolve() == model.folder.resolve()
    ]
    if not hashes:
        raise ValueError(f"{model.repo} is not in the cache of the hub")
    strategy = scan.delete_revisions(*hashes)
    strategy.execute()
    return strategy.expected_freed_size + discard_incomplete(model.repo)


def _bits(found: Any) -> int:
    """The bits of a repository, from its tags or its name; 0 if neither names them."""
    texts = [*(found.tags or ()), found.id.rpartition("/")[2]]
    match = next(filter(None, (re.search(r"\b(\d)-?bit\b", text, re.IGNORECASE) for text in texts)), None)
    return int(match[1]) if match else 0


def _given(path: str, cached: Sequence[tuple[str, str, Path]]) -> tuple[str, str, Path | None]:
    folder = Path(path).expanduser()
    try:
        if path not in BUILT_IN and folder.is_dir():
            return folder.resolve().name, path, folder.resolve()
    except OSError:
        pass
    return next((found for found in cached if found[1] == path), (path, path, None))


def _in_folder(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """The folder itself and those in it, where they are models: name, path and folder of each."""
    try:
        folders = [folder, *folder.iterdir()]
    except OSError:
        return
    for one in folders:
        if _is_model(one):
            one = one.resolve()
            yield one.name, str(one), one


def _is_model(folder: Path) -> bool:
    try:
        str(folder).encode()  # a name that is no text cannot be shown
        return (
            folder.suffix != PARTIAL
            and folder.is_dir()
            and read_json(folder / "config.json").get("model_type") == "exaone4"
            and next(folder.glob("*.safetensors"), None) is not None
        )
    except Exception:  # any folder may be damaged in any way
        return False


def _in_the_hub_cache() -> Iterator[tuple[str, str, Path]]:
    try:
        from huggingface_hub import constants, scan_cache_dir  # here: its import costs more than a demo reply

        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except Exception:  # there is no cache, or it is damaged in one of many ways
        return
    for repository in repositories:
        for revision in repository.revisions:
            folder = revision.snapshot_path
            whole = _is_model(folder) and _facts(folder)[0] is not None and (folder / "tokenizer.json").is_file()
            if repository.repo_type == "model" and "main" in revision.refs and whole:
                yield repository.repo_id, repository.repo_id, folder


def _identity(path: str) -> str:
    """The same for two spellings of a model."""
    folder = BUILT_IN[path] if path in BUILT_IN else Path(path).expanduser()
    try:
        return str(folder.resolve()) if folder.is_dir() else path
    except OSError:
        return path


def _facts(folder: Path | None) -> tuple[int | None, int | None, bool]:
    """The bytes of the weights and their bits, where they are known, and whether they are quantized in any format."""
    if folder is None:
        return None, None, False
    try:
        size, config = fit(folder).weights_bytes, read_json(folder / "config.json")
    except Exception:  # any folder may be damaged in any way
        return None, None, False
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    quantized = quantization is not None or config.get("quantization_config") is not None
    return size, bits if isinstance(bits, int) else None, quantized
