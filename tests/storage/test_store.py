"""Conversations on disk: writes are atomic, a search finds the text, and no unread file is overwritten."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import run_all
from odd_messages import odd_messages

from exaone4_mlx import Conversation, ConversationStore
from exaone4_mlx.storage import store as store_module
from exaone4_mlx.storage.conversation import FORMAT, ID, check
from exaone4_mlx.storage.forms import one_line
from exaone4_mlx.storage.transcript import to_markdown
from exaone4_mlx.storage.turns import closed, edited, title_of

ROOT = Path(__file__).parents[2]
UNKNOWN = "20261125-093015-1f2e3d4c"
FOREIGN_IDS = [
    "",
    "../../x",
    "/etc/passwd",
    "x",
    "a\x00b",
    UNKNOWN + "\n",
    UNKNOWN.upper(),
    f"../{UNKNOWN}",
    "٢" * 8 + UNKNOWN[8:],
]


def said(*texts: str, title: str = "", **fields: Any) -> Conversation:
    """A conversation in which the user and the assistant take turns."""
    conversation = Conversation.new("demo")
    roles = ("user", "assistant")
    conversation.messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    conversation.title = title
    return dataclasses.replace(conversation, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "app" / "conversations"


@pytest.fixture
def store(folder: Path) -> ConversationStore:
    return ConversationStore(folder)


def file_of(store: ConversationStore, conversation: Conversation) -> Path:
    return store.folder / f"{conversation.id}.json"


def changed(store: ConversationStore, conversation: Conversation, **fields: Any) -> Path:
    """The file of the conversation with other values in it, as another program would leave it."""
    path = file_of(store, conversation)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


# --- reading and writing -----------------------------------------------------


def test_what_is_written_is_read_back(store: ConversationStore):
    conversation = said("안녕?", "네!", title="인사", settings={"thinking": True}, dropped=1)
    conversation.messages += [
        {"role": "tool", "content": {"any": [1, None]}, "failed": False, "seconds": 0.5},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "x": 1},
    ]
    written = store.write(conversation)
    assert store.read(conversation.id) == written
    assert written == dataclasses.replace(conversation, revision=1, updated=written.updated)


def test_a_file_is_readable_json_in_the_documented_order(store: ConversationStore):
    conversation = store.write(said("안녕?", title="인사"))
    text = file_of(store, conversation).read_text(encoding="utf-8")
    assert text.startswith('{\n "format": "exaone4_mlx conversation",\n "version": 2,\n "id": ')
    assert "안녕?" in text
    names = (
        "format version id title named pinned created updated revision model settings dropped messages branches steps"
    )
    assert " ".join(json.loads(text)) == names


def test_writing_counts_revisions_and_leaves_what_it_was_given(store: ConversationStore):
    first = said("a")
    before = dataclasses.replace(first)
    second = store.write(first)
    third = store.write(second)
    assert (first, second.revision, third.revision, third.id) == (before, 1, 2, first.id)
    assert first.created == third.created and first.updated < second.updated < third.updated


def test_nothing_is_touched_before_something_is_written(store: ConversationStore, tmp_path: Path):
    assert store.list() == [] and store.damaged == {}
    with pytest.raises(FileNotFoundError):
        store.read(UNKNOWN)
    with pytest.raises(FileNotFoundError):
        store.rename(UNKNOWN, "title")
    store.delete(UNKNOWN)
    assert list(tmp_path.iterdir()) == []


def test_others_on_the_machine_cannot_read_a_conversation(store: ConversationStore):
    conversation = store.write(said("a"))
    assert file_of(store, conversation).stat().st_mode & 0o077 == 0
    assert store.folder.stat().st_mode & 0o077 == 0


def test_new_conversations_have_ids_of_their_own():
    ids = {Conversation.new().id for _ in range(100)}
    assert len(ids) == 100 and all(ID.fullmatch(id) for id in ids)


def test_a_conversation_does_not_share_the_settings_it_was_made_with():
    settings = {"thinking": True}
    Conversation.new("demo", settings).settings["thinking"] = False
    assert settings == {"thinking": True}


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb\ud83d", "\ud83d\ude00", "\\ud800", "\x00\u2028\ufeff"])
def test_half_characters_are_kept_in_a_file_of_valid_utf8(store: ConversationStore, text: str):
    conversation = store.write(said(text, title=text))
    file_of(store, conversation).read_bytes().decode("utf-8")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves are a character
    assert [store.read(conversation.id).messages[0]["content"], store.list()[0].title] == [whole, whole]


def test_the_name_of_the_file_says_which_conversation_it_is(store: ConversationStore):
    conversation = store.write(said("a"))
    file_of(store, conversation).rename(store.folder / f"{UNKNOWN}.json")
    assert store.read(UNKNOWN).id == UNKNOWN


def test_times_may_end_with_z(store: ConversationStore):
    conversation = store.write(said("a"))
    changed(store, conversation, updated="2020-01-01T00:00:00Z")
    newer = store.write(said("b"))
    assert [summary.id for summary in store.list()] == [newer.id, conversation.id]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": "a"}, "messages must be a list, not str"),
        ({"messages": ["a"]}, "message 0 must be an object with a role of system, user, assistant, tool"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "message 0 must be an object with a role of"),
        ({"messages": [{"role": "assistant", "content": ""}, {"role": "system", "content": ""}]}, "message 1: a system message can only be the first"),
        ({"messages": [{"role": "user", "content": None}]}, "message 0: user content must be a string, not NoneType"),
        ({"messages": [{"role": "user", "content": "", "stats": {1, 2}}]}, "it cannot be written as JSON: Object of type set"),
        ({"settings": {"a": object()}}, "it cannot be written as JSON: Object of type object"),
        ({"settings": []}, r"settings cannot be \[\]"),
        ({"title": None}, "title cannot be None"),
        ({"named": 1}, "named cannot be 1"),
        ({"created": "yesterday"}, "created cannot be 'yesterday'"),
        ({"created": "2026-11-25T09:30:15"}, "created cannot be '2026-11-25T09:30:15'"),
        ({"revision": -1}, "revision cannot be -1"),
        ({"model": 3}, "model cannot be 3"),
        ({"dropped": 2}, "dropped cannot be 2"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_back_is_not_written(store: ConversationStore, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        store.write(said("a", **fields))
    assert store.list() == []


def test_what_is_nested_too_deeply_is_not_written(store: ConversationStore):
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="it is nested too deeply for JSON"):
        store.write(said("a", settings={"deep": deep}))
    while deep:
        deep = deep.pop()  # or freeing it would go as deep


def test_a_conversation_too_large_to_be_read_is_not_written(store: ConversationStore, monkeypatch: Any):
    conversation = store.write(said("a"))
    monkeypatch.setattr(store_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"it has 1,\d+ bytes, and at most 1,000 are kept; start a new conversation"):
        store.write(dataclasses.replace(conversation, messages=[{"role": "user", "content": "b" * 1000}]))
    assert store.read(conversation.id) == conversation


# --- ids and what is no conversation ------------------------------------------


@pytest.mark.parametrize("id", FOREIGN_IDS)
def test_a_foreign_id_is_refused_before_the_disk_is_touched(store: ConversationStore, tmp_path: Path, id: str):
    message = "is no id of a conversation; those look like 20261125-093015-1f2e3d4c"
    calls = store.read, lambda id: store.rename(id, "title"), store.delete, lambda id: store.write(said("a", id=id))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(id)
    assert list(tmp_path.iterdir()) == []


def good(**fields: Any) -> str:
    return json.dumps({"format": FORMAT, "version": 1, **vars(said("a")), **fields})


#: Content of a file -> what is said about it.
DAMAGED = {
    "": "it is not JSON: Expecting value: line 1 column 1",
    good()[:-20]: "it is not JSON",
    "[]": "its format is not 'exaone4_mlx conversation'",
    good(format="exaone4_mlx chat"): "its format is not 'exaone4_mlx conversation'",
    good(version=3): "it has version 3, and this program reads up to 2",
    json.dumps({"format": FORMAT, "version": 1}): "it has no messages",
    good(messages={}): "messages must be a list, not dict",
    good(messages=[{"role": "user"}]): "message 0: user content must be a string, not NoneType",
    good(updated=None): "updated cannot be None",
    good(title=["a"]): r"title cannot be ['a']",
    good(dropped=True): "dropped cannot be True",
    "[" * 200_000: "it is nested too deeply",
    '{"a": ' * 200_000: "it is nested too deeply",
    "\udcff": "it is not UTF-8: save it as UTF-8",
}


@pytest.mark.parametrize(("text", "problem"), DAMAGED.items(), ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_and_not_overwritten(store: ConversationStore, text: str, problem: str):
    fine = store.write(said("fine"))
    path = store.folder / f"{UNKNOWN}.json"
    path.write_bytes(data := text.encode(errors="surrogateescape"))
    assert [summary.id for summary in store.list()] == [fine.id]
    assert list(store.damaged) == [path.name] and problem in store.damaged[path.name]
    with pytest.raises(ValueError) as caught:
        store.read(UNKNOWN)
    assert str(caught.value).startswith(f"{path} cannot be read as a conversation: {problem}")
    with pytest.raises(ValueError):
        store.rename(UNKNOWN, "title")
    written = store.write(said("new", id=UNKNOWN, revision=3))
    assert (written.id != UNKNOWN, written.revision, path.read_bytes()) == (True, 1, data)
    assert store.read(written.id) == written


def test_fields_of_any_form_are_read_exported_and_edited():
    for messages in odd_messages():
        conversation = dataclasses.replace(Conversation.new(), messages=messages)
        check(conversation)  # as of a file that is read
        to_markdown(conversation)
        title_of(messages)
        closed(messages)
        assert edited(messages[0], "new")["content"].endswith("new")


def test_a_damaged_file_can_be_deleted(store: ConversationStore):
    store.write(said("a"))
    (store.folder / f"{UNKNOWN}.json").write_text("{")
    store.list()
    store.delete(UNKNOWN)
    assert len(store.list()) == 1 and store.damaged == {}


def test_what_is_larger_than_64_mb_is_not_read(store: ConversationStore):
    store.write(said("a"))
    path = store.folder / f"{UNKNOWN}.json"
    with path.open("wb") as stream:
        stream.truncate(64 * 2**20 + 1)
    assert len(store.list()) == 1
    assert store.damaged == {path.name: "it has 67,108,865 bytes, and at most 67,108,864 are read"}


def test_a_pipe_with_an_id_is_not_waited_for(store: ConversationStore):
    store.write(said("a"))
    os.mkfifo(store.folder / f"{UNKNOWN}.json")
    assert len(store.list()) == 1
    assert store.damaged == {f"{UNKNOWN}.json": "it is not a file"}


def test_a_file_that_cannot_be_read_is_tried_again(store: ConversationStore, monkeypatch: Any):
    conversation = store.write(said("a"))

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert store.list() == []
        assert store.damaged == {f"{conversation.id}.json": "it cannot be read: Permission denied"}
    assert len(store.list()) == 1 and store.damaged == {}


@pytest.mark.parametrize(
    "name", ["notes.json", ".DS_Store", f"{UNKNOWN} copy.json", f"{UNKNOWN}.yaml", f".x{UNKNOWN}.partial"]
)
def test_files_of_others_are_left_alone(store: ConversationStore, name: str):
    conversation = store.write(said("a"))
    (store.folder / name).write_text("theirs")
    store.write(conversation)
    assert len(store.list()) == 1 and store.damaged == {}
    assert (store.folder / name).read_text() == "theirs"


def test_deleting_a_link_leaves_what_it_leads_to(store: ConversationStore, tmp_path: Path):
    store.write(said("a"))
    (tmp_path / "precious").write_text("precious")
    (link := store.folder / f"{UNKNOWN}.json").symlink_to(tmp_path / "precious")
    store.delete(UNKNOWN)
    assert not link.is_symlink() and (tmp_path / "precious").read_text() == "precious"


def test_writing_through_a_link_replaces_the_link(store: ConversationStore, tmp_path: Path):
    conversation = store.write(said("a"))
    outside = file_of(store, conversation).rename(tmp_path / "outside.json")
    file_of(store, conversation).symlink_to(outside)
    before = outside.read_bytes()
    assert store.write(store.read(conversation.id)).id == conversation.id
    assert not file_of(store, conversation).is_symlink() and outside.read_bytes() == before


# --- the list -----------------------------------------------------------------


def test_the_list_has_the_newest_first_with_its_turns(store: ConversationStore):
    first, second = store.write(said("a", "b", "c", title="one")), store.write(said("a", title="two"))
    assert [(summary.title, summary.turns) for summary in store.list()] == [("two", 1), ("one", 2)]
    store.write(first)
    assert [summary.id for summary in store.list()] == [first.id, second.id]


def test_a_search_finds_all_its_words_in_titles_and_in_what_was_said(store: ConversationStore):
    conversation = store.write(said("What is the Capital of Perú?", "Lima, STRASSE", title="리마 여행"))
    conversation.messages += [{"role": "tool", "content": "secret"}]
    store.write(conversation)
    store.write(said("nothing"))
    for query in ("", "  "):
        assert len(store.list(query)) == 2, query
    for query in ("capital", "PERÚ lima", "여행 LIMA", "straße", "peru\u0301", unicodedata.normalize("NFD", "리마")):
        assert [summary.id for summary in store.list(query)] == [conversation.id], query
    for query in ("capital quito", "secret", "peru", "마여"):
        assert store.list(query) == [], query


def test_a_search_finds_decomposed_text_by_composed_words(store: ConversationStore):
    store.write(said(unicodedata.normalize("NFD", "한국어 설명")))
    assert len(store.list("설명")) == 1


def test_a_file_is_read_again_only_when_it_has_changed(store: ConversationStore, monkeypatch: Any):
    first, second = store.write(said("a")), store.write(said("b"))
    reads: list[str] = []
    load = store_module.read_conversation
    monkeypatch.setattr(store_module, "read_conversation", lambda path, id: [reads.append(id), load(path, id)][1])
    assert len(store.list()) == len(store.list("a b")) + 2 == 2
    assert sorted(reads) == sorted([first.id, second.id])
    reads.clear()
    changed(store, second, title="another title")
    assert [summary.title for summary in store.list("another")] == ["another title"]
    assert reads == [second.id]
    reads.clear()
    file_of(store, first).unlink()
    assert [summary.id for summary in store.list()] == [second.id] and reads == []


def test_a_change_within_a_tick_of_the_clock_is_seen(store: ConversationStore):
    """File times are coarse; a file that was replaced is another file."""
    conversation = store.write(said("a"))
    path = file_of(store, conversation)
    info = path.stat()
    assert store.list("a")
    other = store.folder / "other"
    other.write_text(path.read_text().replace('"content": "a"', '"content": "b"'))
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_size == info.st_size and store.list("b") and not store.list("a")


def test_a_folder_that_cannot_be_read_says_so(store: ConversationStore, monkeypatch: Any):
    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match=f"^conversations cannot be read from {store.folder}: Permission denied$"):
        store.list()


# --- two programs ---------------------------------------------------------------


def test_what_another_program_wrote_is_not_overwritten(store: ConversationStore, folder: Path):
    mine = store.write(said("a"))
    theirs = ConversationStore(folder).write(
        dataclasses.replace(mine, messages=[{"role": "user", "content": "theirs"}])
    )
    written = store.write(mine)
    assert (written.id != mine.id, written.revision, store.read(mine.id)) == (True, 1, theirs)
    assert store.write(written).id == written.id
    assert {summary.id for summary in store.list()} == {mine.id, written.id}


def test_a_first_write_overwrites_nothing(store: ConversationStore):
    there = store.write(said("a"))
    changed(store, there, revision=0)
    written = store.write(said("b", id=there.id))
    assert written.id != there.id and store.read(there.id).messages[0]["content"] == "a"


def test_what_was_deleted_meanwhile_is_there_again_when_written(store: ConversationStore):
    conversation = store.write(said("a"))
    store.delete(conversation.id)
    assert store.write(conversation).id == conversation.id and len(store.list()) == 1


def test_of_programs_that_write_at_once_each_keeps_its_own(store: ConversationStore, folder: Path):
    conversation = store.write(said("start"))
    start = threading.Barrier(8)
    written: list[Conversation] = []

    def write(index: int) -> None:
        own = ConversationStore(folder)
        start.wait()
        message = {"role": "user", "content": f"program {index}"}
        written.append(own.write(dataclasses.replace(conversation, messages=[message])))

    run_all(threading.Thread(target=write, args=(index,)) for index in range(8))
    assert len({one.id for one in written}) == 8 and sum(one.id == conversation.id for one in written) == 1
    assert all(store.read(one.id) == one for one in written)


def test_threads_of_one_program_do_not_need_locks_of_the_file_system(store: ConversationStore, monkeypatch: Any):
    def refuse(stream: Any, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(store_module.fcntl, "flock", refuse)
    conversation = store.write(said("start"))
    written: list[Conversation] = []
    run_all(threading.Thread(target=lambda: written.append(store.write(conversation))) for _ in range(20))
    assert len({one.id for one in written}) == 20 and sum(one.id == conversation.id for one in written) == 1


def test_a_store_is_used_by_many_threads_at_once(store: ConversationStore):
    problems: list[Exception] = []

    def work(index: int) -> None:
        try:
            conversation = said(f"thread {index}")
            for _ in range(3):
                conversation = store.write(conversation)
                store.rename(conversation.id, f"name {index}")
                assert [summary.id for summary in store.list(f"thread {index}")] == [conversation.id]
            if index % 2:
                store.delete(conversation.id)
        except Exception as error:
            problems.append(error)

    run_all(threading.Thread(target=work, args=(index,)) for index in range(8))
    assert problems == []
    assert sorted(summary.title for summary in store.list()) == [f"name {index}" for index in range(0, 8, 2)]


# --- titles ---------------------------------------------------------------------


def test_a_name_is_one_line_of_at_most_120_characters(store: ConversationStore):
    conversation = store.write(said("a"))
    for title, name in [
        ("  여행\n계획\t\x00\x1b[31m ", "여행 계획 [31m"),
        ("가" * 130, "가" * 120),
        ("a" * 119 + " b", "a" * 119),
    ]:
        store.rename(conversation.id, title)
        assert (store.read(conversation.id).title, store.read(conversation.id).named) == (name, True)


@pytest.mark.parametrize("title", ["", "  \n\t", "\x00\x1f", "\u2028\u3000"])
def test_a_name_is_not_empty(store: ConversationStore, title: str):
    conversation = store.write(said("a", title="old"))
    with pytest.raises(ValueError, match="a conversation needs a title that is not empty"):
        store.rename(conversation.id, title)
    assert store.read(conversation.id).title == "old"


def test_a_name_with_slashes_is_no_path(store: ConversationStore, tmp_path: Path):
    conversation = store.write(said("a"))
    store.rename(conversation.id, "../../x")
    assert {path.name for path in store.folder.iterdir()} == {f"{conversation.id}.json", ".lock"}
    assert [path.name for path in tmp_path.iterdir()] == ["app"]


def test_a_conversation_renamed_while_a_reply_came_keeps_both(store: ConversationStore):
    conversation = store.write(said("a", title="by itself"))
    store.rename(conversation.id, "chosen")
    written = store.write(dataclasses.replace(conversation, messages=[{"role": "user", "content": "more"}]))
    assert (written.id, written.title, written.named) == (conversation.id, "chosen", True)
    assert store.read(conversation.id) == written


def test_renaming_does_not_move_a_conversation_up(store: ConversationStore):
    older, newer = store.write(said("a")), store.write(said("b"))
    store.rename(older.id, "older")
    assert [summary.id for summary in store.list()] == [newer.id, older.id]


def test_a_title_that_nobody_chose_may_change(store: ConversationStore):
    conversation = store.write(said("a", title="first"))
    assert store.write(dataclasses.replace(conversation, title="second")).title == "second"


def test_a_title_is_cut_where_it_is_too_long():
    assert [one_line(" a\r\n b ", 3), one_line("abc def", 4)] == ["a b", "abc"]


# --- what goes wrong ---------------------------------------------------------------


def test_a_place_that_cannot_be_written_says_so_at_the_first_write(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = ConversationStore(tmp_path / "file" / "conversations")
    assert store.list() == []
    store.delete(UNKNOWN)
    with pytest.raises(FileNotFoundError, match=f"there is no conversation {store.folder}/{UNKNOWN}.json"):
        store.read(UNKNOWN)
    with pytest.raises(OSError, match=f"^conversations cannot be written to {store.folder}: Not a directory$"):
        store.write(said("a"))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(store: ConversationStore, monkeypatch: Any):
    conversation = store.write(said("a"))

    def full(stream: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"cannot be written to {store.folder}: No space left on device"):
            store.write(conversation)
    assert store.read(conversation.id) == conversation
    assert {path.name for path in store.folder.iterdir()} == {f"{conversation.id}.json", ".lock"}
    assert store.write(conversation).revision == 2


def test_a_conversation_that_cannot_be_deleted_says_so(store: ConversationStore):
    (store.folder / f"{UNKNOWN}.json").mkdir(parents=True)
    (store.folder / "trash").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=f"^{store.folder}/{UNKNOWN}.json cannot be deleted: "):
        store.delete(UNKNOWN)


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from exaone4_mlx import ConversationStore

store = ConversationStore(Path(sys.argv[1]))
conversation = store.read(sys.argv[2])
while True:
    conversation.messages[-1]["content"] = str(conversation.revision) * 300_000
    conversation = store.write(conversation)
    print(conversation.revision, flush=True)
"""


def test_a_program_killed_while_it_writes_leaves_whole_files(store: ConversationStore):
    conversation = store.write(said("a"))
    partials = 0
    for attempt in range(40):
        if partials and attempt >= 6:
            break
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(store.folder), conversation.id]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            revision = int(process.stdout.readline())
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline and not list(store.folder.glob(".*.partial")):
                pass
            time.sleep(attempt / 3000)
            process.send_signal(signal.SIGKILL)
        partials += len(list(store.folder.glob(".*.partial")))
        there = store.read(conversation.id)
        assert there.revision >= revision
        assert there.messages[-1]["content"] == str(there.revision - 1) * 300_000
    assert partials, "no kill came in the midst of a write"
    store.write(said("b"))
    assert list(store.folder.glob(".*.partial")) == [] and len(store.list()) == 2


def test_the_store_and_transcripts_import_neither_gradio_nor_mlx():
    code = "import sys, exaone4_mlx.storage.store, exaone4_mlx.storage.transcript; print([name for name in sys.modules if name.split('.')[0] in ('gradio', 'mlx')])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
