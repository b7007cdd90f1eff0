"""No escape code of a model, a file, a tool or an error reaches a terminal: a pseudo terminal reads every path to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import struct
import sys
import termios
import tty
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx import Answer, Done, Thinking, ToolCall
from exaone4_mlx.cli.main import logged_warnings, main
from exaone4_mlx.cli.output import TextPrinter, log, prepare_streams, progress_bar
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.terminal.pipe import PipeScreen
from exaone4_mlx.terminal.screen import Screen
from exaone4_mlx.tools.call import ToolResult

#: None is what the program draws itself: other colours, and the cursor only at the begin of a line or up.
EVIL = [
    "\x1b]0;title\x07", "\x1b[2J", "\x1b[35;44mred", "\x1b[5A", "\x9b5A", "\x1bPq\x1b\\", "\rover", "\x08", "\u202e",
    "\u2066", "\u061c", "\x85", "\x7f", "\x1b[?1049h", "\x1b]8;;http://e\x1b\\", "\x0e", "\x9d0;t\x9c", "\x1bc", "\x0c",
]  # fmt: skip
OWN = re.compile(r"\x1b\[(?:(?:[0-24]|3[0-9]|9[0-7])(?:;(?:[0-24]|3[0-9]|9[0-7]))*)?m|\x1b\[1?A|\x1b\[2K|[\r\n\t]")
DONE = Done("stop", 1, 0, 1, 1, 0.1, 0.1, 0.0, 0)


class PseudoTerminal:
    """A terminal as standard output and error; `read()` is what arrives there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        monkeypatch.setenv("TERM", "xterm")
        self.streams = [os.fdopen(os.dup(self.slave), "w", encoding="utf-8") for _ in range(2)]
        for name, stream in zip(("stdout", "stderr"), self.streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        prepare_streams()

    def read(self) -> str:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        got = b""
        while select.select([self.master], [], [], 0)[0]:
            got += os.read(self.master, 65536)
        return got.decode()

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def pseudo_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], PseudoTerminal]]:
    """To be called in the test: pytest replaces the streams after the fixtures."""
    made: list[PseudoTerminal] = []
    yield lambda: made.append(PseudoTerminal(monkeypatch)) or made[0]  # type: ignore[func-returns-value]
    for terminal in made:
        terminal.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("recipe", "draft")))


def command(*arguments: str) -> None:
    with contextlib.suppress(SystemExit, Exception):
        main(arguments)


def paths(folder: Path) -> dict[str, Callable[[str], Any]]:
    """What writes a hostile text to a terminal."""
    run = "generate", "-p", "Hi", "--model", str(folder)
    original = {path.name: path.read_bytes() for path in folder.iterdir()}

    def changed(name: str, content: bytes | str, *arguments: str) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        command(*(arguments or run))
        (folder / name).write_bytes(original.get(name, b""))

    def header(evil: str) -> bytes:
        entries = json.dumps({evil: {"dtype": evil, "shape": [1], "data_offsets": [0, 4]}}).encode()
        return struct.pack("<Q", len(entries)) + entries + bytes(4)

    def warn(evil: str) -> None:
        with logged_warnings():
            warnings.warn(evil, stacklevel=1)

    def bar(evil: str) -> None:
        with progress_bar(evil, evil) as report:
            report(1, 3)
        from tqdm import tqdm

        with tqdm(total=2, desc=evil, delay=0) as other:
            other.update(1)

    def events(evil: str) -> list[Any]:
        call = ToolCall(evil, {evil: evil})
        result = ToolResult(call, {"error": evil}, True, 0.1)
        return [Thinking(evil), Answer(f"{evil}\n\n**{evil}** `{evil}`\n"), call, result, Answer(evil, evil), DONE]

    def printer(evil: str) -> None:
        made = TextPrinter(runs_calls=False)
        for event in [*events(evil), *events(evil)]:
            made.show(event)
        for event in events(evil):
            PipeScreen().show(event)

    def screen(evil: str) -> None:
        made = Screen()
        with made.reply():
            for event in events(evil):
                made.show(event)
                made.status(evil)
                made.progress(1, 2, evil, evil)
                made.refresh()
            with made.asking(ToolCall(evil, {evil: evil})):
                pass
        (
            made.note(evil),
            made.error(evil),
            made.markdown(f"| {evil} |\n|---|\n| [{evil}](http://{evil}) |"),
            made.summary(evil),
        )

    def prompt(evil: str) -> None:
        from prompt_toolkit.output import create_output

        from exaone4_mlx.terminal.input import cleaned

        output = cleaned(create_output())
        output.write(evil)
        output.flush()

    def tools(evil: str) -> None:
        file = folder / "tools.py"
        file.write_text(f"raise ValueError({evil!r})")
        command(*run, "--tools", str(file))
        command(*run, "--tools", str(file), "--debug")

    def uncaught(evil: str) -> None:
        try:
            raise ValueError(evil)
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)

    quoted = json.dumps
    return {
        "unknown flag": lambda evil: command(*run, f"--{evil}"),
        "unknown command": lambda evil: command(evil),
        "choice": lambda evil: command(*run, "--dtype", evil),
        "name of a model": lambda evil: command("generate", "-p", "Hi", "--model", f"./{evil}"),
        "name of a file": lambda evil: command("generate", "--prompt-file", f"/nowhere/{evil}"),
        "config": lambda evil: changed("config.json", f'{{"model_type": {quoted(evil)}, {quoted(evil)}: 1}}'),
        "header": lambda evil: changed("model.safetensors", header(evil)),
        "template": lambda evil: changed("chat_template.jinja", f"{{{{ raise_exception({quoted(evil)}) }}}}"),
        "messages": lambda evil: changed("m.json", f'[{{"role": {quoted(evil)}, "content": ""}}]', "generate",
                                         "--model", str(folder), "--messages", str(folder / "m.json")),
        "tools": tools, "log": log, "print": print, "warning": warn, "uncaught": uncaught, "bar": bar,
        "events": printer, "screen": screen, "prompt of prompt_toolkit": prompt,
    }  # fmt: skip


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.heavy)])
def test_escape_codes_reach_no_terminal(
    pseudo_terminal: Callable[[], PseudoTerminal], folder: Path, rounds: int
) -> None:
    terminal, rng, silent = pseudo_terminal(), random.Random(rounds), []
    for name, write in paths(folder).items():
        arrived = ""
        for _ in range(rounds):
            evil = "가" + "".join(rng.choices([*EVIL, "a", "한국", " "], k=12)) + "X"
            write(evil)
            arrived += (now := terminal.read())
            assert not re.search("[\x00-\x1f\x7f-\x9f\u061c\u202e\u2066]", OWN.sub("", now)), (name, now)
            assert not [part for part in EVIL if part in now], (name, now)
        silent += [name] * ("가" not in arrived)
    assert not silent, "each path shows the text, cleaned"


def test_pipes_get_the_text_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    prepare_streams()
    TextPrinter(False).show(Answer("".join(EVIL)))
    assert capfd.readouterr().out == "".join(EVIL)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_get_no_codes(
    pseudo_terminal: Callable[[], PseudoTerminal], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    terminal = pseudo_terminal()
    monkeypatch.setenv(name, value)
    printer = TextPrinter(False)
    for event in (Thinking("Hm"), Answer("Yes"), DONE):
        printer.show(event)
    assert terminal.read() == "<think>\nHm\n</think>\n\nYes\n"
    if name == "TERM":
        with progress_bar("loading", "B") as report:
            report(1, 2)
        assert terminal.read() == ""
