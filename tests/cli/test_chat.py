"""`chat` as a program: in a pipe, and in a terminal of tmux."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mcp_servers import config, stdio
from shown import TORTURE

from exaone4_mlx import Chat

COMMAND = [sys.executable, "-m", "exaone4_mlx.chat", "--model", "demo", "--dtype", "float32", "--temp", "0"]


DICE = '''
import time

def roll_dice(max_num: int) -> int:
    """Roll a dice with the number 1 to N. User can select the number N.

    Args:
        max_num: Max number of the dice
    """
    print("rolling")
    time.sleep({seconds})
    return 4
'''


def piped(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=lines, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def test_a_line_of_standard_input_is_a_turn() -> None:
    ran = piped("What is the capital of Peru?\n/think on\nWhat is 348 + 275?\n", "--commands")
    assert ran.returncode == 0
    assert ran.stdout == "The capital of Peru is Lima.\n348 + 275 = 623.\n"
    assert "<think>" in ran.stderr and "\x1b" not in ran.stdout + ran.stderr


def test_replies_of_a_pipe_are_json_objects_and_its_lines_are_texts() -> None:
    ran = piped(
        "Hello\n\n/undo\n" + "word " * 300 + "\nWhat is the capital of Peru?\n", "--json", "--max-kv-size", "200"
    )
    hello, undo, refused, peru = map(json.loads, ran.stdout.splitlines())
    assert hello["text"].startswith("Hello!") and hello["finish_reason"] == "stop" and hello["model"] == "demo"
    assert set(undo) == set(hello) and undo["text"], "/undo is a text"
    assert list(refused) == ["error"] and "of 200 must hold it" in refused["error"] and ran.returncode == 1
    assert peru["text"] == "The capital of Peru is Lima." and "tool_results" not in peru


def test_a_person_at_a_dumb_terminal_has_commands() -> None:
    master, slave = pty.openpty()
    os.write(master, b"/stats\n\x04")
    environment = {**os.environ, "TERM": "dumb"}
    ran = subprocess.run(COMMAND, stdin=slave, capture_output=True, text=True, cwd=ROOT, timeout=120, env=environment)
    os.close(master), os.close(slave)
    assert ran.returncode == 0 and "0 turns, 0 messages" in ran.stderr and "\x1b" not in ran.stderr, ran


UNSTOPPABLE = f"""
import os, sys, threading
from exaone4_mlx.generation.generate import Generation
Generation.cancel = lambda self: None
Generation.__next__ = lambda self: os.write(1, b"waiting") and threading.Event().wait()
sys.argv = {["exaone4-mlx", "chat", *COMMAND[3:]]}
from exaone4_mlx.cli.program import run_program
run_program()
"""


@pytest.mark.heavy
def test_the_second_ctrl_c_ends_a_chat_and_restores_the_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    environment = {**os.environ, "TERM": "xterm", "EXAONE4_MLX_HISTORY": str(tmp_path / "history")}
    command = [sys.executable, "-c", UNSTOPPABLE]
    options: Any = {"stdin": slave, "stdout": slave, "stderr": slave}
    options["preexec_fn"] = lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    shown = b""
    with subprocess.Popen(command, cwd=ROOT, env=environment, **options) as running:
        try:
            for awaited, typed in ((b"1m>", b"Hello\r"), (b"waiting", b"\x03"), (b"stopping", b"\x03")):
                while awaited not in shown:
                    assert select.select([master], [], [], 60)[0], shown
                    shown += os.read(master, 4096)
                os.write(master, typed)
            assert running.wait(10) == -signal.SIGINT, shown
        finally:
            running.kill()
    assert termios.tcgetattr(slave) == before, "typed text is shown"
    os.close(master), os.close(slave)
    assert b"Traceback" not in shown and b"again ends the program" in shown


def test_flags_reach_the_chat_which_goes_on_after_an_error_and_ends_with_its_code() -> None:
    ran = piped("/nonsense\nHello\n", "--commands", "--max-kv-size", "200", "--kv-bits", "8", "--prompt-lookup")
    assert ran.returncode == 1
    assert ran.stdout == "Hello! I am a small demonstration model. How can I help you?\n"
    assert "error: there is no command /nonsense" in ran.stderr and "of 200]" in ran.stderr


@pytest.mark.heavy
def test_tools_in_a_pipe_cannot_ask(tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(DICE.format(seconds=0))
    refused = piped("Roll D6 dice twice!\n", "--tools", str(file))
    assert refused.returncode == 1 and "add --no-ask-tools" in refused.stderr
    ran = piped("Roll D6 dice twice!\n", "--tools", str(file), "--no-ask-tools")
    assert ran.returncode == 0
    assert ran.stdout == "You rolled 4 and 4.\n"
    assert str(file) in ran.stderr and "roll_dice(max_num=6) -> 4" in ran.stderr and "rolling" in ran.stderr


@pytest.mark.heavy
def test_a_chat_goes_on_without_an_mcp_server_that_fails(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    file = config(tmp_path, good=stdio("stdio"), bad=stdio("fails"), off={"command": "none", "disabled": True})
    refused = piped("Roll D6 dice twice!\n", "--mcp-config", str(file))
    assert refused.returncode == 1 and "add --no-ask-tools" in refused.stderr
    ran = piped("Roll D6 dice twice!\n/tools", "--mcp-config", str(file), "--no-ask-tools", "--commands")
    assert ran.stdout == "You rolled 4 and 4.\n" and ran.returncode == 0
    assert "warning: the MCP server bad has ended; its last message: ModuleNotFoundError" in ran.stderr
    assert "on  roll_dice of MCP server good" in ran.stderr and "MCP server off" not in ran.stderr
    assert "starting MCP server good: " in ran.stderr


def test_errors_in_flags_come_before_the_model_is_loaded(tmp_path: Path) -> None:
    for arguments in (["--load", str(tmp_path / "none")], ["--tools", str(tmp_path / "none.py")], ["--top-p", "7"]):
        ran = piped("Hello\n", *arguments)
        assert (ran.returncode, ran.stdout) == (1, ""), arguments
        assert ran.stderr.startswith("error: ") or "\nerror: " in ran.stderr


class Tmux:
    """A real terminal: type into it, and read its screen."""

    def __init__(self, name: str, width: int, height: int, history: Path) -> None:
        self.name, self.size, self.history = name, (str(width), str(height)), history

    def start(self, *arguments: str) -> None:
        width, height = self.size
        command = f"{' '.join([*COMMAND, *arguments])}; echo code $?; stty -a; sleep 100"
        environment = ["-e", f"EXAONE4_MLX_HISTORY={self.history}", "-e", "LC_ALL=C.UTF-8"]
        self._run(
            "new-session", "-d", "-s", self.name, "-x", width, "-y", height, *environment, "-c", str(ROOT), command
        )
        self.wait_for(r"^(think)?> ?$")

    def type(self, text: str) -> None:
        self._run("send-keys", "-t", self.name, "-l", text)
        self.keys("Enter")

    def keys(self, *keys: str) -> None:
        self._run("send-keys", "-t", self.name, *keys)

    def resize(self, width: int) -> None:
        self._run("resize-window", "-t", self.name, "-x", str(width))

    def screen(self, *options: str) -> str:
        return self._run("capture-pane", "-p", "-S", "-100", "-t", self.name, *options)

    def wait_for(self, pattern: str, count: int = 1, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while len(re.findall(pattern, text := self.screen(), re.MULTILINE)) < count:
            assert time.monotonic() < end, f"{pattern} does not appear:\n{text}"
            time.sleep(0.1)
        return text

    def close(self) -> None:
        self._run("kill-session", "-t", self.name)

    @staticmethod
    def _run(*arguments: str) -> str:
        return subprocess.run(["tmux", "-u", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is absent")
    terminal = Tmux(f"exaone4-{os.getpid()}", 100, 35, tmp_path / "history")
    yield terminal
    terminal.close()


@pytest.mark.heavy
def test_thoughts_and_tools_in_a_real_terminal(tmux: Tmux) -> None:
    tmux.start("--thinking", "--builtin-tools")
    tmux.type("D6 주사위를 두 번 굴려 줘!")
    text = tmux.wait_for(r"^\[\d+ tokens")
    assert re.search(
        r"^▸ thought [\d.]+ s, \d+ tokens; /thought shows it\n▸ roll_dice\(max_num=6\) → \d", text, re.MULTILINE
    )
    assert re.search(r"\n\n\d[^\n]*나왔습니다\.\n\n\[", text)
    tmux.type("/retry")
    tmux.wait_for(r"^\[\d+ tokens", count=2)
    tmux.keys("C-d")
    tmux.wait_for(r"^code 0")
    tmux.wait_for(r"(^|\s)echo\b")  # printed by stty: the terminal echoes again


@pytest.mark.heavy
def test_korean_markdown_of_a_saved_chat_in_a_real_terminal(tmux: Tmux, tmp_path: Path, demo: Any) -> None:
    said = "**이것은** 3~5시, 7~9시 <b>"
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": TORTURE}]
    Chat(*demo, messages=messages).save(tmp_path / "chat.json")
    tmux.start("--load", str(tmp_path / "chat.json"))
    text = "".join(tmux.screen().split())  # lines are broken at the width of the terminal
    for line in (
        f"> {said}",
        "회의는 3~5시, 7~9시이고 10~20명이 3~4시간 걸립니다. 안녕~~ 반가워~~! 취소는 됩니다.",
        '엑사원(EXAONE)은 "중요"합니다. 값은 100%입니다. 가(나)은, 전부(all)를, 코드는.',
        " 1 링크 (https://ko.wikipedia.org/wiki/한국)를 보세요.",
        " 2 2*3*4 = 24, 가로*세로*높이, x**2 + y**2, 넓이 = 가로*세로",
        '    • List<String>, <div class="a">본문</div>, <details> &lt; &nbsp;',
        " ~ **a)**은  $x_1*y_1$",
        "def f(x):  # 3~5 **가(나)**은",
        r"수식 \(a_1*b_1\)은 $$\sum_{i=1}^{n} x_i^2 \ne 3~5$$ 그리고 __init__은, snake_case는.",
    ):
        assert "".join(line.split()) in text, f"{line}\n{text}"
    assert "\x1b[1m엑사원(EXAONE)\x1b[0m" in tmux.screen("-e"), "bold"


@pytest.mark.heavy
def test_ctrl_c_stops_a_tool_and_restores_the_terminal(tmux: Tmux, tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(DICE.format(seconds=60))
    tmux.start("--tools", str(file))
    tmux.type("Roll D6 dice twice!")
    tmux.wait_for("run it\\?")
    tmux.type("y")
    tmux.wait_for("rolling")
    tmux.resize(40)
    tmux.keys("C-c")
    text = tmux.wait_for(r"^> ?$")
    assert "✗ roll_dice was cancelled" in text and "[stopped]" in text
    assert "run it?" not in text
    assert tmux._run("display", "-p", "-t", tmux.name, "#{cursor_flag}").strip() == "1"
    tmux.keys("C-c")
    tmux.wait_for("press Ctrl-C again")
    tmux.keys("C-c")
    tmux.wait_for(r"^code 0")
    tmux.wait_for(r"(^|\s)echo\b")  # stty ends after the program
