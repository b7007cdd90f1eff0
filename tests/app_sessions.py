"""What the tests of the app's sessions and of its state share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from app.session import Session
from app.settings import Settings
from app.work import View

PLAIN = Settings()
ENDLESS = "one two three four five six seven eight nine ten " * 400
WAIT_SECONDS = 20.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """The first value of `holds` that counts as true."""
    end = time.monotonic() + WAIT_SECONDS
    while not (value := holds()):
        assert time.monotonic() < end, f"after {WAIT_SECONDS:.0f} seconds still not: {what}"
        time.sleep(0.002)
    return value


def finished(session: Session) -> View:
    assert session.join(WAIT_SECONDS), f"the turn does not end: {session.view()}"
    return session.view()


def say(session: Session, text: str, settings: Settings = PLAIN, files: Any = ()) -> View:
    session.send(text, list(files), settings)
    return finished(session)


def contents(session: Session) -> list[Any]:
    return [message["content"] for message in session.view().messages]


def underway(session: Session, settings: Settings = PLAIN) -> Session:
    """The session with a turn in progress that has produced an event."""
    session.send("Count", [], settings)
    until(lambda: session.view().coming, "something of the reply came")
    return session
