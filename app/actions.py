"""The actions of the page: one method for each event of a widget.

Notes:
- A method returns, or yields, new values by widget. Widgets that it does not name keep their values.
- A mistake of the user is reported in a notice. The typed text is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from .chat_actions import ChatActions
from .common import NO_MODEL, Update, is_recommended, key_of, plain
from .i18n import Words, size_text
from .listing import ListActions
from .session import Busy
from .settings import SAMPLING, Settings, recommended
from .state import Tab
from .status import notes
from .widgets import labels

WIDE = 900  # pixels of a page on which the list of conversations is open at first


class Actions(ChatActions, ListActions):
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

    # --- models ---------------------------------------------------------------

    def model_asked(self, path: str, context: float | None, request: gr.Request) -> Update:
        """The memory that a model needs, before it is loaded."""
        tab = self._tab(request)
        try:
            return {self.page.needs: self._needs(tab, path, context)}
        except (OSError, ValueError) as error:
            return {self.page.needs: plain(str(error))}

    def model_chosen(self, path: str, context: float | None, request: gr.Request) -> Iterator[Update]:
        """Loads a model and reports progress."""
        tab = self._tab(request)
        words, before = tab.words, self._model_label
        yield {self.page.load: gr.update(interactive=False)}
        try:
            for done, total in self.state.switch(path.strip(), _whole(context)):
                progress = words("loading", name=path, done=size_text(done), total=size_text(total))
                yield {self.page.needs: plain(progress)}
            loaded = self.state.loaded
            message = " ".join([words("loaded", name=loaded.choice.label), *notes(loaded.warnings, words)])
        except Busy:
            message = words("loading_already")
        except Exception as error:  # a damaged checkpoint can fail in many ways
            key = "lost" if self._model_label == NO_MODEL else "not_loaded"
            message = words(key, error=f"{error}" or type(error).__name__, name=before)
            gr.Warning(plain(message))
        yield {
            self.page.needs: plain(message),
            self.page.load: gr.update(interactive=True),
        }

    # --- inside ---------------------------------------------------------------

    def _models(self, tab: Tab) -> Update:
        found = [(choice.label, choice.path) for choice in self.state.models()]
        try:
            loaded = self.state.loaded
        except ValueError as error:
            return {self.page.model: gr.update(choices=found), self.page.needs: plain(str(error))}
        return {
            self.page.model: gr.update(choices=found, value=loaded.choice.path),
            self.page.context: loaded.context,
            self.page.needs: " ".join(
                [
                    self._needs(tab, loaded.choice.path, loaded.context),
                    *map(plain, notes(loaded.warnings, tab.words)),
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


def _whole(context: float | None) -> int | None:
    return None if not context else int(context)
