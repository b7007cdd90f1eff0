"""The folder in which a result is made: `NAME.partial`, until it is whole and takes its name.

What is peculiar here:
- It is locked for one process at a time, and the journal is the first file in it: a folder without is a stranger's.
- What a killed or interrupted run left there is taken up by the same plan, and refused to any other.
- An error removes it, so that nothing half done is left; once the weights are whole they are kept.
- Only names that a conversion writes are ever removed. A folder that is overwritten steps aside first, under a name
  of this plan's own, and comes back if the new one cannot take its place.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .shards import JOURNAL, begin_journal, journal_of
from .upload import PUBLISHED

#: A file that is being written, such as the journal at its beginning.
BEGINNING = ".*.partial"
#: Every name that a conversion writes.
KNOWN = (*PUBLISHED, "model*.safetensors", JOURNAL, "tuned.safetensors", BEGINNING)


@dataclass
class Partial:
    """The folder under way. `keep` says whether an error leaves it."""

    path: Path
    keep: bool = False


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises FileExistsError, NotADirectoryError or ValueError where the result could not be put."""
    for folder, other, how in ((target, source, "inside"), (source, target, "around")):
        if other.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{target} would lie {how} its own source {source}; choose another folder")
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file: {target} cannot be made in it")
    if len(os.fsencode(target.name)) > 200:
        raise ValueError(f"{target.name} is too long a name for a folder")
    partial = _partial_of(target)
    if os.path.lexists(partial) and (partial.is_symlink() or not partial.is_dir()):
        raise FileExistsError(f"{partial} is in the way, and is no folder; remove it")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder, or overwrite it (--overwrite)")
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(f"{target} is no folder, and is not overwritten")
    if foreign := _foreign(target):
        raise FileExistsError(f"{target} holds {foreign}, which no conversion wrote, and is not overwritten")
    if any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"{target} holds no model, and is not overwritten; remove it yourself")


@contextmanager
def partial_folder(target: Path, digest: str, overwrite: bool = False) -> Iterator[Partial]:
    """A folder beside `target` that takes its name when the block ends well, and disappears after an error.

    It stays where the process is killed or interrupted, and where the block said so: the plan of this digest goes
    on there. Raises FileExistsError where another conversion is under way or left its files.
    """
    partial = Partial(_partial_of(target))
    made_parents = [folder for folder in partial.path.parents if not folder.exists()]
    partial.path.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial.path, os.O_RDONLY)
    try:
        _lock(lock, partial.path, target)
        _prepare(partial.path, digest, overwrite)
        try:
            yield partial
            _take_place(partial, target, digest, overwrite)
        except Exception:
            if not partial.keep:
                shutil.rmtree(partial.path, ignore_errors=True)
                for folder in made_parents:
                    with suppress(OSError):
                        folder.rmdir()
            raise
    finally:
        os.close(lock)


def _take_place(partial: Partial, target: Path, digest: str, overwrite: bool) -> None:
    partial.keep = True
    aside = target.with_name(f".{target.name}.{digest[:16]}.replaced")
    replaced = overwrite and target.is_dir() and any(target.iterdir())
    if replaced:
        if foreign := _foreign(target):
            raise FileExistsError(f"{target} holds {foreign} now, and is not overwritten; {partial.path} is complete")
        target.rename(aside)
    try:
        partial.path.rename(target)  # which refuses a folder that holds something
    except OSError as error:
        if replaced:
            aside.rename(target)
        raise FileExistsError(f"{target} came to be meanwhile; the result is {partial.path}") from error
    (target / JOURNAL).unlink(missing_ok=True)
    if aside.is_dir() and not _foreign(aside):  # of an earlier run too that was killed just there
        shutil.rmtree(aside, ignore_errors=True)


def _partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _foreign(folder: Path) -> str | None:
    """The name of something in a folder that no conversion wrote."""
    for entry in sorted(folder.iterdir()):
        if not any(fnmatch.fnmatchcase(entry.name, known) for known in KNOWN) or entry.is_dir():
            return entry.name
    return None


def _lock(lock: int, partial: Path, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FileExistsError(f"another conversion to {target} is under way") from error
    if not partial.exists() or os.stat(partial).st_ino != os.fstat(lock).st_ino:
        raise FileExistsError(f"another conversion to {target} has just ended")


def _prepare(partial: Path, digest: str, overwrite: bool) -> None:
    """Leaves what this plan can go on with, and else a folder with a fresh journal."""
    entries = list(partial.iterdir())
    begun = (partial / JOURNAL).is_file()
    others = [entry.name for entry in entries if not fnmatch.fnmatchcase(entry.name, BEGINNING)]
    if foreign := _foreign(partial) if begun or not others else others[0]:
        raise FileExistsError(f"{partial} is in the way and holds {foreign}, which no conversion wrote; remove it")
    left = journal_of(partial)
    if left == digest:
        return
    if left is not None and not overwrite:
        raise FileExistsError(
            f"{partial} was left by a conversion with other options, or of another source: ask for the same again to "
            "go on with it, or discard it with --overwrite"
        )
    for entry in entries:
        if entry.name != JOURNAL:
            entry.unlink()
    begin_journal(partial, digest)
