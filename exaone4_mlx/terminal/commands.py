"""The commands of a chat on the command line: a table of them, and what each does.

What is peculiar here:
- A line that begins with a slash is a command; with two, a text that begins with one. A line in triple quotes
  always is a text.
- A command is done or raises ValueError with what to do instead; nothing is ever sent by mistake.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .format import context_text, size_text

if TYPE_CHECKING:
    from .repl import Repl

QUOTES = '"""'


class Leave(Exception):
    """The user wants to end the conversation."""


@dataclass(frozen=True)
class Command:
    """One command: what it may be followed by, what it does, in words and in fact."""

    usage: str
    help: str
    run: Callable[[Repl, str], None]
    choices: tuple[str, ...] = ()  # to complete


def goes_on(text: str) -> bool:
    """Whether a text is to be continued in the next line."""
    if text.startswith(QUOTES):
        return len(text.rstrip()) < 2 * len(QUOTES) or not text.rstrip().endswith(QUOTES)
    return text.endswith("\\")


def read_line(text: str) -> tuple[str, str]:
    """What was typed, as (command, rest); the command is empty for a text to be said."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and not goes_on(stripped):
        return "", stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    if stripped.startswith("//"):
        return "", stripped[1:]
    if stripped.startswith("/"):
        name, _, rest = stripped[1:].partition(" ")
        return f"/{name}", rest.strip()
    return "", text.strip("\n")


def run_command(repl: Repl, name: str, rest: str) -> None:
    """Does what a line with a slash asks for. Raises ValueError for what cannot be done."""
    command = COMMANDS.get(name)
    if command is None:
        first = name.splitlines()[0]
        raise ValueError(f"there is no command {first}: /help lists them, and /{first} says it to the model")
    if rest and not command.usage:
        raise ValueError(f"{name} takes nothing behind it, and {rest!r} was given")
    command.run(repl, rest)


def completions(repl: Repl, text: str) -> Iterable[tuple[str, int]]:
    """What the end of a line may become, as (new end, how many letters it replaces)."""
    if not text.startswith("/") or text.startswith("//"):
        return
    name, space, rest = text.partition(" ")
    if not space:
        for known in COMMANDS:
            if known.startswith(name):
                yield known, len(name)
    elif name in ("/save", "/load"):
        for path in sorted(glob.glob(os.path.expanduser(glob.escape(rest)) + "*")):
            yield path + "/" * os.path.isdir(path), len(rest)
    elif name in COMMANDS:
        word = rest.rpartition(" ")[2]
        choices = [*COMMANDS[name].choices, *(repl.tool_names if name == "/tools" else ())]
        for choice in choices:
            if choice.startswith(word):
                yield choice, len(word)


# --- what the model does -------------------------------------------------------


def _think(repl: Repl, rest: str) -> None:
    if rest:
        repl.chat.options = dataclasses.replace(repl.chat.options, thinking=_switch(rest, "/think"))
    repl.screen.note(f"the model {'thinks' if repl.chat.options.thinking else 'does not think'} before it answers")


def _budget(repl: Repl, rest: str) -> None:
    if rest:
        limit = None if rest == "off" else _whole(rest, "/budget", least=0)
        repl.chat.options = dataclasses.replace(repl.chat.options, thinking_budget=limit)
    budget = repl.chat.options.thinking_budget
    repl.screen.note(
        "a thought has no limit of its own" if budget is None else f"a thought is ended after {budget} tokens"
    )


def _tools(repl: Repl, rest: str) -> None:
    if not repl.all_tools:
        raise ValueError("there are no tools: start with --builtin-tools or --tools FILE.py")
    names = rest.replace(",", " ").split()
    if rest == "off":
        chosen = []
    elif rest in ("", "on"):
        chosen = list(repl.tool_names)
    else:
        chosen = names
        if unknown := [name for name in names if name not in repl.tool_names]:
            raise ValueError(f"there is no tool {unknown[0]!r}; the tools are {', '.join(repl.tool_names)}")
    if rest:
        repl.chat.tools = [tool for tool in repl.all_tools if getattr(tool, "__name__", "") in chosen]
    on = {getattr(tool, "__name__", "") for tool in repl.chat.tools}
    for name in repl.tool_names:
        asks = ", asks before it runs" if name in repl.asks else ""
        repl.screen.note(f"{'on ' if name in on else 'off'} {name}{asks if name in on else ''}")


def _system(repl: Repl, rest: str) -> None:
    if rest:
        repl.chat.system_prompt = None if rest == "off" else rest
    system = repl.chat.system_prompt
    repl.screen.note("there is no system prompt" if system is None else f"system prompt: {system}")


SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "max_tokens": int,
}


def _set(repl: Repl, rest: str) -> None:
    from ..generation.options import Options

    name, _, value = rest.replace("=", " ").partition(" ")
    options = repl.chat.options
    if not rest:
        resolved = options.resolved(thinking=options.thinking)
        values = {name: getattr(resolved, name) for name in SETTINGS if name != "max_tokens"}
        values["max_tokens"] = options.max_tokens
        repl.screen.note(", ".join(f"{name} {_shown(value)}" for name, value in values.items()))
        return
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(SETTINGS)}")
    value = value.strip()
    if not value:
        raise ValueError(f"say what {name} is to be: /set {name} NUMBER, or /set {name} default")
    kind = SETTINGS[name]
    number: Any
    try:
        number = None if value == "default" else kind(value)
    except ValueError:
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, not {value!r}") from None
    if name == "max_tokens" and number is not None:
        number = _whole(value, "max_tokens", least=1)
    elif value == "default":
        number = getattr(Options(), name)
    repl.chat.options = dataclasses.replace(options, **{name: number})
    repl.screen.note(f"{name}: {value}")


def _shown(value: Any) -> str:
    return "default" if value is None else f"{value}"


# --- the conversation ----------------------------------------------------------


def _retry(repl: Repl, rest: str) -> None:
    repl.take_turn(lambda options: repl.chat.retry(**options))


def _undo(repl: Repl, rest: str) -> None:
    first, *more = repl.chat.undo().splitlines()
    repl.screen.note(f"taken back: {first}" + (f" … and {len(more)} more lines" if more else ""))


def _edit(repl: Repl, rest: str) -> None:
    turns = repl.chat.turns
    number = _whole(rest, "/edit", least=1) if rest else len(turns)
    if not 1 <= number <= len(turns):
        raise ValueError(f"there is no turn {number}: the conversation has {len(turns)}")
    repl.edit(number - 1, turns[number - 1])
    later = len(turns) - number
    goes = f" and drops the {later} after it" if later else ""
    repl.screen.note(f"turn {number}: Enter sends it{goes}; an empty line leaves everything as it is")


def _save(repl: Repl, rest: str) -> None:
    name, caches = rest, False
    if rest.endswith(" caches"):
        name, caches = rest.removesuffix(" caches").rstrip(), True
    if not name:
        raise ValueError("say where: /save FILE, or /save FILE caches")
    path = Path(name).expanduser()
    if path.exists() and path.resolve() != repl.saved_to:
        raise ValueError(f"{path} is there already: choose another name, or delete it first")
    repl.chat.save(path, caches=caches)
    repl.saved_to = path.resolve()
    repl.screen.note(f"saved to {path}{', with what was read of it beside it' if caches else ''}")


def _load(repl: Repl, rest: str) -> None:
    if not rest:
        raise ValueError("say which: /load FILE")
    repl.load(Path(rest).expanduser())


def _reset(repl: Repl, rest: str) -> None:
    repl.chat.reset()
    repl.screen.note("a new conversation begins")


# --- what to know ---------------------------------------------------------------


def _thought(repl: Repl, rest: str) -> None:
    thoughts: list[str] = []
    for message in reversed(repl.chat.messages):
        if message["role"] == "user":
            break
        if thought := message.get("reasoning_content"):
            thoughts.insert(0, thought)
    if not thoughts:
        raise ValueError("the last reply has no thought; /think on lets the model think first")
    repl.screen.note("\n\n".join(thoughts))


def _stats(repl: Repl, rest: str) -> None:
    chat, totals = repl.chat, repl.totals
    turns, messages = len(chat.turns), len(chat.messages)
    repl.screen.note(f"{turns} turns, {messages} messages; {context_text(chat.context_tokens, chat.max_kv_size)}")
    if chat.dropped:
        repl.screen.note(f"the model does not see the first {chat.dropped} messages any more")
    if totals is not None:
        generated = totals.thinking_tokens + totals.answer_tokens
        speed = f", {generated / totals.decode_seconds:.1f} tokens/s" if totals.decode_seconds else ""
        repl.screen.note(f"generated {generated:,} tokens ({totals.thinking_tokens:,} of them thought){speed}")
        read = totals.prompt_tokens - totals.cached_tokens
        rate = f", {read / totals.prefill_seconds:,.0f} tokens/s" if totals.prefill_seconds else ""
        repl.screen.note(f"prompts: {read:,} tokens processed{rate}, {totals.cached_tokens:,} from the cache")
        repl.screen.note(f"memory: at most {size_text(totals.peak_bytes)} while replies were made")


def _help(repl: Repl, rest: str) -> None:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        repl.screen.note(f"{f'{name} {command.usage}':{width}}  {command.help}")
    repl.screen.note(
        'Alt-Enter, a backslash at the end or an opening """ go on in the next line. //… says a text that begins with '
        "a slash. Ctrl-C stops a reply and keeps it; twice at an empty line, or Ctrl-D, it leaves."
    )


def _exit(repl: Repl, rest: str) -> None:
    raise Leave


def _switch(text: str, name: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{name} is followed by on or off, not {text!r}")
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
COMMANDS = {
    "/think": Command("[on|off]", "think before the answer", _think, ON_OFF),
    "/budget": Command("[N|off]", "how many tokens a thought may have", _budget, ("off",)),
    "/tools": Command("[on|off|NAME…]", "which tools the model may call", _tools, ON_OFF),
    "/system": Command("[TEXT|off]", "the system prompt", _system, ("off",)),
    "/set": Command("[NAME VALUE]", "temperature, presence_penalty, max_tokens, seed, …", _set, tuple(SETTINGS)),
    "/retry": Command("", "another reply to the last turn", _retry),
    "/undo": Command("", "take the last turn back", _undo),
    "/edit": Command("[N]", "say a turn anew: its text goes into the input line", _edit),
    "/save": Command("FILE [caches]", "write the conversation to a file", _save),
    "/load": Command("FILE", "go on with a saved conversation", _load),
    "/reset": Command("", "a new conversation, with the same system prompt", _reset),
    "/thought": Command("", "show the last thought", _thought),
    "/stats": Command("", "tokens, speed, memory, context", _stats),
    "/help": Command("", "this list", _help),
    "/exit": Command("", "leave", _exit),
    "/quit": Command("", "leave", _exit),
}
