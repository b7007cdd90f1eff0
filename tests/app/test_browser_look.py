"""How the page looks: what Markdown becomes in a browser, its parts at several widths, and what axe-core finds."""
# ruff: noqa: F811

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")
pytest.importorskip("axe_playwright_python", reason="the browser tests need the extra `browser`")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from browser import Server, Tab, opened, wait_for  # noqa: E402
from browser_fixtures import browser  # noqa: E402, F401
from playwright.sync_api import Browser, expect  # noqa: E402
from shown import TORTURE  # noqa: E402

PHONE = {"width": 390, "height": 844}
#: What a reply can hold beside the torture text.
MORE = r"""
각주[^1]도 있고.

- [x] 끝난 일
- [ ] 할 일

\begin{align}
a &= b + c \\

  &= \begin{cases} 1 & x > 0 \\ 0 & \text{그 외} \end{cases}
\end{align}

| 아주 긴 열 이름 하나 | 아주 긴 열 이름 둘 | 아주 긴 열 이름 셋 | 아주 긴 열 이름 넷 |
|---|---|---|---|
| 가나다라마바사 | 값 | 값 | 긴 문장이 들어 있는 칸입니다 |

```mermaid
flowchart LR
  A[사용자] -->|질문| B{모델}
```

```mermaid
this is no diagram
```

```html
<h1>안녕</h1>
```

[^1]: 첫째 각주 **(주)**는.
"""
REPLY = {"role": "assistant", "content": TORTURE + MORE, "reasoning_content": "먼저 **생각(thought)**을.", "finish_reason": "stop"}  # fmt: skip
CALL = {"type": "function", "function": {"name": "roll_dice", "arguments": {"max_num": 6}}}
EVERYTHING = [
    {"role": "user", "content": "3~5시에 **엑사원(EXAONE)**은?"},
    REPLY | {"stats": {"thinking_tokens": 23, "thinking_seconds": 1.2}},
    {"role": "user", "content": "주사위를 굴려 줘"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": {"error": "고장"}, "failed": True, "seconds": 0.2},
    {"role": "assistant", "content": "굴리지 못했습니다.", "finish_reason": "length"},
]
ID = "20261125-090000-00000001"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("look")) as server:
        server.store(ID, EVERYTHING, title="한국어 시험")
        yield server


def visible_code(tab: Tab) -> list[str]:
    return tab.chat.locator(".code pre:visible").all_inner_texts()


def test_a_diagram_is_a_picture_and_what_is_none_stays_code(browser: Browser, server: Server) -> None:
    with opened(browser, server, ID, color_scheme="dark") as tab:
        picture = tab.chat.locator(".diagram img")
        expect(picture).to_have_count(1)
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("(e) => e.naturalWidth") > 100
        assert picture.evaluate("(e) => e.clientWidth <= e.naturalWidth"), "its letters are not larger than the text"
        assert not [code for code in visible_code(tab) if "flowchart" in code]
        assert [code for code in visible_code(tab) if "no diagram" in code]
        tab.chat.get_by_role("button", name="Code", exact=True).click()
        assert [code for code in visible_code(tab) if "flowchart" in code]
        dark = picture.get_attribute("src")
        tab.page.evaluate(
            "localStorage.setItem('exaone4_mlx theme', 'light'); window.dispatchEvent(new Event('storage'))"
        )
        expect(picture).not_to_have_attribute("src", dark or "")


def test_a_preview_of_html_reaches_no_server(browser: Browser, server: Server) -> None:
    """Neither a picture, a script, a form, a link nor a frame that moves on."""
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        Thread(target=elsewhere.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{elsewhere.server_port}"
        html = f'''<a href="{there}/link">밖으로</a><img src="{there}/picture"><link rel="stylesheet" href="{there}/style">
            <script>
            document.body.append("스크립트");
            fetch("{there}/fetch").catch(() => document.body.append(" 막힘"));
            setTimeout(() => {{ open("{there}/open"); location = "{there}/moved"; }}, 1500);
            </script>'''
        server.store(f"{ID[:-1]}2", [EVERYTHING[0], {"role": "assistant", "content": f"```html\n{html}\n```"}])
        with opened(browser, server, f"{ID[:-1]}2") as tab:
            tab.chat.get_by_role("button", name="Preview").click()
            frame = tab.chat.frame_locator(".code > iframe")
            expect(frame.locator("body")).to_have_text(re.compile("스크립트 막힘"))
            frame.get_by_role("link").click()
            tab.page.wait_for_timeout(2000)
            assert tab.conversation, "the page itself is still there"
            tab.requests.clear()  # those that the policy has stopped are listed, too
        elsewhere.shutdown()
    assert not asked


def test_footnotes_and_task_boxes_of_a_reply(browser: Browser, server: Server) -> None:
    with opened(browser, server, ID) as tab:
        expect(tab.chat.locator("li.task")).to_have_text([re.compile("☑ 끝난 일"), re.compile("☐ 할 일")])
        tab.chat.locator(".footnote-ref a").click()
        expect(tab.chat.locator(".footnote-item")).to_be_in_viewport()
        assert tab.conversation == ID


# --- accessibility ---------------------------------------------------------------


def findings(tab: Tab) -> list[str]:
    """The serious and critical findings of axe-core, one line for each element."""
    found = Axe().run(tab.page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))} {' '.join(one['message'] for one in node['any'])}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, server: Server, scheme: str) -> None:
    found: dict[str, list[str]] = {}
    with opened(browser, server, color_scheme=scheme) as tab:
        found["welcome"] = findings(tab)
    with opened(browser, server, ID, color_scheme=scheme, viewport={"width": 1440, "height": 900}) as tab:
        expect(tab.chat.locator(".diagram img")).to_have_count(1)
        for panel in tab.chat.locator("details.panel").all():
            panel.evaluate("(e) => { e.open = true }")
        tab.chat.locator(".item.user").last.hover()
        tab.status.locator("summary").click()
        found["conversation and list"] = findings(tab)
        tab.status.locator("summary").click()
        tab.page.locator("#conversations .row").first.hover()
        tab.page.locator("#conversations .more").first.click()
        expect(tab.page.get_by_role("menuitem").first).to_be_focused()
        found["menu of the list"] = findings(tab)
        tab.page.keyboard.press("Escape")
        tab.page.locator("#models .open").click()
        tab.page.locator("#models .known summary").first.click()
        expect(tab.page.locator("#models .known .needs").first).not_to_be_empty()
        found["models"] = findings(tab)
        tab.page.keyboard.press("Escape")
        tab.settings()
        tab.unfold("sampling")
        found["settings"] = findings(tab)
    with opened(browser, server, ID, color_scheme=scheme, viewport=PHONE, has_touch=True, is_mobile=True) as tab:
        found["phone"] = findings(tab)
    assert not any(found.values()), "\n".join(f"{view}: {line}" for view in found for line in found[view])


# --- widths ----------------------------------------------------------------------


def test_on_a_phone_tables_scroll_in_their_message_and_a_long_draft_leaves_the_switches(
    browser: Browser, server: Server
) -> None:
    table = f"|{'아주긴열이름|' * 8}\n|{'---|' * 8}\n|{'값|' * 8}"
    id = server.store(f"{ID[:-1]}3", [EVERYTHING[0], {"role": "assistant", "content": table}])
    with opened(browser, server, id, viewport=PHONE, has_touch=True, is_mobile=True) as tab:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "the page scrolls sideways"
        assert tab.chat.locator(".table").evaluate("(e) => e.scrollWidth > e.clientWidth + 50")
        tab.box.fill("긴 글\n" * 60)
        for place in (tab.send, tab.page.locator("#open-settings"), tab.page.locator("#thinking")):
            expect(place).to_be_in_viewport(ratio=1)
        assert tab.page.locator("#chat .scroller").bounding_box()["height"] > 200  # type: ignore[index]


def test_at_1024_pixels_one_side_panel_is_open_at_a_time(browser: Browser, server: Server) -> None:
    with opened(browser, server, ID, viewport={"width": 1024, "height": 860}) as tab:
        expect(tab.search).to_be_in_viewport()
        tab.settings()
        expect(tab.search).not_to_be_in_viewport()
        tab.page.keyboard.press("Control+k")
        expect(tab.search).to_be_focused()
        expect(tab.page.locator("#system")).not_to_be_in_viewport()


# --- numbers and languages -------------------------------------------------------


def test_a_number_out_of_range_is_refused_at_its_field(browser: Browser, server: Server) -> None:
    with opened(browser, server, locale="ko-KR") as tab:
        tab.settings()
        tab.unfold("sampling")
        for id, wrong, said in (
            ("temperature", "9", "0~2 사이의 수"),
            ("max-tokens", "-5", "16~32768 사이의 정수"),
            ("max-tokens", "99999", "16~32768 사이의 정수"),
            ("top-k", "", "0~200 사이의 정수"),
            ("top-k", "2.5", "0~200 사이의 정수"),
            ("seed", "-1", "0 이상의 정수"),
            ("seed", "1.5", "0 이상의 정수"),
            ("seed", "12345678901234567890", "0~9007199254740991 사이의 정수"),
        ):
            field = tab.number(id).first
            before = field.input_value()
            field.press("ControlOrMeta+a")
            field.press("Delete")
            field.press_sequentially(wrong)  # parts of it are in range, and are not taken
            field.press("Tab")
            expect(tab.page.locator(".refusal")).to_contain_text(said)
            expect(field).to_have_value(before)
        field = tab.number("temperature").first
        field.fill("0.7")
        field.press("Tab")
        tab.ask("대한민국의 수도는?")
        assert server.stored(tab)["settings"]["sampling"]["temperature"] == 0.7


#: Names of things, which are the same in every language.
NAMES = re.compile(
    r"EXAONE|demo|calculator|current_time|roll_dice|convert_units|(?:Top|Min)-[pk]|API|MB|GB|Español|English|LG|D6|"
    r"Mermaid|mermaid|html|python|Stop Recording|[Tt]okens?|Markdown|JSON|Ctrl|Esc|Shift|Enter"
)


def test_no_english_is_left_in_the_korean_page(browser: Browser, server: Server) -> None:
    """Visible texts, and names for a screen reader, of the page and of Gradio's own widgets."""
    with opened(browser, server, locale="ko-KR") as tab:
        tab.settings()
        tab.unfold("sampling")
        tab.page.wait_for_timeout(800)  # Gradio's names are replaced after it has drawn them
        found = tab.page.evaluate("""() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()).flatMap((e) => [
            ...["aria-label", "title", "placeholder", "alt"].map((name) => e.getAttribute(name) ?? ""),
            ...[...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent),
        ])""")
        assert {text for text in found if re.search("[A-Za-z]{2}", NAMES.sub("", text))} == set()
        tab.attach({"name": "a.bin", "mimeType": "application/octet-stream", "buffer": bytes(range(256)) * 9})
        expect(tab.files).to_contain_text("텍스트가 아닙니다")


@pytest.mark.parametrize("width", [390, 1024])
def test_the_box_is_as_wide_as_the_line_below_it_and_keeps_the_keyboard(
    browser: Browser, server: Server, width: int
) -> None:
    with opened(browser, server, locale="ko-KR", viewport={"width": width, "height": 860}) as tab:
        sides = """() => ["#thinking", "#chat .composer", "#open-settings"].map((name) => document.querySelector(name)
            .getBoundingClientRect()).flatMap(({ left, right }) => [left, right])"""

        def is_aligned() -> bool:
            left, _, box_left, box_right, _, right = tab.page.evaluate(sides)
            return abs(left - box_left) < 1 and abs(right - box_right) < 1

        wait_for(is_aligned, "the box and the line below it are aligned", seconds=5)  # the panel slides at first
        tab.ask("대한민국의 수도는?")  # a click on Send
        expect(tab.box).to_be_focused()
        tab.act("다시 생성")
        versions = tab.chat.locator(".versions")
        expect(versions).to_contain_text("2/2")
        tab.done()
        tab.chat.get_by_role("button", name="이전 버전").click()
        expect(versions).to_contain_text("1/2")
        expect(tab.chat.locator(".latest")).to_be_hidden()  # there is nothing below
