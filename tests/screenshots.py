"""`python tests/screenshots.py`: the pictures of the README, docs/pictures/*.png, taken anew from the demo model."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import ROOT, Server, Tab, launch, opened
from playwright.sync_api import Browser, expect, sync_playwright

FOLDER = ROOT / "docs" / "pictures"
PHONE = {"width": 390, "height": 844}


def take(browser: Browser, server: Server, folder: Path) -> list[Path]:
    """Takes all pictures on a fresh server, and returns their files."""
    folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def picture(name: str, conversation: str = "", **context: Any) -> Iterator[Tab]:
        with opened(browser, server, conversation, **context) as tab:
            yield tab
            tab.page.mouse.move(640, 0)
            tab.page.screenshot(path=folder / f"{name}.png", animations="disabled", caret="hide")

    with opened(browser, server) as tab:
        tab.ask("What is the capital of South Korea?")  # so that the list has more than one line
    with picture("light") as tab:
        tab.page.locator("#thinking").get_by_role("checkbox").check()
        tab.ask("Which one is bigger, 3.12 vs 3.9?")
        tab.panel("Thought for").click()
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.page.locator("#thinking").get_by_role("checkbox").uncheck()
        tab.ask("Roll D6 dice twice!")
        conversation = tab.conversation
    with picture("branches", conversation) as tab:
        tab.act("Retry")
        tab.done()
        expect(tab.chat.locator(".versions")).to_contain_text("2/2")
        tab.page.locator(".assistant .details").last.click()
        tab.page.locator("#chat .made").scroll_into_view_if_needed()
    with picture("dark", conversation, color_scheme="dark") as tab:
        tab.panel("Thought for").click()
    with picture("phone", conversation, viewport=PHONE, has_touch=True, is_mobile=True):
        pass
    with picture("settings", conversation) as tab:
        tab.settings()
    with picture("tools") as tab:
        tab.settings()
        tab.page.locator("#ask").get_by_role("checkbox").check()
        tab.page.get_by_role("button", name="Toggle Sidebar").last.click()
        expect(tab.page.locator("#ask")).not_to_be_in_viewport()
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.say("Roll D6 dice twice!")
        tab.chat.get_by_role("button", name="Run it", exact=True).first.click()
        expect(tab.panel("→")).to_have_count(1)
        expect(tab.chat.get_by_text("May this tool run?").first).to_be_visible()
    with picture("models") as tab:
        tab.page.locator("#models .open").click()
        tab.page.locator("#models .known summary").first.click()
        expect(tab.page.locator("#models .known .needs").first).not_to_be_empty()
        expect(tab.page.get_by_text("Asking what it needs")).to_have_count(0)
    with picture("korean", locale="ko-KR") as tab:
        tab.ask("대한민국의 수도는?")
        tab.page.locator("#thinking").get_by_role("checkbox").check()
        tab.ask("3.12와 3.9 중 어느 것이 더 큰가요?")
        tab.panel(re.compile("생각함")).click()
    return sorted(folder.glob("*.png"))


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        sync_playwright() as playwright,
        launch(playwright) as browser,
        Server(Path(data)) as server,
    ):
        for file in take(browser, server, FOLDER):
            print(f"{file.stat().st_size:>9,} {file.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
