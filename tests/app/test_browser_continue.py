"""In the page of the app: a reply that was cut or stopped goes on, and the model's reply can be edited."""

from __future__ import annotations

import os
import re
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

ID = "20261125-090000-00000001"
ITALY = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy", "finish_reason": "length"},
]
#: A folder for pictures of what the test shows.
PICTURES = os.environ.get("EXAONE4_MLX_TEST_PICTURES", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
def test_a_cut_reply_goes_on_and_an_edited_one_is_kept_or_continued(
    browser: Browser, server: Server, locale: str
) -> None:
    go_on, edit, save, both, undo = {
        "en-US": ("Continue", "Edit the reply", "Save", "Save and continue", "Undo"),
        "ko-KR": ("이어서 생성", "응답 수정", "저장", "저장하고 이어서 생성", "실행 취소"),
    }[locale]
    id = f"{ID[:-1]}{len(locale) + len(save)}"
    server.store(id, ITALY, settings={"sampling": {"temperature": 0.01, "top_p": 1.0}})
    with opened(browser, server, id, locale=locale) as tab:

        def picture(name: str) -> None:
            if PICTURES:
                tab.page.screenshot(path=f"{PICTURES}/{locale}-{name}.png")

        button = tab.chat.get_by_role("button", name=go_on, exact=True)
        expect(button).to_be_visible()
        picture("cut")
        button.click()
        tab.done()
        expect(tab.replies).to_have_text(["The capital of Italy is Rome."])
        expect(button).to_have_count(0)
        assert server.stored(tab)["messages"][-1]["finish_reason"] == "stop"

        tab.act(edit)
        picture("edit")
        field = tab.chat.locator(".editing textarea")
        expect(field).to_have_value("The capital of Italy is Rome.")
        field.fill("It is Rome, of course.")
        tab.chat.get_by_role("button", name=save, exact=True).click()
        expect(tab.replies).to_have_text(["It is Rome, of course."])
        tab.act(edit)
        field.fill("The capital of")
        tab.chat.get_by_role("button", name=both, exact=True).click()
        expect(tab.replies).to_have_text([re.compile("^The capital of Italy is Rome")])
        tab.done()
        picture("continued")
        tab.act(undo)
        expect(tab.replies).to_have_text(["It is Rome, of course."])
        tab.reload()
        expect(tab.replies).to_have_text(["It is Rome, of course."])
        assert not tab.errors
