"""The staging folder `NAME.partial`: a result is made there and renamed when it is complete.

Notes:
- One process at a time holds its lock. The journal is the first file in it: a folder without a journal belongs to
  someone else and is not touched.
- The same plan resumes the files of a killed or interrupted run; every other plan is refused.
- An error removes the folder, so that no partial result is left. Complete weights are kept.
- Only names that a conversion writes are ever removed. An overwritten folder is first renamed to a name that depends
  on the plan, and gets its name back if the new folder cannot take its place.
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

from .calibrate import CHATS, TUNED
from .shards import JOURNAL, begin_journal, journal_of
from .upload import PUBLISHED

#: Temporary files of atomic writes, such as that of a new journal.
TEMPORARY = ".*.partial"
#: Every name that a conversion writes.
KNOWN = (*PUBLISHED, "model*.safetensors", JOURNAL, TUNED, CHATS, TEMPORARY)


@dataclass
class StagingFolder:
    """The folder of a running conversion. With `keep` an error does not remove it."""

    path: Path
    keep: bool = False


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises FileExistsError, NotADirectoryError or ValueError where the result cannot be written."""
    for folder, other, how in ((target, source, "inside"), (source, target, "a parent of")):
        if other.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{target} is {how} its own source {source}; choose another folder")
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file, so {target} cannot be created in it")
    if len(os.fsencode(target.name)) > 200:
        raise ValueError(f"the folder name {target.name} is too long")
    staging = staging_path(target)
    if os.path.lexists(staging) and (staging.is_symlink() or not staging.is_dir()):
        raise FileExistsError(f"{staging} is needed as a folder, and is something else; remove it")
    if not os.path.lexists(target):
        return
    if os.path.ismount(target):  # the result is made beside the target and cannot be renamed to it
        raise FileExistsError(f"{target} is a mount point; choose a folder in it")
    is_folder = target.is_dir() and not target.is_symlink()
    if is_folder and not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{target} already exists; choose another folder, or overwrite it (--overwrite)")
    if not is_folder:
        raise FileExistsError(f"{target} is not a folder, so it is not overwritten")
    if foreign := _foreign(target):
        raise FileExistsError(f"{target} holds {foreign}, which no conversion wrote, so it is not overwritten")
    if not (target / "config.json").is_file():
        raise FileExistsError(f"{target} holds no model, so it is not overwritten; remove it yourself")


@contextmanager
def staging_folder(target: Path, digest: str, overwrite: bool = False) -> Iterator[StagingFolder]:
    """A folder next to `target` that is renamed to `target` at the end of the block, and removed after an error.

    It is kept after a kill, an interrupt, and an error with `keep`: the plan of this digest resumes there. Raises
    FileExistsError where another conversion runs or left its files.
    """
    staging = StagingFolder(staging_path(target))
    new_parents = [folder for folder in staging.path.parents if not folder.exists()]
    staging.path.mkdir(parents=True, exist_ok=True)
    lock = os.open(staging.path, os.O_RDONLY)
    try:
        _lock(lock, staging.path, target)
        _prepare(staging.path, digest, overwrite)
        try:
            yield staging
            _take_place(staging, target, digest, overwrite)
        except Exception:
            if not staging.keep:
                shutil.rmtree(staging.path, ignore_errors=True)
                for folder in new_parents:
                    with suppress(OSError):
                        folder.rmdir()
            raise
    finally:
        os.close(lock)


def _take_place(staging: StagingFolder, target: Path, digest: str, overwrite: bool) -> None:
    staging.keep = True
    aside = target.with_name(f".{target.name}.{digest[:16]}.replaced")
    replaced = overwrite and target.is_dir() and any(target.iterdir())
    if replaced:
        if foreign := _foreign(target):
            raise FileExistsError(
                f"{target} now holds {foreign}, so it is not overwritten; the result is {staging.path}"
            )
        target.rename(aside)
    try:
        staging.path.rename(target)  # fails where `target` is a folder that is not empty
    except OSError as error:
        if replaced:
            aside.rename(target)
        raise FileExistsError(f"{target} was created meanwhile; the result is {staging.path}") from error
    (target / JOURNAL).unlink(missing_ok=True)
    if aside.is_dir() and not _foreign(aside):  # also that of a run that was killed at this point
        shutil.rmtree(aside, ignore_errors=True)


def staging_path(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def remove_result(folder: Path) -> int:
    """Removes a folder that a conversion made, and returns the bytes freed.

    Raises FileNotFoundError if there is none, FileExistsError if it holds a file that no conversion wrote, or if a
    conversion that writes it is running.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if foreign := _foreign(folder):
        raise FileExistsError(f"{folder} holds {foreign}, which no conversion wrote, so it is not removed")
    lock = os.open(folder, os.O_RDONLY)
    try:
        _lock(lock, folder, folder)
        freed = sum(file.stat().st_size for file in folder.iterdir())
        shutil.rmtree(folder)
    finally:
        os.close(lock)
    return freed


def _foreign(folder: Path) -> str | None:
    """The name of a file or folder that no conversion wrote, or None."""
    for entry in sorted(folder.iterdir()):
        if not any(fnmatch.fnmatchcase(entry.name, known) for known in KNOWN) or entry.is_dir():
            return entry.name
    return None


def _lock(lock: int, staging: Path, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FileExistsError(f"another conversion to {target} is running") from error
    if not staging.exists() or os.stat(staging).st_ino != os.fstat(lock).st_ino:
        raise FileExistsError(f"another conversion to {target} has just finished")


def _prepare(staging: Path, digest: str, overwrite: bool) -> None:
    """Keeps the files that this plan can resume; otherwise leaves a folder with a new journal."""
    entries = list(staging.iterdir())
    has_journal = (staging / JOURNAL).is_file()
    others = [entry.name for entry in entries if not fnmatch.fnmatchcase(entry.name, TEMPORARY)]
    if foreign := _foreign(staging) if has_journal or not others else others[0]:
        raise FileExistsError(f"{staging} is needed, but holds {foreign}, which no conversion wrote; remove it")
    left = journal_of(staging)
    if left == digest:
        return
    if left is not None and not overwrite:
        raise FileExistsError(
            f"{staging} belongs to a conversion with other options, or of another source: repeat that conversion to "
            "resume it, or discard it with --overwrite"
        )
    for entry in entries:
        if entry.name != JOURNAL:
            entry.unlink()
    begin_journal(staging, digest)
