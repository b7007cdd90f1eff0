"""Branches, Undo and the details of a reply, as a person uses them in Chromium."""
# ruff: noqa: F811

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import Server, Tab, opened  # noqa: E402
from browser_fixtures import browser, server  # noqa: E402, F401
from playwright.sync_api import Browser, Locator, expect  # noqa: E402

SEOUL, ROME, LIMA = (f"What is the capital of {name}?" for name in ("South Korea", "Italy", "Peru"))


def versions(tab: Tab, text: str) -> Locator:
    return tab.chat.get_by_role("group", name=f"Version {text[0]} of {text[2]}")


def test_versions_are_switched_and_survive_a_restart_and_undo_goes_back(browser: Browser, tmp_path: Path) -> None:
    with Server(tmp_path) as server, opened(browser, server) as tab:
        tab.ask(SEOUL)
        tab.ask(ROME)
        tab.act("Retry", which=0)  # of the first turn
        expect(tab.said).to_have_text([SEOUL])
        tab.done()
        expect(versions(tab, "2/2")).to_have_text("2/2")
        versions(tab, "2/2").get_by_role("button", name="Previous version").click()
        expect(tab.said).to_have_text([SEOUL, ROME])
        tab.act("Edit", which=0)
        tab.edit(LIMA)
        expect(tab.chat.locator(".user .versions")).to_have_text("2/2")
        tab.done()
        expect(tab.replies).to_have_text(["The capital of Peru is Lima."])
        expect(tab.chat.locator(".user .versions")).to_have_text("2/2")
        before = tab.chat.locator(".user .versions").get_by_role("button", name="Previous version")
        before.focus()
        before.press("ArrowLeft")  # the keyboard goes on at the same place
        expect(tab.said).to_have_text([SEOUL, ROME])
        expect(tab.chat.locator(".user .versions [data-do=version-before]")).to_be_focused()
        expect(tab.chat.locator(".versions")).to_have_text(["1/2", "1/2"])
        tab.page.keyboard.press("ArrowRight")
        expect(tab.said).to_have_text([LIMA])
        server.stop()
        server.start()
        tab.reload()
        expect(tab.said).to_have_text([LIMA])
        tab.page.get_by_role("button", name="Undo: the change of version").click()
        expect(tab.said).to_have_text([SEOUL, ROME])
        for what, said in (
            ("Undo: the change of version", [LIMA]),
            ("Undo: the edit", [SEOUL, ROME]),
            ("Undo: the change of version", [SEOUL]),
            ("Undo: the retry", [SEOUL, ROME]),
            ("Undo: the last message", [SEOUL]),
            ("Undo: the last message", []),
            ("Redo: the last message", [SEOUL]),
            ("Redo: the last message", [SEOUL, ROME]),
        ):
            tab.page.get_by_role("button", name=what).click()
            expect(tab.said).to_have_text(said)
        expect(tab.chat.locator(".versions")).to_have_count(0)
        expect(tab.box).to_have_value(f"{SEOUL}\n{ROME}")
        assert tab.errors == []


def test_every_tab_shows_the_branch_and_an_old_state_switches_nothing(browser: Browser, server: Server) -> None:
    with opened(browser, server) as one:
        one.ask(SEOUL)
        one.act("Edit")
        one.edit(ROME)
        expect(versions(one, "2/2")).to_be_visible()
        one.done()
        with opened(browser, server, one.conversation) as other:
            expect(other.said).to_have_text([ROME])
            other.context.set_offline(True)
            one.chat.get_by_role("button", name="Previous version").click()
            expect(one.said).to_have_text([SEOUL])
            one.ask(LIMA)
            other.context.set_offline(False)
            other.chat.get_by_role("button", name="Previous version").click()
            expect(other.said).to_have_text([SEOUL, LIMA])
            expect(one.said).to_have_text([SEOUL, LIMA])
            one.chat.get_by_role("button", name="Next version").click()
            expect(other.said).to_have_text([ROME])


def test_a_reply_says_how_it_was_made(browser: Browser, server: Server) -> None:
    with opened(browser, server, locale="ko-KR") as tab:
        tab.ask(SEOUL)
        button = tab.chat.get_by_role("button", name="이 답변 정보")
        button.click()
        expect(button).to_have_attribute("aria-expanded", "true")
        shown = tab.chat.locator(".made")
        expect(shown).to_contain_text("demo")
        expect(shown.locator("dt")).to_contain_text(["모델", "길이", "속도", "소요 시간", "프롬프트", "추론", "온도"])
        expect(shown).to_contain_text(re.compile(r"\d+토큰"))
        button.click()
        expect(shown).to_have_count(0)
        made = server.stored(tab)["messages"][1]["made"]
        assert made["model"] == "demo" and made["settings"]["thinking"] is False


def test_files_of_one_name_are_two_and_stay_through_a_reload_and_branches(browser: Browser, server: Server) -> None:
    with opened(browser, server) as tab:
        tab.ask(LIMA)
        for text in (b"The code is 4711.", b"The code is 1234."):
            tab.attach({"name": "note.txt", "mimeType": "text/plain", "buffer": text})
        expect(tab.files).to_have_text([re.compile("note.txt · ")] * 2)
        tab.page.route("**/gradio_api/**", lambda route: route.abort())
        tab.say(SEOUL)  # does not arrive before the page is left
        expect(tab.box).to_have_value("")
        tab.page.unroute("**/gradio_api/**")
        tab.reload()
        expect(tab.box).to_have_value(SEOUL)
        expect(tab.files).to_have_count(2)
        tab.send.click()
        expect(tab.said).to_have_text([LIMA, SEOUL])
        tab.done()  # an edit during the reply would be refused
        files = server.stored(tab)["messages"][2]["files"]
        assert [file["text"] for file in files] == ["The code is 4711.", "The code is 1234."]
        tab.act("Edit")
        tab.edit(ROME)
        expect(versions(tab, "2/2")).to_be_visible()
        stored = server.stored(tab)
        assert stored["messages"][2]["files"] == files == stored["branches"][0]["messages"][0]["files"]
