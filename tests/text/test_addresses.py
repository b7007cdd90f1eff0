"""Addresses of web pages in Markdown: which text is a link, and where it ends."""

from __future__ import annotations

import re
from time import process_time

import pytest

pytest.importorskip("markdown_it")

from exaone4_mlx.text.markdown import markdown_parser, new_parser


def links(text: str) -> list[str]:
    return re.findall(r"<a href=[^>]*>(.*?)</a>", markdown_parser().render(text))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://example.com에서 보세요", "https://example.com"),
        ("https://example.com/에서", "https://example.com/"),
        ("http://127.0.0.1:7860에 접속", "http://127.0.0.1:7860"),
        ("주소는https://a.kr/wiki/서울에서.", "https://a.kr/wiki/서울"),
        ("https://ko.wikipedia.org/wiki/한국_전쟁입니다.", "https://ko.wikipedia.org/wiki/한국_전쟁"),
        ("https://a.kr/고양이", "https://a.kr/고양이"),
        ("**https://a.kr/x**은", "https://a.kr/x"),
        ("(https://a.kr/x_(y))는", "https://a.kr/x_(y)"),
        ("~~https://a.kr/a*b~~", "https://a.kr/a"),
        ("https://a.kr/a_b_c~3~4?q=1&r=2#x.", "https://a.kr/a_b_c~3~4?q=1&amp;r=2#x"),
        ("| a |\n|---|\n| https://a.kr/x|", "https://a.kr/x"),
    ],
)
def test_an_address_ends_before_its_particle_and_the_marks_of_the_sentence(text: str, address: str) -> None:
    assert links(text) == [address]


@pytest.mark.parametrize(
    "text",
    ["javascript://a.kr", "ftp://a.kr", "xhttps://a.kr", "https://", "https://-a", "https://bank.kr@evil.kr/x",
     "`https://a.kr`", "$https://a.kr$", "```\nhttps://a.kr\n```", f"https://a.kr/{'a' * 3000}"],
)  # fmt: skip
def test_other_schemes_users_code_and_formulas_are_no_links(text: str) -> None:
    assert links(text) == []


def test_a_link_in_a_link_is_text_and_a_terminal_has_none() -> None:
    assert links("[see https://a.kr](https://b.kr)") == ["see https://a.kr"]
    assert "<a" not in new_parser(as_written=True).render("https://a.kr")


@pytest.mark.parametrize("text", ["http:", f"https://a.kr/{')' * 500} ", "https://a.kr/"])
def test_processor_time_is_linear(text: str) -> None:
    def seconds(count: int) -> float:
        began = process_time()
        markdown_parser().render(text * count)
        return process_time() - began

    count = 160_000 // len(text)
    assert seconds(count) < 30 * seconds(count // 8) + 0.5, "8 times is linear, 64 times quadratic"
