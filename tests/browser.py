"""The app in a server of its own, and its page in Chromium: what the browser tests and the screenshots drive.

Notes:
- Widgets are found by our own ids, by roles and by the texts that a person reads, never by Gradio's class names.
- A page notes every request, dialog and error. Names of hosts do not resolve at all: what leaves this computer fails,
  and is seen.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Playwright, expect, sync_playwright

from exaone4_mlx.files.folders import DEMO_FOLDER

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
START_SECONDS = 120
PATIENCE = 60_000  # ms, for what a busy machine may be slow at
HERE = "127.0.0.1"

#: A file of tools, for `--tools`. The tool writes a line into the file `ran`.
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

expect.set_options(timeout=PATIENCE)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", OFFLINE])


class Server:
    """`python -m app` in a process of its own; used with `with`."""

    def __init__(self, data: Path, *options: str, model: str = "demo") -> None:
        self.data, self.port = data, _free_port()
        self._options = ["--model", model, "--data-dir", str(data), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{HERE}:{self.port}"

    @property
    def folder(self) -> Path:
        """Where its conversations are."""
        return self.data / "conversations"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers. The log is for a person who looks for what went wrong."""
        self.data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "app", "--port", str(self.port), "--no-browser", *self._options]
        with (self.data / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/config", timeout=10):
                return
            time.sleep(0.1)
        code = self._process.poll()
        self.stop()
        log = (self.data / "log").read_text()[-2000:]
        raise RuntimeError(f"the app does not answer (exit code {code}): {log}")

    def stop(self) -> None:
        """As Ctrl-C does it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        self._process = None

    # --- what is on disk ------------------------------------------------------

    def stored(self, tab: Tab) -> dict[str, Any]:
        """The file of the conversation that a tab shows."""
        content: dict[str, Any] = json.loads((self.folder / f"{tab.conversation}.json").read_text())
        return content

    def store(self, id: str, messages: Sequence[dict[str, Any]], **values: Any) -> str:
        """Writes a conversation as the app does, and returns its id."""
        when = "2026-01-01T09:00:00.000000+00:00"
        content = {"format": "exaone4_mlx conversation", "version": 1, "id": id, "created": when, "updated": when}
        content |= {"title": "", "revision": 1, "messages": list(messages)} | values
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{id}.json").write_text(json.dumps(content, ensure_ascii=False))
        return id


class Tab:
    """The page of the app as a person uses it."""

    def __init__(self, browser: Browser, server: Server, **context: Any) -> None:
        """`context` are options of Playwright's `new_context`, for instance `locale`."""
        self.server = server
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **context})
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.watch(self.page)

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, conversation: str = "") -> Tab:
        self.page.goto(self.server.address + (f"/?conversation={conversation}" if conversation else ""))
        return self.ready()

    def reload(self) -> Tab:
        self.page.reload()
        return self.ready()

    def ready(self) -> Tab:
        """Waits until the server has filled the page."""
        expect(self.box).to_be_visible()
        expect(self.status.locator("meter")).to_be_visible()
        if self.conversation:  # a frame comes before the messages
            expect(self.chat.locator(".items .item").first).to_be_attached()
        return self

    def close(self) -> None:
        self.context.close()

    @property
    def conversation(self) -> str:
        """The id in the address of the page."""
        return re.sub(r".*[?&]conversation=([^&#]*).*|.*", r"\1", self.page.url)

    @property
    def strangers(self) -> list[str]:
        """Requests that were not for our own server."""
        return [url for url in self.requests if urlsplit(url).scheme not in ("data", "blob") and not self._own(url)]

    def _own(self, url: str) -> bool:
        return urlsplit(url).netloc == f"{HERE}:{self.server.port}"

    # --- the chat -------------------------------------------------------------

    @property
    def box(self) -> Locator:
        return self.page.locator("#chat .composer textarea")

    @property
    def send(self) -> Locator:
        return self.chat.locator(".send")

    @property
    def stop(self) -> Locator:
        return self.chat.locator(".stop")

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def chat(self) -> Locator:
        return self.page.locator("#chat")

    @property
    def said(self) -> Locator:
        """The messages of the person."""
        return self.chat.locator(".said")

    @property
    def replies(self) -> Locator:
        """The messages of the model, each with its thought, its blocks and its calls."""
        return self.chat.locator(".assistant .parts")

    def say(self, text: str) -> None:
        self.box.fill(text)
        expect(self.send).to_be_enabled()
        self.send.click()

    def ask(self, text: str) -> None:
        """Says something and waits for the end of the reply."""
        before = self.said.count()
        self.say(text)
        expect(self.said).to_have_count(before + 1)
        self.done()

    def done(self) -> None:
        """Waits for the end of a reply, and until the page shows it as a finished message."""
        expect(self.stop).to_be_hidden()
        expect(self.chat.locator(".waiting")).to_have_count(0)
        expect(self.chat.locator(".live .item")).to_have_count(0)
        expect(self.chat.locator(".items .assistant").last).to_be_visible()

    def panel(self, title: str | re.Pattern[str]) -> Locator:
        """The title of a folded panel."""
        return self.chat.locator("summary").filter(has_text=title)

    def act(self, name: str, which: int = -1) -> None:
        """Clicks an icon under a message: Copy, Edit, Retry, Undo."""
        self.chat.locator(".actions").get_by_role("button", name=re.compile(rf"^{name}(:|$)"), include_hidden=True).nth(
            which
        ).click()

    def edit(self, text: str) -> None:
        """Replaces the text in the box of a message that is being edited, and sends it."""
        self.chat.locator(".editing textarea").fill(text)
        self.chat.locator(".editing .save").click()

    @property
    def files(self) -> Locator:
        """The files of the next message, each with its tokens or with what is wrong."""
        return self.chat.locator(".chip")

    def attach(self, *files: Any) -> None:
        """Chooses files for the next message."""
        self.chat.locator("input[type=file]").set_input_files(list(files))

    # --- around it ------------------------------------------------------------

    @property
    def refusal(self) -> Locator:
        """Why the message was not sent, above the box."""
        return self.chat.locator(".notice")

    def notice(self, text: str | re.Pattern[str]) -> Locator:
        return self.page.get_by_test_id("toast-body").filter(has_text=text)

    @property
    def titles(self) -> Locator:
        """The titles in the list of conversations."""
        return self.page.locator("#conversations a .title")

    def line(self, title: str) -> Locator:
        """The conversation with this title in the list."""
        return self.page.locator("#conversations a").filter(has_text=title).first

    def menu(self, title: str, item: str) -> None:
        """Chooses something from the menu of a conversation."""
        self.line(title).hover()
        self.page.locator("#conversations .row").filter(has_text=title).first.locator(".more").click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()

    @property
    def search(self) -> Locator:
        return self.page.locator("#search")

    @property
    def hint(self) -> Locator:
        """What is below the list of conversations."""
        return self.page.locator("#conversations .hint")

    @property
    def said_by_list(self) -> Locator:
        """The notice of the list."""
        return self.page.locator("#conversations .toast")

    def settings(self) -> None:
        """Opens the settings."""
        self.page.locator("#open-settings").click()
        expect(self.page.locator("#system")).to_be_in_viewport()

    def unfold(self, id: str) -> None:
        """Opens an accordion."""
        self.page.locator(f"#{id} > button").click()
        self.page.wait_for_timeout(500)  # Gradio creates the fields now, and sets their values a little later

    def number(self, id: str) -> Locator:
        """The number beside a slider, or a field of one."""
        return self.page.locator(f"#{id} input[type=number]")


def endless_model(folder: Path) -> Path:
    """The demo without an end: a copy that can say no token that ends a turn or a thought, or begins a call."""
    import mlx.core as mx

    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("recipe", "*.safetensors", "*.md"))
    (source,) = DEMO_FOLDER.glob("*.safetensors")
    weights = mx.load(str(source))
    tokens = json.loads((DEMO_FOLDER / "tokenizer.json").read_text())["added_tokens"]
    rows = [token["id"] for token in tokens if token["content"] in ("[|endofturn|]", "</think>", "<tool_call>")]
    assert len(rows) == 3, "the demo's tokenizer has other tokens than expected"
    weights["model.embed_tokens.weight"][mx.array(rows)] = 0  # the embeddings are tied: their logits are 0
    mx.save_safetensors(str(folder / source.name), weights, {"format": "mlx"})
    return folder


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE / 1000) -> None:
    """Waits for something outside of the browser."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.05)


def id_of(number: int) -> str:
    """Of a stored conversation."""
    return f"20261125-090000-{number:08x}"


@contextlib.contextmanager
def opened(browser: Browser, server: Server, conversation: str = "", **context: Any) -> Iterator[Tab]:
    """A tab, at the end of which nothing has left this computer, no dialog came, and no script failed."""
    tab = Tab(browser, server, **context)
    try:
        yield tab.open(conversation)
        assert not tab.strangers, f"requests to elsewhere: {tab.strangers}"
        assert not tab.dialogs, f"a script opened dialogs: {tab.dialogs}"
        assert not tab.errors, f"scripts failed: {tab.errors}"
    finally:
        tab.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Asks one thing, with the data in a folder, and prints the replies as JSON: for a place without a network."""
    with (
        sync_playwright() as playwright,
        launch(playwright) as browser,
        Server(Path(sys.argv[1])) as server,
        opened(browser, server) as tab,
    ):
        tab.ask("What is the capital of South Korea?")
        print(json.dumps(tab.replies.all_inner_texts()))


if __name__ == "__main__":
    main()
