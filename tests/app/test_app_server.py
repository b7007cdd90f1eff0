"""The address of the server, the requests that it answers, and the files that it leaves."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from app import server
from app.__main__ import main, parser
from app.server import PageAddress, password_of, upload_folder
from exaone4_mlx.server.address import Address

KILLED = """
import os, sys, pathlib, signal
from app.server import upload_folder
with upload_folder(pathlib.Path(sys.argv[1])) as uploads:
    (uploads / "secret.txt").write_text("dropped")
    print(uploads, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_body_above_the_limit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    sent: list[Any] = []
    taken = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal taken
        for _ in range(5):
            taken += len((await receive())["body"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 400, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    def request(path: str, **headers: str) -> None:
        nonlocal taken
        taken = 0
        named = [(b"host", b"127.0.0.1"), *((name.encode(), value.encode()) for name, value in headers.items())]
        guard = server._RequestGuard(app, server.PageAddress())
        asyncio.run(guard({"type": "http", "path": path, "headers": named}, receive, send))

    for length in ("1001", "-1", "9" * 5000, "x"):
        request("/gradio_api/call/chat", **{"content-length": length})
        assert sent[-2]["status"] == 413 and b"1,000 bytes" in sent[-1]["body"] and not taken
    for path in ("/gradio_api/call/chat", "/gradio_api/call/upload"):
        with pytest.raises(ValueError, match="may have 1,000 bytes"):
            request(path)
        assert taken == 800
    request("/gradio_api/upload")
    assert taken == 2000, "files have a limit of their own"


def test_only_ip_addresses_and_the_given_names_are_answered() -> None:
    everywhere = PageAddress.with_password(Address.checked("0.0.0.0", None, ["Mac.local"]), "long enough")
    for host in ("192.168.1.7:7860", "[fe80::1]:7860", "localhost:7860", "mac.local:7860", "MAC.LOCAL", "127.0.0.1"):
        assert everywhere.answers_to(host), host
    for host in ("evil.example", "evil.example:7860", "1.2.3.4.evil.example", "mac.local.evil.example", "", "["):
        assert not everywhere.answers_to(host), host
    assert not PageAddress().answers_to("mac.local"), "a name that nobody gave"


@pytest.mark.parametrize(
    ("host", "port", "names", "password", "expected"),
    [
        ("0.0.0.0", None, [], "", "--host 0.0.0.0 lets other computers in; give --password, or --no-password"),
        ("0.0.0.0", None, [], "short", "the password must have at least 8 characters"),
        ("no.such.host.invalid", None, [], "", "is neither an IP address nor a name that this computer knows"),
        ("192.0.2.1", None, [], None, "this computer cannot listen on 192.0.2.1: "),
        ("127.0.0.1", 70000, [], "", "--port is 70000, and must be from 1 to 65535"),
        ("127.0.0.1", None, ["http://mac.local"], "", "--allowed-host is 'http://mac.local', and must be a name"),
    ],
)
def test_an_address_without_sense_is_refused(
    host: str, port: int | None, names: list[str], password: str | None, expected: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        PageAddress.with_password(Address.checked(host, port, names), password)


def test_a_port_in_use_is_refused_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--model", "/no/such/folder", "--port", str(port), "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: port {port} is in use; leave --port out for the first free one\n"


def test_a_password_comes_from_the_command_line_the_environment_or_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(*arguments: str) -> str | None:
        return password_of(parser().parse_args(arguments))

    monkeypatch.delenv("EXAONE4_MLX_PASSWORD", raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed in here")
    assert given() == "" and given("--no-password") is None
    assert given("--password", "written down") == "written down" and given("--password") == "typed in here"
    monkeypatch.setenv("EXAONE4_MLX_PASSWORD", "from the environment")
    assert given() == given("--password") == "from the environment"
    with pytest.raises(ValueError, match="contradict"):
        given("--password", "written down", "--no-password")
    address = PageAddress.with_password(Address.checked("127.0.0.1", None, []), "written down")
    assert address.admits("written down") and not address.admits("written") and "written" not in repr(address)
    assert not address.admits("비밀번호")


def test_dropped_files_of_a_killed_app_are_removed_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (left / "secret.txt").exists()
    with upload_folder(tmp_path) as first:
        assert not left.exists() and os.stat(first).st_mode & 0o77 == 0
        with upload_folder(tmp_path) as second:
            assert first.exists() and second.exists()
        assert not second.exists()
    assert not first.exists()
