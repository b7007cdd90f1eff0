"""Replies and chats are shown completely, and untrusted text is never active."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from conftest import TINY
from markdown_it import MarkdownIt
from shown import Page, reply, summary

from exaone4_mlx import Chat, Exaone4Config, PromptCache, fit
from exaone4_mlx.conversion.verify import TensorError
from exaone4_mlx.notebook.conversation_view import chat_html, chat_markdown, messages_html, reply_html, reply_markdown
from exaone4_mlx.notebook.markdown import inert_markdown
from exaone4_mlx.tools.call import ToolCall

NASTY = (
    "<script>alert(1)</script>",
    "</pre></details></div><img src=x onerror=alert(1)>",
    "a\n```\n</details>\n\n<script>alert(1)</script>\n\n````\n",
    "\n\n</pre>\n\n</details>\n\n<b onclick='alert(1)'>\n",
    '`</code></summary>` <!-- ]]> &lt;script&gt; " onmouseover="alert(1)',
    "# **x** | y | [a](javascript:alert(1)) ![p](https://example.com/p.png)",
)
A_THOUGHT = {"role": "assistant", "content": "x", "reasoning_content": "x", "finish_reason": "stop"}


def as_front_end(markdown: str) -> str:
    """Markdown as a front end reads it that passes HTML on, as JupyterLab does in a trusted notebook."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def conversation(text: str) -> dict[str, list[dict[str, Any]]]:
    """Messages with a text in one place of each."""

    def call(name: str, arguments: Any) -> dict[str, Any]:
        return {**A_THOUGHT, "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}

    result = {"role": "tool", "content": "x", "failed": False, "seconds": 0.1}
    return {
        "system": [{"role": "system", "content": text}],
        "user": [{"role": "user", "content": text}],
        "thought": [A_THOUGHT | {"reasoning_content": text}],
        "name of a tool": [call(text, {"x": 1}), result],
        "arguments": [call("x", {text: text}), result],
        "bare argument": [call("x", text), result],
        "result": [call("x", {"x": 1}), {**result, "content": {text: [text]}}],
        "failure": [call("x", {"x": 1}), {**result, "content": {"error": text}, "failed": True}],
        "results of no reply": [{"role": "user", "content": "x"}, result, {**result, "content": text}],
        "result of no call": [A_THOUGHT, {**result, "content": {"error": text}, "failed": True}],
    }


def test_untrusted_text_is_shown_as_text_in_every_place(unread: Any) -> None:
    def pages(text: str, place: str) -> tuple[Page, Page]:
        messages = conversation(text)[place]
        markdown = chat_markdown(Chat(*unread, messages=messages, settle=False))
        return Page(messages_html(messages)), Page(as_front_end(markdown))

    for place in conversation(""):
        harmless = pages("x", place)
        for text in NASTY:
            nasty = pages(text, place)
            assert nasty[0].tags == harmless[0].tags, f"{place}: {text!r} has become HTML"
            assert "alert(1)" in nasty[0].text, f"{place}: {text!r} is not shown"
            assert nasty[1].tags == harmless[1].tags, f"{place}: as Markdown {text!r} breaks out of its block"


@pytest.mark.parametrize("text", NASTY)
def test_an_answer_is_markdown_without_html_scripts_and_pictures(text: str) -> None:
    for html in (reply_html(reply(text)), as_front_end(reply_markdown(reply(text)))):
        page = Page(html)
        assert not {tag[0] for tag in page.tags} & {"script", "img", "b", "iframe"}, html
        assert not {name for tag in page.tags for name in tag[1:]} - {"style", "href", "class"}, html
        assert not [link for link in page.links if re.match("(java|vb)script:|data:", link, re.IGNORECASE)], html


def test_an_open_code_block_does_not_swallow_what_follows() -> None:
    for fence in ("```", "~~~~", "  ```python"):
        page = Page(as_front_end(reply_markdown(reply(f"see:\n{fence}\nprint(1)", finish_reason="length"))))
        assert ("/code",) in page.tags and page.text.index("cut: the limit") > page.text.index("print(1)")
        assert ("em",) in page.tags, "the mark of the cut has become code"
    assert inert_markdown("```\na\n```") == "```\na\n```"


def test_lone_surrogates_are_encodable() -> None:
    half = reply("\ud83c", "\ud83c")
    (reply_html(half) + reply_markdown(half)).encode()


def test_a_reply_shows_all_its_parts() -> None:
    call = ToolCall("roll_dice", {"max_num": 6})
    shown = reply("the *answer*", "the thought", (call,), finish_reason="tool_calls")
    page = Page(reply_html(shown))
    assert ("details", "style") in page.tags and ("em",) in page.tags
    for part in (
        "Thought for 1.2 s · 23 tokens",
        "the thought",
        "roll_dice(max_num=6)",
        "37 tokens (23 of them thought)",
    ):
        assert part in page.text and part in Page(as_front_end(reply_markdown(shown))).text
    assert "18.5 tokens/s · prompt 24 tokens in 0.05 s, 3 of them cached · peak memory 12 MB" in page.text
    assert "18.5 tokens/s, 5 of 8 drafted ones accepted ·" in reply_html(reply(drafted_tokens=8, accepted_tokens=5))


@pytest.mark.parametrize("reason", ["cancelled", "length", "repetition"])
def test_a_cut_reply_is_marked(reason: str) -> None:
    assert "[cut: " in reply_html(reply(finish_reason=reason))
    assert "cut: " in reply_markdown(reply(finish_reason=reason))
    assert "cut" not in reply_html(reply(finish_reason="stop"))


def test_a_thought_in_progress_is_unfolded_until_the_answer_begins() -> None:
    thinking = [A_THOUGHT | {"content": "", "finish_reason": None}]
    assert " open><summary" in messages_html(thinking, in_progress=True)
    assert " open><summary" not in messages_html([A_THOUGHT], in_progress=True)
    assert " open><summary" not in messages_html(thinking)


def test_a_chat_shows_its_history(unread: Any) -> None:
    call = {"type": "function", "function": {"name": "roll_dice", "arguments": {"max_num": 6}}}
    stats = {"thinking_tokens": 7, "thinking_seconds": 0.5}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Roll D6 dice twice!"},
        {"role": "assistant", "content": "", "tool_calls": [call, call], "finish_reason": "tool_calls"},
        {"role": "tool", "content": 5, "failed": False, "seconds": 0.25},
        {"role": "tool", "content": {"error": "it fell off the table"}, "failed": True, "seconds": 2},
        {"role": "assistant", "content": "You rolled 5.", "finish_reason": "stop"},
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "", "reasoning_content": "Let", "stats": stats, "finish_reason": "length"},
    ]
    chat = Chat(*unread, messages=messages, settle=False)
    for text in (Page(chat_html(chat)).text, Page(as_front_end(chat_markdown(chat))).text):
        for part in ("System prompt", "Be kind.", "Roll D6 dice twice!", "You rolled 5.", "What is 3 + 4?", "Let"):
            assert part in text
        assert "roll_dice(max_num=6) → 5 · 0.25 s" in text
        assert "roll_dice(max_num=6) → failed: it fell off the table · 2.0 s" in text
        assert "Thought for 0.50 s · 7 tokens" in text and "cut: the limit of tokens" in text
        assert text.count("Reply") == 2, "it does not say who speaks"
        assert f"2 turns · {chat.context_tokens:,} of 8,192 tokens of the context" in text


def test_an_empty_chat_can_be_shown(unread: Any) -> None:
    assert "0 turns" in chat_html(Chat(*unread))


def test_a_plain_repr_is_short(demo: Any) -> None:
    long = reply("x" * 5000, "y" * 5000, (ToolCall("t", {"z": "z" * 5000}),))
    errors = tuple(TensorError(f"model.{i}", 0.1, 20.0) for i in range(500))
    config = Exaone4Config.from_dict(TINY | {"num_hidden_layers": 64})
    for one in (long, summary(errors=errors), config, fit("demo"), Chat(*demo), demo[1], PromptCache(*demo)):
        assert len(repr(one)) < 300 and "\n" not in repr(one) and " object at " not in repr(one)


def test_views_import_no_mlx() -> None:
    code = "import sys, exaone4_mlx.notebook.conversation_view; sys.exit(bool({'mlx', 'IPython', 'rich', 'markdown_it'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
