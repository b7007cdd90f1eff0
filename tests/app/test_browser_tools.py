"""Questions before tools run, and the permission to run one without a question, in Chromium."""
# ruff: noqa: F811

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import TOOLS, Server, Tab, opened  # noqa: E402
from browser_fixtures import browser  # noqa: E402, F401
from mcp_servers import config, gone, stdio  # noqa: E402
from playwright.sync_api import Browser, expect  # noqa: E402


def test_two_calls_have_two_questions_and_always_is_taken_back_in_the_settings(
    browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "tools.py").write_text(TOOLS.format(ran=str(tmp_path / "ran")))
    with Server(tmp_path / "data", "--tools", str(tmp_path / "tools.py")) as server, opened(browser, server) as tab:
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.say("Roll D6 dice twice!")
        questions = tab.chat.locator(".question")
        expect(questions).to_have_count(2)
        expect(questions.first).to_contain_text("May this tool run? from the file tools.py")
        expect(tab.chat.locator(".panel.call pre").last).to_contain_text('"max_num": 6')
        shot(tab, "two")
        questions.last.get_by_role("button", name="Do not run it").click()
        expect(questions).to_have_count(1)
        assert not (tmp_path / "ran").exists(), "the first call waits for its own answer"
        run = questions.get_by_role("button", name="Run it", exact=True)
        expect(run).to_be_focused()  # a keyboard goes on from one question to the next
        run.press("Enter")
        tab.done()
        assert (tmp_path / "ran").read_text() == "rolled\n"
        results = [message["failed"] for message in server.stored(tab)["messages"] if message["role"] == "tool"]
        assert results == [False, True]

        tab.say("Roll D6 dice twice!")
        expect(questions).to_have_count(2)
        questions.first.get_by_role("button", name="Always allow here").click()
        tab.done()
        assert (tmp_path / "ran").read_text() == "rolled\n" * 3, "the second call of the tool ran, too"
        tab.settings()
        always = tab.page.locator("#always")
        expect(always).to_contain_text("Run without asking in this conversation")
        shot(tab, "always")
        always.get_by_role("checkbox").click()
        expect(always).to_be_hidden()
        assert server.stored(tab)["settings"]["always"] == []


def test_an_mcp_server_is_started_by_its_switch_and_its_calls_ask(browser: Browser, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    mark = f"{tmp_path}-mark"
    file = config(tmp_path, dice=stdio("stubborn", mark), broken=stdio("fails"))
    with (
        Server(tmp_path / "data", "--mcp-config", str(file)) as server,
        opened(browser, server) as tab,
        opened(browser, server) as other,
    ):
        other.settings()
        other.page.locator("#system textarea").fill("not sent yet")
        tab.settings()
        servers = tab.page.locator("#servers")
        expect(servers).to_contain_text(f"mcp_server_script.py stubborn {mark}")
        expect(servers.get_by_role("checkbox").first).not_to_be_checked()
        assert gone(mark, 0), "no server runs before the click"
        servers.get_by_role("checkbox").first.click()
        expect(tab.page.locator("#tools")).to_contain_text("dice_calculator")
        expect(tab.page.locator("#tools").get_by_role("checkbox", name="dice_calculator")).to_be_checked()
        for name in ("dice_calculator", "calculator"):
            expect(other.page.locator("#tools").get_by_role("checkbox", name=name, exact=True)).to_be_checked()
        expect(other.page.locator("#servers").get_by_role("checkbox").first).to_be_checked()
        expect(other.page.locator("#system textarea")).to_have_value("not sent yet")
        servers.get_by_role("checkbox").last.click()
        expect(tab.page.get_by_text("Not started: the MCP server broken has ended")).to_be_visible()
        expect(servers.get_by_role("checkbox").last).not_to_be_checked()
        shot(tab, "servers")
        for name in (
            "environment",
            "media",
            "fails",
            "long",
            "waits",
            "dies",
            "garbage",
            "add",
        ):  # too many for the demo
            tab.page.locator("#tools").get_by_role("checkbox", name=name, exact=True).uncheck()
        tab.say("What is the weather in Seoul?")
        expect(tab.chat.locator(".question")).to_contain_text("from the MCP server dice")
        shot(tab, "mcp")
        tab.chat.get_by_role("button", name="Run it", exact=True).click()
        tab.done()
        servers.get_by_role("checkbox").first.click()
        for one in (tab, other):
            expect(one.page.locator("#tools")).not_to_contain_text("dice_calculator")
        assert gone(mark), "the server runs on"
        servers.get_by_role("checkbox").first.click()
        expect(tab.page.locator("#tools")).to_contain_text("dice_calculator")
        assert not gone(mark, 0)
        assert server._process is not None
        server._process.kill()
        assert gone(mark), "the server outlives the app"


def shot(tab: Tab, name: str) -> None:
    """A picture for a person, where one is asked for."""
    if folder := os.environ.get("EXAONE4_MLX_PICTURES"):
        tab.page.screenshot(path=f"{folder}/{name}.png")
