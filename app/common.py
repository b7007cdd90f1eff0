"""What all actions of the page share: the tab of a request, its settings, and notices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .record import Busy
from .settings import Settings, recommended
from .state import AppState, Tab
from .tools import permission_text
from .widgets import SETTINGS, Page

Update = dict[Any, Any]

NO_MODEL = "…"


class Shared:
    """The page and the state, and what more than one group of actions needs."""

    page: Page

    def __init__(self, state: AppState) -> None:
        """`page` is set once the widgets are made, because some of them call methods of this object."""
        self.state = state
        self._reading: set[str] = set()  # paths of the uploaded files whose reading a page waits for
        self._answers = 0  # number of refusals and texts that were returned to a page

    def _tab(self, request: gr.Request) -> Tab:
        """The tab that a request comes from; after a restart of the app, the conversation of its address."""
        language = (request.headers.get("accept-language") or "").split(",")[0]
        return self.state.tab(key_of(request), str(request.query_params.get("conversation", "")), language=language)

    def _settings(self, tab: Tab, values: Sequence[Any]) -> Settings:
        """The settings of the widgets. Raises ValueError for an invalid one.

        The last of `values` is the conversation that they belong to. Those of another one are not used: the page has
        not got the settings of this one yet.
        """
        *values, conversation = values
        if conversation != tab.session.id:
            return tab.session.settings
        given = dict(zip(SETTINGS, values, strict=True))
        if given["seed"] in ("", None):
            given["seed"] = None
        if is_recommended(given["temperature"], given["top_p"], given["thinking"]):
            given |= {"temperature": None, "top_p": None}
        return tab.session.settings.updated(given)

    @property
    def _model_label(self) -> str:
        return self.state.engine.label or NO_MODEL

    @property
    def _nothing(self) -> Update:
        """No new value. (Gradio would take an empty mapping for a value.)"""
        return {self.page.width: gr.skip()}

    def _refused(self, tab: Tab, error: Exception) -> Update:
        busy = isinstance(error, Busy)
        gr.Warning(tab.words("busy") if busy else tab.words("not_sent", error=plain(str(error))))
        return self._nothing

    def _settings_of(self, tab: Tab) -> Update:
        """The settings of the conversation of a tab, and its id."""
        own = {self.page.conversation: tab.session.id, self.page.servers: self.state.running_servers}
        return {**self._widgets(tab.session.settings), **own, **self._always(tab)}

    def _always(self, tab: Tab) -> Update:
        """The tools that run without a question; there is no widget without one."""
        names = list(tab.session.settings.always)
        shown = [(permission_text(name, tab.words), name) for name in names]
        return {self.page.always: gr.update(choices=shown, value=names, visible=bool(names))}

    def _widgets(self, settings: Settings, only: Sequence[str] = SETTINGS) -> Update:
        values = settings.values()
        names = self.state.tool_names
        ticked = [name for name in names if settings.tools is None or name in settings.tools]
        values["tools"] = gr.update(choices=names, value=ticked)
        return {getattr(self.page, name): values[name] for name in only}


def key_of(request: gr.Request) -> str:
    if not request.session_hash:
        raise gr.Error("a request needs a session_hash", print_exception=False)
    return request.session_hash


def is_recommended(temperature: float, top_p: float, thinking: bool) -> bool:
    wanted = recommended(thinking)
    return abs(temperature - wanted[0]) < 1e-6 and abs(top_p - wanted[1]) < 1e-6


def plain(text: str) -> str:
    """`text` with the special characters of HTML and Markdown escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
