"""The actions of the page: one method for each event of a widget.

Notes:
- A method returns, or yields, new values by widget. Widgets that it does not name keep their values.
- A mistake of the user is reported in a notice. The typed text is kept.
- Each page has one follower, `followed`. It sends frames to the script of the page (chat.js), which draws the
  conversation. Actions change the state, and every tab of a conversation gets the change. Closing the page does not
  end a reply at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import transcript
from .frames import frame, history
from .i18n import EXAMPLES, Words, size_text
from .models import memory_in_use
from .session import Busy, View
from .settings import SAMPLING, Settings, recommended
from .state import AppState, Tab
from .status import notes, status_html
from .widgets import SETTINGS, Page, labels

Update = dict[Any, Any]

FRAME_SECONDS = 0.08  # the least time between two frames
FRAME_SHARE = 3  # the pause after a frame, as a multiple of the time that it took
IDLE_SECONDS = 0.25  # until a frame without a change, for the counts of seconds
WIDE = 900  # pixels of a page on which the list of conversations is open at first
NO_MODEL = "…"
LISTED = 200  # conversations shown at once; a search finds the others


class Actions:
    """The actions of one page description, for all tabs."""

    page: Page

    def __init__(self, state: AppState) -> None:
        """`page` is set once the widgets are made, because some of them call methods of this object."""
        self.state = state
        self._answers = 0  # number of refusals and texts that were returned to a page

    # --- the page -------------------------------------------------------------

    def opened(
        self, conversation: str, chosen: str, browser: str, width: float | None, theme: str, request: gr.Request
    ) -> Iterator[Update]:
        """The page was loaded: it gets the settings of the conversation of its address."""
        tab = self.state.tab(_key(request), conversation)
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

    def followed(self, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Frames of what a tab shows, one after each change, until the tab is closed."""
        key = _key(request)
        tab = self._tab(request)
        while self.state.has(key):
            session, words, began = tab.session, tab.words, time.monotonic()
            version = session.version
            yield self._frame(key, tab)
            cost = time.monotonic() - began
            while self.state.has(key) and tab.session is session and tab.words is words:
                if session.version != version or (session.running and time.monotonic() - began > IDLE_SECONDS):
                    break
                session.wait(version, IDLE_SECONDS)
            time.sleep(max(FRAME_SECONDS, FRAME_SHARE * cost))  # leaves time for the model

    def _frame(self, key: str, tab: Tab) -> dict[str, Any]:
        session = tab.session
        view = session.view()
        return frame(view, tab.words) | {
            "tab": key,
            "conversation": session.id,
            "title": session.conversation.title,
            "fresh": "" if view.messages else session.id,
            "model": self._model_label,
            "note": self._welcome_note(tab),
            "status": status_html(view, tab.words, self._model_label, memory_in_use()),
            "error": f"{tab.words('was_error')} {view.error}" if view.error else "",
        }

    def changed(self, request: gr.Request) -> Update:
        """The page shows another conversation, another title, or the end of a reply: the list follows."""
        return self._list(self._tab(request))

    def left(self, request: gr.Request) -> None:
        """The page was closed, or is loaded again."""
        self.state.leave(_key(request))

    def language_chosen(self, chosen: str, browser: str, request: gr.Request) -> Iterator[Update]:
        tab = self._tab(request)
        tab.words = Words(chosen or browser)
        yield labels(self.page, tab.words)
        yield {**self._list(tab), self.page.kept_language: chosen}

    # --- the chat -------------------------------------------------------------

    def acted(self, event: gr.EventData, request: gr.Request, *values: Any) -> Update:
        """An action of the user in the conversation. The page gets a refusal, with the text of the message."""
        tab, given = self._tab(request), event._data if isinstance(event._data, dict) else {}
        session = tab.session
        try:
            if given.get("conversation") != session.id:
                raise ValueError(tab.words("elsewhere"))
            if given["what"] in ("retry", "edit", "undo") and given.get("revision") != session.revision:
                raise ValueError(tab.words("stale"))
            return self._act(tab, given, values)
        except Busy:
            refusal = {"error": tab.words("busy"), "busy": True}
        except Exception as problem:  # of any kind: the page stays usable and keeps the text
            refusal = {"error": tab.words("not_sent", error=f"{problem}" or type(problem).__name__)}
        edited = {"text": str(given["text"])} if given.get("what") == "edit" else {}
        return self._answer(id=given.get("id"), **refusal, **edited)

    def _act(self, tab: Tab, given: dict[str, Any], values: Sequence[Any]) -> Update:
        session, what = tab.session, given["what"]
        if what == "stop":
            session.stop()
        elif what == "answer":
            session.answer(given["allowed"] is True, int(given["call"]))
        elif what == "undo":
            files = _files_of_last_turn(session.view())
            text = session.undo()
            hint = tab.words("attach_again", names=", ".join(files)) if files else None
            return self._answer(text=text, error=hint)
        elif what == "retry":
            session.retry(self._settings(tab, values))
        elif what == "edit":
            session.edit(int(given["turn"]), str(given["text"]), self._settings(tab, values))
        elif what == "send":
            attached = [self.state.attachment(str(path)) for path in given.get("files") or ()]
            session.send(str(given["text"]), attached, self._settings(tab, values))
        elif what == "example":
            known = {example[0]: example for examples in EXAMPLES.values() for example in examples}
            text, thinking, tools = known[given["text"]]
            wanted = dict(zip(SETTINGS, values, strict=True)) | {"thinking": thinking, "use_tools": tools}
            session.send(text, [], self._settings(tab, list(wanted.values())))
            return {self.page.thinking: thinking, self.page.use_tools: tools}
        else:
            raise ValueError(f"there is no action {what!r}")
        return self._answer(id=given.get("id"))

    def _answer(self, **values: Any) -> Update:
        self._answers += 1
        return {self.page.chat: gr.update(answer={"number": self._answers, **values})}

    def history(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Finished messages of the conversation that a tab shows, for the page's own script."""
        words = Words(str(wanted.get("language")))
        if not self.state.has(key := str(wanted["tab"])):
            raise ValueError("this tab is closed")
        tab = self.state.tab(key)
        start = wanted.get("start")
        known = [str(key) for key in wanted.get("known") or ()]
        found = history(tab.session.view(), words, None if start is None else int(start), known)
        return {"conversation": tab.session.id, **found}

    def read(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The number of tokens of an uploaded file, or why it cannot be read."""
        try:
            tab = str(wanted["tab"])
            _, tokens = self.state.attachment(str(wanted["path"]), lambda: not self.state.has(tab))
            view = self.state.tab(tab).session.view()
        except ValueError as error:
            return {"error": f"{error}"}
        return {"tokens": tokens, "used": view.context_tokens, "limit": view.context_limit}

    # --- settings -------------------------------------------------------------

    def settings_opened(self) -> gr.Sidebar:
        return gr.Sidebar(open=True)

    def thinking_switched(self, thinking: bool, temperature: float, top_p: float) -> Update:
        """The recommended sampling of the mode, unless the user set other values."""
        if not _is_recommended(temperature, top_p, not thinking):
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

    def _tab(self, request: gr.Request) -> Tab:
        """The tab that a request comes from; after a restart of the app, the conversation of its address."""
        language = (request.headers.get("accept-language") or "").split(",")[0]
        return self.state.tab(_key(request), str(request.query_params.get("conversation", "")), language=language)

    @property
    def _nothing(self) -> Update:
        """No new value. (Gradio would take an empty mapping for a value.)"""
        return {self.page.needs: gr.skip()}

    def _refused(self, tab: Tab, error: Exception) -> Update:
        busy = isinstance(error, Busy)
        gr.Warning(tab.words("busy") if busy else tab.words("not_sent", error=_plain(str(error))))
        return self._nothing

    def _settings(self, tab: Tab, values: Sequence[Any]) -> Settings:
        """The settings of the widgets. Raises ValueError for an invalid one."""
        given = dict(zip(SETTINGS, values, strict=True))
        if given["seed"] in ("", None):
            given["seed"] = None
        if _is_recommended(given["temperature"], given["top_p"], given["thinking"]):
            given |= {"temperature": None, "top_p": None}
        return tab.session.settings.updated(given)

    def _welcome_note(self, tab: Tab) -> str:
        """Which model answers; the demo is not EXAONE."""
        label = self._model_label
        return tab.words("welcome_demo") if label == "demo" else tab.words("welcome_model", name=label)

    @property
    def _model_label(self) -> str:
        try:
            return self.state.loaded.choice.label
        except ValueError:
            return NO_MODEL

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


def _key(request: gr.Request) -> str:
    if not request.session_hash:
        raise gr.Error("a request needs a session_hash", print_exception=False)
    return request.session_hash


def _files_of_last_turn(view: View) -> list[str]:
    last = next((message for message in reversed(view.messages) if message["role"] == "user"), {})
    return [str(file["name"]) for file in last.get("files") or ()]


def _is_recommended(temperature: float, top_p: float, thinking: bool) -> bool:
    wanted = recommended(thinking)
    return abs(temperature - wanted[0]) < 1e-6 and abs(top_p - wanted[1]) < 1e-6


def _whole(context: float | None) -> int | None:
    return None if not context else int(context)


def _plain(text: str) -> str:
    """`text` with the special characters of HTML and Markdown escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
