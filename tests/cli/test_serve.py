"""`exaone4-mlx serve` as a process: it answers, ends by Ctrl-C, and refuses wrong flags before the model is read."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `server`")

from exaone4_mlx.cli.main import main


def test_wrong_flags_are_refused_before_the_model_is_read(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "keys").write_bytes("# 없음\n".encode("cp949"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, message in {
            ("--host", "0.0.0.0"): "give --api-key",
            ("--host", "no.such.name.example"): "--host",
            ("--port", str(taken.getsockname()[1])): "in use",
            ("--api-key", "short"): "at least 8",
            ("--api-key-file", str(tmp_path / "keys")): "holds no key",
            ("--allowed-origin", "localhost"): "--allowed-origin",
            ("--max-running", "0"): "--max-running",
            ("--max-kv-size", "1"): "--max-kv-size",
            ("--adapter-model", "one=nowhere"): "there is no folder nowhere",
            ("--adapter-model", "one=x", "--adapter-model", "one=y"): "gives the name one twice",
        }.items():
            assert main(["serve", "--model", "demo", *flags]) == 1, flags
            err = capsys.readouterr().err
            assert message in err and err.count("\n") == 1, (flags, err)
        for text in ("one", "=x", "one="):
            with pytest.raises(SystemExit):
                main(["serve", "--model", "demo", "--adapter-model", text])
            assert "is not NAME=PATH" in capsys.readouterr().err
        assert main(["serve", "--model", "demo", "--prompt-cache-bytes", "900GB"]) == 1
        assert "no room for a reply" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.heavy
def test_it_answers_and_ends_by_ctrl_c() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "exaone4_mlx", "serve", "--model", "demo", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                assert json.load(urllib.request.urlopen(f"{url}/health"))["status"] == "ok"
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
        assert json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert f"at {url}/v1" in err and "Traceback" not in err, err
    assert process.returncode in (0, 130)
    line = next(line for line in err.splitlines() if line.startswith("{"))
    assert json.loads(line)["reply_tokens"] > 0 and "Hello" not in line


@pytest.mark.heavy
def test_a_second_ctrl_c_does_not_wait_for_replies() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "exaone4_mlx", "serve", "--model", "demo", "--port", str(port)]
    process = subprocess.Popen([*command, "--shutdown-seconds", "600"], stderr=subprocess.PIPE, text=True)
    try:
        while "at http" not in process.stderr.readline():  # type: ignore[union-attr]
            pass
        body = {"messages": [{"role": "user", "content": "Hello"}], "min_tokens": 7000, "stream": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        answer = _opened(request)
        answer.readline()
        process.send_signal(signal.SIGINT)
        for _ in range(20):
            assert answer.readline(), "the first one lets the reply go on"
        process.send_signal(signal.SIGINT)
        assert b"shutting down" in answer.read()
    finally:
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err, err


def _opened(request: urllib.request.Request) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(request)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
