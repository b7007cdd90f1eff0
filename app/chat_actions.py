"""The actions of the user in the conversation, and the frames that the page draws.

Notes:
- Each page has one follower, `followed`. It sends frames to the script of the page (page/*.js), which draws the
  conversation. Actions change the state, and every tab of a conversation gets the change. Closing the page does not
  end a reply at once.
- What cannot be done is an answer to the page, with the text that the user typed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from .common import Shared, Update, key_of
from .frames import frame, history
from .i18n import EXAMPLES, Words
from .models import memory_in_use
from .record import Busy
from .session import Session
from .settings import Settings
from .state import Tab
from .status import status_html
from .work import View

FRAME_SECONDS = 0.08  # the least time between two frames
FRAME_SHARE = 3  # the pause after a frame, as a multiple of the time that it took
IDLE_SECONDS = 0.25  # until a frame without a change, for the counts of seconds
OF_A_REVISION = ("retry", "edit", "continue", "save-reply", "switch", "undo", "redo")  # on messages that a page shows


class ChatActions(Shared):
    """The actions in the conversation, for all tabs of one page description."""

    def followed(self, request: gr.Request) -> Iterator[dict[str, Any]]:
        """Frames of what a tab shows, one after each change, until the tab is closed."""
        key = key_of(request)
        tab = self._tab(request)
        while self.state.has(key):
            session, words, listed, began = tab.session, tab.words, self.state.listed, time.monotonic()
            version = session.version
            yield self._frame(key, tab)
            cost = time.monotonic() - began
            while self.state.has(key) and tab.session is session and tab.words is words:
                if (session.version, self.state.listed) != (version, listed) or (
                    session.running and time.monotonic() - began > IDLE_SECONDS
                ):
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
            "listed": self.state.listed,
            "offered": [self.state.tool_names, self.state.running_servers],
            "fresh": "" if view.messages else session.id,
            "model": self._model_label,
            "note": self._welcome_note(tab),
            "status": status_html(view, tab.words, self._model_label, memory_in_use()),
            "error": f"{tab.words('was_error')} {tab.words.error(view.error)}" if view.error else "",
        }

    def acted(self, event: gr.EventData, request: gr.Request, *values: Any) -> Update:
        """An action of the user in the conversation. The page gets a refusal, with the text of the message."""
        tab, given = self._tab(request), event._data if isinstance(event._data, dict) else {}
        session = tab.session
        try:
            if given.get("conversation") != session.id:
                raise ValueError(tab.words("elsewhere"))
            if given["what"] in OF_A_REVISION and given.get("revision") != session.revision:
                raise ValueError(tab.words("stale"))
            return self._act(tab, given, values) | {self.page.kept_settings: session.settings.lasting()}
        except Busy:
            refusal = {"error": tab.words("busy"), "busy": True}
        except Exception as problem:  # of any kind: the page stays usable and keeps the text
            refusal = {"error": tab.words("not_sent", error=f"{problem}" or type(problem).__name__)}
        edited = {"text": str(given["text"])} if given.get("what") != "send" and given.get("text") else {}
        return self._answer(id=given.get("id"), **refusal, **edited)

    def _act(self, tab: Tab, given: dict[str, Any], values: Sequence[Any]) -> Update:
        session, settings = tab.session, functools.partial(self._settings, tab, values)
        does: dict[str, Callable[[], Update | None]] = {
            "send": lambda: self._send(session, given, settings()),
            "example": lambda: self._send_example(session, given["text"], settings()),
            "stop": session.stop,
            "answer": lambda: self._allow(tab, given),
            "retry": lambda: session.retry(settings(), int(given["turn"])),
            "edit": lambda: session.edit(int(given["turn"]), str(given["text"]), settings()),
            "continue": lambda: session.continue_reply(settings(), given.get("text"), int(given["turn"])),
            "save-reply": lambda: session.save_reply(str(given["text"]), int(given["turn"])),
            "switch": lambda: session.switch(int(given["at"]), int(given["place"])),
            "undo": lambda: self._undo(tab),
            "redo": session.redo,
        }
        if given["what"] not in does:
            raise ValueError(f"there is no action {given['what']!r}")
        return does[given["what"]]() or self._answer(id=given.get("id"))

    def _send(self, session: Session, given: dict[str, Any], settings: Settings) -> None:
        attached = [self.state.attachment(str(path)) for path in given.get("files") or ()]
        session.send(str(given["text"]), attached, settings)

    def _send_example(self, session: Session, text: str, settings: Settings) -> Update:
        known = {example[0]: example for examples in EXAMPLES.values() for example in examples}
        text, thinking, tools = known[text]
        session.send(text, [], settings.updated({"thinking": thinking, "use_tools": tools}))
        return {self.page.thinking: thinking, self.page.use_tools: tools}

    def _allow(self, tab: Tab, given: dict[str, Any]) -> Update:
        """The user's answer about a call of a tool."""
        tab.session.answer(given["allowed"] is True, int(given["call"]), given.get("always") is True)
        return {**self._answer(id=given.get("id")), **self._always(tab)}

    def _undo(self, tab: Tab) -> Update:
        """The text of a message that is taken back returns to the box. Its files do not."""
        view = tab.session.view()
        files = _files_of_last_turn(view) if view.undo == "send" else []
        text = tab.session.undo() or None
        hint = tab.words("attach_again", names=", ".join(files)) if files else None
        return self._answer(text=text, error=hint)

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
        """The number of tokens of an uploaded file, or why it cannot be read. `drop` ends the reading."""
        tab, path = str(wanted["tab"]), str(wanted["path"])
        if wanted.get("drop"):
            self._reading.discard(path)
            return {}
        self._reading.add(path)
        try:
            _, tokens = self.state.attachment(path, lambda: not self.state.has(tab) or path not in self._reading)
            view = self.state.tab(tab).session.view()
        except ValueError as error:
            return {"error": self.state.tab(tab).words.error(f"{error}")}
        finally:
            self._reading.discard(path)
        return {"tokens": tokens, "used": view.context_tokens, "limit": view.context_limit}

    # --- inside ---------------------------------------------------------------

    def _welcome_note(self, tab: Tab) -> str:
        """Which model answers; the demo is not EXAONE."""
        label = self._model_label
        return tab.words("welcome_demo") if label == "demo" else tab.words("welcome_model", name=label)


def _files_of_last_turn(view: View) -> list[str]:
    last = next((message for message in reversed(view.messages) if message["role"] == "user"), {})
    return [str(file["name"]) for file in last.get("files") or ()]
