"""Questions before tools run, and the permission to run one without a question, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import CHROMIUM, Server, launch, opened  # noqa: E402
from playwright.sync_api import Browser, expect, sync_playwright  # noqa: E402

if not Path(CHROMIUM).exists():
    pytest.skip("there is no chromium", allow_module_level=True)

TOOLS = '''
import pathlib

def roll_dice(max_num: int):
    """Roll a dice with the number 1 to N

    Args:
        max_num: Maximum number on the dice
    """
    with pathlib.Path({ran!r}).open("a") as file:
        file.write("rolled\\n")
    return 4
'''


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = launch(playwright)
        yield made
        made.close()


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
        always.get_by_role("checkbox").click()
        expect(always).to_be_hidden()
        assert server.stored(tab)["settings"]["always"] == []
