"""The folder in which a result is made: `NAME.partial`, until it is whole and takes its name.

What is peculiar here:
- It is locked for one process at a time.
- What a killed or interrupted run left there is taken up by the same plan, and refused to any other.
- An error removes it, so that nothing half done is left. A stranger's files are not touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .shards import JOURNAL, journal_of

#: What a conversion writes.
SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".md", ".svg", ".journal", ".partial", ""}


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises FileExistsError or ValueError, before any work, where the result could not be put."""
    for folder, other, how in ((target, source, "inside"), (source, target, "around")):
        if other.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{target} would lie {how} its own source {source}; choose another folder")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder, or overwrite it (--overwrite)")
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(f"{target} is no folder, and is not overwritten")
    if any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"{target} holds no model, and is not overwritten; remove it yourself")


@contextmanager
def partial_folder(target: Path, digest: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends well, and disappears after an error.

    It stays where the process is killed or interrupted: the plan of this digest goes on there.
    Raises FileExistsError where another conversion is under way or left its files.
    """
    partial = target.with_name(target.name + ".partial")
    made_parents = [folder for folder in partial.parents if not folder.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, partial, target)
        _prepare(partial, digest, overwrite)
        try:
            yield partial
            (partial / JOURNAL).unlink(missing_ok=True)
            _take_place(partial, target)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made_parents:
                with suppress(OSError):
                    folder.rmdir()
            raise
    finally:
        os.close(lock)


def _take_place(partial: Path, target: Path) -> None:
    old = target.with_name(target.name + ".old")
    if target.is_dir() and any(target.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _lock(lock: int, partial: Path, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FileExistsError(f"another conversion to {target} is under way") from error
    if not partial.exists() or os.stat(partial).st_ino != os.fstat(lock).st_ino:
        raise FileExistsError(f"another conversion to {target} has just ended")


def _prepare(partial: Path, digest: str, overwrite: bool) -> None:
    """Leaves what this plan can go on with, and else an empty folder."""
    entries = list(partial.iterdir())
    if foreign := [entry.name for entry in entries if entry.is_dir() or entry.suffix not in SUFFIXES]:
        raise FileExistsError(f"{partial} is in the way and holds {foreign[0]}, which no conversion wrote; remove it")
    left = journal_of(partial)
    if left == digest:
        return
    if left is not None and not overwrite:
        raise FileExistsError(
            f"{partial} was left by a conversion with other options, or of another source: ask for the same again to "
            "go on with it, or discard it with --overwrite"
        )
    for entry in entries:
        entry.unlink()
