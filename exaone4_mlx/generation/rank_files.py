"""Files of caches of several ranks: each rank writes and reads a file with its part of the rows.

Notes:
- Rank 0 decides, as for all else. It tells the others what to write and waits for them; its own file is the last.
- The files of a prompt cache that belong together have the same mark. Otherwise all ranks begin without them.
- A prefix store finds its entries in the folder of rank 0. If another rank has none of an entry, all forget it.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..cluster.ranks import Ranks
from ..files.safetensors import CheckpointError
from ..model.cache import Cache, Snapshot
from ..model.config import Exaone4Config
from ..model.fused import FusedModel
from ..model.led import LedModel, number_of, number_of_caches, own_config
from ..model.network import Exaone4ForCausalLM
from .cache_file import CacheContent, place_of, read_cache, weights_digest, write_cache
from .prefix_folder import PrefixFolder

ORPHAN_SECONDS = 7 * 86_400  # a file of a prefix that rank 0 does not have is kept so long after its last use

# --- rank 0 -------------------------------------------------------------------------------------------------------


def write_others(
    led: LedModel, path: Path, content: CacheContent, about: Mapping[str, str], layers: Sequence[Cache]
) -> CacheContent:
    """Lets the other ranks write their files. Returns the content of the own one. Raises OSError with their errors."""
    content = replace(content, mark=uuid.uuid4().hex)
    lists = [(snapshots[0].offset, [number_of(one) for one in snapshots]) for snapshots in content.checkpoints]
    lists.insert(0, (len(content.ids), [number_of(one) for one in content.layers]))
    first = number_of_caches(layers)
    for error, _ in _answers(led, "write cache", first, str(path), dict(about), content.ids, lists, content.mark):
        raise OSError(errno.EIO, error)
    return content


def read_others(
    led: LedModel, path: Path, content: CacheContent, about: Mapping[str, str], layers: Sequence[Cache]
) -> CacheContent:
    """Lets the other ranks read their files. Returns the content of the own one with numbers for `restore`.

    Raises ValueError and CheckpointError with their errors, as `read_cache` does.
    """
    layered = [[_numbered(led, one) for one in each] for each in (content.layers, *content.checkpoints)]
    numbers = [[number_of(one) for one in each] for each in layered]
    first = number_of_caches(layers)
    for error, is_damage in _answers(led, "read cache", first, str(path), dict(about), numbers, content.mark):
        raise (CheckpointError if is_damage else ValueError)(error)
    return replace(content, layers=layered[0], checkpoints=[tuple(each) for each in layered[1:]])


def _numbered(led: LedModel, snapshot: Snapshot) -> Snapshot:
    return led.journal.numbered(snapshot) if snapshot.arrays else snapshot


def _answers(led: LedModel, what: str, *arguments: Any) -> list[tuple[str, bool]]:
    """The errors of the other ranks, with their names, and whether a damaged file is the cause."""
    answers = zip(led.ranks.peers, led.ask(what, *arguments), strict=True)
    return [(f"{peer}: {error}", is_damage) for peer, (error, is_damage) in answers if error]


class RankedFolder(PrefixFolder):
    """The files of rank 0 in a folder. The other ranks do the same in theirs, once a model uses it."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        super().__init__(folder.expanduser() / ranks.name)
        self._name, self._keys, self._led = str(folder), set[str](), None

    _led: LedModel | None

    def digest(self, model: FusedModel) -> str:
        if not isinstance(model, LedModel):
            raise ValueError("this prefix store writes files of several ranks: make another one for this model")
        if self._led is None:
            self._led = model
            self._tell(0, "keep", list(self._keys))
        return " ".join([weights_digest(model.parameters), *(text for text, _ in model.ask("weights", 0))])

    def index(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        for found in super().index():
            self._keys.add(found[0])
            yield found

    def write(
        self, key: str, about: dict[str, Any], rows: Sequence[Snapshot], layers: Sequence[Cache], most_waiting: int
    ) -> bool:
        if is_written := super().write(key, about, rows, layers, most_waiting):
            numbers = [number_of(one) for one in rows]
            self._tell(number_of_caches(layers), "write", key, about, numbers, most_waiting)
        return is_written

    def read(
        self, key: str, stop: int, tokens: int, local_rows: int, layers: Sequence[Cache], config: Exaone4Config
    ) -> tuple[Snapshot, ...]:
        assert self._led is not None
        found = tuple(_numbered(self._led, one) for one in super().read(key, stop, tokens, local_rows, layers, config))
        wanted, first = [(number_of(one), one.rows) for one in found], number_of_caches(layers)
        for error, _ in _answers(self._led, "read prefix", first, self._name, key, stop, tokens, wanted):
            raise CheckpointError(error)
        return found

    def remove(self, key: str) -> None:
        super().remove(key)
        self._keys.discard(key)
        self._tell(0, "remove", key)

    def touch(self, keys: Sequence[str]) -> None:
        super().touch(keys)
        self._tell(0, "touch", list(keys))

    def _tell(self, caches: int, what: str, *values: Any) -> None:
        if self._led is not None:
            self._led.journal.add("files", caches, self._name, what, *values)


# --- the other ranks ----------------------------------------------------------------------------------------------


class OwnFiles:
    """The files of a rank other than 0. It shares the follower's `lists` of caches and `snapshots`, by number."""

    def __init__(
        self, model: Exaone4ForCausalLM, lists: Mapping[int, Sequence[Cache]], snapshots: dict[int, Snapshot]
    ) -> None:
        assert model.ranks is not None and model.part is not None
        self._model, self._ranks, self._config = model, model.ranks, own_config(model)
        self._lists, self._snapshots, self._part = lists, snapshots, model.part
        self._folders: dict[str, PrefixFolder] = {}

    def change(self, caches: int, folder: str, what: str, *values: Any) -> None:
        """What rank 0 did in its folder."""
        own = self._folder(folder)
        if what == "write":
            key, about, numbers, most_waiting = values
            own.write(key, about, self._rows(about["start"], numbers), self._lists[caches], most_waiting)
        elif what == "keep":
            for key in {key for key, _, _ in own.index()} - set(values[0]):
                if time.time() - own.path(key).stat().st_mtime > ORPHAN_SECONDS:  # else another cluster may use it
                    own.remove(key)
        elif what == "remove":
            own.remove(values[0])
        else:
            own.touch(values[0])

    def ask(self, what: str, caches: int, *values: Any) -> tuple[str, bool]:
        """Does what rank 0 asks for. Returns the error, and whether a damaged file is the cause; or the digest."""
        if what == "weights":
            return self._digest, False
        work: dict[str, Callable[..., None]] = {
            "write cache": self._write_cache,
            "read cache": self._read_cache,
            "read prefix": self._read_prefix,
        }
        try:
            work[what](self._lists[caches], *values)
        except (OSError, ValueError, FloatingPointError) as error:
            return " ".join(str(error).split()), isinstance(error, CheckpointError)
        return "", False

    def close(self) -> None:
        """Returns when all files are written."""
        for folder in self._folders.values():
            folder.close()

    def _write_cache(
        self,
        layers: Sequence[Cache],
        path: str,
        about: Mapping[str, str],
        ids: list[int],
        lists: list[tuple[int, list[int]]],
        mark: str,
    ) -> None:
        whole, *checkpoints = (self._rows(offset, numbers) for offset, numbers in lists)
        content = CacheContent(ids, whole, [tuple(each) for each in checkpoints], mark)
        write_cache(place_of(Path(path), self._ranks), content, self._about(about), layers)

    def _read_cache(
        self, layers: Sequence[Cache], path: str, about: Mapping[str, str], numbers: list[list[int]], mark: str
    ) -> None:
        place = place_of(Path(path), self._ranks)
        content = read_cache(place, self._about(about), layers, self._config)
        if content.mark != mark:
            raise CheckpointError(f"the prompt cache {place} was not written together with that of rank 0")
        for all_layers, each in zip(numbers, (content.layers, *content.checkpoints), strict=True):
            self._keep(all_layers, each)

    def _read_prefix(
        self, layers: Sequence[Cache], folder: str, key: str, stop: int, tokens: int, wanted: list[tuple[int, int]]
    ) -> None:
        own = self._folder(folder)
        own.flush()  # rank 0 may be faster
        found = own.read(key, stop, tokens, 0, layers, self._config)
        if [one.rows for one in found] != [rows for _, rows in wanted][self._part.own]:
            raise CheckpointError(f"{key} has other rows than in rank 0")
        self._keep([number for number, _ in wanted], found)

    def _about(self, about: Mapping[str, str]) -> dict[str, str]:
        """The fingerprints of rank 0 with those of this rank's part."""
        return {**about, "weights": self._digest, "ranks": str(self._part)}

    @property
    def _digest(self) -> str:
        return weights_digest(tree_flatten(self._model.parameters()))

    def _rows(self, offset: int, numbers: Sequence[int]) -> list[Snapshot]:
        """Of the layers of this rank. `numbers` are those of all layers."""
        return [self._snapshots[number] if number else Snapshot(offset) for number in numbers[self._part.own]]

    def _keep(self, numbers: Sequence[int], found: Sequence[Snapshot]) -> None:
        """Gives what was found, of the layers of this rank, the `numbers` of all layers."""
        own = zip(numbers[self._part.own], found, strict=True)
        self._snapshots |= {number: one for number, one in own if number}

    def _folder(self, name: str) -> PrefixFolder:
        if name not in self._folders:
            self._folders[name] = PrefixFolder(Path(name).expanduser() / self._ranks.name)
        return self._folders[name]
