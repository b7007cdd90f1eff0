"""The list of conversations: its rows, and the actions on them.

Notes:
- A frame says when the list has changed. The page then asks for its rows, and gets those that it does not have.
- The page sorts the rows and groups them by date, because it knows the user's time zone.
- `conversations` answers the script of the list. What also changes widgets is an event, as in the other groups.
"""

from __future__ import annotations

import contextlib
from typing import Any

import gradio as gr

from exaone4_mlx.storage.forms import moment
from exaone4_mlx.storage.search import marked, place
from exaone4_mlx.storage.store import ConversationSummary
from exaone4_mlx.storage.transcript import HEADINGS, file_name, to_json, to_markdown

from .common import Shared, Update, plain
from .state import Tab


class ListActions(Shared):
    """The actions on conversations of the list."""

    # --- what the script of the list asks for ----------------------------------

    def conversations(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The answer to the list of a tab. A refusal is its `error`, in the language of the page."""
        if not self.state.has(key := str(wanted.get("tab"))):
            return {"closed": True}  # the page is not connected; it asks again
        tab = self.state.tab(key)
        does = {
            "rows": self._rows,
            "rename": self._rename,
            "pin": self._pin,
            "delete": self._delete,
            "restore": self._restore,
            "export": self._export,
            "import": self._import,
        }
        try:
            return does[wanted["do"]](tab, wanted)
        except Exception as problem:  # of any kind: the list stays usable
            failed = "not_imported" if wanted.get("do") == "import" else "not_done"
            return {"error": tab.words(failed, error=f"{problem}" or type(problem).__name__)}

    def _rows(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        """The first `count` conversations that match `query`, without the rows that the page has."""
        query, running = str(wanted["query"]), self.state.running
        whole = wanted.get("after") != tab.list_number
        before, rows, now = {} if whole else tab.list_rows, [], {}
        found = self.state.store.list(query)
        for one in found[: int(wanted["count"])]:
            now[one.id] = (one.title, one.updated, one.pinned, one.id in running)
            if before.get(one.id) != now[one.id]:
                rows.append(self._row(one, one.id in running, query))
        tab.list_number, tab.list_rows = tab.list_number + 1, now
        damaged = self.state.store.damaged
        return {
            "number": tab.list_number,
            "whole": whole,
            "rows": rows,
            "gone": [id for id in before if id not in now],
            "total": len(found),
            "damaged": tab.words("damaged", names=", ".join(sorted(damaged))) if damaged else "",
        }

    def _row(self, one: ConversationSummary, running: bool, query: str) -> dict[str, Any]:
        row = {
            "id": one.id,
            "title": marked(one.title, query),
            "updated": moment(one.updated).timestamp() * 1000,
            "pinned": one.pinned,
            "running": running,
        }
        if query.strip():
            with contextlib.suppress(OSError, ValueError):  # deleted or changed meanwhile: the next answer has it
                row |= place(self.state.store.read(one.id), query)
        return row

    def _rename(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        self.state.rename(str(wanted["id"]), str(wanted["title"]))
        return {}

    def _pin(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        self.state.pin(str(wanted["id"]), wanted["pinned"] is True)
        return {}

    def _delete(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        shown = tab.session.id == wanted["id"]
        self.state.delete(str(wanted["id"]))
        return {"shown": shown}

    def _restore(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        """Undoes a deletion. The tab shows the conversation again if it showed it before, and nothing else since."""
        id = self.state.restore(str(wanted["id"]))
        if wanted.get("shown") is True and not tab.session.view().messages:
            self.state.show(tab, self.state.session(id))
        return {}

    def _export(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        conversation = self.state.session(str(wanted["id"])).conversation
        name = file_name(conversation.title, wanted["form"])
        headings = {one: tab.words(f"md_{one}", count="{count}") for one in HEADINGS}
        markdown = wanted["form"] == ".md"
        return {"name": name, "text": to_markdown(conversation, headings) if markdown else to_json(conversation)}

    def _import(self, tab: Tab, wanted: dict[str, Any]) -> dict[str, Any]:
        session = self.state.import_upload(str(wanted["path"]), str(wanted["name"]))
        self.state.show(tab, session)
        return {"title": session.conversation.title}

    # --- events ----------------------------------------------------------------

    def new_chat(self, request: gr.Request, *values: Any) -> Update:
        """Opens a new conversation with the present settings. The previous one stays in the list."""
        tab = self._tab(request)
        try:
            settings = self._settings(tab, values)
        except ValueError as error:
            return self._refused(tab, error)
        if tab.session.view().messages:
            self.state.show(tab, self.state.new_session(settings=settings))
        return {**self._settings_of(tab), **self._folded(tab)}

    def chosen(self, event: gr.EventData, request: gr.Request) -> Update:
        """Opens a conversation of the list, or of the browser's Back and Forward: an empty one without an id."""
        tab, id = self._tab(request), str(event._data["id"])
        try:
            self.state.show(
                tab, self.state.session(id) if id else self.state.new_session(settings=tab.session.settings)
            )
        except (OSError, ValueError) as error:
            self._missing(tab, error)
            self.state.show(tab, self.state.new_session(settings=tab.session.settings))
        return {**self._settings_of(tab), **self._folded(tab)}

    def changed(self, request: gr.Request) -> Update:
        """The page shows another conversation: its settings follow."""
        return self._settings_of(self._tab(request))

    # --- inside ----------------------------------------------------------------

    def _missing(self, tab: Tab, error: Exception) -> None:
        """Says why a conversation is not open."""
        gone = isinstance(error, FileNotFoundError)
        gr.Warning(tab.words("gone") if gone else tab.words("not_opened", error=plain(str(error))))

    def _folded(self, tab: Tab) -> Update:
        """On a phone the list gives way to the conversation."""
        return {self.page.left: gr.Sidebar(open=False)} if tab.narrow else {}
