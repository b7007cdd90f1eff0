"""Korean Markdown: which marks are emphasis, and that other parsers agree after `portable`."""

from __future__ import annotations

import itertools
import re
import time

from markdown_it import MarkdownIt

from exaone4_mlx.text.markdown import markdown_parser, new_parser, portable

MEANINGS = {
    # field/04: single tildes are text
    "회의는 3~5시, 7~9시입니다.": "회의는 3~5시, 7~9시입니다.",
    "3~4시간 … 10~20명": "3~4시간 … 10~20명",
    "3~~5시, 7~~9시, 안녕~~, 반가워~~!": "3~~5시, 7~~9시, 안녕~~, 반가워~~!",
    "~~취소~~는 ~~10,000원~~ 8,000원": "<s>취소</s>는 <s>10,000원</s> 8,000원",
    # field/05: bold and italics end before a particle
    "문서는 **마크다운(Markdown)**을 사용하세요.": "문서는 <strong>마크다운(Markdown)</strong>을 사용하세요.",
    "**엑사원(EXAONE)**은": "<strong>엑사원(EXAONE)</strong>은",
    '이것은 **"중요"**합니다.': "이것은 <strong>&quot;중요&quot;</strong>합니다.",
    "**100%**입니다": "<strong>100%</strong>입니다",
    "**가(나)**은": "<strong>가(나)</strong>은",
    '은**"가"**와**"나"**다': "은<strong>&quot;가&quot;</strong>와<strong>&quot;나&quot;</strong>다",
    "*중요*합니다, *가(나)*은, _강조_는": "<em>중요</em>합니다, <em>가(나)</em>은, <em>강조</em>는",
    "***가(나)***는 **`x`**은 **[가](http://a.b)**를": "<em><strong>가(나)</strong></em>는 <strong><code>x</code></strong>은 "
    '<strong><a href="http://a.b">가</a></strong>를',
    "**「引用」**です": "<strong>「引用」</strong>です",
    # products, powers and names
    "2*3*4, 가로*세로*높이, x**2 + y**2": "2*3*4, 가로*세로*높이, x**2 + y**2",
    "**넓이 = 가로*세로**": "<strong>넓이 = 가로*세로</strong>",
    "a_b_c, __init__은, 파일_이름_목록": "a_b_c, __init__은, 파일_이름_목록",
    "**EX**pert **A**I for Every**ONE**": "<strong>EX</strong>pert <strong>A</strong>I for Every<strong>ONE</strong>",
    # code, formulas, tags and addresses are left alone
    "`3~5 **가(나)**은` 3~5": "<code>3~5 **가(나)**은</code> 3~5",
    r"\(x_1*y\) \[a\_b\] $$c*d$$ $e_1*f$ \( \*g": r"\(x_1*y\) \[a\_b\] $$c*d$$ $e_1*f$ \( *g",
    "<div> List<String> &lt; ![가](http://a.b)": '&lt;div&gt; List&lt;String&gt; &amp;lt; !<a href="http://a.b">가</a>',
    "첫 줄\n둘째 줄": "첫 줄<br />\n둘째 줄",
    # prices are no formulas
    "가격은 $5이고 $6입니다. $5 and $6, US$5~US$7, $A:$B": "가격은 $5이고 $6입니다. $5 and $6, US$5~US$7, $A:$B",
}
#: Formulas whose lines look like other Markdown, or are empty.
FORMULAS = (
    "\\[\na\n\n= b\n- c\n\\]",
    "$$\n> a\n\n# b\n$$",
    "\\begin{equation}\na = b\n\n\\end{equation}",
    "\\begin{align*}\na &= b \\\\\n---\n| c |\n\\end{align*}",
)


def test_marks_mean_what_their_writer_meant() -> None:
    for text, html in MEANINGS.items():
        assert markdown_parser().render(text).strip() == f"<p>{html}</p>", text


def test_portable_gives_another_parser_the_same_meaning() -> None:
    """CommonMark's own rules, and GitHub's single tildes, as Gradio and Jupyter have them."""
    other = MarkdownIt("commonmark", {"html": False, "breaks": True, "strikethrough_single_tilde": True})
    other.enable(["table", "strikethrough"])
    before, after = (["", "은", "(", "2*3*4 ", "3~5시 ", "**가**나 "], ["", "은", " 은", ")", ", 3*4"])
    inside = [
        "엑사원(EXAONE)",
        '"중요"',
        "100%",
        "중요",
        "EXAONE",
        "`c`",
        "「인용」",
        "[가](http://a.b)",
        "A*B",
        "5~시",
        "강조!",
    ]
    changed = 0
    for begin, mark, word, end in itertools.product(before, ("**", "*", "~~", "_"), inside, after):
        parts = re.split("(`c`)", f"{begin}{mark}{word}{mark}{end}")
        assert other.render(portable(parts)) == markdown_parser().render("".join(parts)), portable(parts)
        changed += portable(parts) != "".join(parts)
    assert changed > 300
    assert (
        portable(["a * b, snake_case, **굵게** 강조 `", "`x~y`", " \\* 1"])
        == "a * b, snake_case, **굵게** 강조 ``x~y` \\* 1"
    )


def test_the_time_of_parsing_is_linear() -> None:
    text = r"\(" * 60_000 + "**a*가" * 1_000
    notes = "[^1]: a\n\n" + "[^1" * 5_000 + r"\begin{a}" * 5_000 + "[" * 5_000
    began = time.thread_time()
    markdown_parser().render(text), portable([text]), markdown_parser().render(notes)
    assert time.thread_time() - began < 3, "it looks at the same text again and again"


def test_the_lines_of_a_formula_are_one_paragraph() -> None:
    parser = new_parser(formula_token="formula")
    for formula in FORMULAS:
        for text in (formula, f"앞\n{formula}\n뒤", f"- 앞\n\n  {formula.replace(chr(10), chr(10) + '  ')}\n- 뒤"):
            inline = [child for token in parser.parse(text) for child in token.children or ()]
            assert [child.content for child in inline if child.type == "formula"] == [formula], text
    assert "<h1>" in markdown_parser().render("\\[\n# not closed"), "what does not end is no formula"


def test_footnotes_and_task_boxes() -> None:
    html = markdown_parser().render("각주[^a]는 **[^b]**.\n\n[^b]: 둘\n[^a]: 하나 **(주)**는\n[^c]: 홀로")
    assert re.findall(r'<li id="fn(\d)" class="footnote-item"><p>(.*?) <a', html) == [
        ("1", "하나 <strong>(주)</strong>는"),
        ("2", "둘"),
        ("3", "홀로"),  # no text is lost
    ]
    boxes = markdown_parser().render("- [ ] 하나\n- [x] **둘**\n- [X](http://a.b) [ ]")
    assert re.findall(r"<li.*?>(.*)</li>", boxes)[:2] == ["☐ 하나", "☑ <strong>둘</strong>"]
    assert boxes.count("☐") + boxes.count("☑") == 2
