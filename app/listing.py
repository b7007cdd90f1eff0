"""The actions on the list of conversations, one method for each event of a widget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from . import transcript
from .common import Shared, Update, plain
from .state import Tab

LISTED = 200  # conversations shown at once; a search finds the others


class ListActions(Shared):
    """The actions on conversations of the list."""

    def new_chat(self, request: gr.Request, *values: Any) -> Update:
        """Opens a new conversation with the present settings. The previous one stays in the list."""
        tab = self._tab(request)
        try:
            settings = self._settings(tab, values)
        except ValueError as error:
            return self._refused(tab, error)
        if tab.session.view().messages:
            self.state.show(tab, self.state.new_session(settings=settings))
        return {**self._settings_of(tab), **self._list(tab)}

    def chosen(self, conversation: str, request: gr.Request) -> Update:
        """Opens a conversation of the list."""
        tab = self._tab(request)
        try:
            self.state.show(tab, self.state.session(conversation))
        except (OSError, ValueError) as error:
            gr.Warning(tab.words("not_opened", error=plain(str(error))))
        folded = {self.page.left: gr.Sidebar(open=False)} if tab.narrow else {}
        return {**self._settings_of(tab), **self._list(tab), **folded}

    def went_back(self, event: gr.EventData, request: gr.Request) -> Update:
        """The browser's Back: to the conversation before, or to an empty one."""
        if id := str(event._data["id"]):
            return self.chosen(id, request)
        tab = self._tab(request)
        self.state.show(tab, self.state.new_session(settings=tab.session.settings))
        return {**self._settings_of(tab), **self._list(tab)}

    def search_opened(self) -> gr.Sidebar:
        return gr.Sidebar(open=True)

    def searched(self, query: str, request: gr.Request) -> Update:
        return self._list(self._tab(request), query)

    def renamed(self, title: str, query: str, request: gr.Request) -> Update:
        tab = self._tab(request)
        try:
            self.state.rename(tab.session.id, title)
        except (OSError, ValueError) as error:
            return self._refused(tab, error)
        return {**self._list(tab, query), **self._title(tab, anew=True)}

    def delete_asked(self) -> Update:
        return {self.page.delete: gr.update(visible=False), self.page.delete_row: gr.update(visible=True)}

    def deleted(self, query: str, request: gr.Request) -> Update:
        tab = self._tab(request)
        try:
            self.state.delete(tab.session.id)
        except (OSError, ValueError) as error:
            return {**self._refused(tab, error), **self.delete_kept()}
        return {**self._settings_of(tab), **self._list(tab, query), **self.delete_kept()}

    def exported_markdown(self, request: gr.Request) -> Update:
        return self._export(request, transcript.to_markdown, ".md")

    def exported_json(self, request: gr.Request) -> Update:
        return self._export(request, transcript.to_json, ".json")

    def imported(self, path: str | None, request: gr.Request) -> Update:
        tab = self._tab(request)
        if path is None:
            return self._nothing
        try:
            session = self.state.import_file(Path(path).read_bytes(), Path(path).name)
            self.state.show(tab, session)
        except (OSError, ValueError) as error:
            gr.Warning(tab.words("not_imported", error=plain(str(error))))
            return self._nothing
        gr.Info(tab.words("imported", title=plain(session.conversation.title)))
        return {**self._settings_of(tab), **self._list(tab)}

    # --- inside ---------------------------------------------------------------

    def _list(self, tab: Tab, query: str | None = None) -> Update:
        """The list of conversations, of those that match the query where there is one."""
        tab.query = tab.query if query is None else query
        found = self.state.store.list(tab.query)
        choices = [(one.title or tab.words("untitled"), one.id) for one in found[:LISTED]]
        here = tab.session.id if any(id == tab.session.id for _, id in choices) else None
        hint = "" if choices else tab.words("none_found" if tab.query else "none_yet")
        if damaged := self.state.store.damaged:
            hint += ("\n\n" if hint else "") + tab.words("damaged", names=", ".join(sorted(damaged)))
        return {
            self.page.listed: gr.update(choices=choices, value=here, visible=bool(choices)),
            self.page.list_hint: gr.update(value=plain(hint), visible=bool(hint)),
            **self._title(tab),
        }

    def _export(self, request: gr.Request, form: Callable[[Any], str], suffix: str) -> Update:
        tab = self._tab(request)
        conversation = tab.session.conversation
        if not conversation.messages:
            gr.Info(tab.words("empty"))
            return {self.page.download: None}
        name = transcript.file_name(conversation.title, suffix)
        return {self.page.download: {"name": name, "text": form(conversation)}}
