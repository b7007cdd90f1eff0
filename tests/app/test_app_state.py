"""The state of all tabs: a conversation is open once, replies outlive a page, caches are bounded, one model is loaded."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import json
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_sessions import ENDLESS, PLAIN, WAIT_SECONDS, contents, finished, say, underway, until
from conftest import roll_dice, run_all
from scripted import ScriptedModel

from app import engine as engine_module, state as state_module
from app.engine import ChatEngine, LoadedModel
from app.models import Choice, Draft, memory_in_use
from app.record import Busy
from app.session import Session
from app.settings import Settings
from app.state import AppState
from exaone4_mlx import Conversation, ConversationStore, KVQuantization, Tokenizer, fit
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.storage.transcript import to_json, to_markdown

UNKNOWN = "20261125-093015-1f2e3d4c"
GRACE = 0.15
ENGINE = ("folders", "given", "kv", "drafting", "draft", "ignores_memory")


@pytest.fixture
def make(unread: Any, scripted: Any, tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[..., AppState]]:
    """make() is a state with a tiny random model, and a short grace period."""
    monkeypatch.setattr(state_module, "GRACE_SECONDS", GRACE)
    scripted("ok", repeat=True)
    made: list[AppState] = []

    def one(model: Any = unread, **options: Any) -> AppState:
        loaded = LoadedModel(Choice("unread", "unread"), *model, fit("demo"))
        engine = ChatEngine(loaded, **{name: options.pop(name) for name in list(options) if name in ENGINE})
        state = AppState(engine, ConversationStore(tmp_path / "data"), **({"tools": [roll_dice]} | options))
        made.append(state)
        return state

    yield one
    for state in made:
        state.stop_all(WAIT_SECONDS)


@functools.cache
def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(DEMO_FOLDER)


def fresh(text: str, pause: float = 0.0, **config: Any) -> tuple[ScriptedModel, Tokenizer]:
    """A model that nothing else refers to, and that always says `text`."""
    tokenizer = demo_tokenizer()
    model = ScriptedModel.tiny(tokenizer, **config)
    model.script.play(text, pause=pause, repeat=True)
    return model, tokenizer


@pytest.fixture
def state(make: Callable[..., AppState]) -> AppState:
    return make()


# --- tabs and conversations ------------------------------------------------------


def test_tabs_are_apart(state: AppState) -> None:
    one, two = state.tab("one"), state.tab("two")
    say(one.session, "first")
    assert contents(two.session) == [] and one.session is not two.session
    assert state.tab("one") is one, "a tab is known by its key"


def test_conversation_in_two_tabs_is_open_once(state: AppState) -> None:
    one = state.tab("one")
    say(one.session, "first")
    two = state.tab("two", one.session.id)
    assert two.session is one.session
    state.show(state.tab("three"), state.session(one.session.id))
    assert state.tab("three").session is one.session


@pytest.mark.parametrize("conversation", ["", "../../etc/passwd", UNKNOWN, "x" * 1000])
def test_address_of_no_conversation_begins_one(state: AppState, conversation: str) -> None:
    assert contents(state.tab("one", conversation).session) == []


def test_requests_of_a_new_tab_that_come_at_once_find_one_tab(state: AppState) -> None:
    for number in range(20):
        barrier, tabs = threading.Barrier(4), []

        def ask(number: int = number, barrier: Any = barrier, tabs: Any = tabs) -> None:
            barrier.wait()
            tabs.append(state.tab(f"{number}"))

        run_all(threading.Thread(target=ask) for _ in range(4))
        assert len({id(tab) for tab in tabs}) == 1 and len({id(tab.session) for tab in tabs}) == 1
    assert len(state._sessions) == 20, "conversations that nobody sees are open"


def test_conversation_opened_from_two_requests_at_once_is_open_once(state: AppState) -> None:
    """Both read the file before either shows it."""
    conversation = Conversation.new()
    conversation.messages = [{"role": "user", "content": "first"}]
    id = state.store.write(conversation).id
    one, two = state.session(id), state.session(id)
    state.show(state.tab("one"), one)
    state.show(state.tab("two"), two)
    assert state.tab("one").session is state.tab("two").session


def test_tabs_that_come_with_the_same_address_at_once_share_it(state: AppState, monkeypatch: Any) -> None:
    id = state.store.write(Conversation.new()).id
    read, barrier = state.store.read, threading.Barrier(2)

    def both(id: str) -> Conversation:
        barrier.wait(WAIT_SECONDS)
        return read(id)

    monkeypatch.setattr(state.store, "read", both)
    run_all(threading.Thread(target=state.tab, args=(key, id)) for key in ("one", "two"))
    assert state.tab("one").session is state.tab("two").session and state.tab("one").session.id == id


def test_conversation_forgotten_while_a_tab_turns_to_it_is_still_open_once(state: AppState) -> None:
    one = state.tab("one")
    say(one.session, "first")
    found = state.session(one.session.id)
    state.show(one, state.new_session())  # the last tab that looked at it, in the meantime
    state.show(state.tab("two"), found)
    assert state.session(found.id) is found, "a second session would not know what this one says"


def test_page_loaded_again_finds_its_reply_under_way(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS, pause=0.005, repeat=True)
    session = underway(state.tab("before").session)
    state.leave("before")
    again = state.tab("after", session.id)
    time.sleep(2 * GRACE)
    assert again.session is session and session.running
    before = len(contents_coming(session))
    until(lambda: len(contents_coming(session)) > before, "the reply goes on")


def contents_coming(session: Session) -> str:
    return "".join(message["content"] for message in session.view().coming)


def test_reply_that_nobody_comes_back_to_is_ended_and_kept(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS, pause=0.005, repeat=True)
    session = underway(state.tab("before").session)
    state.leave("before")
    assert session.running, "it has a moment"
    assert session.join(WAIT_SECONDS)
    kept = state.store.read(session.id).messages
    assert kept[-1]["finish_reason"] == "cancelled" and kept[-1]["content"]
    until(lambda: not state._sessions and not session.has_caches, "it is closed")


def test_reply_that_another_tab_looks_at_goes_on(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS, pause=0.005, repeat=True)
    session = underway(state.tab("one").session)
    state.tab("two", session.id)
    state.leave("one")
    time.sleep(2 * GRACE)
    assert session.running


def test_reply_goes_on_while_its_tab_shows_another_conversation(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS[:200], pause=0.002, repeat=True)
    tab = state.tab("one")
    session = underway(tab.session)
    state.show(tab, state.new_session())
    assert finished(session).messages[-1]["finish_reason"] == "stop"
    until(lambda: session.id not in state._sessions, "it is closed, now that it has ended")
    state.show(tab, state.session(session.id))
    assert contents(tab.session) == ["Count", ENDLESS[:200]]


def test_only_uploaded_files_are_attached_and_too_long_ones_are_refused_at_once(
    state: AppState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    (uploads / "a.txt").write_text("대한민국의 수도는 서울입니다.")
    attachment, tokens = state.attachment(str(uploads / "a.txt"))
    assert attachment.text.startswith("대한민국") and 0 < tokens < 40
    (tmp_path / "secret.txt").write_text("x")
    (uploads / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in (tmp_path / "secret.txt", uploads / ".." / "secret.txt", uploads / "link.txt", Path("/etc/passwd")):
        with pytest.raises(ValueError, match="only uploaded files"):
            state.attachment(str(path))
    (uploads / "long.txt").write_text("The capital of Peru is Lima.\n" * 170_000)  # 5 MB
    encoded: list[int] = []
    encode = state.engine.loaded.tokenizer.encode
    monkeypatch.setattr(state.engine.loaded.tokenizer, "encode", lambda text: encoded.append(len(text)) or encode(text))
    with pytest.raises(ValueError, match=r"long.txt has about [\d,]+ tokens, and a conversation holds 8,192"):
        state.attachment(str(uploads / "long.txt"))
    assert sum(encoded) < 100_000, "its tokens are estimated"


def test_leaving_twice_or_never_having_been_there_is_fine(state: AppState) -> None:
    state.leave("nobody")
    state.tab("one")
    state.leave("one")
    state.leave("one")
    assert state.open_tabs == 0


# --- clients of the API ----------------------------------------------------------


def test_conversation_of_a_client_is_written_nowhere(state: AppState) -> None:
    session = state.tab("client", keeps=False).session
    assert say(session, "secret").unsaved is None
    assert state.store.list() == [] and not state.store.folder.exists()


def test_client_gets_no_conversation_of_the_disk(state: AppState) -> None:
    session = state.tab("one").session
    say(session, "mine")
    assert contents(state.tab("client", session.id, keeps=False).session) == []


def test_reply_of_a_client_ends_with_what_could_show_it(state: AppState, scripted: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(state_module, "GRACE_SECONDS", 600.0)  # that is for pages that are loaded again
    scripted(ENDLESS, pause=0.005, repeat=True)
    tab = state.tab("client", keeps=False)
    session = underway(tab.session)
    state.show(tab, state.new_session(keeps=False))
    assert finished(session).messages[-1]["finish_reason"] == "cancelled", "it is made for nobody"
    session = underway(tab.session)
    state.leave("client")
    assert finished(session).messages[-1]["finish_reason"] == "cancelled"
    until(lambda: not state._sessions, "all is closed")


def test_clients_that_never_say_goodbye_are_bounded(state: AppState, monkeypatch: Any) -> None:
    monkeypatch.setattr(state_module, "MAX_OPEN", 3)
    state.tab("person")
    for number in range(10):
        state.tab(f"client {number}", keeps=False)
    assert set(state._tabs) == {"person", "client 7", "client 8", "client 9"}
    assert len(state._sessions) == 4


# --- rename and delete -----------------------------------------------------------


def test_rename_while_a_reply_is_made_keeps_both_in_one_file(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS[:150], pause=0.002, repeat=True)
    session = underway(state.tab("one").session)
    id = session.id
    state.rename(id, "  My\ncount ")
    finished(session)
    say(session, "more")
    assert session.id == id and [one.title for one in state.store.list()] == ["My count"]
    assert session.conversation.title == "My count" and len(state.store.read(id).messages) == 4


def test_rename_between_two_steps_of_a_write_costs_no_copy(state: AppState, monkeypatch: Any) -> None:
    session = state.tab("one").session
    say(session, "first")
    write = state.store.write

    def late(conversation: Conversation) -> Conversation:
        written = write(conversation)
        thread = threading.Thread(target=state.rename, args=(session.id, "Mine"))
        thread.start()
        thread.join(0.1)  # it may have to wait for us
        return written

    with monkeypatch.context() as patch:
        patch.setattr(state.store, "write", late)
        say(session, "second")
    say(session, "third")
    assert [(one.title, one.turns) for one in state.store.list()] == [("Mine", 3)]
    until(lambda: session.conversation.title == "Mine", "the open conversation knows its name")


def test_conversation_can_be_named_before_it_begins(state: AppState) -> None:
    session = state.tab("one").session
    state.rename(session.id, "Plans")
    assert session.conversation.title == "Plans" and state.store.list() == []
    say(session, "first")
    assert [one.title for one in state.store.list()] == ["Plans"]


def test_rename_refuses_what_has_no_name_or_is_not_there(state: AppState) -> None:
    session = state.tab("one").session
    with pytest.raises(ValueError, match="a title that is not empty"):
        state.rename(session.id, " \n ")
    with pytest.raises(FileNotFoundError, match="there is no conversation"):
        state.rename(UNKNOWN, "x")
    assert session.conversation.title == ""


def test_deleted_while_a_reply_is_made_it_stays_deleted(state: AppState, scripted: Any) -> None:
    scripted(ENDLESS, pause=0.005, repeat=True)
    one = state.tab("one")
    session = underway(one.session)
    two = state.tab("two", session.id)
    state.delete(session.id)
    assert not session.running and state.store.list() == []
    assert contents(one.session) == [] == contents(two.session), "tabs that looked at it get a new one"
    assert session not in state._sessions.values() and not session.has_caches
    say_after = one.session
    scripted("ok", repeat=True)
    say(say_after, "new")
    assert [one.title for one in state.store.list()] == ["new"]


def test_conversation_that_is_not_open_can_be_deleted(state: AppState) -> None:
    id = state.store.write(Conversation.new()).id
    state.delete(id)
    state.delete(id)  # it is gone already
    assert state.store.list() == []


def test_delete_that_fails_leaves_all_as_it_was(state: AppState, monkeypatch: Any) -> None:
    def refuses(id: str) -> None:
        raise OSError(f"{id}.json cannot be deleted: Permission denied")

    tab = state.tab("one")
    session = tab.session
    say(session, "first")
    with monkeypatch.context() as patch:
        patch.setattr(state.store, "delete", refuses)
        with pytest.raises(OSError, match="Permission denied"):
            state.delete(session.id)
    assert tab.session is session and state.session(session.id) is session
    say(session, "second")
    assert len(state.store.read(session.id).messages) == 4, "it is still written"


# --- the disk --------------------------------------------------------------------


def test_other_programs_version_stays_and_the_tab_goes_on_in_a_copy(state: AppState) -> None:
    tab = state.tab("one")
    say(tab.session, "mine")
    theirs = state.store.read(tab.session.id)
    theirs.messages = [*theirs.messages, {"role": "user", "content": "theirs"}]
    ConversationStore(state.store.folder).write(theirs)
    say(tab.session, "and more")
    assert tab.session.id != theirs.id and contents(tab.session) == ["mine", "ok", "and more", "ok"]
    assert state.session(tab.session.id) is tab.session
    other = state.tab("two", theirs.id).session
    assert other is not tab.session and contents(other) == ["mine", "ok", "theirs"]
    say(tab.session, "again")
    assert len(state.store.list()) == 2, "one copy is enough"


def test_reply_goes_on_without_the_disk_and_comes_to_it_later(state: AppState, monkeypatch: Any) -> None:
    def full(conversation: Conversation) -> Conversation:
        raise OSError("conversations cannot be written to /data: No space left on device")

    tab = state.tab("one")
    session = tab.session
    with monkeypatch.context() as patch:
        patch.setattr(state.store, "write", full)
        assert "No space left" in str(say(session, "precious").unsaved)
        state.show(tab, state.new_session())
    assert state.session(session.id) is session, "it is nowhere else"
    assert not session.has_caches, "what can be made again goes"
    say(tab.session, "something else")
    until(lambda: len(state.store.list()) == 2, "both are on disk")
    until(lambda: session.id not in state._sessions, "it is closed, now that it is saved")
    assert [message["content"] for message in state.store.read(session.id).messages] == ["precious", "ok"]


def test_a_read_only_folder_is_reported_and_nothing_breaks(state: AppState) -> None:
    state.store.folder.parent.mkdir(exist_ok=True)
    state.store.folder.write_text("a file where the folder should be")  # root may write anywhere
    view = say(state.tab("one").session, "first")
    assert "conversations cannot be written to" in str(view.unsaved) and view.messages[-1]["content"] == "ok"


def test_deleted_file_comes_back_with_the_next_turn(state: AppState) -> None:
    session = state.tab("one").session
    say(session, "first")
    (state.store.folder / f"{session.id}.json").unlink()
    say(session, "second")
    assert len(state.store.read(session.id).messages) == 4


def test_settings_of_a_conversation_come_back_with_it(make: Any) -> None:
    state = make(settings=Settings(system="Be kind."))
    session = state.tab("one").session
    assert session.settings.system == "Be kind."
    session.send("Hi", [], Settings(system="Be brief.", max_tokens=77))
    finished(session)
    state.leave("one")
    until(lambda: not state._sessions, "it is closed")
    again = state.tab("two", session.id).session
    assert again is not session and again.settings == Settings(system="Be brief.", max_tokens=77)


def test_system_prompt_among_the_messages_counts(state: AppState) -> None:
    conversation = Conversation.new(settings={"system": "Old.", "top_p": "nonsense"})
    conversation.messages = [{"role": "system", "content": "New."}, {"role": "user", "content": "Hi"}]
    assert state.session(state.store.write(conversation).id).settings.system == "New."


def test_model_is_noted_in_the_conversation(state: AppState) -> None:
    session = state.tab("one").session
    say(session, "first")
    assert state.store.read(session.id).model == "unread"


# --- caches ----------------------------------------------------------------------


def test_resting_caches_are_bounded_in_number(state: AppState, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_module, "MAX_CACHES", 3)
    sessions = [state.tab(f"{number}").session for number in range(5)]
    for session in [*sessions, sessions[2]]:
        say(session, "Hi")
    until(lambda: sum(session.has_caches for session in sessions) <= 3, "the bound holds")
    assert [session.has_caches for session in sessions] == [False, False, True, True, True]
    say(sessions[0], "Hi again")
    until(lambda: not sessions[3].has_caches, "the least recently used goes")
    assert sessions[2].has_caches and contents(sessions[0]) == ["Hi", "ok", "Hi again", "ok"]


def with_room(state: AppState, conversations: float, tokens: int) -> None:
    """The machine's memory is such that caches of so many conversations with so many tokens in all have room."""
    needs = state.engine.loaded.fit
    row = needs.global_cache_bytes / needs.max_kv_size
    room = conversations * (needs.local_window_bytes + needs.local_reserve_bytes) + tokens * row
    needs = dataclasses.replace(needs, memory_bytes=int(needs.weights_bytes + 2 * room))  # half is for caches
    state.engine._use(dataclasses.replace(state.engine.loaded, fit=needs))


def test_resting_caches_are_bounded_in_bytes(state: AppState) -> None:
    with_room(state, 3.5, tokens=400)
    sessions = [state.tab(f"{number}").session for number in range(4)]
    for session in sessions:
        say(session, "word " * 30)
        assert 90 < session.context_tokens < 120
    assert [session.has_caches for session in sessions] == [False, True, True, True]


def test_caches_that_grow_make_others_go(state: AppState) -> None:
    """Also where no new conversation is opened."""
    with_room(state, 2.01, tokens=500)
    small, large = state.tab("small").session, state.tab("large").session
    say(large, "Hi")
    say(small, "Hi")
    assert small.has_caches and large.has_caches
    say(large, "word " * 300)
    until(lambda: not small.has_caches, "beside 900 tokens there is no room")
    assert large.has_caches


def test_memory_is_back_when_all_tabs_are_gone(state: AppState) -> None:
    def talk(number: int) -> None:
        say(state.tab(f"{number}").session, "word " * 100)

    def leave() -> None:
        for number in range(4):
            state.leave(f"{number}")
        until(lambda: not state._sessions, "all are closed")
        state.engine.prefixes.clear()  # which has what was read for conversations that are opened again
        gc.collect()

    talk(0)  # the model computes its form for generation once
    leave()
    before = memory_in_use()
    for number in range(4):
        talk(number)
    assert memory_in_use() > before, "caches take memory"
    leave()
    until(lambda: gc.collect() is not None and memory_in_use() <= before, f"{memory_in_use()} back to {before}")


# --- the model -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the demo's weights: another model than the one in use."""
    return shutil.copytree(DEMO_FOLDER, tmp_path / "other", ignore=shutil.ignore_patterns("recipe"))


def tight(monkeypatch: Any) -> None:
    """A machine with room for one model."""
    monkeypatch.setattr(
        engine_module, "fit", lambda path, **options: dataclasses.replace(fit(path, **options), memory_bytes=1)
    )


class Held:
    """In place of `Loading`: waits for `go_on`, then returns another tiny model, or fails."""

    go_on: threading.Event
    fails: tuple[str, ...] = ()
    looked: Callable[[], Any] | None = None
    loads: Any = None  # in place of what the path names

    def __init__(self, path: str) -> None:
        self.path, self.done, self.total, self.warnings = path, 7, 11, []
        if Held.looked is not None:
            Held.looked()

    def result(self) -> Any:
        assert Held.go_on.wait(WAIT_SECONDS)
        if self.path in Held.fails:
            raise ValueError(f"{self.path} is damaged")
        return Held.loads


@pytest.fixture
def held(monkeypatch: Any) -> Iterator[type[Held]]:
    monkeypatch.setattr(engine_module, "Loading", Held)
    monkeypatch.setattr(engine_module, "step_size", lambda *args: 512)
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 0.01)
    Held.go_on, Held.fails, Held.looked, Held.loads = threading.Event(), (), None, fresh("ok", seed=1)
    yield Held
    Held.go_on.set()
    Held.looked = None


def switching(state: AppState, path: str = "demo", context: int | None = None) -> tuple[threading.Thread, list[Any]]:
    """A thread that loads a model, and its outcome: how far it was each time, and an error."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend(state.engine.switch(path, context))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_another_model_takes_over_and_the_conversation_goes_on(state: AppState, folder: Path) -> None:
    session = state.tab("one").session
    say(session, "My name is Clara.")
    before = weakref.ref(state.engine.loaded.model)
    far = list(state.engine.switch(str(folder)))
    assert all(0 <= done <= total for done, total in far)
    assert state.engine.loaded.model is not before() and state.engine.loaded.choice.path == str(folder)
    assert not session.has_caches, "caches belong to a model"
    say(session, "What is my name?")
    assert len(contents(session)) == 4 and session._chat.model is state.engine.loaded.model
    assert state.store.read(session.id).model == state.engine.loaded.choice.label


@pytest.mark.heavy
def test_model_that_was_replaced_is_freed(make: Any, folder: Path) -> None:
    state = make(model=fresh("ok"))
    say(state.tab("one").session, "Hi")
    before = weakref.ref(state.engine.loaded.model)
    list(state.engine.switch(str(folder)))
    until(lambda: gc.collect() is not None and before() is None, "the old model is gone")


@pytest.mark.parametrize("path", ["no such folder", "/etc/passwd", ""])
def test_path_of_no_model_changes_nothing(state: AppState, path: str) -> None:
    before = state.engine.loaded
    with pytest.raises((FileNotFoundError, ValueError)):
        list(state.engine.switch(path))
    assert state.engine.loaded is before
    assert say(state.tab("one").session, "Hi").error is None


@pytest.mark.parametrize("context", [0, -5, 1_000_000])
def test_context_without_meaning_changes_nothing(state: AppState, context: int) -> None:
    before = state.engine.loaded
    with pytest.raises(ValueError, match="max_kv_size"):
        list(state.engine.switch("demo", context))
    assert state.engine.loaded is before


def test_damaged_weights_leave_the_model_in_use(state: AppState, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = state.engine.loaded
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        list(state.engine.switch(str(folder)))
    assert state.engine.loaded is before
    assert say(state.tab("one").session, "Hi").messages[-1]["content"] == "ok"


@pytest.mark.heavy
def test_without_room_for_both_the_old_model_goes_first(make: Any, held: Any, scripted: Any, monkeypatch: Any) -> None:
    gc.unfreeze()  # a cycle of the old model has objects that are older than the tests
    tight(monkeypatch)
    state = make(model=fresh(ENDLESS, pause=0.005))
    session = underway(state.tab("one").session)
    model, alive = weakref.ref(state.engine.loaded.model), []
    Held.looked = lambda: alive.append(gc.collect() is not None and model() is not None)
    Held.go_on.set()
    list(state.engine.switch("demo"))
    assert alive == [False], "while the new one was read, the old one still took its memory"
    assert not session.running and session.view().messages[-1]["finish_reason"] == "cancelled"
    scripted("ok", repeat=True)
    say(session, "Go on")
    assert session._chat.model is state.engine.loaded.model


@pytest.mark.heavy
def test_old_model_is_loaded_again_when_the_other_fails(make: Any, held: Any, monkeypatch: Any) -> None:
    tight(monkeypatch)
    state = make()
    state.engine._used = ("demo", state.engine.loaded.fit)
    say(state.tab("one").session, "Hi")
    Held.fails = (str(DEMO_FOLDER),)
    Held.go_on.set()
    with pytest.raises(ValueError, match="is damaged"):
        list(state.engine.switch(str(DEMO_FOLDER)))
    assert state.engine.loaded.choice.path == "demo"
    assert len(say(state.tab("one").session, "Still there?").messages) == 4


@pytest.mark.heavy
def test_where_nothing_can_be_loaded_any_more_that_is_said_and_can_be_mended(
    make: Any, held: Any, monkeypatch: Any
) -> None:
    tight(monkeypatch)
    state = make()
    Held.fails = ("unread", str(DEMO_FOLDER))
    Held.go_on.set()
    with pytest.raises(ValueError, match=r"is damaged; and unread cannot be loaded again: unread is damaged"):
        list(state.engine.switch(str(DEMO_FOLDER)))
    session = state.tab("one").session
    assert session.view().messages == []
    with pytest.raises(ValueError, match="no model is loaded; choose one"):
        session.send("Hi", [], PLAIN)
    list(state.engine.switch("demo"))
    assert say(session, "Hi").messages[-1]["content"] == "ok"


def test_other_tabs_go_on_while_a_model_is_loaded_beside(state: AppState, held: Any) -> None:
    thread, outcome = switching(state)
    until(lambda: (7, 11) in outcome, "it says how far it is")
    session = state.tab("one").session
    assert say(session, "Hi").messages[-1]["content"] == "ok"
    Held.go_on.set()
    thread.join(WAIT_SECONDS)
    assert state.engine.loaded.choice.path == "demo"
    assert len(say(session, "And now?").messages) == 4


def test_reply_under_way_ends_on_the_model_it_began_with(make: Any, held: Any, scripted: Any) -> None:
    state = make(model=fresh(ENDLESS[:200], pause=0.002))
    session = underway(state.tab("one").session)
    before = weakref.ref(state.engine.loaded.model)
    Held.go_on.set()
    list(state.engine.switch("demo"))
    assert session.running, "both had room"
    assert finished(session).messages[-1]["content"] == ENDLESS[:200]
    scripted("ok", repeat=True)
    say(session, "Go on")
    assert session._chat.model is state.engine.loaded.model
    until(lambda: gc.collect() is not None and before() is None, "the old model is gone")


@pytest.mark.heavy
def test_without_room_other_tabs_have_to_wait(make: Any, held: Any, monkeypatch: Any) -> None:
    tight(monkeypatch)
    state = make()
    session = state.tab("one").session
    say(session, "Hi")
    thread, _ = switching(state)
    until(lambda: state.engine._loaded is None, "the old model is gone")
    for one in (session, state.tab("two").session):
        with pytest.raises(ValueError, match="a model is being loaded; try again when it is ready"):
            one.send("Hi", [], PLAIN)
        assert not one.running and one.view().messages == ([] if one is not session else session.view().messages)
    Held.go_on.set()
    thread.join(WAIT_SECONDS)
    assert len(say(session, "Now?").messages) == 4


def test_one_model_is_loaded_at_a_time(state: AppState, held: Any) -> None:
    thread, outcome = switching(state)
    until(lambda: (7, 11) in outcome, "the first is being loaded")
    with pytest.raises(Busy, match="another model is being loaded"):
        list(state.engine.switch("demo"))
    Held.go_on.set()
    thread.join(WAIT_SECONDS)
    list(state.engine.switch("demo"))


def test_a_caller_that_stops_iterating_ends_nothing(make: Any, held: Any, monkeypatch: Any) -> None:
    """A page that is closed while a model is loaded must not leave the app without one."""
    tight(monkeypatch)
    state = make()
    following = state.engine.switch("demo")
    assert next(following) == (7, 11)
    following.close()
    Held.go_on.set()
    until(lambda: state.engine._loaded is not None, "the model is loaded")
    until(lambda: not state.engine._switching.locked(), "another one can be loaded")


def test_same_path_changes_the_context_only(make: Any, unread: Any) -> None:
    state = AppState(ChatEngine(LoadedModel(Choice("demo", "demo"), *unread, fit("demo"))), make().store)
    session = state.tab("one").session
    say(session, "Hi")
    assert list(state.engine.switch("demo", 1000)) == []
    assert state.engine.loaded.model is unread[0] and state.engine.loaded.context == 1000
    assert session.view().context_limit == 1000
    with pytest.raises(ValueError, match="the context of 1000"):
        session.send("word " * 400, [], PLAIN)
    assert len(say(session, "And now?").messages) == 4


@pytest.fixture
def kv_model(unread: Any) -> Any:
    """The quick model with heads that can be quantized."""
    return fresh("ok", head_dim=32)


def test_caches_and_drafts_are_as_the_app_was_started_with(make: Any, kv_model: Any) -> None:
    state = make(
        kv_model, kv={"kv_bits": 8, "kv_layers": "all"}, drafting={"prompt_lookup": True, "num_draft_tokens": 3}
    )
    chat = state.engine.chat(state.new_session())
    assert (chat.options.prompt_lookup, chat.options.num_draft_tokens) == (True, 3)
    assert (chat._cache.kv.key_bits, chat._cache.kv.layers) == (8, "all")
    assert state.engine.needs("demo", 3000) == fit("demo", max_kv_size=3000, kv=KVQuantization(8, 8, layers="all"))


def test_a_draft_model_is_for_models_of_its_tokenizer(make: Any, held: Any, folder: Path, unread: Any) -> None:
    """The others go without it, and that is said; and so are other warnings of a model."""
    held.go_on.set()
    state = make(draft=Draft("demo", *unread), drafting={"num_draft_tokens": 2})
    list(state.engine.switch(str(DEMO_FOLDER)))
    assert state.engine.loaded.draft is not None and state.engine.loaded.warnings == ()
    assert state.engine.chat(state.new_session())._draft.model is unread[0]
    assert state.engine.needs("demo", 3000) == fit("demo", max_kv_size=3000, draft_model="demo")
    held.loads = unread[0], load_tokenizer_of_other_words(folder)
    list(state.engine.switch(str(folder)))
    expected = ("the draft model demo has another tokenizer, so this model goes without one",)
    assert state.engine.loaded.draft is None and state.engine.loaded.warnings == expected
    assert state.engine.chat(state.new_session())._draft is None
    assert state.engine.needs(str(folder), 3000).draft_bytes == 0


def load_tokenizer_of_other_words(folder: Path) -> Any:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return Tokenizer.from_pretrained(folder)


@pytest.mark.heavy
def test_weights_beyond_the_memory_are_not_loaded(make: Any, held: Any, monkeypatch: Any) -> None:
    """Before anything is ended or let go for them."""
    held.go_on.set()
    state = make()
    monkeypatch.setattr("exaone4_mlx.measure.fit.physical_memory", lambda: 8_000_000)
    with pytest.raises(MemoryError, match="the weights have 11 MB, and this machine has 8 MB of memory"):
        list(state.engine.switch(str(DEMO_FOLDER)))
    assert state.engine.loaded.choice.path == "unread"
    list(make(ignores_memory=True).engine.switch(str(DEMO_FOLDER)))


def overfull(make: Any, unread: Any) -> tuple[AppState, Session, Any]:
    """A state, its conversation of four turns, of which a context of 400 tokens holds the last ones, and its view."""
    state = AppState(
        ChatEngine(LoadedModel(Choice("demo", "demo"), *unread, fit("demo", max_kv_size=400))), make().store
    )
    session = state.tab("one").session
    for _ in range(4):
        view = say(session, "word " * 40)
    return state, session, view


def test_long_conversation_is_seen_from_its_newest_turns_only(make: Any, unread: Any) -> None:
    state, session, view = overfull(make, unread)
    assert len(view.messages) == 8 and view.dropped > 0
    assert state.store.read(session.id).dropped == view.dropped
    state.show(state.tab("one"), state.new_session())
    again = state.session(session.id)
    assert again is not session and again.view().dropped == view.dropped
    assert again.view().context_tokens == view.context_tokens <= 400, "what the model does not see takes no room"


def test_larger_context_shows_the_model_everything_again(make: Any, unread: Any) -> None:
    state, session, view = overfull(make, unread)
    assert view.dropped > 0
    list(state.engine.switch("demo", 8192))
    assert say(session, "Hi").dropped == 0


def test_file_that_no_template_takes_can_be_looked_at(state: AppState) -> None:
    """A person may have written it. What is wrong with it is said once something is sent."""
    conversation = Conversation.new()
    conversation.messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [7]}]
    session = state.tab("one", state.store.write(conversation).id).session
    assert session.view().messages == conversation.messages
    with pytest.raises(ValueError, match="message 1: a tool call must be"):
        session.send("Hi", [], PLAIN)


# --- all at once -----------------------------------------------------------------


@pytest.mark.heavy
def test_concurrent_actions_do_not_deadlock(make: Any, scripted: Any, monkeypatch: Any) -> None:
    """Eight threads run random actions of tabs for a while. Then the state is consistent."""
    monkeypatch.setattr(state_module, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(engine_module, "MAX_CACHES", 2)
    monkeypatch.setattr(state_module, "MAX_OPEN", 2)
    scripted("one two three four", pause=0.001, repeat=True)
    state = make()
    second = fresh("five six", pause=0.001, seed=1)

    class Quick:
        done = total = 1
        warnings = ()

        def __init__(self, path: str) -> None: ...

        def result(self) -> Any:
            return second

    monkeypatch.setattr(engine_module, "Loading", Quick)
    monkeypatch.setattr(engine_module, "step_size", lambda *args: 64)
    faulthandler.dump_traceback_later(60, exit=True)  # a deadlock shows where
    ends = time.monotonic() + 1.0
    errors: list[BaseException] = []
    counts: dict[str, int] = {}

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while time.monotonic() < ends or len(counts) < len(STEPS):
                name = one_step(state, rng)
                counts[name] = counts.get(name, 0) + 1
        except BaseException as error:
            errors.append(error)

    run_all(threading.Thread(target=work, args=(seed,)) for seed in range(8))
    faulthandler.cancel_dump_traceback_later()
    assert not errors, errors
    for session in list(state._sessions.values()):
        assert session.join(WAIT_SECONDS)
    for key in list(state._tabs):
        state.leave(key)
    until(lambda: not state._sessions, "everything is closed")
    for one in state.store.list():
        roles = [message["role"] for message in state.store.read(one.id).messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2), f"{one.id} is torn: {roles}"
    assert state.store.damaged == {}


STEPS = ("tab", "send", "edit", "retry", "undo", "stop", "view", "open", "new", "rename", "delete", "leave", "switch")


def one_step(state: AppState, rng: random.Random) -> str:
    step = rng.choices(STEPS, weights=[6, 8, 3, 3, 3, 4, 6, 5, 3, 2, 2, 4, 1])[0]
    number = rng.randrange(6)
    tab = state.tab(f"{number}", keeps=number < 4)
    session = tab.session
    try:
        if step == "send":
            session.send("Hi", [], PLAIN)
        elif step == "edit":
            session.edit(0, "Hello", PLAIN)
        elif step == "retry":
            session.retry(PLAIN)
        elif step == "undo":
            session.undo()
        elif step == "stop":
            session.stop()
        elif step == "view":
            session.wait(session.version, 0.01)
            assert session.view().context_limit >= 0
        elif step == "open" and number < 4:
            if found := state.store.list():
                state.show(tab, state.session(rng.choice(found).id))
        elif step == "new":
            state.show(tab, state.new_session(keeps=number < 4))
        elif step == "rename":
            state.rename(session.id, f"Title {number}")
        elif step == "delete" and number < 4:
            state.delete(session.id)
        elif step == "leave":
            state.leave(f"{number}")
        elif step == "switch":
            list(state.engine.switch("demo", rng.choice([None, 4000])))
    except (ValueError, OSError):
        pass  # busy, nothing to retry, deleted meanwhile: the page shows it
    return step


def test_an_imported_conversation_brings_no_permissions(make: Callable[..., AppState]) -> None:
    permissions = {"use_tools": True, "tools": ["roll_dice"], "ask": False, "always": ["roll_dice · built-in"]}
    file = Conversation.new(settings=permissions | {"max_tokens": 77})
    file.messages = [{"role": "user", "content": "Hello"}]
    state = make(settings=Settings(ask=True))
    for data in (to_json(file), to_markdown(file)):
        session = state.import_file(data.encode(), "file")
        for settings in (session.settings, state.session(session.id).settings):
            assert settings.max_tokens == 77
            assert settings.ask and not settings.use_tools and settings.tools is None and settings.always == ()


def test_a_new_conversation_takes_no_permission_over(make: Callable[..., AppState]) -> None:
    before = Settings(max_tokens=77, always=("roll_dice · built-in",))
    assert make().new_session(settings=before).settings == Settings(max_tokens=77)
