"""The picker of models in Chromium: a model is downloaded, converted, used and deleted without a terminal."""
# ruff: noqa: F811

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_hub import FileServer

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import Server, opened  # noqa: E402
from browser_fixtures import browser  # noqa: E402, F401
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

REPO = "LGAI-EXAONE/EXAONE-4.0-1.2B"
QUESTION, ANSWER = "What is the capital of South Korea?", "The capital of South Korea is Seoul."


class Picker:
    """The picker of models of one page."""

    def __init__(self, page: Page) -> None:
        self.page, self.root = page, page.locator("#models")
        self.opener, self.notice = self.root.locator(".open"), self.root.locator(".notice")
        self.jobs = self.root.locator(".jobs li")

    def open(self) -> Picker:
        self.opener.click()
        expect(self.root.locator("dialog")).to_be_visible()
        return self

    def row(self, name: str, where: str = "here") -> Locator:
        return self.root.locator(f".{where} > li").filter(has=self.page.get_by_text(name, exact=True))

    def unfold(self, name: str, where: str = "here") -> Locator:
        row = self.row(name, where)
        if row.locator("details[open]").count() == 0:
            row.locator("summary").click()
        expect(row.locator(".needs")).to_contain_text("This machine can give")
        return row

    def press(self, name: str, within: Locator | None = None) -> None:
        (within or self.root).get_by_role("button", name=name, exact=True).click()

    def use(self, name: str) -> None:
        self.press("Use", self.unfold(name))
        expect(self.row(name).get_by_text("In use")).to_be_visible()


def test_a_model_is_got_paused_converted_used_and_deleted(browser: Browser, exaone: FileServer, tmp_path: Path) -> None:
    exaone.listed = [{"id": "mina/EXAONE-4.0-1.2B-8bit", "tags": ["exaone4"]}]
    exaone.stall_after = 5_000_000
    with Server(tmp_path / "data", "--models", str(tmp_path / "none")) as server, opened(browser, server) as tab:
        picker = Picker(tab.page)
        expect(picker.opener).to_have_text("demo")
        picker.open()
        expect(picker.row("demo").get_by_text("In use")).to_be_visible()
        expect(picker.row("LGAI-EXAONE/EXAONE-4.0-32B", "known")).to_contain_text("64.01 GB · 16 bits")

        picker.root.get_by_role("searchbox").fill("mina")
        picker.press("Search")
        expect(picker.row("mina/EXAONE-4.0-1.2B-8bit", "known")).to_be_visible()
        picker.root.get_by_role("searchbox").fill("")

        row = picker.unfold(REPO, "known")
        expect(row.get_by_role("button", name="Download")).to_be_disabled()  # before the licence is accepted
        row.get_by_role("checkbox").check()
        expect(row.get_by_role("checkbox")).to_have_css("appearance", "auto")  # Gradio's tick is white on white
        picker.press("Download", row)
        expect(picker.jobs.locator(".amount")).to_have_text(re.compile(r"[3-6] MB of 1\d MB"))
        with opened(browser, server) as other:  # another tab sees the same, and pauses it
            second = Picker(other.page).open()
            expect(second.jobs).to_contain_text(f"Downloading {REPO}")
            second.press("Pause")
            expect(picker.jobs).to_contain_text(f"Paused: {REPO}")
        exaone.stall_after = None
        server.stop()  # the download survives the app
        server.start()
        tab.reload()
        picker.open()
        expect(picker.jobs).to_contain_text(f"Paused: {REPO}")
        picker.press("Resume")
        row = picker.unfold(REPO)
        expect(picker.jobs).to_have_count(0)
        assert exaone.ranges, "the download is continued"

        picker.press("Convert to 4 bits", row)
        expect(picker.jobs).to_contain_text("Converting: EXAONE-4.0-1.2B-4bit")
        short = picker.row("EXAONE-4.0-1.2B-4bit")
        expect(short).to_contain_text("3 MB · 4 bits")
        row = picker.unfold("EXAONE-4.0-1.2B-4bit")
        row.get_by_role("combobox").select_option("4096")
        expect(row.locator(".needs")).to_contain_text("4,096 tokens")
        picker.use("EXAONE-4.0-1.2B-4bit")
        expect(picker.row("EXAONE-4.0-1.2B-4bit").get_by_role("button", name="Delete…")).to_have_count(0)
        tab.page.keyboard.press("Escape")
        expect(picker.opener).to_have_text("EXAONE-4.0-1.2B-4bit")
        tab.ask(QUESTION)
        expect(tab.replies.last).to_have_text(ANSWER)
        expect(tab.status).to_contain_text("of 4,096 tokens")

        picker.open()
        picker.root.locator(".other input").fill("/no/such/model")
        picker.press("Use", picker.root.locator(".other"))
        expect(picker.notice).to_contain_text("Not loaded: there is no folder /no/such/model")
        expect(picker.notice).to_contain_text("EXAONE-4.0-1.2B-4bit (3 MB, 4 bits) stays in use.")

        picker.use("demo")
        row = picker.unfold("EXAONE-4.0-1.2B-4bit")
        picker.press("Delete…", row)
        expect(row).to_contain_text("Delete EXAONE-4.0-1.2B-4bit from this computer? This frees 3 MB.")
        picker.press("Delete", row)
        expect(picker.notice).to_contain_text("EXAONE-4.0-1.2B-4bit was deleted. 3 MB are free again.")
        expect(short).to_have_count(0)
        assert not (tmp_path / "data" / "models" / "EXAONE-4.0-1.2B-4bit").exists()
        picker.press("Delete…", picker.unfold(REPO))
        picker.press("Delete", picker.row(REPO))
        expect(picker.row(REPO)).to_have_count(0)
        assert not list((tmp_path / "hub").rglob("*.safetensors"))
