"""A reply grows in one output of a notebook, and an interrupt ends it in order."""

from __future__ import annotations

import pickle
import re
import signal
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from exaone4_mlx import Answer, Chat, Done, Sampling, Thinking, ToolCall, ToolResult, stream_generate
from exaone4_mlx.notebook import display_stream, live
from exaone4_mlx.notebook.conversation_view import reply_html
from exaone4_mlx.text.message import Reply

DONE = Done("stop", 24, 0, 23, 14, 0.05, 2.0, 1.25, 12_000_000)
QUESTION = "Which one is bigger, 3.12 vs 3.9?"


class Kernel:
    """IPython as a notebook's cell has it; `outputs` are what it shows, each with all that it has shown."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []
        self.execution_count = 1

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool = False) -> Any:
        assert raw
        shown = [content]
        self.outputs.append(shown)
        return types.SimpleNamespace(update=lambda content, *, raw: shown.append(content))

    @property
    def html(self) -> str:
        """What the only output shows at the end."""
        (output,) = self.outputs
        return output[-1]["text/html"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel: an interrupt raises there, also where the tests run behind a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    kernel = Kernel()
    shown = types.SimpleNamespace(display=kernel.display)
    fake: Any = types.SimpleNamespace(get_ipython=lambda: kernel, display=shown)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    yield kernel
    signal.signal(signal.SIGINT, before)


def beep(times: int) -> str:
    """Beeps."""
    return "beep"


class Interrupted:
    """Events of which one is followed by the interrupt button."""

    def __init__(self, events: Any, after: int, times: int = 1) -> None:
        self.events, self.after, self.times = events, after, times
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        for number, event in enumerate(self.events, start=1):
            if number == self.after:
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGINT)
            self.last = event
            yield event

    def __getattr__(self, name: str) -> Any:
        return getattr(self.events, name)


def test_a_reply_grows_in_one_output_and_ends_as_itself(demo: Any, kernel: Kernel, monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "UPDATE_SECONDS", 0)
    monkeypatch.setattr(live, "DRAWING_SHARE", 0)
    reply = display_stream(stream_generate(*demo, QUESTION, thinking=True, sampling=Sampling(temperature=0)))
    assert reply.text == "3.9 is bigger than 3.12." and reply.finish_reason == "stop"
    assert kernel.html == reply_html(reply), "the final rendering is another one"
    lengths = [len(content["text/html"]) for content in kernel.outputs[0]]
    assert len(lengths) > 20 and lengths[5] < lengths[15] < lengths[-1]
    assert any(" open><summary" in content["text/html"] for content in kernel.outputs[0]), "the thought is not shown"
    assert len(kernel.outputs[0][-1]["text/plain"]) < 100


def test_a_fast_stream_is_drawn_at_most_ten_times_per_second(kernel: Kernel) -> None:
    began = time.monotonic()
    reply = display_stream([*(Answer("word ") for _ in range(3000)), DONE])
    seconds = time.monotonic() - began
    assert len(kernel.outputs[0]) <= 4 + seconds / live.UPDATE_SECONDS, "drawn for each token"
    assert reply.text == "word " * 3000 and kernel.html.count("word") == 3000


def test_drawing_takes_a_tenth_of_the_time_at_most() -> None:
    clock = live.UpdateTimer()
    assert clock.is_due()
    with clock.drawing():
        time.sleep(0.03)
    assert clock._pause >= 0.3, "a long reply would be drawn all the time"


def test_a_reply_is_not_shown_twice_as_the_value_of_its_cell(kernel: Kernel) -> None:
    reply: Any = display_stream([Answer("x"), DONE])
    reply._ipython_display_()
    assert len(kernel.outputs) == 1
    kernel.execution_count += 1
    reply._ipython_display_()
    assert kernel.outputs[1][0] == kernel.outputs[0][-1], "in another cell it shows something else"
    assert pickle.loads(pickle.dumps(reply)) == reply == Reply.from_events([Answer("x"), DONE])


def test_tools_are_shown_with_their_results(kernel: Kernel) -> None:
    call = ToolCall("roll_dice", {"max_num": 6})
    events = [call, ToolResult(call, 5, False, 0.25), ToolResult(call, {"error": "no"}, True, 0.0), Answer("5"), DONE]
    reply = display_stream(events)
    assert reply.text == "5" and reply.tool_calls == (call,)
    assert "roll_dice(max_num=6) → 5 · 0.25 s" in kernel.html and "37 tokens" in kernel.html
    waiting = kernel.outputs[0][1]["text/html"]
    assert "roll_dice(max_num=6) …" in waiting, "a call is shown only when its tool is done"
    kernel.execution_count += 1
    vars(reply)["_ipython_display_"]()
    assert kernel.outputs[1][0]["text/html"] == kernel.outputs[0][-1]["text/html"], "the results are gone"


def test_the_thoughts_of_a_turn_are_counted_apart(kernel: Kernel) -> None:
    class Turn:
        so_far = DONE

        def __iter__(self) -> Iterator[Any]:
            call = ToolCall("t", {})
            for thought, seconds, tokens in (("one", 1.0, 10), ("two", 3.0, 14)):
                self.so_far = Done("", 0, 0, tokens, 0, 0.0, seconds, seconds, 0)
                yield from (Thinking(thought), call, ToolResult(call, 1, False, 0.0)) if tokens == 10 else ()
            yield Thinking("two")
            yield Done("stop", 0, 0, 14, 2, 0.0, 4.0, 3.0, 0)

    display_stream(Turn())
    assert "Thought for 1.0 s · 10 tokens" in kernel.html and "Thought for 2.0 s · 4 tokens" in kernel.html


def test_unknown_events_are_ignored(kernel: Kernel) -> None:
    other: Any = types.SimpleNamespace(text="no part of the reply")
    assert display_stream([other, Answer("x"), other, DONE]).text == "x"
    assert "no part" not in kernel.html


def test_the_interrupt_button_cancels_the_reply(demo: Any, kernel: Kernel) -> None:
    before = signal.getsignal(signal.SIGINT)
    generation = stream_generate(*demo, QUESTION, thinking=True, sampling=Sampling(temperature=0))
    reply = display_stream(events := Interrupted(generation, after=5))
    assert isinstance(events.last, Done), "it was torn off in the middle, and did not end by itself"
    assert reply.finish_reason == "cancelled" and 0 < reply.thinking_tokens < 23
    assert "Integer parts 3 and 3: =.".startswith(reply.thinking) and reply.thinking
    assert "cut: it was stopped" in kernel.html and reply.thinking in kernel.html
    assert signal.getsignal(signal.SIGINT) is before, "the interrupt button is not what it was"


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_turn_stays_in_the_history_and_the_chat_goes_on(demo: Any, kernel: Kernel, times: int) -> None:
    chat = Chat(*demo, sampling=Sampling(temperature=0), settle=False)
    reply = display_stream(Interrupted(chat.send(QUESTION, thinking=True), after=5, times=times))
    assert reply.finish_reason == "cancelled"
    assert chat.messages[-1]["finish_reason"] == "cancelled"
    assert chat.messages[-1]["reasoning_content"].startswith(reply.thinking) and reply.thinking
    assert display_stream(chat.send("Hello!", max_tokens=3)).finish_reason == "length"


def test_events_that_cannot_be_cancelled_are_interrupted_too(kernel: Kernel) -> None:
    reply = display_stream(iter(Interrupted([Answer("one"), Answer("two"), DONE], after=2)))
    assert reply.text == "one" and reply.finish_reason == "cancelled" and "cut" in kernel.html


def test_an_interrupt_while_a_tool_asks_raises_at_once(scripted: Any, kernel: Kernel) -> None:
    """`input()` goes on waiting after a signal whose handler raises nothing."""
    call = '<tool_call>{"name": "beep", "arguments": {"times": 1}}</tool_call>'

    def ask(_call: ToolCall) -> bool:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the question goes on")

    chat = Chat(*scripted(2 * call), tools=[beep], approve=ask, settle=False)
    reply = display_stream(chat.send("Beep twice!"))
    assert reply.finish_reason == "cancelled" and len(reply.tool_calls) == 2
    assert not chat.open_calls and chat.messages[-1]["failed"]


def test_an_error_shows_the_text_so_far_and_is_raised(kernel: Kernel) -> None:
    def events() -> Iterator[Any]:
        yield Answer("so far")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        display_stream(events())
    assert "so far" in kernel.html and "cut: an error occurred" in kernel.html


@pytest.mark.parametrize("shell", [None, "absent", type("TerminalInteractiveShell", (), {})()])
def test_outside_of_jupyter_it_returns_the_finished_reply(kernel: Kernel, monkeypatch: Any, shell: Any) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    if shell == "absent":
        monkeypatch.setitem(sys.modules, "IPython", None)
    reply: Any = display_stream(iter([Answer("x"), DONE]))
    assert reply.text == "x" and kernel.outputs == []
    assert reply._repr_html_() == reply_html(reply), "marimo shows it as the value of its cell"
    assert pickle.loads(pickle.dumps(reply)) == reply


@pytest.mark.heavy
def test_the_progress_of_the_prompt_is_shown(demo: Any, kernel: Kernel, monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "UPDATE_SECONDS", 0.001)
    monkeypatch.setattr(live, "DRAWING_SHARE", 0)
    turn = Chat(*demo, temperature=0, settle=False).send("Hello! " * 300, max_tokens=2, prefill_step_size=64)
    display_stream(turn)
    seen = [re.search(r"Reading the prompt: (\d+) of (\d+) tokens", shown["text/html"]) for shown in kernel.outputs[0]]
    found = [tuple(map(int, match.groups())) for match in seen if match]
    assert len(found) > 2 and found == sorted(set(found)) and all(done <= total for done, total in found)
    assert turn.prompt_progress is None and "Reading" not in kernel.html
