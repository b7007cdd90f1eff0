"""Config files of MCP servers: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exaone4_mlx.tools.mcp_config import read_servers


def written(folder: Path, content: Any) -> Path:
    file = folder / "mcp.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_the_files_of_other_programs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cret")
    desktop = {
        "globalShortcut": "Cmd+Space",
        "mcpServers": {
            "files": {
                "command": "npx",
                "args": ["-y", "server-files", "/My Files"],
                "env": {"LOG": "1"},
                "timeout": 60,
            },
            "web": {"type": "http", "url": "https://x.org/mcp", "headers": {"Authorization": "Bearer ${API_TOKEN}"}},
            "off": {"command": "${NONE:-uvx}", "disabled": True, "autoApprove": ["delete"]},
        },
    }
    files, web, off = read_servers(written(tmp_path, desktop))
    assert (files.command, files.args, files.env) == ("npx", ("-y", "server-files", "/My Files"), {"LOG": "1"})
    assert files.text == "npx -y server-files '/My Files'", "what will run is one line of a shell"
    assert (web.kind, web.headers) == ("http", {"Authorization": "Bearer s3cret"})
    assert "s3cret" not in repr(web) + web.text, "a secret is not shown"
    assert (off.command, off.disabled) == ("uvx", True)
    code = {
        "inputs": [],
        "servers": {"a": {"type": "stdio", "command": "a", "args": ["${env:API_TOKEN}", "${userHome}"]}},
    }
    [one] = read_servers(written(tmp_path, code))
    assert one.args == ("s3cret", str(Path.home())) and one.text == "a '${env:API_TOKEN}' '${userHome}'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "mcp.json is not JSON"),
        ([], "must hold"),
        ({"mcpServers": {}}, "names no MCP server"),
        ({"mcpServers": {"a": []}}, "MCP server 'a': it must be an object"),
        ({"mcpServers": {"a": {"comand": "x"}}}, "the key 'comand' is not supported; did you mean 'command'"),
        ({"mcpServers": {"a": {"command": "x", "oauth": {}}}}, "the key 'oauth' is not supported; known are"),
        ({"mcpServers": {"a": {}}}, "either command or url"),
        ({"mcpServers": {"a": {"command": "x", "url": "http://y"}}}, "either command or url"),
        ({"mcpServers": {"a": {"command": "x", "type": "sse"}}}, "its type 'sse' does not fit its command"),
        ({"mcpServers": {"a": {"command": "x", "headers": {}}}}, "headers has no effect with command"),
        ({"mcpServers": {"a": {"url": "http://x", "env": {}}}}, "env has no effect with url"),
        ({"mcpServers": {"a": {"url": "ftp://x"}}}, "must begin with http"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, "args must be a list of texts"),
        ({"mcpServers": {"a": {"command": "x", "args": [1]}}}, "args must be a text, not '1'"),
        ({"mcpServers": {"a": {"command": "x", "env": {"PORT": 1}}}}, "env PORT must be a text"),
        ({"mcpServers": {"a": {"command": "x\0"}}}, "command must be a text"),
        ({"mcpServers": {"a": {"command": "x", "args": ["${input:key}"]}}}, "only another program can replace"),
        ({"mcpServers": {"a": {"command": "${NO_SUCH_VARIABLE}"}}}, "needs the environment variable NO_SUCH_VARIABLE"),
        ({"mcpServers": {"a\x1b[2J": {"command": "x"}}}, "printable characters"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"mcp\.json") as refused:
        read_servers(written(tmp_path, content))
    assert message in str(refused.value) and "\x1b" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file of MCP servers"):
        read_servers(tmp_path / "none.json")
