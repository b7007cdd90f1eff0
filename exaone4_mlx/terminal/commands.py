"""The commands of a chat in the terminal.

Notes:
- A line that begins with a slash is a command. A line that begins with two slashes is a text that begins with one.
  A line in triple quotes is always a text.
- A command that cannot run raises ValueError with a remedy. It is never sent to the model.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..generation.options import Options
from ..text.format import count_text, size_text
from .status import context_text

if TYPE_CHECKING:
    from .session import TerminalSession

QUOTES = '"""'


class Leave(Exception):
    """Ends the conversation."""


@dataclass(frozen=True)
class Command:
    """`usage` is what can follow the name, `choices` what Tab completes there."""

    usage: str
    help: str
    run: Callable[[TerminalSession, str], None]
    choices: tuple[str, ...] = ()


def continues(text: str) -> bool:
    """Whether the next line continues this text."""
    if text.startswith(QUOTES):
        return len(text.rstrip()) < 2 * len(QUOTES) or not text.rstrip().endswith(QUOTES)
    return text.endswith("\\")


def read_line(text: str) -> tuple[str, str]:
    """A line as (command, rest). The command is empty for a text."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and not continues(stripped):
        return "", stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    if stripped.startswith("//"):
        return "", stripped[1:]
    if stripped.startswith("/"):
        name, _, rest = stripped[1:].partition(" ")
        return f"/{name}", rest.strip()
    return "", text.strip("\n")


def run_command(session: TerminalSession, name: str, rest: str) -> None:
    """Runs a command. Raises ValueError if it cannot run."""
    command = COMMANDS.get(name)
    if command is None:
        first = name.splitlines()[0]
        raise ValueError(f"there is no command {first}: /help lists all; to send this as a text, type /{first}")
    if rest and not command.usage:
        raise ValueError(f"{name} takes no argument, but got {rest!r}")
    command.run(session, QUOTED.sub(r"\2", rest) if name in WITH_PATH else rest)


def completions(session: TerminalSession, text: str) -> Iterable[tuple[str, int]]:
    """The completions of a line, each as (new end of the line, number of letters that it replaces)."""
    if not text.startswith("/") or text.startswith("//"):
        return
    name, space, rest = text.partition(" ")
    if not space:
        for known in COMMANDS:
            if known.startswith(name):
                yield known, len(name)
    elif name in WITH_PATH:
        for path in sorted(glob.glob(os.path.expanduser(glob.escape(rest)) + "*")):
            yield path + "/" * os.path.isdir(path), len(rest)
    elif name in COMMANDS:
        word = rest.rpartition(" ")[2]
        choices = [*COMMANDS[name].choices, *(session.tool_names if name == "/tools" else ())]
        for choice in choices:
            if choice.startswith(word):
                yield choice, len(word)


# --- settings of the model -------------------------------------------------------


def _think(session: TerminalSession, rest: str) -> None:
    if rest:
        session.set_options(thinking=_switch(rest, "/think"))
    thinks = "thinks" if session.chat.options.thinking else "does not think"
    session.screen.note(f"the model {thinks} before it answers")


def _budget(session: TerminalSession, rest: str) -> None:
    if rest:
        session.set_options(thinking_budget=None if rest == "off" else _whole(rest, "/budget", least=0))
    budget = session.chat.options.thinking_budget
    session.screen.note(
        "thoughts have no limit of their own"
        if budget is None
        else f"a thought ends after {count_text(budget, 'token')}"
    )


def _tools(session: TerminalSession, rest: str) -> None:
    if not session.all_tools:
        raise ValueError("there are no tools: start with --builtin-tools, --tools FILE.py or --mcp-config FILE")
    names = rest.replace(",", " ").split()
    chosen = {"on": session.tool_names, "off": ()}.get(rest, names)
    if unknown := [name for name in chosen if name not in session.tool_names]:
        raise ValueError(f"there is no tool {unknown[0]!r}; the tools are {', '.join(session.tool_names)}")
    if rest:
        session.chat.tools = [tool for tool in session.all_tools if getattr(tool, "__name__", "") in chosen]
    on = {getattr(tool, "__name__", "") for tool in session.chat.tools}
    for name in session.tool_names:
        asks = ", asks before it runs" if name in session.asks and name in on else ""
        origin = session.origin_of(name)
        server = f" of MCP server {origin}" if origin else ""
        session.screen.note(f"{'on ' if name in on else 'off'} {name}{server}{asks}")


def _system(session: TerminalSession, rest: str) -> None:
    if rest:
        session.chat.system_prompt = None if rest == "off" else rest
    system = session.chat.system_prompt
    session.screen.note("there is no system prompt" if system is None else f"system prompt: {system}")


#: Options that /set changes; the other options have commands of their own, or hold for the whole program.
SETTINGS = {
    field.name: field.metadata["type"]
    for field in dataclasses.fields(Options)
    if field.metadata["group"] == "sampling" and field.metadata["type"] in (int, float) and field.metadata["kept"]
}


def _set(session: TerminalSession, rest: str) -> None:
    name, _, value = rest.replace("=", " ").partition(" ")
    options, value = session.chat.options, value.strip()
    if not rest:
        values = {name: getattr(options, name) for name in SETTINGS} | vars(options.resolved(options.thinking))
        session.screen.note(", ".join(f"{n} {'default' if values[n] is None else values[n]}" for n in SETTINGS))
        return
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(SETTINGS)}")
    if not value:
        raise ValueError(f"{name} needs a value: /set {name} NUMBER, or /set {name} default")
    kind = SETTINGS[name]
    try:
        number = getattr(Options(), name) if value == "default" else kind(value)
    except ValueError:
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, not {value!r}") from None
    session.set_options(**{name: number})
    session.screen.note(f"{name}: {value}")


# --- the conversation ----------------------------------------------------------


def _undo(session: TerminalSession, rest: str) -> None:
    first, *more = session.chat.undo().splitlines()
    session.screen.note(f"removed: {first}" + (f" … and {count_text(len(more), 'more line')}" if more else ""))


def _edit(session: TerminalSession, rest: str) -> None:
    turns = session.chat.turns
    number = _whole(rest, "/edit", least=1) if rest else len(turns)
    if not 1 <= number <= len(turns):
        raise ValueError(f"there is no turn {number}: the conversation has {len(turns)}")
    session.editing = (number - 1, turns[number - 1])
    later = len(turns) - number
    dropped = f" and drops {count_text(later, 'later turn')}" if later else ""
    session.screen.note(f"turn {number}: Enter sends it{dropped}; an empty line changes nothing")


def _save(session: TerminalSession, rest: str) -> None:
    name, caches = rest, False
    if rest.endswith(" caches"):
        name, caches = rest.removesuffix(" caches").rstrip(), True
    if not name:
        raise ValueError("/save needs a file: /save FILE, or /save FILE caches")
    path = Path(name).expanduser()
    if path.exists() and path.resolve() != session.saved_to:
        raise ValueError(f"{path} exists already: choose another name, or delete it first")
    session.chat.save(path, caches=caches)
    session.saved_to = path.resolve()
    session.screen.note(f"saved to {path}{', and the caches beside it' if caches else ''}")


def _load(session: TerminalSession, rest: str) -> None:
    if not rest:
        raise ValueError("/load needs a file: /load FILE")
    session.load(Path(rest).expanduser())


def _reset(session: TerminalSession, rest: str) -> None:
    session.chat.reset()
    session.screen.note("a new conversation begins")


# --- information ---------------------------------------------------------------


def _thought(session: TerminalSession, rest: str) -> None:
    thoughts: list[str] = []
    for message in reversed(session.chat.messages):
        if message["role"] == "user":
            break
        if thought := message.get("reasoning_content"):
            thoughts.insert(0, thought)
    if not thoughts:
        raise ValueError("the last reply has no thought; /think on lets the model think first")
    session.screen.note("\n\n".join(thoughts))


def _stats(session: TerminalSession, rest: str) -> None:
    chat, totals = session.chat, session.totals
    held = f"{count_text(len(chat.turns), 'turn')}, {count_text(len(chat.messages), 'message')}"
    session.screen.note(f"{held}; {context_text(chat.context_tokens, chat.max_kv_size)}")
    if chat.dropped:
        session.screen.note(f"the model no longer sees the first {count_text(chat.dropped, 'message')}")
    if totals is not None:
        generated = totals.thinking_tokens + totals.answer_tokens
        speed = f", {generated / totals.decode_seconds:.1f} tokens/s" if totals.decode_seconds else ""
        session.screen.note(
            f"generated {count_text(generated, 'token')} ({totals.thinking_tokens:,} of them thought){speed}"
        )
        read = totals.prompt_tokens - totals.cached_tokens
        rate = f", {read / totals.prefill_seconds:,.0f} tokens/s" if totals.prefill_seconds else ""
        session.screen.note(
            f"prompts: {count_text(read, 'token')} processed{rate}, {totals.cached_tokens:,} from the cache"
        )
        session.screen.note(f"peak memory during replies: {size_text(totals.peak_bytes)}")


def _help(session: TerminalSession, rest: str) -> None:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        session.screen.note(f"{f'{name} {command.usage}':{width}}  {command.help}")
    session.screen.note(
        'Alt-Enter, a backslash at the end or an opening """ continue the text in the next line. //… sends a text that '
        "begins with a slash. Ctrl-C stops a reply and keeps it; a second one while it stops ends the program. "
        "Ctrl-C twice at an empty line, or Ctrl-D, exits."
    )


def _exit(session: TerminalSession, rest: str) -> None:
    raise Leave


def _switch(text: str, name: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{name} takes on or off, not {text!r}")
    return text == "on"


def _whole(text: str, name: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} needs a whole number of at least {least}, not {text!r}")
    return number


ON_OFF = ("on", "off")
WITH_PATH, QUOTED = ("/save", "/load", "/adapter"), re.compile(r"^(['\"])(.+)\1")  # as a shell would need it
COMMANDS = {
    "/think": Command("[on|off]", "let the model think before it answers", _think, ON_OFF),
    "/budget": Command("[N|off]", "maximum number of tokens of a thought", _budget, ("off",)),
    "/tools": Command("[on|off|NAME…]", "the tools that the model can call", _tools, ON_OFF),
    "/system": Command("[TEXT|off]", "the system prompt", _system, ("off",)),
    "/set": Command("[NAME VALUE]", "temperature, presence_penalty, max_tokens, seed, …", _set, tuple(SETTINGS)),
    "/retry": Command("", "generate the last reply again", lambda session, _: session.take_turn(session.chat.retry)),
    "/continue": Command("", "go on with the last reply", lambda s, _: s.take_turn(s.chat.continue_reply)),
    "/adapter": Command("[PATH|off]", "the adapter of the next replies", lambda s, path: s.put_on(path), ("off",)),
    "/undo": Command("", "remove the last turn", _undo),
    "/edit": Command("[N]", "edit a turn and send it again", _edit),
    "/save": Command("FILE [caches]", "write the conversation to a file; FILE.md is readable Markdown", _save),
    "/load": Command("FILE", "continue a saved conversation", _load),
    "/reset": Command("", "begin a new conversation with the same system prompt", _reset),
    "/thought": Command("", "show the last thought", _thought),
    "/stats": Command("", "tokens, speed, memory, context", _stats),
    "/help": Command("", "this list", _help),
    "/exit": Command("", "exit", _exit),
    "/quit": Command("", "exit", _exit),
}
