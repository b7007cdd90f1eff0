"""The actions of the page: one method for each event of a widget.

Notes:
- A method returns, or yields, new values by widget. Widgets that it does not name keep their values.
- A mistake of the user is reported in a notice. The typed text is kept.
- Following a reply only reads its state: closing the page does not end the reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import transcript
from .files import read_file
from .i18n import EXAMPLES, Words, size_text
from .markdown import typed
from .messages import shown, turn_at
from .models import memory_in_use
from .session import Busy, View
from .settings import SAMPLING, Settings, recommended
from .state import AppState, Tab
from .status import notes, status_html
from .widgets import SETTINGS, Page, labels

Update = dict[Any, Any]

FRAME_SECONDS = 0.08  # between two looks at a reply
FRAME_SHARE = 3  # times as long as a look takes, nothing is looked at
IDLE_SECONDS = 0.25  # after which counts of seconds go on without news
WIDE = 900  # pixels, from which on the list of conversations is open by itself
NO_MODEL = "…"
LISTED = 200  # conversations shown at once; a search finds the others


class Actions:
    """The actions of one page description, for all tabs."""

    def __init__(self, state: AppState, page: Page) -> None:
        self.state, self.page = state, page

    # --- the page -------------------------------------------------------------

    def opened(
        self, conversation: str, chosen: str, browser: str, width: float | None, request: gr.Request
    ) -> Iterator[Update]:
        """The page was loaded: it shows the conversation of its address, and follows a reply that is under way."""
        tab = self.state.tab(_key(request), conversation)
        tab.words, tab.narrow = Words(chosen or browser), (width or WIDE) < WIDE
        if chosen:
            yield labels(self.page, tab.words)
        yield {
            self.page.left: gr.Sidebar(open=not tab.narrow),
            **self._conversation(tab),
            **self._list(tab),
            **self._models(tab),
            self.page.chat: self._whole_chat(tab),
            self.page.language: chosen,
            self.page.appearance: request.query_params.get("__theme") or "",
        }
        yield from self._follow(tab)

    def left(self, request: gr.Request) -> None:
        """The page was closed, or is loaded again."""
        self.state.leave(_key(request))

    def language_chosen(self, chosen: str, browser: str, request: gr.Request) -> Iterator[Update]:
        tab = self._tab(request)
        tab.words = Words(chosen or browser)
        yield labels(self.page, tab.words)
        yield {
            **self._list(tab),
            **self._frame(tab, tab.session.view()),
            self.page.chat: self._whole_chat(tab),
            self.page.kept_language: chosen,
        }

    # --- the chat -------------------------------------------------------------

    def sent(self, request: gr.Request, box: dict[str, Any], *values: Any) -> Iterator[Update]:
        tab = self._tab(request)
        attached = [self._read(tab, path) for path in box.get("files") or ()]
        if None in attached:
            return  # it was said which one cannot be read

        def begin(settings: Settings) -> None:
            tab.session.send(box.get("text") or "", [file for file in attached if file], settings)

        yield from self._turn(tab, begin, values, clears=True)

    def example_chosen(self, event: gr.SelectData, request: gr.Request, *values: Any) -> Iterator[Update]:
        """Sends an example with the settings that it needs."""
        tab = self._tab(request)
        text = event.value["text"]
        known = {example[0]: example for examples in EXAMPLES.values() for example in examples}
        _, thinking, tools = known[text]
        given = dict(zip(SETTINGS, values, strict=True)) | {"thinking": thinking, "use_tools": tools}
        yield {self.page.thinking: thinking, self.page.use_tools: tools}
        yield from self._turn(tab, lambda settings: tab.session.send(text, [], settings), list(given.values()))

    def retried(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        tab = self._tab(request)
        yield from self._turn(tab, tab.session.retry, values)

    def edited(self, event: gr.EditData, request: gr.Request, *values: Any) -> Iterator[Update]:
        tab = self._tab(request)
        session = tab.session
        index = event.index if isinstance(event.index, int) else event.index[0]
        turn = turn_at(shown(session.view().messages, tab.words), index)

        def begin(settings: Settings) -> None:
            if turn is not None:
                session.edit(turn, typed(event.value), settings)

        yield from self._turn(tab, begin, values)

    def undone(self, request: gr.Request) -> Update:
        tab = self._tab(request)
        try:
            files = _files_of_last_turn(tab.session.view())
            text = tab.session.undo()
        except ValueError as error:
            return self._refused(tab, error)
        if files:
            gr.Info(tab.words("attach_again", names=_plain(", ".join(files))))
        return {**self._frame(tab, tab.session.view()), self.page.box: {"text": text, "files": []}}

    def stopped(self, request: gr.Request) -> None:
        self._tab(request).session.stop()

    def answered(self, event: gr.SelectData, request: gr.Request) -> None:
        """The user allows or refuses a tool call."""
        word, _, call = str(event.value).partition(" ")
        self._tab(request).session.answer(word == "yes", int(call))

    def files_changed(self, box: dict[str, Any], request: gr.Request) -> Update:
        """Shows the number of tokens of the attached files."""
        tab = self._tab(request)
        paths = (box or {}).get("files") or ()
        read = [file for path in paths if (file := self._read(tab, path)) is not None]
        view = tab.session.view()
        if not read:
            return {self.page.attached: gr.update(visible=False)}
        names = ", ".join(tab.words("attached", name=file.name, tokens=f"{tokens:,}") for file, tokens in read)
        total = view.context_tokens + sum(tokens for _, tokens in read)
        limit = view.context_limit
        text = tab.words("to_be_sent", names=names, total=f"{total:,}", limit=f"{limit:,}")
        return {self.page.attached: gr.update(value=_plain(text), visible=True)}

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
        return {**self._conversation(tab), **self._list(tab)}

    def chosen(self, conversation: str, request: gr.Request) -> Iterator[Update]:
        """Opens a conversation of the list."""
        tab = self._tab(request)
        try:
            self.state.show(tab, self.state.session(conversation))
        except (OSError, ValueError) as error:
            gr.Warning(tab.words("not_opened", error=_plain(str(error))))
        folded = {self.page.left: gr.Sidebar(open=False)} if tab.narrow else {}
        yield {**self._conversation(tab), **self._list(tab), **folded}
        yield from self._follow(tab)

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
        return {**self._conversation(tab), **self._list(tab, query), **self.delete_kept()}

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
        return {**self._conversation(tab), **self._list(tab)}

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
            told = " ".join([words("loaded", name=loaded.choice.label), *notes(loaded.warnings, words)])
        except Busy:
            told = words("loading_already")
        except Exception as error:  # a damaged checkpoint can fail in many ways
            key = "lost" if self._model_label == NO_MODEL else "not_loaded"
            told = words(key, error=f"{error}" or type(error).__name__, name=before)
            gr.Warning(_plain(told))
        yield {
            self.page.needs: _plain(told),
            self.page.load: gr.update(interactive=True),
            **self._frame(tab, tab.session.view()),
        }

    # --- inside ---------------------------------------------------------------

    def _tab(self, request: gr.Request) -> Tab:
        """The tab that a request comes from; after a restart of the app, the conversation of its address."""
        language = (request.headers.get("accept-language") or "").split(",")[0]
        return self.state.tab(_key(request), str(request.query_params.get("conversation", "")), language=language)

    @property
    def _nothing(self) -> Update:
        """No new value. (Gradio would take an empty mapping for a value.)"""
        return {self.page.status: gr.skip()}

    def _turn(
        self, tab: Tab, begin: Callable[[Settings], None], values: Sequence[Any], clears: bool = False
    ) -> Iterator[Update]:
        """Begins a turn and follows it, or reports why it cannot begin."""
        try:
            begin(self._settings(tab, values))
        except ValueError as error:
            yield self._refused(tab, error)
            return
        cleared = gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)
        tab.files.clear()
        yield {
            **self._list(tab),
            **self._frame(tab, tab.session.view()),
            self.page.conversation: tab.session.id,
            **({self.page.box: cleared, self.page.attached: gr.update(visible=False)} if clears else {}),
        }
        yield from self._follow(tab)

    def _follow(self, tab: Tab) -> Iterator[Update]:
        """Shows a reply while it is generated, until the tab shows another conversation."""
        session = tab.session
        view = session.view()
        if not view.running:
            return
        yield {self.page.box: gr.MultimodalTextbox(submit_btn=False, stop_btn=True)}
        while tab.session is session and view.running:
            seen, began = session.version, time.monotonic()
            view = session.view()
            yield self._frame(tab, view)
            cost = time.monotonic() - began  # of a long conversation it is much, and the model wants the time
            session.wait(seen, IDLE_SECONDS)
            time.sleep(max(FRAME_SECONDS, FRAME_SHARE * cost))
        if tab.session is not session:
            return
        if view.error:
            gr.Warning(f"{tab.words('was_error')} {_plain(view.error)}", duration=None)
        yield {
            **self._frame(tab, view),
            **self._list(tab),
            self.page.conversation: session.id,
            self.page.box: gr.MultimodalTextbox(submit_btn=True, stop_btn=False),
        }

    def _refused(self, tab: Tab, error: Exception) -> Update:
        busy = isinstance(error, Busy)
        gr.Warning(tab.words("busy") if busy else tab.words("not_sent", error=_plain(str(error))))
        view = tab.session.view()
        return self._nothing if view.running else self._frame(tab, view)

    def _settings(self, tab: Tab, values: Sequence[Any]) -> Settings:
        """The settings of the widgets. Raises ValueError for an invalid one."""
        given = dict(zip(SETTINGS, values, strict=True))
        if given["seed"] in ("", None):
            given["seed"] = None
        if _is_recommended(given["temperature"], given["top_p"], given["thinking"]):
            given |= {"temperature": None, "top_p": None}
        return tab.session.settings.updated(given)

    def _frame(self, tab: Tab, view: View) -> Update:
        status = status_html(view, tab.words, self._model_label, memory_in_use())
        return {
            self.page.chat: shown(view.messages, tab.words, view.coming, view.asking),
            self.page.status: status,
        }

    @property
    def _model_label(self) -> str:
        try:
            return self.state.loaded.choice.label
        except ValueError:
            return NO_MODEL

    def _conversation(self, tab: Tab) -> Update:
        """Everything that shows a conversation: its messages, and the settings that it has."""
        view = tab.session.view()
        return {
            **self._frame(tab, view),
            **self._widgets(tab.session.settings),
            self.page.conversation: tab.session.id if view.messages else "",
            **self._title(tab, anew=True),
            self.page.box: gr.MultimodalTextbox(submit_btn=not view.running, stop_btn=view.running),
            self.page.attached: gr.update(visible=False),
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

    def _whole_chat(self, tab: Tab) -> gr.Chatbot:
        """The chat with what an empty one shows, in the language of the tab."""
        examples: Any = [{"text": text} for text, _, _ in EXAMPLES[tab.words.language]]
        view = tab.session.view()
        messages: Any = shown(view.messages, tab.words, view.coming, view.asking)
        return gr.Chatbot(messages, examples=examples, placeholder=tab.words("welcome"))

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

    def _read(self, tab: Tab, path: str) -> Any:
        """A dropped file and its number of tokens. A file that cannot be read gives a notice and None."""
        if path not in tab.files:
            try:
                attachment = read_file(path)
                tab.files[path] = attachment, len(self.state.loaded.tokenizer.encode(attachment.text))
            except ValueError as error:
                gr.Warning(_plain(str(error)))
                return None
        return tab.files[path]

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
