"""In the page of the app: a cut reply goes on, a reply can be edited, and what the page asks the server is checked."""
# ruff: noqa: F811

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import Server, opened, wait_for  # noqa: E402
from browser_fixtures import browser, server  # noqa: E402, F401
from pdfs import pdf  # noqa: E402
from playwright.sync_api import Browser, FilePayload, expect  # noqa: E402

ID = "20261125-090000-00000001"
ITALY = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy", "finish_reason": "length"},
]
#: A folder for pictures of what the test shows.
PICTURES = os.environ.get("EXAONE4_MLX_TEST_PICTURES", "")


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


# --- what the page asks the server ------------------------------------------------


def children(server: Server) -> int:
    """The number of processes that the app has started."""
    assert server._process is not None
    return sum(len(file.read_text().split()) for file in Path(f"/proc/{server._process.pid}/task").glob("*/children"))


def test_a_file_that_is_removed_is_no_longer_read(browser: Browser, server: Server) -> None:
    slow = FilePayload(name="slow.pdf", mimeType="application/pdf", buffer=pdf(["a) Tj 0 1 Td (a" * 600_000]))
    with opened(browser, server) as tab:
        before = children(server)
        tab.attach(slow)
        expect(tab.files).to_have_text([re.compile("slow.pdf …")])
        wait_for(lambda: children(server) > before, "a process reads the file")
        tab.files.get_by_role("button").click()
        expect(tab.files).to_have_count(0)
        wait_for(lambda: children(server) == before, "nothing reads it any more", seconds=8)
        tab.ask("Hello!")
        assert not tab.errors


def test_malformed_calls_of_the_functions_of_the_page_are_refused_without_a_traceback(server: Server) -> None:
    with urllib.request.urlopen(f"{server.address}/config") as answer:
        chat = next(one["id"] for one in json.load(answer)["components"] if one["props"].get("elem_id") == "chat")
    call = {"component_id": chat, "session_hash": "x"}
    bodies: list[Any] = ["", "[]", "{}", "no JSON", '{"data": 5}', "[" * 9000]
    for name in ("history", "read"):
        for data in (None, 5, "x", [], {}, {"tab": 5, "known": 5}, {"tab": {}, "path": []}, {"start": "x", "tab": "x"}):
            bodies.append(json.dumps(call | {"fn_name": name, "data": data}))
    for body in bodies:
        request = urllib.request.Request(
            f"{server.address}/gradio_api/component_server", body.encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                status, said = 400 if "error" in json.load(answer) else 200, ""  # of `read`: no file was uploaded
        except HTTPError as refused:
            status, said = refused.code, refused.read().decode()
        assert 400 <= status < 500, (body, status, said)
    assert "Traceback" not in (server.data / "log").read_text()
