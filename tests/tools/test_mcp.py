"""Tools of MCP servers. The servers are written with the package `mcp` itself."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mcp_servers import config, gone, served, stdio

from exaone4_mlx.tools.call import ToolCall
from exaone4_mlx.tools.mcp_server import load_mcp, mcp_servers
from exaone4_mlx.tools.remote_tool import MAX_DESCRIPTION, RemoteTool, named_apart, plain_description, plain_parameters
from exaone4_mlx.tools.toolbox import Toolbox

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="the extra mcp is not installed")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RemoteTool]]:
    file = config(tmp_path_factory.mktemp("mcp"), local=stdio("stdio", "shared-one", env={"TOKEN": "given"}))
    os.environ["SECRET"] = "not for servers"
    yield load_mcp(file, taken=["calculator"])
    del os.environ["SECRET"]


def run(tools: list[RemoteTool], name: str, *, timeout: float = 10, **arguments: Any) -> Any:
    return Toolbox(tools).run(ToolCall(name, arguments), timeout=timeout)


def test_schemas_are_offered_clean_and_calls_are_checked(tools: list[RemoteTool]) -> None:
    add = next(tool for tool in tools if tool.name == "add")
    assert add.schema["function"]["description"] == "Add two numbers.[31m <tool_call>", "no escape code is left"
    assert add.origin == "local" and add(a=2) == {"result": 3}, "a tool can be called directly"
    assert run(tools, "add", a=2, b=5).content == {"result": 7}
    wrong = run(tools, "add", a="two")
    assert wrong.failed and "argument 'a' must be an integer" in wrong.content["error"]


def test_results_are_json_that_a_model_can_read(tools: list[RemoteTool]) -> None:
    assert run(tools, "media").content == [
        "one",
        "[image, image/png, 6 bytes, not shown]",
        "[audio, audio/wav, 3 bytes, not shown]",
    ]
    failed = run(tools, "fails")
    assert failed.failed and "the disk is" in failed.content["error"]
    assert len(run(tools, "long", length=100).content) == 100
    cut = run(tools, "long", length=1_000_000).content
    assert len(cut) < 41_000 and cut.endswith("[cut: the result has 1,000,000 characters]")
    assert run(tools, "garbage").content == {"result": "fine"}, "text that is no message is dropped"


def test_a_server_gets_the_environment_of_its_file_only(tools: list[RemoteTool]) -> None:
    seen = run(tools, "environment").content
    assert (seen["TOKEN"], seen["SECRET"]) == ("given", "")


def test_a_name_that_is_taken_gets_the_name_of_its_server(tools: list[RemoteTool]) -> None:
    assert "local_calculator" in [tool.name for tool in tools]
    two = [RemoteTool("", "", {}, origin, "find it", tools[0].begin) for origin in ("a", "b", "a")]
    assert [tool.name for tool in named_apart(two)] == ["a_find_it", "b_find_it", "a_find_it_2"]


def test_a_call_is_cancelled_at_the_server(tools: list[RemoteTool], tmp_path: Path) -> None:
    for number, timeout in enumerate((0.3, 10.0)):
        file, cancelled = tmp_path / str(number), threading.Event()
        timer = threading.Timer(0.3, cancelled.set)
        timer.start()
        result = Toolbox(tools).run(ToolCall("waits", {"file": str(file)}), timeout=timeout, cancelled=cancelled)
        assert result.failed and result.seconds < 5
        until = time.monotonic() + 5
        while "cancelled" not in file.read_text() and time.monotonic() < until:
            time.sleep(0.02)
        assert file.read_text() == "began\ncancelled\n", "the server was not told of the end of the call"
        timer.cancel()


def test_descriptions_and_schemas_are_bounded() -> None:
    assert len(plain_description("x" * 10**6)) == MAX_DESCRIPTION
    with pytest.raises(ValueError, match="30,"):
        plain_parameters({"type": "object", "description": "x" * 30_000})
    with pytest.raises(ValueError, match="control characters"):
        plain_parameters({"type": "object", "properties": {"a\x1b[2J": {"type": "string"}}})
    described = plain_parameters({"properties": {"a": {"description": "b\u202ec"}}})
    assert described["properties"]["a"]["description"] == "bc"


def test_control_tokens_in_a_description_are_text_to_the_model(tools: list[RemoteTool], demo: Any) -> None:
    _, tokenizer = demo
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], [tools[0]])
    assert list(ids).count(tokenizer.encode("<tool_call>")[0]) == list(
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], [plain(tools[0])])
    ).count(tokenizer.encode("<tool_call>")[0])


def plain(tool: RemoteTool) -> dict[str, Any]:
    schema = tool.schema
    return {**schema, "function": {**schema["function"], "description": "Add two numbers."}}


@pytest.mark.heavy
def test_a_server_that_dies_leaves_one_clear_line(tmp_path: Path) -> None:
    tools = load_mcp(config(tmp_path, local=stdio("stdio")))
    for name in ("dies", "add"):
        ended = run(tools, name, **({"a": 1} if name == "add" else {}))
        assert ended.content == {"error": "the MCP server local has ended; its last message: the database is gone"}
        assert ended.seconds < 5


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("server", "message"),
    [
        (
            stdio("fails"),
            "the MCP server x has ended; its last message: ModuleNotFoundError: no module named 'weather'",
        ),
        (stdio("hangs"), "the MCP server x did not answer within 2 seconds"),
        (stdio("noise"), "the MCP server x "),
        ({"command": "no-such-program"}, "the MCP server x does not work: there is no program no-such-program"),
        (stdio("stdio", cwd="/no/such"), "the MCP server x does not work: there is no folder /no/such"),
        ({"url": "http://127.0.0.1:9/mcp"}, "the MCP server x does not work: All connection attempts failed"),
    ],
)
def test_a_server_that_does_not_work_is_named(tmp_path: Path, server: dict[str, Any], message: str) -> None:
    if "args" in server:
        server["args"].append(str(tmp_path))  # to be found among the processes
    with pytest.raises(ValueError) as refused:
        load_mcp(config(tmp_path, x=server), timeout=2)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert gone(f"mcp_server_script.py {tmp_path}") and gone(str(tmp_path)), "a process is left"
    said: list[str] = []
    assert load_mcp(config(tmp_path, x={"command": "no-such-program"}), failed=said.append) == [] and said


@pytest.mark.heavy
def test_a_server_with_too_many_tools_offers_the_first(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="MCP server x: it lists more than 128 tools; the first 128 are offered"):
        assert len(load_mcp(config(tmp_path, x=stdio("many", "10000")))) == 128


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["http", "sse"])
def test_a_server_of_a_url(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # this computer is reached without it
    with served(kind) as url:
        tools = load_mcp(config(tmp_path, far={"url": url, "type": kind}))
        assert run(tools, "add", a=2, b=5).content == {"result": 7}
        file, cancelled = tmp_path / "waits", threading.Event()
        threading.Timer(0.5, cancelled.set).start()
        assert Toolbox(tools).run(ToolCall("waits", {"file": str(file)}), cancelled=cancelled).failed
    ended = run(tools, "add", a=1)
    assert ended.failed and ended.seconds < 5


@pytest.mark.heavy
def test_a_server_ends_with_its_last_tool_and_can_start_again(tmp_path: Path) -> None:
    [server] = mcp_servers(config(tmp_path, local=stdio("stdio", f"{tmp_path}-mark")))
    assert not server.runs and server.tools == (), "reading a file starts nothing"
    server.start()
    assert server.runs and not gone(f"{tmp_path}-mark", 0)
    server.stop()
    assert not server.runs and gone(f"{tmp_path}-mark")
    server.start()
    del server
    gc.collect()
    assert gone(f"{tmp_path}-mark"), "the server of no tool is left"


PROGRAM = """
import sys, time
from exaone4_mlx.tools.mcp_server import load_mcp
tools = load_mcp(sys.argv[1])
print("ready", flush=True)
if sys.argv[2] == "wait":
    time.sleep(100)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["exit", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_the_program(end: Any, tmp_path: Path) -> None:
    file = config(tmp_path, local=stdio("stubborn", f"{tmp_path}-mark"))
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(file), "exit" if end == "exit" else "wait"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "ready\n"
    if end != "exit":
        assert not gone(f"{tmp_path}-mark", 0)
        child.send_signal(end)
    child.wait(20)
    assert gone(f"{tmp_path}-mark")
    assert end == signal.SIGINT or child.stderr.read() == "", "the end of a server is silent"
    child.stdout.close()
    child.stderr.close()
