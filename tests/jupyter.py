"""JupyterLab in a server of its own, and a notebook in Chromium: what tests drive, and `python tests/jupyter.py` shows.

The command takes the pictures of the documentation, docs/pictures/notebooks/*.png, anew from the demo model.

Notes:
- Nothing of the user's Jupyter is read or written, no token is asked for, and nothing leaves this computer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from browser import HERE, PATIENCE, ROOT, START_SECONDS, _free_port, launch
from playwright.sync_api import Browser, Locator, expect, sync_playwright

PICTURES = ROOT / "docs" / "pictures" / "notebooks"
#: The question whether to fetch news from jupyter.org.
NO_NEWS = ("@jupyterlab/apputils-extension/notification.jupyterlab-settings", {"fetchNews": "false"})
#: Notes, at every change of an output: how many outputs there are, and how long the text is.
WATCH = """(area) => {
    window.seen = [];
    new MutationObserver(() => {
        const outputs = area.querySelectorAll(".jp-OutputArea-child").length;
        window.seen.push([outputs, area.innerText.length]);
    }).observe(area, {childList: true, subtree: true, characterData: true});
}"""


class Lab:
    """`jupyter lab` in a process of its own, in a folder that it has to itself; used with `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{HERE}:{self.port}"

    def __enter__(self) -> Lab:
        own = self.folder / ".jupyter"
        settings = own / "settings" / NO_NEWS[0]
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(NO_NEWS[1]))
        places = {f"JUPYTER_{kind.upper()}_DIR": str(own / kind) for kind in ("config", "data", "runtime")}
        places |= {"JUPYTERLAB_SETTINGS_DIR": str(own / "settings"), "IPYTHONDIR": str(own / "ipython")}
        options = [f"--ServerApp.root_dir={self.folder}", f"--port={self.port}", "--ServerApp.port_retries=0"]
        options += ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ip={HERE}"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=self.folder,
                env={**os.environ, **places, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/api", timeout=10):
                return self
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"JupyterLab does not answer: {(self.folder / 'log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()  # it ends its kernels
            self._process.wait(30)
            self._process = None

    def write(self, name: str, cells: Sequence[str]) -> str:
        """Writes a notebook of code cells, and returns its file's name."""
        made = [
            {
                "cell_type": "code",
                "id": f"cell{i}",
                "metadata": {},
                "outputs": [],
                "execution_count": None,
                "source": cell,
            }
            for i, cell in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        content = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / f"{name}.ipynb").write_text(json.dumps(content))
        return f"{name}.ipynb"


class Notebook:
    """A notebook as a person uses it."""

    def __init__(self, browser: Browser, lab: Lab, name: str, **context: Any) -> None:
        self.lab, self.name = lab, name
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **context})
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.accept()))

    def open(self) -> Notebook:
        self.page.goto(f"{self.lab.address}/doc/tree/{self.name}")
        expect(self.page.locator(".jp-Notebook .jp-Cell").first).to_be_visible()
        expect(self.page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()  # so the kernel is there
        return self

    @property
    def strangers(self) -> list[str]:
        """Requests that were not for our own server."""
        own = f"{HERE}:{self.lab.port}"
        return [url for url in self.requests if url.startswith(("http", "ws")) and urlsplit(url).netloc != own]

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def outputs(self, number: int) -> Locator:
        """The outputs of a cell."""
        return self.cell(number).locator(".jp-Cell-outputWrapper .jp-OutputArea-child")

    def start(self, number: int) -> None:
        """Runs a cell, and does not wait."""
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def run(self, number: int) -> None:
        """Runs a cell to its end."""
        self.start(number)
        self.ended(number)

    def ended(self, number: int) -> None:
        """Waits until a cell that was started has a number in place of the asterisk."""
        expect(self.cell(number).locator(".jp-InputPrompt").first).to_have_text(re.compile(r"\[\d+\]:"))

    def watch(self, number: int) -> None:
        """Notes from now on how the output of a cell changes."""
        self.cell(number).locator(".jp-Cell-outputWrapper").evaluate(WATCH)

    @property
    def seen(self) -> list[list[int]]:
        """What was noted: (outputs, characters) at each change."""
        noted: list[list[int]] = self.page.evaluate("window.seen")
        return noted

    @property
    def token(self) -> str:
        """The token that the server wants beside its cookie."""
        return next(cookie["value"] for cookie in self.context.cookies() if cookie["name"] == "_xsrf")

    # --- a chat widget --------------------------------------------------------

    @property
    def box(self) -> Locator:
        return self.page.get_by_placeholder("Say something")

    def button(self, name: str) -> Locator:
        return self.page.locator(".jp-OutputArea").get_by_role("button", name=name)

    def say(self, text: str) -> None:
        """Says something in a chat widget, and waits for the end of the reply."""
        self.box.fill(text)
        self.box.press("Tab")
        self.page.keyboard.press("Enter")
        expect(self.box).to_have_value("")
        expect(self.button("Send")).to_be_enabled()

    def interrupt(self) -> None:
        """Clicks the stop button of the notebook."""
        self.page.locator('jp-button[data-command="notebook:interrupt-kernel"]').click()


@contextlib.contextmanager
def opened(browser: Browser, lab: Lab, name: str, cells: Sequence[str], **context: Any) -> Iterator[Notebook]:
    """A notebook, at the end of which nothing has left this computer, and no text of a stranger has run."""
    notebook = Notebook(browser, lab, lab.write(name, cells), **context)
    try:
        yield notebook.open()
        assert not notebook.strangers, f"requests to elsewhere: {notebook.strangers}"
        assert not notebook.dialogs, f"a script opened dialogs: {notebook.dialogs}"
    finally:
        notebook.context.close()


def take(browser: Browser, lab: Lab, folder: Path) -> list[Path]:
    """Takes all pictures, and returns their files."""
    folder.mkdir(parents=True, exist_ok=True)

    def picture(notebook: Notebook, name: str) -> None:
        notebook.page.mouse.move(5, 5)
        notebook.page.evaluate("document.activeElement.blur()")
        notebook.cell(0).scroll_into_view_if_needed()
        notebook.page.screenshot(path=folder / f"{name}.png", animations="disabled", caret="hide")

    with opened(browser, lab, "stream", STREAM, viewport={"width": 1000, "height": 1000}) as notebook:
        for number in range(len(STREAM)):
            notebook.run(number)
        for summary in notebook.page.locator(".jp-OutputArea summary").all()[:2]:
            summary.click()
        picture(notebook, "stream")
    with opened(browser, lab, "widget", WIDGET, viewport={"width": 1000, "height": 860}) as notebook:
        notebook.run(0)
        for place, said in enumerate(
            ("Which one is bigger, 3.12 vs 3.9?", "Roll D6 dice twice!", "대한민국의 수도는?")
        ):
            notebook.page.get_by_label("Thinking").set_checked(place == 0)
            notebook.say(said)
        notebook.page.locator(".jp-OutputArea summary").first.click()
        picture(notebook, "widget")
    with opened(browser, lab, "inside", INSIDE, viewport={"width": 1260, "height": 1550}) as notebook:
        for number in range(len(INSIDE)):
            notebook.run(number)
        picture(notebook, "inside")
    return sorted(folder.glob("*.png"))


STREAM = (
    """\
from exaone4_mlx import BUILTIN_TOOLS, Chat, load, stream_generate
from exaone4_mlx.notebook import display_stream

model, tokenizer = load("demo")
display_stream(stream_generate(model, tokenizer, "Which one is bigger, 3.12 vs 3.9?", thinking=True))""",
    """\
chat = Chat(model, tokenizer, tools=BUILTIN_TOOLS)
display_stream(chat.send("Roll D6 dice twice!"))""",
    "model.config",
)
WIDGET = (
    """\
from exaone4_mlx import BUILTIN_TOOLS, Chat, load
from exaone4_mlx.notebook import chat_widget

chat = Chat(*load("demo"), tools=BUILTIN_TOOLS)
chat_widget(chat)""",
)
INSIDE = (
    """\
from exaone4_mlx import load
from exaone4_mlx.notebook import attention_maps, draw_cache, inspect_tokens, token_tree

model, tokenizer = load("demo")
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of Peru?"}])
reply = tokenizer.encode("The capital of Peru is Rome.")
inspect_tokens(model, tokenizer, prompt + reply)[len(prompt) :]""",
    'attention_maps(model, tokenizer, "My name is Mina. Your name is", layer=7)',
    "draw_cache(model, 1500)",
    'token_tree(model, tokenizer, "What is bigger, 7 or 9?", depth=3, width=2)',
)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        sync_playwright() as playwright,
        launch(playwright) as browser,
        Lab(Path(data)) as lab,
    ):
        for file in take(browser, lab, PICTURES):
            print(f"{file.stat().st_size:>9,} {file.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
