"""The actions on models: what one needs, and the use of another."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from exaone4_mlx.text.format import size_text

from .common import NO_MODEL, Shared, Update, plain
from .session import Busy
from .state import Tab
from .status import notes


class ModelActions(Shared):
    """The actions of the widgets of models."""

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
            for done, total in self.state.engine.switch(path.strip(), _whole(context)):
                progress = words("loading", name=path, done=size_text(done), total=size_text(total))
                yield {self.page.needs: plain(progress)}
            loaded = self.state.engine.loaded
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
        found = [(choice.label, choice.path) for choice in self.state.engine.models()]
        try:
            loaded = self.state.engine.loaded
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
        needs = self.state.engine.needs(path.strip(), _whole(context))
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
