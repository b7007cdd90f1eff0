"""The actions of the page: one method for each event of a widget.

Notes:
- A method returns, or yields, new values by widget. Widgets that it does not name keep their values.
- A mistake of the user is reported in a notice. The typed text is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import transcript
from .chat_actions import NO_MODEL, ChatActions, Update, is_recommended, key_of
from .i18n import Words, size_text
from .session import Busy
from .settings import SAMPLING, Settings, recommended
from .state import Tab
from .status import notes
from .widgets import SETTINGS, labels

WIDE = 900  # pixels of a page on which the list of conversations is open at first
LISTED = 200  # conversations shown at once; a search finds the others


class Actions(ChatActions):
    """The actions of one page description, for all tabs."""

    # --- the page -------------------------------------------------------------

    def opened(
        self, conversation: str, chosen: str, browser: str, width: float | None, theme: str, request: gr.Request
    ) -> Iterator[Update]:
        """The page was loaded: it gets the settings of the conversation of its address."""
        tab = self.state.tab(key_of(request), conversation)
        tab.words, tab.narrow = Words(chosen or browser), (width or WIDE) < WIDE
        if chosen:
            yield labels(self.page, tab.words)
        yield {
            self.page.left: gr.Sidebar(open=not tab.narrow),
            **self._settings_of(tab),
            **self._list(tab),
            **self._models(tab),
            self.page.language: chosen,
            self.page.appearance: theme,
        }

    def changed(self, request: gr.Request) -> Update:
        """The page shows another conversation, another title, or the end of a reply: the list follows."""
        return self._list(self._tab(request))

    def left(self, request: gr.Request) -> None:
        """The page was closed, or is loaded again."""
        self.state.leave(key_of(request))

    def language_chosen(self, chosen: str, browser: str, request: gr.Request) -> Iterator[Update]:
        tab = self._tab(request)
        tab.words = Words(chosen or browser)
        yield labels(self.page, tab.words)
        yield {**self._list(tab), self.page.kept_language: chosen}

    # --- settings -------------------------------------------------------------

    def settings_opened(self) -> gr.Sidebar:
        return gr.Sidebar(open=True)

    def thinking_switched(self, thinking: bool, temperature: float, top_p: float) -> Update:
        """The recommended sampling of the mode, unless the user set other values."""
        if not is_recommended(temperature, top_p, not thinking):
            return {self.page.temperature: gr.skip()}
        temperature, top_p = recommended(thinking)
        return {self.page.temperature: temperature, self.page.top_p: top_p}

    def reset(self, thinking: bool) -> Update:
        return self._widgets(Settings(thinking=thinking), only=(*SAMPLING, "max_tokens", "thinking_budget"))

    # --- conversations --------------------------------------------------------

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
            gr.Warning(tab.words("not_opened", error=_plain(str(error))))
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

    def delete_kept(self) -> Update:
        return {self.page.delete: gr.update(visible=True), self.page.delete_row: gr.update(visible=False)}

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
            gr.Warning(tab.words("not_imported", error=_plain(str(error))))
            return self._nothing
        gr.Info(tab.words("imported", title=_plain(session.conversation.title)))
        return {**self._settings_of(tab), **self._list(tab)}

    # --- models ---------------------------------------------------------------

    def model_asked(self, path: str, context: float | None, request: gr.Request) -> Update:
        """The memory that a model needs, before it is loaded."""
        tab = self._tab(request)
        try:
            return {self.page.needs: self._needs(tab, path, context)}
        except (OSError, ValueError) as error:
            return {self.page.needs: _plain(str(error))}

    def model_chosen(self, path: str, context: float | None, request: gr.Request) -> Iterator[Update]:
        """Loads a model and reports progress."""
        tab = self._tab(request)
        words, before = tab.words, self._model_label
        yield {self.page.load: gr.update(interactive=False)}
        try:
            for done, total in self.state.switch(path.strip(), _whole(context)):
                progress = words("loading", name=path, done=size_text(done), total=size_text(total))
                yield {self.page.needs: _plain(progress)}
            loaded = self.state.loaded
            message = " ".join([words("loaded", name=loaded.choice.label), *notes(loaded.warnings, words)])
        except Busy:
            message = words("loading_already")
        except Exception as error:  # a damaged checkpoint can fail in many ways
            key = "lost" if self._model_label == NO_MODEL else "not_loaded"
            message = words(key, error=f"{error}" or type(error).__name__, name=before)
            gr.Warning(_plain(message))
        yield {
            self.page.needs: _plain(message),
            self.page.load: gr.update(interactive=True),
        }

    # --- inside ---------------------------------------------------------------

    @property
    def _nothing(self) -> Update:
        """No new value. (Gradio would take an empty mapping for a value.)"""
        return {self.page.needs: gr.skip()}

    def _refused(self, tab: Tab, error: Exception) -> Update:
        busy = isinstance(error, Busy)
        gr.Warning(tab.words("busy") if busy else tab.words("not_sent", error=_plain(str(error))))
        return self._nothing

    def _settings_of(self, tab: Tab) -> Update:
        """The settings of the conversation of a tab, and its title."""
        return {
            **self._widgets(tab.session.settings),
            **self._title(tab, anew=True),
            **self.delete_kept(),
        }

    def _widgets(self, settings: Settings, only: Sequence[str] = SETTINGS) -> Update:
        values = settings.values()
        values["tools"] = [name for name in self.state.tool_names if settings.tools is None or name in settings.tools]
        return {getattr(self.page, name): values[name] for name in only}

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
            self.page.list_hint: gr.update(value=_plain(hint), visible=bool(hint)),
            **self._title(tab),
        }

    def _title(self, tab: Tab, anew: bool = False) -> Update:
        """The title of the conversation, if it changed. The user may be typing another over an unchanged one."""
        before, tab.title = tab.title, tab.session.conversation.title
        return {self.page.title: tab.title} if anew or tab.title != before else {}

    def _models(self, tab: Tab) -> Update:
        found = [(choice.label, choice.path) for choice in self.state.models()]
        try:
            loaded = self.state.loaded
        except ValueError as error:
            return {self.page.model: gr.update(choices=found), self.page.needs: _plain(str(error))}
        return {
            self.page.model: gr.update(choices=found, value=loaded.choice.path),
            self.page.context: loaded.context,
            self.page.needs: " ".join(
                [
                    self._needs(tab, loaded.choice.path, loaded.context),
                    *map(_plain, notes(loaded.warnings, tab.words)),
                ]
            ),
        }

    def _needs(self, tab: Tab, path: str, context: float | None) -> str:
        needs = self.state.needs(path.strip(), _whole(context))
        cache = needs.total_bytes - needs.weights_bytes  # and what a prompt is read with
        text = tab.words(
            "needs",
            total=size_text(needs.total_bytes),
            weights=size_text(needs.weights_bytes),
            cache=size_text(cache),
            context=f"{needs.max_kv_size:,}",
            memory=size_text(needs.memory_bytes),
        )
        if needs.fits:
            return text
        if not needs.largest_context:
            return f"{text} {tab.words('too_large_anyway')}"
        return f"{text} {tab.words('too_large', context=f'{needs.largest_context:,}')}"

    def _export(self, request: gr.Request, form: Callable[[Any], str], suffix: str) -> Update:
        tab = self._tab(request)
        conversation = tab.session.conversation
        if not conversation.messages:
            gr.Info(tab.words("empty"))
            return {self.page.download: None}
        name = transcript.file_name(conversation.title, suffix)
        return {self.page.download: {"name": name, "text": form(conversation)}}


def _whole(context: float | None) -> int | None:
    return None if not context else int(context)


def _plain(text: str) -> str:
    """`text` with the special characters of HTML and Markdown escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
