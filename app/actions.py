"""The actions of the page: one method for each event of a widget.

Notes:
- A method returns, or yields, new values by widget. Widgets that it does not name keep their values.
- A mistake of the user is reported in a notice. The typed text is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .chat_actions import ChatActions
from .common import Update, is_recommended, key_of, plain
from .i18n import Words
from .listing import ListActions
from .model_actions import ModelActions
from .settings import SAMPLING, Settings, recommended
from .widgets import labels, languages

TWO_PANELS = 1280  # pixels of a page that has room for the conversation between both panels
WIDE = 900  # pixels of a page on which the list of conversations is open at first


class Actions(ChatActions, ListActions, ModelActions):
    """The actions of one page description, for all tabs."""

    # --- the page -------------------------------------------------------------

    def opened(
        self,
        conversation: str,
        chosen: str,
        browser: str,
        width: float | None,
        theme: str,
        kept: Any,
        request: gr.Request,
    ) -> Iterator[Update]:
        """The page was loaded: it gets the settings of the conversation of its address."""
        tab = self.state.tab(key_of(request), conversation)
        tab.words, tab.narrow = Words(chosen or browser), (width or WIDE) < WIDE
        if not tab.session.view().messages:
            tab.session.settings = self.state.settings.resumed(kept)
        if conversation not in ("", tab.session.id):
            try:
                self.state.session(conversation)
            except (OSError, ValueError) as error:
                self._missing(tab, error)
        if chosen:
            yield labels(self.page, tab.words)
        yield {
            self.page.left: gr.Sidebar(open=not tab.narrow),
            **self._settings_of(tab),
            self.page.models: {"language": tab.words.language},
            self.page.language: gr.update(choices=languages(tab.words), value=chosen),
            self.page.appearance: theme,
        }

    def left(self, request: gr.Request) -> None:
        """The page was closed, or is loaded again."""
        self.state.leave(key_of(request))

    def language_chosen(self, chosen: str, browser: str, request: gr.Request) -> Iterator[Update]:
        tab = self._tab(request)
        tab.words = Words(chosen or browser)
        yield labels(self.page, tab.words)
        yield {self.page.kept_language: chosen, self.page.models: {"language": tab.words.language}}

    # --- settings -------------------------------------------------------------

    def left_opened(self, width: float) -> Update:
        return self._opened(self.page.left, self.page.right, width)

    def right_opened(self, width: float) -> Update:
        return self._opened(self.page.right, self.page.left, width)

    def _opened(self, panel: gr.Sidebar, other: gr.Sidebar, width: float) -> Update:
        """Both panels: there is room for two on a wide page only."""
        return {panel: gr.Sidebar(open=True), other: gr.skip() if width >= TWO_PANELS else gr.Sidebar(open=False)}

    def servers_switched(self, wanted: list[str], request: gr.Request) -> Update:
        """Starts and ends MCP servers."""
        words, started = self._tab(request).words, False
        for name, server in self.state.servers.items():
            if server.runs == (name in wanted):
                continue
            try:
                if name in wanted:
                    gr.Info(plain(words("server_starts", name=name)))
                self.state.switch_server(name, name in wanted)
                started |= name in wanted
                for warning in server.warnings if name in wanted else ():
                    gr.Warning(plain(warning))
            except ValueError as error:
                gr.Warning(plain(words("server_failed", error=error)))
        return {self.page.servers: self.state.running_servers, self.page.use_tools: True if started else gr.skip()}

    def tools_offered(self, event: gr.EventData, ticked: list[str]) -> Update:
        """A tab, this one or another, has started or ended MCP servers. Tools that were not there before are ticked."""
        names, before = self.state.tool_names, event._data["before"]
        ticked = [name for name in names if name in ticked or name not in before]
        return {self.page.servers: self.state.running_servers, self.page.tools: gr.update(choices=names, value=ticked)}

    def always_changed(self, always: list[str], request: gr.Request) -> Update:
        """A tool that is no longer ticked asks again. None can be added here."""
        tab = self._tab(request)
        tab.session.permit([name for name in tab.session.settings.always if name in always])
        return self._always(tab)

    def thinking_switched(self, thinking: bool, temperature: float, top_p: float) -> Update:
        """The recommended sampling of the mode, unless the user set other values."""
        if not is_recommended(temperature, top_p, not thinking):
            return {self.page.temperature: gr.skip()}
        temperature, top_p = recommended(thinking)
        return {self.page.temperature: temperature, self.page.top_p: top_p}

    def reset(self, thinking: bool) -> Update:
        return self._widgets(Settings(thinking=thinking), only=(*SAMPLING, "max_tokens", "thinking_budget"))
