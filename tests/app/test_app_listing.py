"""The answers to the list of conversations, with `app.listing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app_sessions import say

pytest.importorskip("gradio", reason="the app needs the extra `app`")

from app.actions import Actions
from app.engine import ChatEngine, LoadedModel
from app.models import Choice
from app.settings import Settings
from app.state import AppState
from app.widgets import SETTINGS
from exaone4_mlx import ConversationStore, fit


@pytest.fixture
def do(unread: Any, scripted: Any, tmp_path: Path, monkeypatch: Any) -> Actions:
    scripted("ok", repeat=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    engine = ChatEngine(LoadedModel(Choice("unread", "unread"), *unread, fit("demo")))
    actions = Actions(AppState(engine, ConversationStore(tmp_path / "data")))
    for key, text in (("one", "What is new in Seoul?"), ("two", "Otra cosa")):
        say(actions.state.tab(key).session, text)
    return actions


def rows(do: Actions, after: int | None = None, query: str = "", count: int = 100, tab: str = "one") -> dict[str, Any]:
    return do.conversations({"do": "rows", "tab": tab, "query": query, "count": count, "after": after})


def test_only_the_rows_that_changed_are_sent(do: Actions):
    first = rows(do)
    assert first["whole"] and [row["title"] for row in first["rows"]] == [["Otra cosa"], ["What is new in Seoul?"]]
    second = rows(do, first["number"])
    assert not second["whole"] and second["rows"] == second["gone"] == []
    do.state.rename(do.state.tab("one").session.id, "Seoul")
    third = rows(do, second["number"])
    assert [row["title"] for row in third["rows"]] == [["Seoul"]] and third["gone"] == []
    do.state.delete(id := do.state.tab("two").session.id)
    fourth = rows(do, third["number"])
    assert fourth["rows"] == [] and fourth["gone"] == [id]
    assert rows(do, third["number"])["whole"], "an answer that was lost leaves a gap in the list"


def test_what_moves_below_the_rows_in_view_is_gone(do: Actions):
    first = rows(do, count=1)
    assert first["total"] == 2 and len(first["rows"]) == 1
    say(do.state.tab("one").session, "Again")
    second = rows(do, first["number"], count=1)
    assert [row["title"] for row in second["rows"]] == [["What is new in Seoul?"]]
    assert second["gone"] == [do.state.tab("two").session.id]


def test_a_row_that_was_found_has_its_place(do: Actions):
    (row,) = rows(do, query="SEOUL")["rows"]
    assert row["title"] == ["What is new in ", "Seoul", "?"]
    assert row["message"] == 0 and row["snippet"] == ["What is new in ", "Seoul", "?"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"do": "rename", "id": "../../x", "title": "x"},
        {"do": "rename", "id": "20260101-000000-00000000", "title": " "},
        {"do": "delete", "id": "../x"},
        {"do": "export", "id": "20260101-000000-00000000", "form": ".md"},
        {"do": "export", "id": "20260101-000000-00000000", "form": ".exe"},
        {"do": "restore", "id": "20260101-000000-00000000"},
        {"do": "explode"},
        {},
    ],
)
def test_what_cannot_be_done_is_an_error_of_one_line(do: Actions, wanted: dict[str, Any]):
    answer = do.conversations({"tab": "one", **wanted})
    assert list(answer) == ["error"] and "\n" not in answer["error"]
    assert do.conversations({"tab": "unknown", **wanted}) == {"closed": True}


def test_a_deletion_is_undone_in_the_tab_that_showed_it(do: Actions):
    tab = do.state.tab("one")
    id = tab.session.id
    assert do.conversations({"do": "delete", "tab": "one", "id": id}) == {"shown": True}
    assert tab.session.id != id
    assert do.conversations({"do": "restore", "tab": "one", "id": id, "shown": True}) == {}
    assert tab.session.id == id and len(tab.session.view().messages) == 2


def test_settings_of_another_conversation_are_not_used(do: Actions):
    """A message can be sent before the page has the settings of a conversation that it just opened."""
    tab = do.state.tab("one")
    tab.session.settings = Settings(max_tokens=1234)
    shown = Settings(max_tokens=77).values()
    values = [shown[name] for name in SETTINGS]
    assert do._settings(tab, [*values, do.state.tab("two").session.id]).max_tokens == 1234
    assert do._settings(tab, [*values, tab.session.id]).max_tokens == 77


def test_only_an_uploaded_file_is_imported(do: Actions, tmp_path: Path):
    text = do.conversations({"do": "export", "tab": "one", "id": do.state.tab("one").session.id, "form": ".json"})[
        "text"
    ]
    for place in (tmp_path / "elsewhere.json", tmp_path / "uploads" / "own.json"):
        place.write_text(text)
    wanted = {"do": "import", "tab": "two", "name": "x.json"}
    refused = do.conversations({**wanted, "path": str(tmp_path / "elsewhere.json")})
    assert "only uploaded files" in refused["error"] and len(do.state.store.list()) == 2
    assert do.conversations({**wanted, "path": str(tmp_path / "uploads" / "own.json")})["title"]
    assert len(do.state.store.list()) == 3
