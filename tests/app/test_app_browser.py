"""The app as a person uses it: Chromium drives the page of a real server. What may fail here may fail for a person."""
# ruff: noqa: F811

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `browser`")

from browser import TOOLS, Server, Tab, id_of, opened, wait_for  # noqa: E402
from browser_fixtures import browser, endless, server, tab  # noqa: E402, F401
from playwright.sync_api import Browser, FilePayload, expect  # noqa: E402
from shown import TORTURE  # noqa: E402

SEOUL = "What is the capital of South Korea?"
PHONE = {"width": 390, "height": 844}
#: With these the endless model goes on in ever new words, and the guard against loops does not end it.
RAMBLING = {"sampling": {"temperature": 2.0, "top_p": 1.0}}
#: Clicks Stop, and returns the seconds until Send is there again.
STOP = """async () => {
    const began = performance.now();
    document.querySelector('#chat .stop').click();
    while (document.querySelector('#chat .send').hidden) await new Promise(requestAnimationFrame);
    return (performance.now() - began) / 1000;
}"""
#: A page that takes three seconds to draw.
SLOW = "() => { const next = requestAnimationFrame; window.requestAnimationFrame = (f) => setTimeout(() => next(f), 3000); }"
#: Records the titles of a thought in progress while its text is visible (`innerText` omits hidden text).
WATCH = """() => {
    window.seen = [];
    setInterval(() => {
        const lines = document.querySelector("#chat").innerText.split("\\n");
        const title = lines.findIndex((line) => /^Thinking · .* tokens$/.test(line));
        const open = lines.slice(title).some((line) => line.startsWith("Integer parts"));
        if (title >= 0 && open && !window.seen.includes(lines[title])) window.seen.push(lines[title]);
    }, 30);
}"""
LONG_ENOUGH = re.compile(r"[\s\S]{50}")
GREETING = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! How can I help you?"}]


def brightness(tab: Tab, element: str) -> float:
    """Of an element's own background, from 0 to 1."""
    colour = tab.page.locator(element).first.evaluate("(e) => getComputedStyle(e).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 765


def tokens(tab: Tab) -> int:
    """Of the reply, as the line below the chat counts them."""
    return int(re.findall(r"([\d,]+) tokens(?!/)", tab.status.text_content() or "")[0].replace(",", ""))


# --- a turn ----------------------------------------------------------------------


def test_an_example_is_sent_with_the_switches_it_needs(tab: Tab) -> None:
    tab.chat.get_by_text("Roll D6 dice twice!").click()
    expect(tab.said).to_have_text(["Roll D6 dice twice!"])
    expect(tab.page.locator("#use-tools").get_by_role("checkbox")).to_be_checked()
    tab.done()
    expect(tab.panel(re.compile(r"roll_dice\(max_num=6\) → [1-6]"))).to_have_count(2)
    expect(tab.replies.last).to_have_text(re.compile(r"You rolled [1-6] and [1-6]\."))


def test_a_thought_opens_counts_and_folds_when_the_answer_begins(browser: Browser, endless: Server) -> None:
    settings = {"thinking": True, "thinking_budget": 160, "max_tokens": 200, "sampling": {"seed": 1}}
    endless.store(id_of(1), GREETING, settings=settings)
    with opened(browser, endless, id_of(1)) as tab:
        tab.page.evaluate(WATCH)
        tab.ask("Which one is bigger, 3.12 vs 3.9?")
        titles = tab.page.evaluate("window.seen")
        counts = [
            tuple(map(float, re.findall(r"^Thinking · ([\d.]+) s · (\d+) tokens$", title)[0])) for title in titles
        ]
        assert len(counts) > 3 and counts == sorted(counts), f"open, it does not count on: {titles}"
        assert counts[0][1] < 100 < counts[-1][1] < 170
        folded = tab.panel(re.compile(r"Thought for [\d.]+ s · 1[56]\d tokens"))
        expect(folded).to_be_visible()
        expect(tab.chat.get_by_text("Integer parts").first).to_be_hidden()
        folded.click()
        expect(tab.chat.get_by_text("Integer parts").first).to_be_visible()


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a tool of ours, and the file that the tool leaves a mark in."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tools.py").write_text(TOOLS.format(ran=str(folder / "ran")))
    with Server(folder / "data", "--tools", str(folder / "tools.py")) as server:
        yield server, folder / "ran"


def test_a_tool_of_ones_own_asks_before_it_runs(browser: Browser, asking: tuple[Server, Path]) -> None:
    server, ran = asking
    with opened(browser, server) as tab:
        tab.settings()
        expect(tab.page.locator("#ask").get_by_role("checkbox")).to_be_checked()
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.page.evaluate(SLOW)  # the question comes, as the last frame, while the page draws an earlier one
        tab.say("Roll D6 dice!")
        expect(tab.chat.locator(".question")).to_contain_text("May this tool run? from the file tools.py")
        assert not ran.exists(), "it ran before it was allowed"
        tab.chat.get_by_role("button", name="Run it", exact=True).click()
        tab.done()
        assert ran.read_text() == "rolled\n"
        expect(tab.panel("roll_dice(max_num=6) → 4")).to_be_visible()
        expect(tab.replies.last).to_have_text("You rolled 4.")
        expect(tab.chat.locator(".question")).to_have_count(0)


def test_a_tool_that_was_not_allowed_does_not_run(browser: Browser, asking: tuple[Server, Path]) -> None:
    server, ran = asking
    with opened(browser, server) as tab:
        before = ran.read_text() if ran.exists() else ""
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.say("Roll D6 dice!")
        tab.chat.get_by_role("button", name="Do not run it", exact=True).click()
        tab.done()
        assert (ran.read_text() if ran.exists() else "") == before
        expect(tab.panel(re.compile(r"roll_dice\(max_num=6\) → Failed"))).to_be_visible()
        assert [message["role"] for message in server.stored(tab)["messages"]] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]


def test_stop_ends_a_tool_that_waits_for_a_word(browser: Browser, asking: tuple[Server, Path]) -> None:
    server, ran = asking
    with opened(browser, server) as tab:
        before = ran.read_text() if ran.exists() else ""
        tab.page.locator("#use-tools").get_by_role("checkbox").check()
        tab.say("Roll D6 dice!")
        expect(tab.chat.locator(".question")).to_contain_text("May this tool run? from the file tools.py")
        tab.stop.click()
        tab.done()
        assert (ran.read_text() if ran.exists() else "") == before


def test_stop_is_quick_and_keeps_the_text_so_far(browser: Browser, endless: Server, record_property: Any) -> None:
    endless.store(id_of(2), GREETING, settings={"sampling": {"seed": 1}})
    with opened(browser, endless, id_of(2)) as tab:
        latencies = []
        for turn in range(3):
            tab.say("Which one is bigger, 3.12 vs 3.9?")
            expect(tab.replies).to_have_count(turn + 2)
            expect(tab.replies.last).to_have_text(LONG_ENOUGH)
            so_far = (tab.replies.last.text_content() or "")[:40]
            latencies.append(tab.page.evaluate(STOP))
            expect(tab.replies.nth(turn + 1)).to_contain_text(so_far)
            expect(tab.replies.last).to_contain_text("Stopped.")
        record_property("stop_seconds", latencies)
        print("seconds from Stop to Send:", ", ".join(f"{seconds:.2f}" for seconds in latencies))
        assert min(latencies) < 1.5, f"stop takes {latencies} s"
        replies = [message for message in endless.stored(tab)["messages"] if message["role"] == "assistant"]
        assert [reply.get("finish_reason") for reply in replies[1:]] == ["cancelled"] * 3
        shown = tab.replies.all_inner_texts()
        tab.reload()
        expect(tab.replies).to_have_count(len(shown))
        assert tab.replies.all_inner_texts() == shown


def test_retry_undo_and_edit(tab: Tab, server: Server) -> None:
    tab.ask(SEOUL)
    revision = server.stored(tab)["revision"]
    tab.act("Retry")
    wait_for(lambda: server.stored(tab)["revision"] >= revision + 2, "retry replies again")
    tab.done()
    expect(tab.said).to_have_text([SEOUL])
    tab.ask("What is the capital of Italy?")
    tab.act("Undo")
    expect(tab.box).to_have_value("What is the capital of Italy?")
    expect(tab.said).to_have_text([SEOUL])
    tab.ask("What is the capital of Peru?")
    tab.act("Edit", which=0)
    tab.edit("What is the capital of Italy?")
    expect(tab.said).to_have_text(["What is the capital of Italy?"])
    tab.done()
    expect(tab.replies).to_have_text(["The capital of Italy is Rome."])
    assert len(server.stored(tab)["messages"]) == 2


def test_an_edit_sends_the_text_of_the_box(tab: Tab, server: Server) -> None:
    said = "Is 1 < 2 & 3 > 2, <b>really</b>? `a < b` &amp; ![x](y.png)"
    tab.ask(said)
    tab.act("Edit")
    field = tab.chat.locator(".editing textarea")
    expect(field).to_have_value(said)
    field.press("End")
    field.press_sequentially(" Yes?")
    tab.chat.locator(".editing .save").click()
    wait_for(lambda: server.stored(tab)["messages"][0]["content"] == f"{said} Yes?", "what was typed is sent")
    tab.done()


def test_a_long_korean_paste_stays_text_and_is_sent_whole(browser: Browser, server: Server) -> None:
    text = ("대한민국의 수도는 서울입니다. 페루의 수도는 리마입니다. " * 200)[:5999].strip().ljust(6000, "!")
    with opened(browser, server, locale="ko-KR", permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.page.evaluate("(text) => navigator.clipboard.writeText(text)", text)
        tab.box.press("Control+V")
        expect(tab.box).to_have_value(text)
        tab.send.click()
        expect(tab.said).to_have_text([text])
        tab.done()
        assert server.stored(tab)["messages"][0] == {"role": "user", "content": text}


def test_enter_sends_and_shift_enter_begins_a_line(tab: Tab, server: Server) -> None:
    tab.box.press_sequentially("Hello!")
    tab.box.press("Shift+Enter")
    tab.box.press_sequentially("Who are you?")
    safari = "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true, cancelable: true})"
    tab.box.evaluate(f"box => box.dispatchEvent({safari})")  # ends a composition
    expect(tab.box).to_have_value("Hello!\nWho are you?")
    tab.box.press("Enter")
    expect(tab.said).to_have_count(1)
    tab.done()
    assert server.stored(tab)["messages"][0]["content"] == "Hello!\nWho are you?"
    expect(tab.box).to_have_value("")


# --- files, and the limit of the context -------------------------------------------


def drop(tab: Tab, *files: FilePayload) -> None:
    """Drops files on the box, as from a desktop."""
    transfer = tab.page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const file of files) transfer.items.add(new File([file.text], file.name, {type: file.type}));
            return transfer;
        }""",
        [{"name": file["name"], "type": file["mimeType"], "text": file["buffer"].decode()} for file in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        tab.box.dispatch_event(event, {"dataTransfer": transfer})


def test_a_dropped_file_shows_its_tokens_before_it_is_sent(tab: Tab, server: Server) -> None:
    text = "The capital of Peru is Lima.\n" * 20
    drop(tab, {"name": "notes.md", "mimeType": "text/markdown", "buffer": text.encode()})
    expect(tab.files).to_have_text(re.compile(r"notes\.md · \d+ tokens"))
    expect(tab.chat.locator(".sum")).to_have_text(re.compile(r"about [\d,]+ of 8,192 tokens"))
    tab.say(SEOUL)
    expect(tab.files).to_have_count(0)
    tab.done()
    expect(tab.said.last).to_have_text(SEOUL)
    message = server.stored(tab)["messages"][0]
    assert (message["text"], message["files"][0]["name"], message["files"][0]["text"]) == (SEOUL, "notes.md", text)
    assert text.strip() in message["content"]
    tab.reload()
    expect(tab.panel(re.compile(r"notes\.md · \d+ tokens"))).to_be_visible()


def test_an_unreadable_file_gives_a_notice_and_the_text_stays(tab: Tab) -> None:
    tab.box.fill(SEOUL)
    drop(tab, {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 and nothing more"})
    expect(tab.files).to_contain_text("broken.pdf is damaged")
    tab.send.click()
    expect(tab.refusal).to_contain_text("broken.pdf is damaged")
    expect(tab.box).to_have_value(SEOUL)


def test_a_message_beyond_the_context_gives_a_notice_and_stays_in_the_box(browser: Browser, tmp_path: Path) -> None:
    with Server(tmp_path, "--max-kv-size", "200") as server, opened(browser, server) as tab:
        expect(tab.status).to_contain_text("0 of 200 tokens")
        text = "Tell me the capital of Peru. " * 60
        tab.say(text)
        expect(tab.refusal).to_contain_text("Not sent")
        expect(tab.box).to_have_value(text)
        expect(tab.said).to_have_count(0)
        tab.ask(SEOUL)
        expect(tab.replies.last).to_have_text("The capital of South Korea is Seoul.")


PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


def test_a_file_without_text_is_refused_at_once_and_the_page_goes_on(tab: Tab, server: Server) -> None:
    tab.box.fill(SEOUL)
    tab.attach(FilePayload(name="photo.png", mimeType="image/png", buffer=PNG))
    expect(tab.files).to_have_text(re.compile("photo.png holds no text"))
    tab.box.press("Enter")
    expect(tab.refusal).to_contain_text("photo.png")
    expect(tab.box).to_have_value(SEOUL)
    tab.chat.get_by_role("button", name="Remove this file").click()
    tab.box.press("Enter")
    tab.done()
    expect(tab.replies.last).to_have_text("The capital of South Korea is Seoul.")
    tab.attach(FilePayload(name="long.txt", mimeType="text/plain", buffer=b"The capital of Peru is Lima.\n" * 170_000))
    expect(tab.files).to_have_text(re.compile(r"long.txt has about [\d,]+ tokens, and a conversation holds 8,192"))
    tab.chat.get_by_role("button", name="Remove this file").click()
    tab.ask("What is the capital of Peru?")


# --- what a person types ---------------------------------------------------------


def test_words_typed_right_after_enter_stay_and_quick_messages_are_all_sent(tab: Tab, server: Server) -> None:
    countries = ["South Korea", "Italy", "Peru", "Japan", "Spain", "France"]
    for country in countries:
        tab.page.keyboard.type(f"What is the capital of {country}?")
        tab.page.keyboard.press("Enter")
    tab.page.keyboard.type("and then")
    expect(tab.said).to_have_text([f"What is the capital of {country}?" for country in countries])
    tab.done()
    expect(tab.box).to_have_value("and then")
    roles = [message["role"] for message in server.stored(tab)["messages"]]
    assert roles == ["user", "assistant"] * len(countries)


def test_a_message_that_waits_can_be_taken_back(browser: Browser, endless: Server) -> None:
    with opened(browser, endless) as tab:
        tab.say("Hello")
        expect(tab.stop).to_be_visible()
        tab.box.fill("And this?")
        tab.box.press("Enter")
        expect(tab.chat.locator(".waiting")).to_have_text(re.compile("And this?"))
        tab.chat.get_by_role("button", name="Back into the box").click()
        expect(tab.box).to_have_value("And this?")
        tab.box.press("Enter")
        tab.reload()
        expect(tab.box).to_have_value("And this?")
        tab.page.keyboard.press("Escape")
        tab.done()
        expect(tab.said).to_have_text(["Hello"])
        tab.say("Again")
        expect(tab.stop).to_be_visible()
        tab.act("Edit", which=0)
        tab.page.keyboard.press("Escape")  # ends the edit only
        expect(tab.box).to_be_focused()
        tab.act("Edit", which=0)
        tab.edit("refused")
        expect(tab.box).to_have_value("refused")
        tab.stop.click()


def test_a_draft_belongs_to_its_conversation_and_survives_a_reload(tab: Tab) -> None:
    tab.page.keyboard.type(SEOUL)
    tab.box.press("Enter")
    tab.page.keyboard.type("여기까지 썼다")
    tab.done()
    tab.page.locator("#new-chat").click()
    expect(tab.said).to_have_count(0)
    expect(tab.box).to_have_value("")
    tab.titles.filter(has_text=SEOUL).first.click()
    expect(tab.box).to_have_value("여기까지 썼다")
    tab.reload()
    expect(tab.box).to_have_value("여기까지 썼다")


def test_what_is_typed_and_sent_before_the_first_frame_is_kept(tab: Tab, server: Server) -> None:
    held: list[Any] = []
    slow = True  # the server is slow to open the conversation
    tab.page.route("**/gradio_api/queue/join*", lambda route: held.append(route) if slow else route.continue_())
    tab.page.goto(server.address)
    expect(tab.box).to_be_visible()
    tab.box.fill(SEOUL)
    tab.box.press("Enter")
    tab.page.keyboard.type("여기까지 썼다")
    expect(tab.chat.locator(".waiting")).to_have_text([re.compile(re.escape(SEOUL))])
    slow = False
    for route in held:
        route.continue_()
    expect(tab.said).to_have_text([SEOUL])
    tab.done()
    expect(tab.box).to_have_value("여기까지 썼다")


def test_arrow_up_edits_the_last_message_and_copy_gives_its_source(browser: Browser, server: Server) -> None:
    said, reply = "a < b & **c** `d`", "**엑사원(EXAONE)**은 1 < 2 &amp; `x`"
    server.store(id_of(8), [{"role": "user", "content": said}, {"role": "assistant", "content": reply,
                 "reasoning_content": "Hm", "finish_reason": "cancelled"}])  # fmt: skip
    with opened(browser, server, id_of(8), permissions=["clipboard-read", "clipboard-write"]) as tab:
        expect(tab.said).to_have_text([said])
        for which, source in ((0, said), (1, reply)):
            tab.act("Copy", which=which)
            wait_for(lambda source=source: tab.page.evaluate("navigator.clipboard.readText()") == source, source)
        tab.box.press("ArrowUp")
        expect(tab.chat.locator(".editing textarea")).to_have_value(said)
        tab.chat.locator(".editing textarea").press("Escape")
        expect(tab.said).to_be_visible()


def test_korean_marks_mean_what_their_writer_meant(browser: Browser, server: Server) -> None:
    reply = '3~4시간, 10~20명. **엑사원(EXAONE)**은 **"중요"**합니다. **100%**입니다. List<String> <div>'
    server.store(id_of(9), [GREETING[0], {"role": "assistant", "content": reply}])
    with opened(browser, server, id_of(9)) as tab:
        expect(tab.replies).to_have_text([reply.replace("**", "")])
        expect(tab.replies.locator("strong")).to_have_text(["엑사원(EXAONE)", '"중요"', "100%"])
        expect(tab.replies.locator("s, del")).to_have_count(0)


def test_html_is_previewed_in_a_frame_without_network_or_page(browser: Browser, server: Server) -> None:
    code = '<h1>hi</h1><script>document.title = "in"; try { parent.document.title = "out" } catch { document.body.append(" safe") }' \
           'fetch("/config").catch(() => document.body.append(" offline"))</script>'  # fmt: skip
    server.store(id_of(10), [GREETING[0], {"role": "assistant", "content": f"```html\n{code}\n```"}])
    with opened(browser, server, id_of(10)) as tab:
        tab.chat.get_by_role("button", name="Preview").click()
        expect(tab.chat.frame_locator("iframe").locator("body")).to_have_text(re.compile(r"hi\s+safe offline"))
        assert tab.page.title() != "out"


# --- two tabs of one conversation -------------------------------------------------


def test_every_tab_of_a_conversation_shows_the_same_and_old_states_change_nothing(
    browser: Browser, server: Server
) -> None:
    with opened(browser, server) as one:
        one.ask(SEOUL)
        with opened(browser, server, one.conversation) as other:
            expect(other.said).to_have_text([SEOUL])
            one.ask("What is the capital of Italy?")
            expect(other.said).to_have_text([SEOUL, "What is the capital of Italy?"])
            expect(other.replies.last).to_have_text("The capital of Italy is Rome.")
            other.done()
            other.context.set_offline(True)  # it gets no later frames
            one.ask("What is the capital of Peru?")
            stale = other.page.evaluate("document.querySelectorAll('#chat .said').length")
            assert stale == 2
            other.context.set_offline(False)
            other.act("Undo")
            expect(other.said).to_have_count(3)
            assert len(server.stored(one)["messages"]) == 6, "Undo removed what this tab never showed"


# --- long conversations --------------------------------------------------------------

ANSWER = "Seoul is **the capital**.\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


#: The nodes of the document, without those that wait for the garbage collection.
NODES = """() => { let count = 0; for (const walker = document.createNodeIterator(document); walker.nextNode();) count++; return count }"""


def test_a_reply_costs_the_page_the_same_at_any_length(browser: Browser, tmp_path: Path) -> None:
    """Main-thread seconds of a ten-token reply and of opening the page, and DOM nodes, at 0 to 200 turns.

    With branches, every reply has three versions.
    """
    turn = [{"role": "user", "content": SEOUL}, {"role": "assistant", "content": ANSWER}]
    beside = [
        {"parent": None, "at": at, "place": place, "dropped": 0, "messages": [turn[1], *turn]}
        for at in range(1, 400, 2)
        for place in (0, 1)
    ]
    with (
        Server(tmp_path, "--max-kv-size", "2000") as server,
        opened(browser, server) as tab,
    ):  # reads the last turns only
        numbers, counters = itertools.count(100), tab.context.new_cdp_session(tab.page)
        counters.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            found = {one["name"]: one["value"] for one in counters.send("Performance.getMetrics")["metrics"]}
            return float(found["TaskDuration"])

        def costs(turns: int, branches: list[Any]) -> tuple[float, float, int]:
            """Seconds of a reply and of opening, and nodes."""
            id = id_of(next(numbers)) if turns else ""
            if turns:
                server.store(id, turn * turns, branches=branches)
            tab.open(id)  # the counter begins anew
            expect(tab.said).to_have_count(15 if turns else 0)
            opening = busy()
            tab.ask(SEOUL)  # reads the prompt
            before = busy()
            tab.ask(SEOUL)
            return busy() - before, opening, tab.page.evaluate(NODES)

        cases = {"empty": (0, []), "50 turns": (50, []), "200 turns": (200, []), "200 with branches": (200, beside)}
        costs(0, [])  # what the first page compiles
        found = {
            name: [min(values) for values in zip(*[costs(*case) for _ in range(2)], strict=True)]
            for name, case in cases.items()
        }
    for name, (reply, opening, nodes) in found.items():
        print(f"{name}: {reply:.3f} s for a reply, {opening:.2f} s to open, {nodes} nodes")
    empty = found.pop("empty")
    for name, (reply, opening, nodes) in found.items():
        assert reply <= 2 * empty[0], f"{name}: a reply costs {reply:.3f} s, and {empty[0]:.3f} s in an empty one"
        assert opening <= empty[1] + 1 and nodes <= found["50 turns"][2] + 500, name


def test_older_messages_come_when_the_user_scrolls_up(browser: Browser, server: Server) -> None:
    turns = [[{"role": "user", "content": f"turn {n}"}, {"role": "assistant", "content": ANSWER}] for n in range(100)]
    server.store(id_of(12), [message for turn in turns for message in turn])
    with opened(browser, server, id_of(12)) as tab:
        expect(tab.said).to_have_count(15)
        expect(tab.said.last).to_be_in_viewport()
        for count in (30, 45):
            tab.chat.locator(".older").click()
            expect(tab.said).to_have_count(count)
        expect(tab.said.first).to_have_text("turn 55")
        tab.chat.locator(".scroller").evaluate("(e) => e.scrollTo(0, 0)")
        expect(tab.said.nth(50)).to_be_attached()


# --- conversations -----------------------------------------------------------------


def test_two_tabs_have_histories_of_their_own(browser: Browser, server: Server) -> None:
    with opened(browser, server) as one, opened(browser, server) as other:
        one.say(SEOUL)
        other.say("What is the capital of Italy?")
        one.done()
        other.done()
        one.ask("What is the capital of Peru?")
        expect(one.said).to_have_text([SEOUL, "What is the capital of Peru?"])
        expect(other.said).to_have_text(["What is the capital of Italy?"])
        expect(other.replies).to_have_text(["The capital of Italy is Rome."])
        assert one.conversation != other.conversation


def test_a_reload_brings_the_conversation_back(tab: Tab) -> None:
    tab.ask(SEOUL)
    tab.ask("What is the capital of Italy?")
    before = tab.conversation
    tab.reload()
    expect(tab.said).to_have_text([SEOUL, "What is the capital of Italy?"])
    expect(tab.replies.last).to_have_text("The capital of Italy is Rome.")
    assert tab.conversation == before
    tab.ask("What is the capital of Peru?")
    expect(tab.said).to_have_count(3)


def test_a_reload_in_the_middle_of_a_reply_finds_it_going_on(browser: Browser, endless: Server) -> None:
    endless.store(id_of(3), GREETING, settings=RAMBLING)
    with opened(browser, endless, id_of(3)) as tab:
        tab.say("Which one is bigger, 3.12 vs 3.9?")
        expect(tab.replies).to_have_count(2)
        expect(tab.replies.last).to_have_text(LONG_ENOUGH)
        before = tokens(tab)
        tab.reload()
        expect(tab.stop).to_be_visible()
        expect(tab.said).to_have_count(2)
        expect(tab.replies).to_have_count(2)
        now = tokens(tab)
        assert now > before, "it began anew"
        wait_for(lambda: tokens(tab) > now, "it goes on")
        tab.stop.click()
        tab.done()
        expect(tab.replies.last).to_contain_text("Stopped.")


def test_a_restart_of_the_server_and_a_reload_bring_it_back(browser: Browser, tmp_path: Path) -> None:
    with Server(tmp_path) as server, opened(browser, server) as tab:
        tab.ask(SEOUL)
        server.stop()
        server.start()
        tab.reload()
        expect(tab.said).to_have_text([SEOUL])
        tab.ask("What is the capital of Italy?")
        expect(tab.said).to_have_count(2)


def test_a_lost_connection_is_said_above_the_box_and_loses_no_message(browser: Browser, tmp_path: Path) -> None:
    with Server(tmp_path) as server, opened(browser, server, locale="ko-KR") as tab:
        tab.ask("대한민국의 수도는?")
        server.stop()
        expect(tab.refusal).to_have_text("앱이 응답하지 않습니다. 실행 중인지 확인하세요.")
        tab.box.fill("안녕하세요?")
        tab.box.press("Enter")
        expect(tab.chat.locator(".waiting")).to_contain_text("안녕하세요?")
        tab.attach({"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
        expect(tab.files).to_contain_text("a.txt: 앱이 응답하지 않습니다")
        assert not re.search("Error|Connection", tab.page.locator("body").inner_text()), "Gradio's English words"
        server.start()
        expect(tab.box).to_have_value("안녕하세요?")  # Gradio loads the page again
        expect(tab.refusal).to_be_hidden()
        tab.ready()
        tab.box.press("Enter")
        expect(tab.said).to_have_count(2)
        tab.done()


# --- settings ----------------------------------------------------------------------


def test_the_temperature_follows_the_mode_until_it_is_set(tab: Tab) -> None:
    thinking = tab.page.locator("#thinking").get_by_role("checkbox")
    temperature = tab.number("temperature")
    tab.settings()
    tab.unfold("sampling")
    expect(temperature).to_have_value("0.1")
    thinking.check()
    expect(temperature).to_have_value("0.6")
    thinking.uncheck()
    expect(temperature).to_have_value("0.1")
    temperature.fill("1.5")
    temperature.press("Tab")
    thinking.check()
    tab.ask(SEOUL)
    expect(temperature).to_have_value("1.5")
    tab.page.locator("#reset").click()
    expect(temperature).to_have_value("0.6")


def test_settings_belong_to_the_conversation_and_come_back(tab: Tab, server: Server) -> None:
    tab.settings()
    tab.page.locator("#system textarea").fill("Be brief.")
    tab.page.locator("#thinking").get_by_role("checkbox").check()
    tab.ask(SEOUL)
    settings = server.stored(tab)["settings"]
    assert settings["system"] == "Be brief." and settings["thinking"] is True
    tab.reload()
    tab.settings()
    expect(tab.page.locator("#system textarea")).to_have_value("Be brief.")
    expect(tab.page.locator("#thinking").get_by_role("checkbox")).to_be_checked()


@pytest.mark.parametrize(
    ("locale", "box", "settings", "question", "answer"),
    [
        ("ko-KR", "EXAONE에게 메시지 보내기", "설정", "대한민국의 수도는?", "대한민국의 수도는 서울입니다."),
        ("es-ES", "Escribe a EXAONE", "Ajustes", "Dime la capital de Italia.", "La capital de Italia es Roma."),
    ],
)
def test_the_page_speaks_the_language_of_the_browser(
    browser: Browser, server: Server, locale: str, box: str, settings: str, question: str, answer: str
) -> None:
    with opened(browser, server, locale=locale) as tab:
        expect(tab.box).to_have_attribute("placeholder", box)
        expect(tab.page.locator("#open-settings")).to_have_text(settings)
        tab.chat.get_by_text(question).click()
        expect(tab.replies).to_have_text([answer])
        tab.done()


def test_a_language_that_was_chosen_stays(tab: Tab) -> None:
    tab.settings()
    tab.page.locator("#language input").click()
    tab.page.get_by_role("option", name="한국어").click()
    expect(tab.page.locator("#open-settings")).to_have_text("설정")
    expect(tab.chat.get_by_text("대한민국의 수도는?")).to_be_visible()
    tab.reload()
    expect(tab.page.locator("#open-settings")).to_have_text("설정")
    expect(tab.box).to_have_attribute("placeholder", "EXAONE에게 메시지 보내기")
    tab.page.locator("#open-settings").click()
    tab.page.locator("#language input").click()
    tab.page.get_by_role("option").first.click()
    expect(tab.page.locator("#open-settings")).to_have_text("Settings")


# --- what is shown ------------------------------------------------------------------

HOSTILE = """<script>alert("script")</script>
<img src=x onerror=alert("image")> <iframe src="http://example.com/frame"></iframe>
<a href="javascript:alert('link')">tag</a> [link](javascript:alert('markdown')) ![x](http://example.com/x.png)
<svg onload=alert("svg")></svg> <form action="http://example.com/form"><button>go</button></form>
![ref]

[ref]: http://example.com/ref.png
"""


def test_html_scripts_and_pictures_in_messages_are_inert(browser: Browser, server: Server) -> None:
    call = {"type": "function", "function": {"name": "<b>f</b>", "arguments": {"x": HOSTILE}}}
    messages = [
        {
            "role": "user",
            "content": HOSTILE,
            "text": HOSTILE,
            "files": [{"name": HOSTILE, "tokens": 3, "text": HOSTILE}],
        },
        {"role": "assistant", "content": "", "reasoning_content": HOSTILE, "tool_calls": [call]},
        {"role": "tool", "content": HOSTILE},
        {"role": "assistant", "content": HOSTILE},
    ]
    server.store(id_of(4), messages, title=HOSTILE)
    with opened(browser, server, id_of(4)) as tab:
        tab.ask(HOSTILE)
        for panel in tab.chat.get_by_role("button").filter(has=tab.page.locator("p")).all():
            panel.click()
        foreign = "img, script, iframe, form, object, embed, video, audio, [onerror], [onload], a[href^=javascript]"
        expect(tab.chat.locator(foreign)).to_have_count(0)
        expect(tab.said.last).to_contain_text('<script>alert("script")</script>')
        expect(tab.said.last).to_contain_text('<img src=x onerror=alert("image")>')
        expect(tab.page.locator("#conversations").locator(foreign)).to_have_count(0)


def test_korean_markdown_means_what_its_writer_meant(browser: Browser, server: Server) -> None:
    messages = [{"role": "user", "content": TORTURE}, {"role": "assistant", "content": TORTURE}]
    server.store(id_of(16), messages, title="markdown")
    with opened(browser, server, id_of(16)) as tab:
        expect(tab.replies.locator("math")).to_have_count(3)
        assert tab.said.text_content() == TORTURE, "a user's message is shown as it was typed"
        assert tab.said.locator("strong, em, del, math, li, td, h3").count() == 0
        shown = tab.replies.inner_text()
        for words in (
            "회의는 3~5시, 7~9시이고 10~20명이 3~4시간 걸립니다. 안녕~~ 반가워~~! 취소는 됩니다.",
            '엑사원(EXAONE)은 "중요"합니다. 값은 100%입니다. 가(나)은, 전부(all)를, 코드는.',
            "2*3*4 = 24, 가로*세로*높이, x**2 + y**2, 넓이 = 가로*세로",
            'List<String>, <div class="a">본문</div>, <details> &lt; &nbsp;',
            'def f(x):  # 3~5 **가(나)**은\n    return x ** 2 if x < 3 else "<b>"',
            "~ **a)**은",
            "그리고 __init__은, snake_case는.",
        ):
            assert words in shown, shown
        marked = {
            tag: tab.replies.locator(tag).all_inner_texts()
            for tag in ("del, s", "strong", "em", "th, td", "blockquote")
        }
        assert marked == {
            "del, s": ["취소"],
            "strong": [
                "엑사원(EXAONE)",
                '"중요"',
                "100%",
                "전부(all)",
                "코드",
                "링크",
                "넓이 = 가로*세로",
                "온도(℃)",
                '"안"',
            ],
            "em": ["가(나)", "전부(all)"],
            "th, td": ["항목", "값", "온도(℃)는", "3~5", "~ **a)**은", marked["th, td"][-1]],
            "blockquote": ['인용 "안"에서도 3~5, 7~9.'],
        }
        href = tab.replies.get_by_role("link").get_attribute("href")
        assert unquote(href or "") == "https://ko.wikipedia.org/wiki/한국"


def test_mathematics_and_code_are_typeset(browser: Browser, server: Server) -> None:
    code = 'def f(x):\n    return x < 2 and "$a$"'
    reply = f"So $x^2$ and \\(y^3\\), for $5 or $6:\n\n$$\\frac{{1}}{{2}}$$\n\n```python\n{code}\n```\n"
    server.store(id_of(5), [GREETING[0], {"role": "assistant", "content": reply}], title="mathematics")
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, server, id_of(5), permissions=permissions) as tab:
        expect(tab.replies.locator("math")).to_have_count(3)
        expect(tab.replies).to_contain_text(["for $5 or $6:"])
        expect(tab.replies.locator("pre code")).to_have_text(code)
        tab.replies.locator("pre").locator("xpath=..").get_by_role("button").click()
        assert tab.page.evaluate("navigator.clipboard.readText()") == code


def test_dark_where_the_system_is_dark(browser: Browser, server: Server) -> None:
    with opened(browser, server, color_scheme="dark") as dark, opened(browser, server, color_scheme="light") as light:
        assert brightness(dark, "body") < 0.2 < 0.8 < brightness(light, "body")


def test_a_theme_that_was_chosen_comes_without_a_reload_and_stays(tab: Tab) -> None:
    tab.box.fill("not sent yet")
    tab.page.evaluate("window.same = true")
    tab.settings()
    tab.page.locator("#appearance").get_by_text("Dark", exact=True).click()
    wait_for(lambda: brightness(tab, "body") < 0.3, "it is dark")
    assert tab.page.evaluate("window.same") and tab.box.input_value() == "not sent yet"
    tab.reload()
    wait_for(lambda: brightness(tab, "body") < 0.3, "it is dark again")
    expect(tab.box).to_have_value("not sent yet")


def test_a_phone_shows_the_chat_first(browser: Browser, server: Server) -> None:
    server.store(id_of(6), GREETING, title="another")
    with opened(browser, server, viewport=PHONE, has_touch=True, is_mobile=True) as tab:
        expect(tab.page.locator("#new-chat")).not_to_be_in_viewport()
        expect(tab.box).to_be_in_viewport()
        tab.ask(SEOUL)
        expect(tab.replies.last).to_be_in_viewport()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "it scrolls sideways"
        for _ in range(2):
            tab.page.get_by_role("button", name="Toggle Sidebar").first.click()
            expect(tab.page.locator("#new-chat")).to_be_in_viewport()
            tab.page.keyboard.press("Escape")
            expect(tab.page.locator("#new-chat")).not_to_be_in_viewport()
        tab.page.get_by_role("button", name="Toggle Sidebar").first.click()
        expect(tab.page.locator("#new-chat")).to_be_in_viewport()
        expect(tab.titles.first).to_be_in_viewport()
        tab.titles.filter(has_text="another").click()
        expect(tab.page.locator("#new-chat")).not_to_be_in_viewport()
        expect(tab.said).to_have_text(["Hello!"])


# --- without a network ---------------------------------------------------------------


@pytest.mark.usefixtures("browser")
def test_it_works_without_a_network(tmp_path: Path) -> None:
    """Server and browser in a network namespace that has a loopback and nothing else."""
    command = ["unshare", "-n", "bash", "-c", 'ip link set lo up && exec "$0" "$@"']
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("network namespaces are not permitted here")
    script = Path(__file__).parents[1] / "browser.py"
    probe = subprocess.run([*command, sys.executable, script, tmp_path], capture_output=True, text=True, timeout=240)
    assert probe.returncode == 0, probe.stderr
    assert json.loads(probe.stdout) == ["The capital of South Korea is Seoul."]


def test_the_screenshots_can_be_taken_anew(browser: Browser, tmp_path: Path) -> None:
    from screenshots import take

    with Server(tmp_path / "data") as server:
        files = take(browser, server, tmp_path / "screenshots")
    assert [file.stem for file in files] == [
        "branches",
        "dark",
        "korean",
        "light",
        "models",
        "phone",
        "settings",
        "tools",
    ]
    assert sum(file.stat().st_size for file in files) < 1_500_000
