"""A reply that grows in one output, a chat to type into, and looks inside the model, each against the plain way."""

from __future__ import annotations

import itertools
import math
import pickle
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest
from conftest import random_ids, tiny_model

from exaone4_mlx import Answer, Chat, Done, Exaone4Config, Sampling, Thinking, ToolCall, ToolResult, stream_generate
from exaone4_mlx.conversation.turn import TurnState
from exaone4_mlx.model.cache import KVCache, RotatingKVCache
from exaone4_mlx.notebook import (
    attention_maps,
    attention_view,
    cache_view,
    chat_widget,
    display_stream,
    draw_cache,
    inspect_tokens,
    live as notebook,
    token_tree,
    token_view,
    tokens as inside,
)
from exaone4_mlx.notebook.conversation_view import reply_html
from exaone4_mlx.notebook.html import percent_text, visible
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


# --- a reply that grows -------------------------------------------------------------


def test_a_reply_grows_in_one_output_and_ends_as_itself(demo: Any, kernel: Kernel, monkeypatch: Any) -> None:
    monkeypatch.setattr(notebook, "UPDATE_SECONDS", 0)
    monkeypatch.setattr(notebook, "DRAWING_SHARE", 0)
    reply = display_stream(stream_generate(*demo, QUESTION, thinking=True, sampling=Sampling(temperature=0)))
    assert reply.text == "3.9 is bigger than 3.12." and reply.finish_reason == "stop"
    assert kernel.html == reply_html(reply), "the final rendering is another one"
    lengths = [len(content["text/html"]) for content in kernel.outputs[0]]
    assert len(lengths) > 20 and lengths[5] < lengths[15] < lengths[-1]
    assert any(" open><summary" in content["text/html"] for content in kernel.outputs[0]), "the thought is not shown"
    assert len(kernel.outputs[0][-1]["text/plain"]) < 100


def test_a_fast_stream_is_drawn_seldom(kernel: Kernel) -> None:
    began = time.monotonic()
    reply = display_stream([*(Answer("word ") for _ in range(3000)), DONE])
    seconds = time.monotonic() - began
    assert len(kernel.outputs[0]) <= 4 + seconds / notebook.UPDATE_SECONDS, "drawn for each token"
    assert reply.text == "word " * 3000 and kernel.html.count("word") == 3000


def test_drawing_takes_a_tenth_of_the_time_at_most() -> None:
    clock = notebook.UpdateTimer()
    assert clock.is_due()
    with clock.drawing():
        time.sleep(0.03)
    assert clock._pause >= 0.3, "a long reply would be drawn all the time"


def test_it_is_not_shown_twice_as_the_value_of_its_cell(kernel: Kernel) -> None:
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


def test_events_of_other_kinds_are_passed_over(kernel: Kernel) -> None:
    other: Any = types.SimpleNamespace(text="no part of the reply")
    assert display_stream([other, Answer("x"), other, DONE]).text == "x"
    assert "no part" not in kernel.html


def test_the_interrupt_button_ends_a_reply_in_good_order(demo: Any, kernel: Kernel) -> None:
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


def test_an_interrupt_while_a_tool_asks_something_is_heard_at_once(scripted: Any, kernel: Kernel) -> None:
    """`input()` goes on waiting after a signal whose handler raises nothing."""
    call = '<tool_call>{"name": "beep", "arguments": {"times": 1}}</tool_call>'

    def ask(_call: ToolCall) -> bool:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the question goes on")

    chat = Chat(*scripted(2 * call), tools=[beep], approve=ask, settle=False)
    reply = display_stream(chat.send("Beep twice!"))
    assert reply.finish_reason == "cancelled" and len(reply.tool_calls) == 2
    assert not chat.open_calls and chat.messages[-1]["failed"]


def test_an_error_shows_what_came_and_is_raised(kernel: Kernel) -> None:
    def events() -> Iterator[Any]:
        yield Answer("so far")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        display_stream(events())
    assert "so far" in kernel.html and "cut: an error occurred" in kernel.html


@pytest.mark.parametrize("shell", [None, "absent", type("TerminalInteractiveShell", (), {})()])
def test_outside_of_a_notebook_it_is_refused_before_work(kernel: Kernel, monkeypatch: Any, shell: Any) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    if shell == "absent":
        monkeypatch.setitem(sys.modules, "IPython", None)
    events = iter([Answer("x"), DONE])
    with pytest.raises(RuntimeError, match="works only in a notebook"):
        display_stream(events)
    assert next(events) == Answer("x")


# --- a chat to type into ------------------------------------------------------------


@pytest.mark.parametrize("name", ["ipywidgets", "matplotlib.pyplot"])
def test_what_is_not_installed_is_named(name: str, unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
        self.box = chat_widget(chat)
        everything = list(self._all(self.box))
        self.named = {one.description: one for one in everything if getattr(one, "description", "")}
        (self.text,) = (one for one in everything if type(one).__name__ == "Text")
        self._texts = [one for one in everything if type(one).__name__ == "HTML"]

    def _all(self, widget: Any) -> Iterator[Any]:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from self._all(child)

    @property
    def seen(self) -> str:
        return "".join(one.value for one in self._texts)

    def click(self, name: str) -> None:
        assert not self.named[name].disabled, f"{name} cannot be clicked"
        self.named[name].click()

    def say(self, text: str) -> None:
        self.text.value = text
        self.text._handle_custom_msg({"event": "submit"}, [])

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
    """Beeps.

    Args:
        times: How often
    """
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
    user.click("Undo")
    assert chat.messages == [] and user.text.value == "What is the capital of South Korea?" and "Seoul" not in user.seen
    user.click("Send")
    user.done()
    user.click("Clear")
    assert chat.messages == [] and user.named["Retry"].disabled and user.named["Stop"].disabled


def test_the_switches_of_the_widget_say_how_the_next_turn_goes(unread: Any, person: Any, monkeypatch: Any) -> None:
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


def test_stop_is_heard_while_the_widget_replies(scripted: Any, person: Any) -> None:
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


def test_the_widget_tells_what_is_refused(unread: Any, person: Any, monkeypatch: Any) -> None:
    chat = Chat(*unread, max_kv_size=200, max_tokens=2, settle=False)
    user = person(chat)
    user.say("many words " * 300)
    assert "the context of 200 must hold it" in user.seen and user.text.value and not user.named["Send"].disabled
    monkeypatch.setattr(TurnState, "_reply", lambda *_: 1 / 0)
    user.say("<b>Hello")
    user.done()
    assert "ZeroDivisionError" in user.seen and "<b>Hello" not in user.seen


# --- tokens -------------------------------------------------------------------------


def test_tokens_have_the_probabilities_that_the_model_gave_them(unread: Any) -> None:
    model, tokenizer = unread
    ids = tokenizer.encode("The capital of South Korea is Seoul. " * 12)
    assert len(ids) > inside.POSITIONS, "more than are computed together"
    found = inspect_tokens(model, tokenizer, ids, top=3)
    likely = mx.softmax(model(mx.array([ids]))[0], axis=-1)
    assert [row.id for row in found] == ids and found[0].probability is None and found[0].alternatives == ()
    for place in (1, 5, inside.POSITIONS, inside.POSITIONS + 1, len(ids) - 1):
        before, row = likely[place - 1], found[place]
        assert row.probability == pytest.approx(before[ids[place]].item(), rel=1e-3)
        entropy = -sum(p * math.log2(p) for p in before.tolist() if p > 0)
        assert row.entropy_bits == pytest.approx(entropy, abs=1e-3)
        assert row.rank == mx.sum(before > before[ids[place]]).item()
        assert [other.id for other in row.alternatives] == mx.argsort(-before)[:3].tolist()
    assert inspect_tokens(model, tokenizer, tokenizer.decode(ids))[-1].id == ids[-1], "a text is encoded as it is"
    assert found[3:5].rows == found.rows[3:5] and "· 2 tokens, " in token_view.tokens_html(found[3:5])


def test_pieces_of_characters_are_shown_as_bytes_and_what_they_complete(unread: Any) -> None:
    rows = inspect_tokens(*unread, "🎉\n<b>")
    assert rows[0].text.startswith("<0x") and rows[0].completes == ""
    assert [row.completes for row in rows if row.completes] == ["🎉"]
    html = token_view.tokens_html(rows)
    assert "&lt;0xF0&gt;" in html and "→ 🎉" in html and "⏎" in html and "<b>" not in html.replace("<br>", "")
    assert percent_text(4.4e-6) == "<0.001 %", "no probability is written in powers of ten"
    assert [percent_text(p) for p in (0.00002, 0.00199, 0.5, 1)] == ["0.002 %", "0.199 %", "50 %", "100.0 %"]
    assert visible(" a\n\x1b\u202e") == "␣a⏎\\u001b\\u202e"


def test_what_cannot_be_inspected_is_refused(unread: Any) -> None:
    for wrong, message in (
        ("", "the text is empty"),
        ([5000], "no token 5000"),
        ([3] * 8193, "the context holds 8192"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect_tokens(*unread, wrong)
    with pytest.raises(ValueError, match="top must be a whole number from 1 to 3072, not 0"):
        inspect_tokens(*unread, "Hello", top=0)


# --- attention ----------------------------------------------------------------------


def test_attention_maps_are_the_models_own_and_respect_the_window(unread: Any) -> None:
    model, tokenizer = unread
    ids = random_ids(12)[0].tolist()
    attentions = model.forward(mx.array([ids]), output_attentions=True, use_cache=False).attentions
    for layer in (0, 3):
        maps = attention_maps(model, tokenizer, ids, layer)
        assert maps.weights.shape == (4, 12, 12) and mx.array_equal(maps.weights, attentions[layer][0])
        assert mx.allclose(maps.weights.sum(axis=-1), mx.ones((4, 12)), atol=1e-5)
    local = attention_maps(model, tokenizer, ids, 0)
    assert (
        local.attention.window == 7 and mx.all(local.weights[:, 11, :5] == 0) and mx.all(local.weights[:, 11, 5:] > 0)
    )
    assert repr(local) == "AttentionMaps(layer 0, window 7, 4 heads, 12 tokens)"
    html = attention_view.attention_html(local)
    assert html.count("<svg") == 4 and html.count("data:image/png;base64,") == 4 and "token that attends" in html


@pytest.mark.parametrize(("layer", "ids"), [(4, [5]), (-1, [5]), (True, [5]), (0, [5] * 513)])
def test_attention_that_cannot_be_shown_is_refused(unread: Any, layer: Any, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layer must be a whole number from 0 to 3|513 tokens; .* at most 512"):
        attention_maps(*unread, ids, layer)


def test_attention_is_plotted_with_names_on_its_axes(unread: Any) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `notebook`")
    maps = attention_maps(*unread, "서울 $x$ Hello", 0)
    figure = maps.plot(heads=[1, 3])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["head 1", "head 3"]
    assert (
        figure.axes[0].get_xlabel() == "token that is attended to"
        and figure.axes[0].get_ylabel() == "token that attends"
    )
    with pytest.raises(ValueError, match="heads must be some of 0 to 3"):
        maps.plot(heads=[4])


# --- caches -------------------------------------------------------------------------


def test_a_drawn_cache_is_what_a_real_one_holds() -> None:
    model = tiny_model(max_position_embeddings=1400)
    row = mx.zeros((1, 1, 1, 2))
    local, seen = RotatingKVCache(7), KVCache(1400)
    compactions = []
    for tokens in range(1, 1301):
        used = local.stop
        for cache in (local, seen):
            cache.update(row, row)
        if local.stop <= used:
            compactions.append(tokens - 1)
        drawn, whole = draw_cache(model, tokens).layers
        assert (drawn.layer, whole.layer) == (0, 3)
        assert (drawn.rows, drawn.capacity, drawn.tokens - drawn.attended_from) == (
            local.stop,
            local.rows.capacity,
            local.past,
        ), f"after {tokens} tokens"
        assert list(drawn.compactions) == compactions
        assert (whole.rows, whole.capacity, whole.attended_from) == (tokens, seen.rows.capacity, 0)
    assert len(compactions) == 2
    assert draw_cache(model, compactions[0]).layers[0].next_compaction == compactions[0]
    assert draw_cache(model, compactions[0] + 1).layers[0].next_compaction == compactions[1]


def test_a_drawn_cache_says_what_it_shows() -> None:
    config = Exaone4Config(sliding_window=4096, max_position_embeddings=131_072)
    html = cache_view.caches_html(draw_cache(config, 100_000))
    assert "local (L), window 4,096" in html and "global (G)" in html
    assert "Token 100,000 attends to tokens 95,905 to 99,999 and to itself." in html and "forgotten" in html
    assert draw_cache(config, 0, layer=2).layers[0].rows == 0 and "It is empty." in cache_view.caches_html(
        draw_cache(config, 0)
    )
    assert "▼" not in cache_view.caches_html(draw_cache(config, 100, layer=0)), "a legend of marks that are not there"
    for tokens, layer in ((-1, 0), (131_073, 0), (5, 32)):
        with pytest.raises(ValueError, match="must be a whole number from 0 to"):
            draw_cache(config, tokens, layer)


def test_marks_and_names_of_a_drawn_cache_are_told_apart() -> None:
    config = Exaone4Config(sliding_window=4096, max_position_embeddings=131_072)
    for tokens in range(1, 131_072, 997):
        held = draw_cache(config, tokens, layer=0).layers[0]
        html = cache_view.caches_html(draw_cache(config, tokens, layer=0))
        places = [float(place) for place in re.findall(r'<path d="M([\d.]+) ', html)]
        assert all(after - before >= 10 for before, after in itertools.pairwise(places)), f"after {tokens} tokens"
        assert bool(places) == bool(held.compactions) == ("▼ rows moved to the front" in html)
        for strip in html.split("</svg>"):
            names = re.findall(r'<text x="([\d.]+)" y="13" text-anchor="end"><tspan[^>]*>.</tspan> ([^<]*)', strip)
            ends = sorted((float(right), 6 * len(name)) for right, name in names)
            assert all(right <= after - wide for (right, _), (after, wide) in itertools.pairwise(ends)), strip
    many = draw_cache(config, 100_000, layer=0)
    assert f"the last of {len(many.layers[0].compactions)} times" in cache_view.caches_html(many)


def test_a_buffer_that_can_grow_does_so_before_rows_move() -> None:
    config = Exaone4Config(sliding_window=32, max_position_embeddings=8192)
    (young,) = draw_cache(config, 200, layer=0).layers
    told = cache_view.cache_text(young)
    assert f"first grows to {young.max_rows} rows. They move first before token {young.next_compaction}" in told
    assert "grows" not in cache_view.cache_text(draw_cache(config, 1500, layer=0).layers[0])


@pytest.mark.parametrize("wrong", ["demo", None, 5])
def test_a_cache_is_drawn_of_a_model_or_a_config(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"takes a model, as load\(\) returns it, or an Exaone4Config, not"):
        draw_cache(wrong, 100)


# --- what may come next -------------------------------------------------------------


def test_a_tree_holds_the_probabilities_of_each_way(unread: Any) -> None:
    model, tokenizer = unread
    ids = random_ids(20)[0].tolist()
    tree = token_tree(model, tokenizer, ids, depth=3, width=2)

    def check(nodes: Any, path: list[int]) -> int:
        likely = mx.softmax(model(mx.array([path]))[0, -1])
        assert [node.id for node in nodes] == mx.argsort(-likely)[:2].tolist()
        for node in nodes:
            assert node.probability == pytest.approx(likely[node.id].item(), rel=1e-3), path
        return 1 + max(check(node.children, [*path, node.id]) if node.children else 1 for node in nodes)

    assert check(tree.children, ids) == 4
    paths = tree.paths()
    assert len(paths) == 8 and paths[0][1] == max(probability for _, probability in paths)
    assert token_view.tree_html(tree).count("min-width") == 2 + 4 + 8


def test_a_tree_ends_where_the_turn_does_and_reads_prompts_as_generate_does(demo: Any) -> None:
    tree = token_tree(*demo, "What is the capital of South Korea?", depth=1, width=1)
    assert tree.children[0].text == "The"
    assert tree.prompt.endswith("</think>\n\n") and "…&lt;think&gt;⏎⏎&lt;/think&gt;⏎⏎</span>" in token_view.tree_html(
        tree
    )
    said = demo[1].apply_chat_template([{"role": "user", "content": "Hello!"}]) + demo[1].encode(
        "Hello! How can I help you?"
    )
    (end,) = token_tree(*demo, said, depth=5, width=1).children
    assert end.ends_turn and end.children == () and "(end)" in token_view.tree_html(token_tree(*demo, said, 1, 1))


def test_a_tree_too_large_is_refused(unread: Any) -> None:
    with pytest.raises(ValueError, match="has 11,110 nodes; at most 4,096"):
        token_tree(*unread, [5], depth=4, width=10)
    with pytest.raises(ValueError, match="depth must be a whole number from 1 to 64"):
        token_tree(*unread, [5], depth=65, width=1)
