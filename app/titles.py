"""Titles of conversations that the model makes while nothing else runs.

Notes:
- A new message cancels a title: it ends at its next token, or at the next small step of its short prompt. It keeps no
  caches.
- What is not one short line in the script of the conversation is not used. The demo model makes none.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any

from exaone4_mlx import Answer, Done, Generation, stream_generate
from exaone4_mlx.storage.forms import one_line
from exaone4_mlx.storage.turns import title_of

from .engine import ChatEngine, LoadedModel
from .session import Session

ENGLISH = "Write a short title for this conversation, in its own language. At most six words, and the title only."
KOREAN = "다음 대화의 짧은 제목을 한국어로 지어 주세요. 다섯 단어 이내로, 제목만 쓰세요."
ASKED, REPLIED, LONGEST = 800, 400, 60  # characters of the message, of the reply, and of a title
HANGUL = re.compile("[가-힣]")
OPTIONS: dict[str, Any] = {"max_tokens": 32, "temperature": 0.0, "stop": ["\n"], "prefill_step_size": 64}


class Titles:
    """Makes one title at a time."""

    def __init__(self, engine: ChatEngine, busy: Callable[[], bool], made: Callable[[Session, str], None]) -> None:
        """`busy` says whether a reply is in progress; `made` gets a title."""
        self._engine, self._busy, self._made = engine, busy, made
        self._lock = threading.Lock()
        self._generation: Generation | None = None
        self._thread: threading.Thread | None = None

    def begin(self, session: Session) -> None:
        """Makes a title if the conversation has none but the beginning of its first message."""
        conversation, settings = session.conversation, session.settings
        automatic = conversation.title == title_of(conversation.messages) and not conversation.named
        if automatic and session.keeps and settings.titles and self._engine.label not in ("", "demo"):
            self._thread = threading.Thread(target=self._make, args=(session,), name="title", daemon=True)
            self._thread.start()

    def cancel(self, timeout: float = 0.0) -> None:
        """Ends the title in progress, and waits for that."""
        with self._lock:
            if self._generation is not None:
                self._generation.cancel()
        if timeout and (thread := self._thread) is not None:
            thread.join(timeout)

    def _make(self, session: Session) -> None:
        with contextlib.suppress(Exception):  # the cut text stays
            messages = session.conversation.messages
            said, replied = (next(one for one in messages if one["role"] == role) for role in ("user", "assistant"))
            asked = str(said.get("text") or said["content"])
            if title := usable(self._text(self._engine.loaded, asked, replied["content"] or ""), asked):
                self._made(session, title)

    def _text(self, loaded: LoadedModel, asked: str, replied: str) -> str:
        wish = KOREAN if HANGUL.search(asked) else ENGLISH
        prompt = f"{wish}\n\n{asked[:ASKED]}\n\n---\n\n{replied[:REPLIED]}"
        generation = stream_generate(loaded.model, loaded.tokenizer, prompt, **OPTIONS)
        with self._lock:
            if self._busy():
                return ""
            self._generation = generation
        try:
            events = list(generation)
            text = "".join(event.text for event in events if isinstance(event, Answer))
            return text if isinstance(end := events[-1], Done) and end.finish_reason == "stop" else ""
        finally:
            with self._lock:
                self._generation = None


def usable(text: str, said: str) -> str:
    """The title in what the model wrote to a conversation that begins with `said`; empty if there is none."""
    title = re.sub(r"^(title|제목|título)\s*[:：]\s*", "", one_line(text).strip(" #*\"'“”‘’«»`"), flags=re.IGNORECASE)
    title = title.strip(" #*\"'“”‘’«»`.。")
    fits = 2 <= len(title) <= LONGEST and any(char.isalpha() for char in title) and not set(title) & set("<>{}[]|")
    return title if fits and bool(HANGUL.search(said)) == bool(HANGUL.search(title)) else ""
