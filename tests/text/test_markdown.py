"""Korean Markdown: which marks are emphasis, and that other parsers agree after `portable`."""

from __future__ import annotations

import itertools
import re
import time

from markdown_it import MarkdownIt

from exaone4_mlx.text.markdown import markdown_parser, portable

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
}


def test_marks_mean_what_their_writer_meant() -> None:
    for text, html in MEANINGS.items():
        assert markdown_parser().render(text).strip() == f"<p>{html}</p>", text


def test_portable_gives_another_parser_the_same_meaning() -> None:
    """CommonMark's own rules, and GitHub's single tildes, as Gradio and Jupyter have them."""
    other = MarkdownIt("commonmark", {"html": False, "breaks": True, "strikethrough_single_tilde": True})
    other.enable(["table", "strikethrough"])
    before, after = (
        ["", "은", "(", "2*3*4 ", "3~5시 ", "**가**나 "],
        ["", "은", " 은", ")", ", 3*4"],
    )
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
    began = time.thread_time()
    markdown_parser().render(text), portable([text])
    assert time.thread_time() - began < 3, "it looks at the same text again and again"
