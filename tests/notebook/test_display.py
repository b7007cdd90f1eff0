"""What notebooks show: complete, short where it must be, and never what a stranger's text wants it to be."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from markdown_it import MarkdownIt

from exaone4_mlx import Chat, ConversionSummary, Evaluation, Exaone4Config, Fit, PromptCache, fit
from exaone4_mlx.conversion.evaluation import EvaluationRow
from exaone4_mlx.conversion.verify import TensorError
from exaone4_mlx.notebook.config_view import config_html
from exaone4_mlx.notebook.conversation_view import (
    chat_html,
    chat_markdown,
    messages_html,
    reply_html,
    reply_markdown,
)
from exaone4_mlx.notebook.markdown import inert_markdown, markdown_html
from exaone4_mlx.notebook.register import VIEWS, register
from exaone4_mlx.notebook.report_view import evaluation_html, fit_html, summary_html
from exaone4_mlx.text.message import Reply
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
COUNTS = {
    "prompt_tokens": 24,
    "cached_tokens": 3,
    "thinking_tokens": 23,
    "answer_tokens": 14,
    "prefill_seconds": 0.05,
    "decode_seconds": 2.0,
    "thinking_seconds": 1.25,
    "peak_bytes": 12_000_000,
}


def reply(text: str = "x", thinking: str = "", calls: tuple[ToolCall, ...] = (), **changes: Any) -> Reply:
    return Reply(text, thinking, calls, **({"finish_reason": "stop"} | COUNTS | changes))


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.text += data


def as_front_end(markdown: str) -> str:
    """Markdown as a front end reads it that passes HTML on, as JupyterLab does in a trusted notebook."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


# --- strangers' texts ---------------------------------------------------------------


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
        "result of no call": [A_THOUGHT, {**result, "content": {"error": text}, "failed": True}],
    }


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("place", conversation(""))
def test_a_strangers_text_is_text_wherever_it_stands(place: str, text: str, unread: Any) -> None:
    harmless, nasty = Page(messages_html(conversation("x")[place])), Page(messages_html(conversation(text)[place]))
    assert nasty.tags == harmless.tags, "the text has become HTML"
    assert "alert(1)" in nasty.text, "the text is not shown"
    chats = [Chat(*unread, messages=conversation(words)[place], settle=False) for words in ("x", text)]
    tags = [Page(as_front_end(chat_markdown(chat))).tags for chat in chats]
    assert tags[1] == tags[0], "as Markdown it breaks out of its block"


@pytest.mark.parametrize("text", NASTY)
def test_an_answer_is_markdown_without_html_scripts_and_pictures(text: str) -> None:
    for html in (reply_html(reply(text)), as_front_end(reply_markdown(reply(text)))):
        page = Page(html)
        assert not {tag[0] for tag in page.tags} & {"script", "img", "b", "iframe"}, html
        assert not {name for tag in page.tags for name in tag[1:]} - {"style", "href", "class"}, html
        assert not [link for link in page.links if re.match("(java|vb)script:|data:", link, re.IGNORECASE)], html


def test_an_answer_is_read_as_markdown() -> None:
    text = "**bold**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nif a < b: pass\n```\n\n1. one\n2. two"
    html = markdown_html(text)
    for part in ("<strong>bold</strong>", "<td>1</td>", "if a &lt; b: pass", "<ol>", '<code class="language-python">'):
        assert part in html


def test_formulas_are_left_to_the_front_end() -> None:
    """Markdown takes `\\(` for an escaped bracket, and underscores for emphasis."""
    html = markdown_html(r"With \(a_1 * b_1\) and $$x_i * y_i$$ but `\(code_1\)`: \[z_1 * z_2\]")
    assert all(formula in html for formula in (r"\(a_1 * b_1\)", "$$x_i * y_i$$", r"\[z_1 * z_2\]", "<code>"))
    assert "<em>" not in html
    assert r"\(1 < <b>\)" not in markdown_html(r"\(1 < <b>\)"), "a formula is escaped as all else"


def test_an_open_code_block_does_not_swallow_what_follows() -> None:
    for fence in ("```", "~~~~", "  ```python"):
        page = Page(as_front_end(reply_markdown(reply(f"see:\n{fence}\nprint(1)", finish_reason="length"))))
        assert ("/code",) in page.tags and page.text.index("cut: the limit") > page.text.index("print(1)")
        assert ("em",) in page.tags, "the mark of the cut has become code"
    assert inert_markdown("```\na\n```") == "```\na\n```"


def test_half_characters_can_be_sent() -> None:
    half = reply("\ud83c", "\ud83c")
    (reply_html(half) + reply_markdown(half)).encode()


# --- replies and conversations ------------------------------------------------------


def test_a_reply_shows_all_that_is_in_it() -> None:
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


def test_a_thought_under_way_is_unfolded_until_the_answer_begins() -> None:
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


# --- what else ----------------------------------------------------------------------


def test_a_config_is_drawn_layer_by_layer() -> None:
    config = Exaone4Config.from_dict(TINY | {"num_hidden_layers": 64, "num_attention_heads": 4})
    html = config_html(config)
    letters = re.findall(r">([LG])</span>", html)
    assert "".join(letters[:64]) == "LLLG" * 16 and letters[64:] == ["L", "G"], "then the legend"
    text = Page(html).text
    assert "48 × local: sees the last 7 tokens, RoPE" in text and "16 × global: sees everything, no position" in text
    assert 'title="layer 63, global: sees everything, no position encoding"' in html


def test_a_config_without_windows_is_all_global_and_rotates() -> None:
    text = Page(config_html(Exaone4Config.from_dict(TINY | {"sliding_window": None}))).text
    assert "4 × global: sees everything, RoPE" in text and "local" not in text


def summary(**changes: Any) -> ConversionSummary:
    made: dict[str, Any] = {
        "path": Path("there"),
        "parameters": 1_234,
        "source_bytes": 4_000_000,
        "bytes": 1_000_000,
        "bits_per_weight": 4.5,
        "seconds": 3.0,
        "peak_bytes": 5_000_000,
    }
    return ConversionSummary(**(made | changes))


def test_a_summary_is_a_table() -> None:
    errors = (TensorError("model.a", 0.1, 20.0), TensorError("model.b", 0.25, 12.0))
    row = EvaluationRow("all", 9, 99, 0.012345, 0.5, 0.987, 3.21, 3.2, 1.0123, 1.01, 1.02)
    evaluation = Evaluation(
        **{field.name: 1 for field in dataclasses.fields(Evaluation)} | {"model": "1", "reference": "1", "rows": (row,)}
    )
    shown = summary(errors=errors, evaluation=evaluation, notes=("<b>mind this",), page="https://example.com/x")
    page = Page(summary_html(shown))
    for part in ("1 MB from 4 MB (4.0 times smaller)", "4.500", "1,234", "2 tensors; the largest error is 25.0 %"):
        assert part in page.text
    for part in ("0.01235", "98.70 %", "1.0123", "<b>mind this", "https://example.com/x"):
        assert part in page.text
    assert ("b",) not in page.tags
    assert evaluation_html(evaluation) in summary_html(shown)
    assert (
        repr(evaluation) == "Evaluation('1' against '1': mean KL 0.01235 nats, same top-1 98.70 %, 1 texts of 1 tokens)"
    )
    summary_html(summary(bytes=0))


def test_a_fit_is_a_table_of_all_its_figures() -> None:
    found = fit("demo", memory=0.001)
    text = Page(fit_html(found)).text
    assert "fits into 1 MB" in text and "no" in text and "none" in text and "8,192 tokens" in text
    assert "local windows98 kB" in text, "less than a megabyte is not nothing"
    rows = len(re.findall("<tr>", fit_html(found)))
    bytes_fields = [field for field in dataclasses.fields(Fit) if field.name.endswith("_bytes")]
    assert rows >= len(bytes_fields) + 2, "a figure of Fit is not in the table"


def test_a_plain_repr_is_short(demo: Any) -> None:
    long = reply("x" * 5000, "y" * 5000, (ToolCall("t", {"z": "z" * 5000}),))
    errors = tuple(TensorError(f"model.{i}", 0.1, 20.0) for i in range(500))
    config = Exaone4Config.from_dict(TINY | {"num_hidden_layers": 64})
    for one in (long, summary(errors=errors), config, fit("demo"), Chat(*demo), demo[1], PromptCache(*demo)):
        assert len(repr(one)) < 300 and "\n" not in repr(one) and " object at " not in repr(one)


def test_showing_needs_no_mlx() -> None:
    code = "import sys, exaone4_mlx.notebook.conversation_view; sys.exit(bool({'mlx', 'IPython', 'rich', 'markdown_it'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- registration with IPython ------------------------------------------------------


def test_ipython_shows_each_registered_class_as_its_view_does(demo: Any) -> None:
    formatters = pytest.importorskip("IPython.core.formatters", reason="the extra `notebook`")
    display_formatter = formatters.DisplayFormatter()
    register(display_formatter)
    chat = Chat(*demo, messages=[{"role": "user", "content": "*Hello*"}], settle=False)
    for value, html, markdown in (
        (reply(), reply_html, reply_markdown),
        (chat, chat_html, chat_markdown),
        (Exaone4Config.from_dict(TINY), config_html, None),
        (fit("demo"), fit_html, None),
        (summary(), summary_html, None),
    ):
        shown, _ = display_formatter.format(value)
        assert shown["text/html"] == html(value) and shown["text/plain"] == repr(value)
        assert shown.get("text/markdown") == (markdown and markdown(value))


def test_each_registered_class_and_view_exists() -> None:
    for (module, name), (view, functions) in VIEWS.items():
        found = getattr(importlib.import_module(f"exaone4_mlx.{module}"), name)
        assert found.__module__ == f"exaone4_mlx.{module}", f"IPython looks for {name} in the module that defines it"
        for function in functions.values():
            assert callable(getattr(importlib.import_module(f"exaone4_mlx.notebook.{view}"), function))


@pytest.mark.parametrize("when", ["IPython runs before the import", "load_ext after it", "no IPython"])
def test_registration_imports_neither_ipython_nor_views(when: str) -> None:
    shell = "import sys; from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()"
    code = {
        "IPython runs before the import": f"{shell}; import exaone4_mlx",
        "load_ext after it": f"import exaone4_mlx; {shell}; shell.run_line_magic('load_ext', 'exaone4_mlx')",
        "no IPython": "import sys, exaone4_mlx; assert 'IPython' not in sys.modules",
    }[when]
    if when != "no IPython":
        pytest.importorskip("IPython", reason="the extra `notebook`")
        code += "; names = {name for _, name in shell.display_formatter.formatters['text/html'].deferred_printers}"
        code += "; assert {'Reply', 'Chat', 'TokenTree'} <= names, names"
    code += "; assert not {'mlx', 'exaone4_mlx.notebook.html'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
