"""Deletion of conversations with `app.trash`, its undoing, and pins."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from exaone4_mlx import Conversation, ConversationStore
from exaone4_mlx.storage.trash import KEPT_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path / "conversations")


def written(store: ConversationStore, text: str = "hi", **fields: object) -> Conversation:
    conversation = Conversation.new()
    conversation.messages = [{"role": "user", "content": text}]
    return store.write(dataclasses.replace(conversation, **fields))  # type: ignore[arg-type]


def in_trash(store: ConversationStore) -> list[Path]:
    return sorted(store.trash.folder.glob("*"))


def test_a_deleted_conversation_comes_back_byte_for_byte(store: ConversationStore):
    conversation = written(store, "안녕", title="인사", pinned=True)
    path = store.folder / f"{conversation.id}.json"
    before = path.read_bytes()
    store.delete(conversation.id)
    assert not path.exists() and store.list() == [] and len(in_trash(store)) == 1
    assert store.restore(conversation.id) == conversation.id
    assert path.read_bytes() == before and in_trash(store) == []
    assert [one.title for one in store.list()] == ["인사"]


def test_a_damaged_file_comes_back_too(store: ConversationStore):
    conversation = written(store)
    path = store.folder / f"{conversation.id}.json"
    path.write_bytes(b"{")
    store.delete(conversation.id)
    store.restore(conversation.id)
    assert path.read_bytes() == b"{"


def test_what_was_deleted_twice_is_in_the_trash_twice_and_the_last_comes_back(store: ConversationStore):
    first = written(store, "first")
    store.delete(first.id)
    second = store.write(dataclasses.replace(first, messages=[{"role": "user", "content": "second"}]))
    assert second.id == first.id, "one that was deleted meanwhile is there again"
    store.delete(first.id)
    assert len(in_trash(store)) == 2, "the second deletion overwrote the first"
    store.restore(first.id)
    assert store.read(first.id).messages[0]["content"] == "second"
    other = store.restore(first.id)
    assert other != first.id, "it overwrote the conversation that has its id"
    assert store.read(other).messages[0]["content"] == "first" and len(store.list()) == 2


def test_the_trash_is_emptied_after_thirty_days(store: ConversationStore):
    conversation = written(store)
    store.delete(conversation.id)
    (file,) = in_trash(store)
    old = time.time_ns() - int((KEPT_SECONDS + 60) * 1e9)
    file.rename(store.trash.folder / f"{conversation.id}.{old}.json")
    (store.trash.folder / "notes.of mine.json").write_text("stays")
    kept = written(store)
    store.delete(kept.id)  # each deletion looks, and so does each start
    assert [file.name.split(".")[0] for file in in_trash(store)] == [kept.id, "notes"]


def test_what_the_trash_does_not_hold_cannot_be_restored(store: ConversationStore):
    with pytest.raises(FileNotFoundError, match="the trash holds no conversation 20260101-000000-00000000"):
        store.restore("20260101-000000-00000000")
    with pytest.raises(ValueError, match="is no id"):
        store.restore("../../x")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_deletion_that_fails_leaves_the_file(store: ConversationStore):
    conversation = written(store)
    store.folder.chmod(0o500)
    try:
        with pytest.raises(OSError, match="cannot be deleted: "):
            store.delete(conversation.id)
        assert (store.folder / f"{conversation.id}.json").exists()
    finally:
        store.folder.chmod(0o700)


def test_pinned_conversations_come_first_and_stay_pinned_when_a_reply_is_written(store: ConversationStore):
    first = written(store, title="first")
    written(store, title="second")
    store.pin(first.id, True)
    assert [(one.title, one.pinned) for one in store.list()] == [("first", True), ("second", False)]
    assert store.list()[0].updated == first.updated, "a pin is no change of the conversation"
    again = store.write(first)  # a session that was open before knows nothing of the pin
    assert again.id == first.id and again.pinned and store.read(first.id).pinned
    store.pin(first.id, False)
    assert not store.write(again).pinned
