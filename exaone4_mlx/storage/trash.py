"""Deleted conversations: they stay in a folder of their own for 30 days, so that a deletion can be undone.

Notes:
- A deletion and its undoing are one rename each. A program that is killed meanwhile loses nothing.
- The name of a file holds the time of its deletion, so that the same conversation can be deleted more than once.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

KEPT_SECONDS = 30 * 86400.0


class Trash:
    """The deleted files of a folder. The caller holds the lock of the folder."""

    def __init__(self, folder: Path) -> None:
        """Changes nothing on the disk: the first deletion makes the folder."""
        self.folder = folder

    def put(self, path: Path) -> None:
        """Moves a file here. Raises FileNotFoundError if there is none."""
        path.lstat()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path.rename(self.folder / f"{path.stem}.{time.time_ns()}.json")

    def last(self, id: str) -> Path:
        """The file of this id that was deleted last. Raises FileNotFoundError if there is none."""
        found = max(self.folder.glob(f"{id}.*.json"), key=_deleted_at, default=None)
        if found is None:
            raise FileNotFoundError(f"the trash holds no conversation {id}")
        return found

    def empty(self) -> None:
        """Removes what was deleted over 30 days ago."""
        with contextlib.suppress(OSError):  # the next start tries again
            for path in self.folder.glob("*.*.json"):
                if 0 < _deleted_at(path) < time.time() - KEPT_SECONDS:
                    path.unlink(missing_ok=True)


def _deleted_at(path: Path) -> float:
    """In seconds; 0 for a file of another kind, which stays."""
    number = path.name.split(".")[1]
    return int(number) / 1e9 if number.isdecimal() else 0.0
