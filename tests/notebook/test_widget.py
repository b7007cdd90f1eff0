"""A chat widget, used by the names on its buttons."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exaone4_mlx import Chat, Options, Sampling
from exaone4_mlx.conversation.turn import TurnState
from exaone4_mlx.notebook import attention_maps, chat_widget, live


@pytest.mark.parametrize("name", ["ipywidgets", "matplotlib.pyplot"])
def test_a_missing_package_is_named(name: str, unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    widget = name == "ipywidgets"
    use: Any = (lambda: chat_widget(Chat(*unread))) if widget else attention_maps(*unread, "Hello", 0).plot
    with pytest.raises(ImportError, match=r"pip install 'exaone4_mlx\[notebook\]'"):
        use()


def test_a_widget_is_for_a_chat(demo: Any) -> None:
    with pytest.raises(ValueError, match=r"chat_widget\(Chat\(model, tokenizer\)\), not 'Exaone4ForCausalLM'"):
        chat_widget(demo[0])


class Person:
    """Uses a widget as a person does: by the names on it."""

    def __init__(self, chat: Chat) -> None:
        self.widget = chat_widget(chat)
        self.outputs: list[dict[str, str]] = []  # what its cell shows, from top to bottom
        self.display(self.widget)
        everything = list(self._all(self.widget.box))
        self.named = {one.description: one for one in everything if getattr(one, "description", "")}
        (self.text,) = (one for one in everything if type(one).__name__ == "Textarea")

    def display(self, widget: Any) -> None:
        def display(content: dict[str, str], *, raw: bool, display_id: bool = False) -> Any:
            place = len(self.outputs)
            self.outputs.append(content)
            return types.SimpleNamespace(update=lambda content, *, raw: self.outputs.__setitem__(place, content))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("IPython.display.display", display)
            widget._ipython_display_()

    def _all(self, widget: Any) -> Iterator[Any]:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from self._all(child)

    @property
    def seen(self) -> str:
        return "".join(output.get("text/html", "") for output in self.outputs)

    def click(self, name: str) -> None:
        assert not self.named[name].disabled, f"{name} cannot be clicked"
        self.named[name].click()

    def say(self, text: str) -> None:
        self.text.value = text
        self.click("Send")

    def waits(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, self.seen
            time.sleep(0.005)

    def done(self) -> None:
        self.waits(lambda: not self.named["Send"].disabled)


@pytest.fixture
def person() -> Callable[[Chat], Person]:
    pytest.importorskip("ipywidgets", reason="the widget needs the extra `notebook`")
    return Person


def beep(times: int) -> str:
    """Beeps."""
    return "beep"


def test_the_widget_sends_retries_undoes_and_clears(demo: Any, person: Any) -> None:
    chat = Chat(*demo, sampling=Sampling(temperature=0), settle=False)
    user = person(chat)
    user.say("What is the capital of South Korea?")
    user.done()
    assert "The capital of South Korea is Seoul." in user.seen and user.text.value == ""
    assert f"{chat.context_tokens:,} of 8,192 tokens of the context" in user.seen
    user.click("Retry")
    user.done()
    assert len(chat.turns) == 1 and user.seen.count("is Seoul.") == 1
    chat.options = Options(temperature=0, max_tokens=3)
    user.click("Retry")
    user.done()
    assert "Seoul" not in user.seen
    chat.options = Options(temperature=0)
    user.click("Continue")
    user.done()
    assert len(chat.messages) == 2 and user.seen.count("is Seoul.") == 1
    user.click("Undo")
    assert chat.messages == [] and user.text.value == "What is the capital of South Korea?" and "Seoul" not in user.seen
    user.click("Send")
    user.done()
    user.click("Clear")
    assert chat.messages == [] and user.named["Retry"].disabled and user.named["Stop"].disabled


def test_the_history_is_output_that_needs_no_kernel(demo: Any, person: Any) -> None:
    """A saved or exported notebook has it as HTML, Markdown and text. Only the controls are widgets."""
    user = person(Chat(*demo, temperature=0, settle=False))
    user.say("Hello!\n\nWhat is the capital of Peru?")
    user.done()
    history, reply, controls = user.outputs
    assert "Hello!\n\nWhat is the capital of Peru?" in history["text/html"], "lines are kept"
    assert "Peru" in history["text/markdown"] and "1 turn" in history["text/html"] and history["text/plain"]
    assert reply["text/html"] == "", "the reply is in the history"
    assert "run this cell again" in controls["text/plain"] and not {"text/html", "text/markdown"} & controls.keys()
    user.display(user.widget)
    assert user.outputs[3] == user.outputs[0], "in another cell it shows the same"
    user.click("Clear")
    assert "Peru" not in user.seen and user.seen.count("0 turns") == 2
    assert "0 turns" in user.widget._repr_html_() and "run this cell again" in user.widget._repr_html_()


@pytest.mark.heavy
def test_the_widget_shows_the_progress_of_the_prompt(demo: Any, person: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "UPDATE_SECONDS", 0.001)
    user = person(Chat(*demo, max_tokens=2, prefill_step_size=64, settle=False))
    user.say("Hello! " * 300)
    user.waits(lambda: "Reading the prompt:" in user.seen)
    user.done()


def test_the_switches_of_the_widget_set_the_options_of_the_next_turn(
    unread: Any, person: Any, monkeypatch: Any
) -> None:
    said: list[dict[str, Any]] = []
    chat = Chat(*unread, tools=[beep], max_tokens=2, settle=False)
    send = chat.send
    monkeypatch.setattr(chat, "send", lambda text, **options: (said.append(options), send(text, **options))[1])
    user = person(chat)
    user.say("one")
    user.done()
    user.named["Thinking"].value, user.named["beep"].value = True, False
    user.say("two")
    user.done()
    assert said == [{"thinking": False}, {"thinking": True, "tools": ()}] and chat.tools == ()
    user.named["beep"].value = True
    user.say("three")
    user.done()
    assert chat.tools == (beep,)


def test_stop_works_while_the_widget_replies(scripted: Any, person: Any) -> None:
    chat = Chat(*scripted(["word"] * 500, pause=0.01), settle=False)
    user = person(chat)
    user.say("Hello")
    user.waits(lambda: "wordword" in user.seen)
    assert (
        "Hello" in user.seen and user.named["Send"].disabled and threading.current_thread() is threading.main_thread()
    )
    user.click("Stop")
    user.done()
    assert chat.messages[-1]["finish_reason"] == "cancelled" and "cut: it was stopped" in user.seen
    assert "wordword" in chat.messages[-1]["content"]


def test_the_widget_shows_errors(unread: Any, person: Any, monkeypatch: Any) -> None:
    chat = Chat(*unread, max_kv_size=200, max_tokens=2, settle=False)
    user = person(chat)
    user.say("many words " * 300)
    assert "the context of 200 must hold it" in user.seen and user.text.value and not user.named["Send"].disabled
    monkeypatch.setattr(TurnState, "_reply", lambda *_: 1 / 0)
    user.say("<b>Hello")
    user.done()
    assert "ZeroDivisionError" in user.seen and "<b>Hello" not in user.seen
