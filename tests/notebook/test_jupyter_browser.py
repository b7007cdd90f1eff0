"""JupyterLab as a person uses it: Chromium drives a notebook of a real server, with a real kernel behind it."""
# ruff: noqa: F811

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")
for extra in ("jupyterlab", "ipywidgets", "matplotlib"):
    pytest.importorskip(extra, reason="notebooks need the extra `notebook`")

from browser import wait_for  # noqa: E402
from browser_fixtures import browser  # noqa: E402, F401
from jupyter import Lab, opened, take  # noqa: E402
from playwright.sync_api import Browser, expect  # noqa: E402

LOAD = """
from exaone4_mlx import Chat, Sampling, generate, load, stream_generate
from exaone4_mlx.notebook import attention_maps, chat_widget, display_stream, inspect_tokens
model, tokenizer = load("demo")
ends = [tokenizer.think_end_id, *tokenizer.stop_token_ids, *tokenizer.encode("<tool_call>")]
endless = Sampling(temperature=2.0, top_p=1.0, logit_bias=dict.fromkeys(ends, -100))  # in ever new words
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def grown(notebook: Any) -> bool:
    """Whether the watched output has grown many times."""
    return len({characters for _, characters in notebook.seen}) > 8


def test_a_reply_grows_in_one_output_and_the_stop_button_keeps_it(browser: Browser, lab: Lab) -> None:
    stream = (
        "reply = display_stream(stream_generate(model, tokenizer, 'Hello!', thinking=True, sampling=endless))\nreply"
    )
    print_reply = "print(reply.finish_reason, reply.thinking_tokens > 8, len(reply.thinking) > 50)"
    with opened(browser, lab, "stream", [LOAD, stream, print_reply]) as notebook:
        notebook.run(0)
        notebook.watch(1)
        notebook.start(1)
        wait_for(lambda: grown(notebook), "the reply does not grow")
        expect(notebook.outputs(1).get_by_text(re.compile(r"Thinking for .* tokens"))).to_be_visible()
        notebook.interrupt()
        expect(notebook.outputs(1).get_by_text("cut: it was stopped")).to_be_visible()
        notebook.ended(1)
        expect(notebook.outputs(1)).to_have_count(1)  # and the value of the cell is no second one
        assert {outputs for outputs, characters in notebook.seen if characters} == {1}, "it was not one output"
        lengths = [characters for _, characters in notebook.seen[:-3]]
        assert lengths == sorted(lengths), "the output flickers: it was emptied in between"
        notebook.run(2)
        expect(notebook.outputs(2)).to_have_text("cancelled True True")


def test_an_interrupted_turn_of_a_chat_goes_on(browser: Browser, lab: Lab) -> None:
    cells = [
        LOAD + "chat = Chat(model, tokenizer, sampling=endless)",
        "reply = display_stream(chat.send('Hello!'))",
        "again = display_stream(chat.send('And now?', max_tokens=5))\nprint(len(chat.turns), [m.get('finish_reason') for m in chat.messages])",
        "chat",
    ]
    with opened(browser, lab, "turn", cells) as notebook:
        notebook.run(0)
        notebook.watch(1)
        notebook.start(1)
        wait_for(lambda: grown(notebook), "the reply does not grow")
        notebook.interrupt()
        expect(notebook.outputs(1).get_by_text("cut: it was stopped")).to_be_visible()
        notebook.run(2)
        expect(notebook.outputs(2).last).to_have_text("2 [None, 'cancelled', None, 'length']")
        notebook.run(3)
        expect(notebook.outputs(3).get_by_text("And now?")).to_be_visible()


def test_a_strangers_text_does_not_run_in_a_notebook(browser: Browser, lab: Lab) -> None:
    """A cell that was just run is trusted: JupyterLab runs the scripts in its output."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)></details>\\n```\\n[x](javascript:alert(1))"
    cells = [
        f"evil = '{evil}'\n" + LOAD,
        "from exaone4_mlx import Answer, Done, Thinking, ToolCall, ToolResult\n"
        "call = ToolCall(evil, {evil: evil})\n"
        "done = Done('stop', 1, 0, 1, 1, 0.1, 0.1, 0.1, 1)\n"
        "r = display_stream([Thinking(evil), Answer(evil), call, ToolResult(call, evil, False, 0.0), Answer(evil), done])",
        "Chat(model, tokenizer, evil, messages=[{'role': 'user', 'content': evil}], settle=False)",
        "from IPython.display import Markdown\nMarkdown(get_ipython().display_formatter.formatters['text/markdown'](r))",
        "inspect_tokens(model, tokenizer, evil)",
        "attention_maps(model, tokenizer, evil, 0)",
        "chat_widget(Chat(model, tokenizer, messages=[{'role': 'user', 'content': evil}], settle=False))",
        "from IPython.display import HTML\nHTML('<script>window.ran = true</script>')",
    ]
    with opened(browser, lab, "evil", cells) as notebook:
        for number in range(len(cells)):
            notebook.run(number)
            expected = 0 if number == 0 else 3 if cells[number].startswith("chat_widget") else 1
            assert notebook.outputs(number).count() == expected, f"cell {number} failed"
        notebook.page.wait_for_function("window.ran")  # or this shows nothing
        assert notebook.page.locator(".jp-OutputArea img[src=x]").count() == 0


def test_the_widget_sends_and_its_switches_work(browser: Browser, lab: Lab) -> None:
    cells = [
        LOAD
        + "from exaone4_mlx import BUILTIN_TOOLS\nchat = Chat(model, tokenizer, tools=BUILTIN_TOOLS, sampling=Sampling(temperature=0))",
        "chat_widget(chat)",
        "print([tool.__name__ for tool in chat.tools], [len(m.get('tool_calls', ())) for m in chat.messages])",
    ]
    with opened(browser, lab, "widget", cells) as notebook:
        notebook.run(0)
        notebook.run(1)
        output = notebook.outputs(1)
        notebook.say("Roll D6 dice twice!")
        expect(output.get_by_text(re.compile(r"roll_dice\(max_num=6\) → \d"))).to_have_count(2)
        notebook.page.get_by_label("Thinking").check()
        for tool in ("roll_dice", "calculator", "current_time", "convert_units"):
            notebook.page.get_by_label(tool).uncheck()
        notebook.say("Which one is bigger, 3.12 vs 3.9?")
        expect(output.get_by_text("3.9 is bigger than 3.12.")).to_be_visible()
        expect(output.get_by_text(re.compile(r"Thought for .* · 23 tokens"))).to_be_visible()
        notebook.run(2)
        expect(notebook.outputs(2)).to_have_text(re.compile(r"^\[\] \[0, 2, 0, 0, 0, 0, 0\]"))
        notebook.button("Undo").click()
        expect(notebook.box).to_have_value("Which one is bigger, 3.12 vs 3.9?")
        expect(output.get_by_text("3.9 is bigger than 3.12.")).to_have_count(0)
        notebook.button("Clear").click()
        expect(output.get_by_text("0 turns")).to_be_visible()


def test_the_widgets_stop_is_heard_and_the_kernel_stays_free(browser: Browser, lab: Lab) -> None:
    cells = [LOAD + "chat = Chat(model, tokenizer, sampling=endless)", "chat_widget(chat)", "print(6 * 7)"]
    with opened(browser, lab, "stop", cells) as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.watch(1)
        notebook.box.fill("Hello!\nHello again!")
        notebook.button("Send").click()
        wait_for(lambda: grown(notebook), "the reply does not grow")
        expect(notebook.button("Send")).to_be_disabled()
        notebook.run(2)
        expect(notebook.outputs(2)).to_have_text("42")
        expect(notebook.button("Stop")).to_be_enabled()  # so it was not the end of the reply that let the cell run
        notebook.button("Stop").click()
        expect(notebook.button("Send")).to_be_enabled()
        expect(notebook.outputs(1).get_by_text("cut: it was stopped")).to_be_visible()


def test_the_conversation_of_a_widget_outlives_its_kernel(browser: Browser, lab: Lab) -> None:
    with opened(
        browser, lab, "restart", [LOAD + "chat = Chat(model, tokenizer, temperature=0)", "chat_widget(chat)"]
    ) as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.say("What is the capital of Peru?")
        expect(notebook.outputs(1).get_by_text("The capital of Peru is Lima.")).to_be_visible()
        notebook.page.keyboard.press("Control+s")
        wait_for(lambda: "is Lima." in (lab.folder / "restart.ipynb").read_text(), "the conversation is not saved")
        sessions = f"{lab.address}/api/sessions"
        (session,) = [one for one in notebook.page.request.get(sessions).json() if one["path"] == "restart.ipynb"]
        notebook.page.request.delete(f"{sessions}/{session['id']}", headers={"X-XSRFToken": notebook.token})
        notebook.page.reload()
        expect(notebook.outputs(1).get_by_text("The capital of Peru is Lima.")).to_be_visible()
        expect(notebook.outputs(1).get_by_text("1 turn")).to_be_visible()
    page = subprocess.check_output(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--stdout", lab.folder / "restart.ipynb"], text=True
    )
    assert "The capital of Peru is Lima." in page and "model not found" not in page


def test_the_pictures_can_be_taken(browser: Browser, lab: Lab, tmp_path: Path) -> None:
    assert [file.name for file in take(browser, lab, tmp_path)] == ["inside.png", "stream.png", "widget.png"]
