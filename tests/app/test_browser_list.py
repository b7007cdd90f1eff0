"""The list of conversations, the browser's Back, and the keys, as a person uses them in Chromium."""
# ruff: noqa: F811

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import Server, Tab, id_of, opened  # noqa: E402
from browser_fixtures import browser, server, tab  # noqa: E402, F401
from playwright.sync_api import Browser, expect  # noqa: E402

SEOUL = "What is the capital of South Korea?"
ITALY = "What is the capital of Italy?"
LONG_ENOUGH = re.compile(r"[\s\S]{50}")
#: With these the endless model goes on in ever new words.
RAMBLING = {"sampling": {"temperature": 2.0, "top_p": 1.0}}
#: A key as an input method sends it while it composes.
COMPOSED = """([selector, key]) => document.querySelector(selector).dispatchEvent(
    new KeyboardEvent("keydown", {key, ctrlKey: true, bubbles: true, isComposing: true}))"""


def greeting(text: str = "Hello!", reply: str = "Hello! How can I help you?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]


def days_ago(days: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(days=days)).isoformat(timespec="microseconds")


@pytest.fixture
def own(server: Server) -> Server:
    """The server with an empty list."""
    for file in server.folder.glob("*.json"):
        file.unlink()
    return server


def test_a_conversation_is_renamed_pinned_exported_and_deleted_by_its_menu(browser: Browser, own: Server) -> None:
    with opened(browser, own) as tab, opened(browser, own) as other:
        tab.ask(SEOUL)
        tab.page.locator("#new-chat").click()
        expect(tab.said).to_have_count(0)
        tab.ask(ITALY)
        expect(tab.titles).to_have_text([ITALY, SEOUL])
        expect(other.titles).to_have_text([ITALY, SEOUL])  # without a reload

        before, field = ITALY, tab.page.locator("#conversations .row input")
        for title in ("../../x", "<img src=x onerror=alert(1)>", "로마 이야기"):
            tab.menu(before, "Rename")
            expect(field).to_be_focused()
            field.fill(title)
            field.press("Enter")
            expect(tab.titles.first).to_have_text(title)
            before = title
        expect(tab.page).to_have_title("로마 이야기 · EXAONE")
        assert not (own.data.parent / "x").exists()
        tab.menu("로마 이야기", "Rename")
        field.fill("another")
        field.press("Escape")
        expect(tab.titles.first).to_have_text("로마 이야기")

        tab.menu(SEOUL, "Pin")
        expect(tab.titles).to_have_text([SEOUL, "로마 이야기"])
        expect(other.page.get_by_role("heading", name="Pinned")).to_be_visible()
        tab.menu(SEOUL, "Unpin")
        expect(tab.titles).to_have_text(["로마 이야기", SEOUL])

        with tab.page.expect_download() as download:
            tab.menu(SEOUL, "Export as Markdown")
        assert download.value.suggested_filename == "What is the capital of South Korea.md"

        tab.line(SEOUL).click()
        expect(tab.said).to_have_text([SEOUL])
        file = own.folder / f"{tab.conversation}.json"
        whole = file.read_bytes()
        tab.menu(SEOUL, "Delete")
        expect(tab.titles).to_have_text(["로마 이야기"])
        expect(other.titles).to_have_text(["로마 이야기"])
        expect(tab.said).to_have_count(0)
        assert not file.exists()
        tab.said_by_list.get_by_role("button", name="Undo").click()
        expect(tab.titles).to_have_text(["로마 이야기", SEOUL])
        expect(tab.said).to_have_text([SEOUL])
        assert file.read_bytes() == whole, "what was deleted came back changed"


def test_the_list_is_grouped_by_date_in_the_language_and_time_zone_of_the_user(browser: Browser, own: Server) -> None:
    for number, days in enumerate((0, 1, 3, 20)):
        own.store(id_of(number), greeting(), title=f"{days} days", updated=days_ago(days))
    # 23:30 in UTC on New Year's Eve is the new year in Seoul
    own.store(id_of(8), greeting(), title="eve", updated="2024-12-31T23:30:00.000000+00:00")
    own.store(id_of(9), greeting(), title="top", updated=days_ago(300), pinned=True)
    headings = "#conversations h3"
    with opened(browser, own, locale="ko-KR", timezone_id="Asia/Seoul") as tab:
        expect(tab.page.locator(headings)).to_have_text(
            ["고정됨", "오늘", "어제", "지난 7일", "지난 30일", "2025년 1월"]
        )
        expect(tab.titles).to_have_text(["top", "0 days", "1 days", "3 days", "20 days", "eve"])
    with opened(browser, own, locale="es-ES", timezone_id="UTC") as tab:
        expect(tab.page.locator(headings).last).to_have_text("Diciembre de 2024")


def test_a_search_shows_the_place_and_a_click_goes_to_the_message(browser: Browser, own: Server) -> None:
    turns = [message for number in range(60) for message in greeting(f"Question {number}", f"Answer {number}. " * 30)]
    turns[21]["content"] = "서울에서 출발해 제주도 해안 도로를 따라 여행합니다. " * 3
    other = {"parent": None, "at": 50, "place": 1, "dropped": 0, "messages": greeting("울릉도에 갑니다.")}
    own.store(id_of(2), turns, title="long", branches=[other])
    own.store(id_of(1), greeting("다른 이야기"), title="해안")
    with opened(browser, own) as tab:
        tab.search.fill("해안 도로")
        expect(tab.titles).to_have_text(["long"])
        snippet = tab.page.locator("#conversations .snippet")
        expect(snippet).to_contain_text("서울에서 출발해 제주도 해안 도로를 따라")
        expect(snippet.locator("mark").first).to_have_text("해안")
        tab.line("long").click()
        found = tab.chat.locator(".item.found")
        expect(found).to_be_in_viewport()
        expect(found).to_contain_text("제주도 해안 도로")
        assert tab.page.evaluate("CSS.highlights.get('found').size") == 6
        tab.search.fill("해안")
        expect(tab.titles).to_have_text(["long", "해안"])
        tab.search.fill("울릉도")  # in a version that is not shown
        expect(snippet).to_have_text("Another version · 울릉도에 갑니다.")
        tab.line("long").click()
        expect(found).to_have_text(re.compile("Question 25"))
        expect(found.locator(".versions")).to_contain_text("1/2")
        tab.search.fill("nothing like that")
        expect(tab.hint).to_have_text("None found.")
        tab.search.press("Escape")
        expect(tab.titles).to_have_text(["long", "해안"])


def test_the_list_is_reached_by_keys(browser: Browser, own: Server) -> None:
    for number in range(5):
        own.store(id_of(number), greeting(f"say {number}"), title=f"title {number}", updated=days_ago(number / 100))
    with opened(browser, own) as tab:
        keys = tab.page.keyboard
        expect(tab.titles).to_have_text([f"title {number}" for number in range(5)])
        keys.press("Control+k")
        expect(tab.search).to_be_focused()
        keys.press("ArrowDown")
        expect(tab.line("title 0")).to_be_focused()
        keys.press("End")
        expect(tab.line("title 4")).to_be_focused()
        keys.press("ArrowUp")
        keys.press("Enter")
        expect(tab.said).to_have_text(["say 3"])
        expect(tab.line("title 3")).to_have_attribute("aria-current", "page")
        keys.press("Home")
        keys.press("F2")
        keys.type("first")
        keys.press("Enter")
        expect(tab.line("first")).to_be_focused()
        keys.press("ArrowDown")
        keys.press("Delete")
        expect(tab.titles).to_have_text(["first", "title 2", "title 3", "title 4"])
        expect(tab.line("title 2")).to_be_focused()
        keys.press("Control+z")
        expect(tab.titles).to_have_text(["first", "title 1", "title 2", "title 3", "title 4"])
        keys.press("ContextMenu")
        expect(tab.page.get_by_role("menuitem", name="Rename")).to_be_focused()
        keys.press("ArrowDown")
        expect(tab.page.get_by_role("menuitem", name="Pin")).to_be_focused()
        keys.press("Escape")
        expect(tab.page.get_by_role("menu")).to_have_count(0)
        expect(tab.line("title 2")).to_be_focused()


def test_two_thousand_conversations_stay_quick(browser: Browser, own: Server, record_property: Any) -> None:
    for number in range(2000):
        own.store(id_of(number), greeting(f"say {number}"), title=f"title {number}", updated=days_ago(1 + number / 10))
    with opened(browser, own) as tab:
        answers: list[int] = []
        tab.page.on(
            "response", lambda response: "component_server" in response.url and answers.append(len(response.body()))
        )
        expect(tab.titles).to_have_count(100)
        place = tab.page.locator("#conversations .rows")
        place.evaluate("(e) => e.scrollTop = e.scrollHeight")
        expect(tab.titles).to_have_count(200)
        tab.titles.first.click()
        tab.page.keyboard.press("End")
        expect(tab.titles).to_have_count(2000)
        expect(tab.line("title 1999")).to_be_focused()
        answers.clear()
        tab.menu("title 1999", "Pin")
        expect(tab.titles.first).to_have_text("title 1999")
        tab.page.wait_for_timeout(500)
        record_property("bytes after a pin", answers)
        assert max(answers) < 2000, f"more than the changed row was sent: {answers} bytes"
        tab.search.fill("1234")
        expect(tab.titles).to_have_text(["title 1234"])


def test_a_running_reply_is_marked_in_the_list(browser: Browser, own: Server) -> None:
    """The reply waits for an answer of the user, so that it runs as long as the test, on a busy machine too."""
    own.store(id_of(1), greeting(), title="waits", settings={"use_tools": True, "ask": True})
    with opened(browser, own, id_of(1)) as tab:
        keys, mark = tab.page.keyboard, tab.line("waits").get_by_text("A reply is in progress")
        tab.say("Roll D6 dice!")
        expect(tab.chat.locator(".question")).to_be_visible()
        expect(mark).to_be_attached()
        tab.page.evaluate(COMPOSED, [".composer textarea", "Escape"])
        tab.box.focus()
        keys.press("?")  # in the box it is a letter
        expect(tab.box).to_have_value("?")
        tab.box.fill("")
        tab.line("waits").focus()
        keys.press("?")
        shortcuts = tab.page.get_by_role("dialog", name="Keyboard shortcuts")
        expect(shortcuts).to_be_visible()
        keys.press("Escape")
        expect(shortcuts).to_be_hidden()
        tab.menu("waits", "Rename")
        keys.press("Escape")
        tab.page.locator("#conversations .more").first.click()
        keys.press("Escape")
        expect(tab.page.get_by_role("menu")).to_have_count(0)
        expect(tab.stop).to_be_visible()  # a key that closed something stopped nothing
        expect(mark).to_be_attached()
        keys.press("Escape")
        tab.done()
        expect(mark).to_have_count(0)


@pytest.mark.parametrize("form", ["Markdown", "JSON"])
def test_a_conversation_goes_out_and_comes_in_again(tab: Tab, server: Server, tmp_path: Path, form: str) -> None:
    question = "Which one is bigger, 3.12 vs 3.9?"
    tab.page.locator("#thinking").get_by_role("checkbox").check()
    tab.ask(question)
    before = server.stored(tab)
    with tab.page.expect_download() as download:
        tab.menu(question, f"Export as {form}")
    name = download.value.suggested_filename
    assert name == f"Which one is bigger, 3.12 vs 3.9{'.md' if form == 'Markdown' else '.json'}"
    text = Path(download.value.path()).read_text()
    tab.page.locator("#new-chat").click()
    expect(tab.said).to_have_count(0)
    drop(tab, name, text)
    expect(tab.said_by_list).to_contain_text("Imported: Which one")
    expect(tab.said).to_have_text([question])
    expect(tab.panel("Thought for")).to_be_visible()
    after = server.stored(tab)
    assert after["messages"] == before["messages"] and after["id"] != before["id"]
    tab.ask("What is the capital of Peru?")


def drop(tab: Tab, name: str, text: str) -> None:
    """Drops a file on the list."""
    tab.page.locator("#conversations .left").evaluate(
        """(panel, [name, text]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name));
            for (const kind of ["dragover", "drop"])
                panel.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [name, text],
    )


def test_what_is_no_conversation_is_not_imported(tab: Tab) -> None:
    for content in ('{"messages": [{"role": "wizard", "content": "hi"}]}', '{"rows": 3}', "not JSON"):
        drop(tab, "wrong.json", content)
        expect(tab.said_by_list).to_contain_text("Not imported: wrong.json")
    tab.ask(SEOUL)


def test_a_damaged_file_is_listed_and_left_alone(browser: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.store(id_of(1), greeting(), title="good")
    damaged = server.folder / f"{id_of(2)}.json"
    damaged.write_text('{"format": "exaone4_mlx conversation", "messages": [')
    with server, opened(browser, server, id_of(2)) as tab:
        expect(tab.hint).to_contain_text(damaged.name)
        expect(tab.titles).to_have_text(["good"])
        expect(tab.notice("cannot be opened")).to_be_visible()
        tab.ask(SEOUL)
        expect(tab.titles).to_have_text([SEOUL, "good"])
        assert damaged.read_text() == '{"format": "exaone4_mlx conversation", "messages": ['


def test_back_and_forward_go_through_the_conversations(tab: Tab, server: Server) -> None:
    tab.ask(SEOUL)
    first = tab.conversation
    tab.page.locator("#new-chat").click()
    expect(tab.said).to_have_count(0)
    tab.ask(ITALY)
    second = tab.conversation
    expect(tab.page).to_have_title(f"{ITALY} · EXAONE")
    tab.line(SEOUL).click()
    expect(tab.said).to_have_text([SEOUL])
    expect(tab.page).to_have_title(f"{SEOUL} · EXAONE")
    tab.page.go_back()
    expect(tab.said).to_have_text([ITALY])
    tab.page.go_forward()
    expect(tab.said).to_have_text([SEOUL])
    assert tab.conversation == first
    tab.page.go_back()
    expect(tab.said).to_have_text([ITALY])
    (server.folder / f"{first}.json").rename(server.folder / "elsewhere")
    tab.page.go_forward()
    expect(tab.notice("does not exist any more")).to_be_visible()
    expect(tab.said).to_have_count(0)
    tab.page.go_back()
    expect(tab.said).to_have_text([ITALY])
    assert tab.conversation == second


def test_an_address_without_a_conversation_says_so_and_a_new_one_opens(browser: Browser, server: Server) -> None:
    tab = Tab(browser, server, locale="ko-KR")
    tab.page.goto(f"{server.address}/?conversation={id_of(0xABCDEF)}")
    expect(tab.notice("이 대화는 더 이상 없습니다")).to_be_visible()
    expect(tab.box).to_be_visible()
    expect(tab.page).not_to_have_url(re.compile("conversation="))
    tab.ask(SEOUL)
    assert json.loads((server.folder / f"{tab.conversation}.json").read_text())["messages"]
    tab.close()


def test_keys_search_and_begin_a_chat_but_not_while_korean_is_composed(tab: Tab) -> None:
    tab.ask(SEOUL)
    tab.box.focus()
    tab.page.evaluate(COMPOSED, [".composer textarea", "k"])
    expect(tab.box).to_be_focused()
    tab.page.keyboard.press("Control+k")
    expect(tab.search).to_be_focused()
    tab.page.keyboard.press("Control+Shift+O")
    expect(tab.said).to_have_count(0)


def test_a_new_conversation_begins_with_the_last_settings_but_their_permissions(
    browser: Browser, tmp_path: Path
) -> None:
    with Server(tmp_path) as server, opened(browser, server) as tab:
        tab.settings()
        tab.page.locator("#system textarea").fill("Be brief.")
        tab.page.get_by_role("radio", name="Dark").check()
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#system")).not_to_be_in_viewport()
        tab.page.locator("#thinking").get_by_role("checkbox").check()
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.ask(SEOUL)
        tab.box.fill("a draft")
        server.stop()
        server.start()
        tab.reload()
        expect(tab.box).to_have_value("a draft")
        tab.page.goto(server.address)
        tab.ready()
        expect(tab.said).to_have_count(0)
        expect(tab.page.locator("#thinking").get_by_role("checkbox")).to_be_checked()
        expect(tab.page.locator("#use-tools").get_by_role("checkbox")).not_to_be_checked()
        expect(tab.page.locator("#system textarea")).to_have_value("Be brief.")
        expect(tab.page.locator("body.dark")).to_be_visible()
