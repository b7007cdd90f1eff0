"""Markdown of an answer is rendered; formulas are left to the front end."""

from __future__ import annotations

from exaone4_mlx.notebook.markdown import inert_markdown, markdown_html


def test_an_answer_is_rendered_as_markdown() -> None:
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


def test_front_ends_with_their_own_parser_read_korean_as_it_was_meant() -> None:
    text = "3~5시, 7~9시 **가(나)**은 `~ **a)**은`\n```\n3~5 **가)**은\n```"
    assert inert_markdown(text) == "3&#126;5시, 7&#126;9시 **가(나)**&#51008; `~ **a)**은`\n```\n3~5 **가)**은\n```"
    assert "<strong>가(나)</strong>은" in markdown_html(text)
