"""Conversations in a folder: one file for each, which `conversation.py` describes.

Notes:
- A write is atomic, and never overwrites a file that the writer has not read. If another program changed the file, or
  the file is damaged, it stays, and the conversation goes to a new file.
- After the user named a conversation, only `rename` changes its title. It makes no new revision, so that a reply that
  runs meanwhile loses neither its text nor the title. The same holds for `pin`.
- File names come from ids, never from titles. An id is checked before any access to the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.folders import atomic_file, remove_partial_files
from ..text.message import turn_starts
from .conversation import ID, MAX_BYTES, Conversation, check, new_id, read_conversation, timestamp, to_json
from .forms import folded, moment, one_line
from .trash import Trash


@dataclass(frozen=True)
class ConversationSummary:
    """A line of the list. `turns` is the number of the user's messages."""

    id: str
    title: str
    updated: str
    turns: int
    pinned: bool = False


Summaries = list[ConversationSummary]  # inside ConversationStore, `list` is its method


class ConversationStore:
    """The conversations in a folder, from any thread; other programs may use the folder too."""

    def __init__(self, folder: str | Path) -> None:
        """Changes nothing on the disk: the first write makes the folder."""
        self.folder = Path(folder)
        self.trash = Trash(self.folder / "trash")
        self._lock = threading.RLock()
        self._seen: dict[str, _Seen] = {}

    def list(self, query: str = "") -> Summaries:
        """The conversations with all words of `query` in their title or in what was said, pinned and newest first.

        A file is read again only when it has changed. Raises OSError for a folder that cannot be read.
        """
        words = folded(query).split()
        with self._lock:
            self._look()
            found = [
                seen.summary
                for seen in self._seen.values()
                if seen.summary is not None and all(word in seen.text for word in words)
            ]
        return sorted(found, key=lambda one: (one.pinned, moment(one.updated), one.id), reverse=True)

    @property
    def damaged(self) -> dict[str, str]:
        """Name of a file -> what is wrong with it, as of the last `list`."""
        with self._lock:
            return {f"{id}.json": seen.problem for id, seen in self._seen.items() if seen.problem}

    def read(self, id: str) -> Conversation:
        """Raises FileNotFoundError, or ValueError saying what is wrong with the file."""
        path = self._path(id)
        try:
            return read_conversation(path, id)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"there is no conversation {path}") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a conversation: {error}") from error

    def write(self, conversation: Conversation) -> Conversation:
        """Writes the conversation and returns it as it is on disk now, with a new revision.

        If the file is not that which was read (another program wrote it, or it is damaged), it stays as it is, and
        the returned conversation has a new id. One that was deleted meanwhile is there again.
        Raises ValueError for what could not be read back, and OSError where nothing can be written.
        """
        path = self._path(conversation.id)
        check(conversation)
        written = dataclasses.replace(conversation, revision=conversation.revision + 1, updated=timestamp())
        with self._writing():
            try:
                there = read_conversation(path, conversation.id)
                known = there.revision == conversation.revision > 0
                if known:
                    written.pinned = there.pinned
                if known and there.named:
                    written.title, written.named = there.title, True
            except FileNotFoundError:
                known = True
            except (ValueError, OSError):
                known = False
            if not known:
                written.id, written.revision = new_id(), 1
            self._put(written)
        return written

    def rename(self, id: str, title: str) -> None:
        """Gives it a title of the user's: one line, cut to 120 characters. Raises ValueError for an empty one."""
        if not (title := one_line(title)):
            raise ValueError("a conversation needs a title that is not empty")
        self._amend(id, title=title, named=True)

    def entitle(self, id: str, title: str) -> None:
        """Gives it a title that is not the user's, where it has none of the user's."""
        self._amend(id, title=one_line(title))

    def pin(self, id: str, pinned: bool) -> None:
        """Keeps it above the others in the list, or no longer."""
        self._amend(id, pinned=pinned)

    def delete(self, id: str) -> None:
        """Moves the conversation into the trash. It may be damaged, or not exist."""
        path = self._path(id)
        nothing_there = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with self._lock, _saying(f"{path} cannot be deleted"), nothing_there:
            self.trash.put(path)
        self.trash.empty()

    def restore(self, id: str) -> str:
        """Takes a conversation back out of the trash. Returns its id, which is new if another has taken the old one.

        Raises FileNotFoundError if the trash does not hold it.
        """
        path, deleted = self._path(id), self.trash.last(id)
        with self._writing():
            if path.exists():
                path = self._path(new_id())
            deleted.rename(path)
        return path.stem

    def _amend(self, id: str, **changes: Any) -> None:
        """Changes fields without a new revision, so that a reply that runs meanwhile keeps its file."""
        self.read(id)  # where there is none, no folder is made
        with self._writing():
            there = self.read(id)
            if "named" not in changes and there.named:
                changes.pop("title", None)
            self._put(dataclasses.replace(there, **changes))

    def _path(self, id: str) -> Path:
        if not ID.fullmatch(str(id)):
            raise ValueError(f"{str(id)[:80]!r} is no id of a conversation; those look like 20261125-093015-1f2e3d4c")
        return self.folder / f"{id}.json"

    def _look(self) -> None:
        """Reads the files that changed."""
        entries: tuple[os.DirEntry[str], ...] = ()
        nothing_there = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with _saying(f"conversations cannot be read from {self.folder}"), nothing_there:
            entries = tuple(os.scandir(self.folder))
        before, self._seen = self._seen, {}
        for entry in entries:
            id = entry.name.removesuffix(".json")
            if id == entry.name or not ID.fullmatch(id):
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                info = entry.stat()
                stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
                known = before.get(id)
                self._seen[id] = known if known and known.stamp == stamp else _see(self._path(id), id, stamp)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A lock for reading and writing: no other thread or program writes meanwhile."""
        with self._lock, _saying(f"conversations cannot be written to {self.folder}"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.folder / ".lock").open("ab") as stream:
                with contextlib.suppress(OSError):  # some network folders have no locks
                    fcntl.flock(stream, fcntl.LOCK_EX)
                yield

    def _put(self, conversation: Conversation) -> None:
        """Writes the file, whole or not at all. Removes incomplete files of a killed program."""
        data = to_json(conversation).encode()
        if len(data) > MAX_BYTES:
            raise ValueError(
                f"it has {len(data):,} bytes, and at most {MAX_BYTES:,} are kept; start a new conversation"
            )
        remove_partial_files(self.folder)
        with atomic_file(self._path(conversation.id), mode=0o600) as stream:
            stream.write(data)


@dataclass(frozen=True)
class _Seen:
    """What a file held when it was read last: a summary and the text to be searched, or a problem."""

    stamp: tuple[int, ...]
    summary: ConversationSummary | None = None
    text: str = ""
    problem: str = ""


def _see(path: Path, id: str, stamp: tuple[int, ...]) -> _Seen:
    try:
        conversation = read_conversation(path, id)
    except FileNotFoundError:
        raise
    except OSError as error:  # may pass without a change of the file: without its stamp, it is tried again
        return _Seen((), problem=f"it cannot be read: {error.strerror or error}")
    except ValueError as error:
        return _Seen(stamp, problem=str(error))
    beside = (message for branch in conversation.branches for message in branch["messages"])
    said = [one for one in (*conversation.messages, *beside) if one["role"] in ("user", "assistant")]
    text = "\n".join([conversation.title, *(message.get("content") or "" for message in said)])
    turns = len(turn_starts(conversation.messages))
    return _Seen(
        stamp,
        ConversationSummary(id, conversation.title, conversation.updated, turns, conversation.pinned),
        folded(text),
    )


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """An OSError from inside says what failed, and why, in one line."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what}: {error.strerror or error}") from error
