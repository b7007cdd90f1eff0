"""A config file of MCP servers -> the servers in it, checked.

Notes:
- The format is that of Claude Desktop, Cursor and others (`mcpServers`), or that of VS Code (`servers`).
- `${NAME}`, `${NAME:-default}`, `${env:NAME}` and `${userHome}` are replaced, as those programs do.
- A key that those programs know and that changes nothing here is ignored. Any other key is refused by name.
- Nothing is started here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..files.text import UNSAFE, clean, decode_text, parse_json

KINDS = {  # of the key "type"
    **dict.fromkeys(("stdio", "local"), "stdio"),
    **dict.fromkeys(("http", "streamable-http", "streamableHttp", "streamable_http", "remote"), "http"),
    "sse": "sse",
}
OWN = ("command", "args", "env", "cwd", "url", "headers", "type", "disabled")
#: Keys of other programs that change nothing here. Calls are asked about, whatever they say.
IGNORED = {
    *("name", "description", "icon", "version", "gallery", "timeout", "dev", "enabled", "iconUrl"),
    *("autoApprove", "alwaysAllow", "trust", "disabledTools"),
}
LONGEST_NAME = 40


@dataclass(frozen=True)
class ServerConfig:
    """One server: a `command` with arguments, or a `url` with headers. `env` is added to a small environment."""

    name: str
    kind: str  # "stdio", "http" or "sse"
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    disabled: bool = False
    text: str = ""  # what a start runs or connects to, on one line; variables are not replaced, as they may be secrets


def read_servers(path: str | Path) -> list[ServerConfig]:
    """The servers of a config file.

    Raises FileNotFoundError, and ValueError, naming file, server and key, for what cannot be used.
    """
    path = Path(path)
    try:
        text = decode_text(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file of MCP servers {path}") from error
    except OSError as error:
        raise ValueError(f"cannot read the MCP servers of {path}: {error.strerror}") from error
    content = parse_json(text, str(path))
    table = content.get("mcpServers", content.get("servers")) if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise ValueError(f'{path} must hold {{"mcpServers": {{"NAME": {{"command": …, "args": […]}}}}}}')
    if not table:
        raise ValueError(f"{path} names no MCP server")
    servers = []
    for name, given in table.items():
        try:
            servers.append(_server(name, given))
        except ValueError as error:
            raise ValueError(f"{path}: MCP server {clean(name)[:LONGEST_NAME]!r}: {error}") from error
    return servers


def _server(name: str, given: Any) -> ServerConfig:
    if not name.strip() or len(name) > LONGEST_NAME or UNSAFE.search(name) or "\n" in name:
        raise ValueError(f"its name must have 1 to {LONGEST_NAME} printable characters")
    if not isinstance(given, dict):
        raise ValueError("it must be an object with command and args, or with url")
    if unknown := [key for key in given if key not in (*OWN, *IGNORED)]:
        near = get_close_matches(unknown[0], OWN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(OWN)}"
        raise ValueError(f"the key {unknown[0]!r} is not supported{hint}")
    if ("command" in given) == ("url" in given):
        raise ValueError("it needs either command or url")
    kind = KINDS.get(given.get("type", "stdio" if "command" in given else "http"))
    if kind is None or (kind == "stdio") != ("command" in given):
        raise ValueError(f"its type {given['type']!r} does not fit its {'command' if 'command' in given else 'url'}")
    if wrong := [key for key in (("url", "headers") if kind == "stdio" else ("args", "env", "cwd")) if key in given]:
        raise ValueError(f"{wrong[0]} has no effect with {'command' if kind == 'stdio' else 'url'}")
    disabled = given.get("disabled", False) or given.get("enabled", True) is False
    if not isinstance(disabled, bool):
        raise ValueError("disabled must be true or false")
    args = given.get("args", [])
    if not isinstance(args, list):
        raise ValueError("args must be a list of texts")
    texts = {key: _text(key, given[key]) for key in ("command", "cwd", "url") if key in given}
    if kind != "stdio" and not re.match(r"https?://[^/\s]", texts["url"]):
        raise ValueError(f"its url must begin with http:// or https://, not {texts['url'][:80]!r}")
    if "cwd" in texts:
        texts["cwd"] = os.path.expanduser(texts["cwd"])
    return ServerConfig(
        name,
        kind,
        **texts,
        args=tuple(_text("args", one, empty=True) for one in args),
        env=_table("env", given.get("env", {})),
        headers=_table("headers", given.get("headers", {})),
        disabled=disabled,
        text=_shown(given),
    )


def _shown(given: Mapping[str, Any]) -> str:
    where = f"cd {shlex.quote(given['cwd'])} && " if "cwd" in given else ""
    command = given.get("url") or where + shlex.join([given["command"], *given.get("args", [])])
    return clean(command).replace("\n", "\\n")


def _table(key: str, given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise ValueError(f"{key} must be an object of texts")
    return {name: _text(f"{key} {name}", value, empty=True) for name, value in given.items()}


def _text(key: str, value: Any, empty: bool = False) -> str:
    """A text of the file with its variables replaced."""
    if not isinstance(value, str) or not (value or empty) or "\0" in value:
        raise ValueError(f"{key} must be a text, not {str(value)[:80]!r}")
    return re.sub(r"\$\{([^}]*)\}", lambda match: _variable(key, match[1]), value)


def _variable(key: str, inside: str) -> str:
    name, has_default, default = inside.removeprefix("env:").partition(":-")
    if inside == "userHome":
        return str(Path.home())
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"{key} has ${{{inside}}}, which only another program can replace; write the value itself")
    if name not in os.environ and not has_default:
        raise ValueError(f"{key} needs the environment variable {name}, which is not set")
    return os.environ.get(name, default)
