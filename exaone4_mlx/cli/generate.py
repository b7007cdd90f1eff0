"""`exaone4-mlx generate`: one reply to a prompt.

Notes:
- The reply goes to standard output while it is generated, everything else to standard error.
- Everything that needs no weights is checked before they are read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.attachments import read_text, without_line_end
from ..files.text import parse_json
from ..generation.options import Options
from ..text.input_messages import as_messages, check_messages
from . import flags, loading
from .main import on_ctrl_c
from .output import (
    TextPrinter,
    event_json,
    log,
    note,
    progress_bar,
    reply_json,
    reply_summary,
    results_alone,
    show_json,
)  # fmt: skip
from .prompt_cache import check_cache_file, open_prefix_store, open_prompt_cache

if TYPE_CHECKING:
    from ..conversation.turn import Turn
    from ..generation.generate import Generation
    from ..text.events import Done
    from ..text.message import TurnEvent

DESCRIPTION = "Streams the reply to one prompt to standard output."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "-p",
        "--prompt",
        help="the prompt, taken literally (--prompt=TEXT if it begins with a dash); - reads standard input",
    )
    prompt.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="a text or PDF file that holds the prompt, or follows --prompt"
    )
    prompt.add_argument(
        "--messages",
        metavar="FILE",
        help="OpenAI-style messages, as a JSON list or one in a line, a saved chat, or an export of the desktop chat; "
        "- reads standard input",
    )
    prompt.add_argument(
        "--batch", metavar="FILE", help="many prompts: JSON objects with prompt or messages, one in a line; or -"
    )
    prompt.add_argument(
        "--batch-size",
        type=int,
        choices=range(1, 9),
        default=8,
        metavar="N",
        help="replies to --batch that are made together, 1 to 8 (default: %(default)s)",
    )
    prompt.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the replies to --batch; what FILE holds already is kept"
    )
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    flags.add_option_flags(parser, "")
    parser.add_argument(
        "--prompt-cache-file",
        type=Path,
        metavar="FILE",
        help="store the processed prompt in FILE, and reuse it for the next prompt that begins the same",
    )
    flags.add_prompt_cache_flags(parser)
    form = parser.add_argument_group("format of the answer").add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="JSON that follows the JSON schema in FILE")
    form.add_argument("--grammar", type=Path, metavar="FILE", help="text of the grammar in FILE (llguidance's Lark)")
    form.add_argument("--regex", metavar="PATTERN", help="text that matches the regular expression as a whole")
    flags.add_reply_flags(parser)

    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object at the end")
    form.add_argument("--jsonl", action="store_true", help="print one JSON object per event")
    flags.add_option_flags(output, "output")
    output.add_argument("--hide-thinking", action="store_true", help="do not print the thought")
    output.add_argument("-v", "--verbose", action="store_true", help="print the model and the sampling options")
    flags.add_rank_flags(parser)


def run(options: argparse.Namespace) -> int:
    _check_flags(options)
    options.response_format = _response_format(options)
    with results_alone():
        if options.batch is None:
            return _run(options)
        from . import batch

        return batch.run(options)


def _run(options: argparse.Namespace) -> int:
    given: Any = _read_messages(options.messages) if options.messages else _read_prompt(options)
    if options.prompt_cache_file:
        check_cache_file(options.prompt_cache_file)
    chosen, tools = Options(**flags.given_options(options)), flags.read_tools(options)
    files = loading.find_model(options)
    if options.raw:
        request = files.request(files.tokenizer.encode(given), chosen)
    else:
        given = as_messages(given, options.system_prompt)
        request = files.request(given, chosen, tools or None)
    needs = loading.check_memory(files, options, len(request.ids) + request.max_tokens, len(request.ids))
    store = open_prefix_store(options, needs) if options.prompt_cache_dir else None
    made = loading.load(files, options)._replace(prefix_store=store)
    cache = open_prompt_cache(options.prompt_cache_file, made) if options.prompt_cache_file or store else None
    with progress_bar("reading the prompt", " tokens") as progress:
        request = dataclasses.replace(request, options=dataclasses.replace(chosen, progress=progress))
        reply = made.reply(request, given, tools, cache)
        if options.verbose:
            note(f"{len(request.ids)} prompt tokens; {chosen.resolved(chosen.thinking)}")
        # In a thread: the signal handler may interrupt code that holds the locks of the reply.
        with on_ctrl_c(threading.Thread(target=reply.cancel, daemon=True).start):
            done = _print_reply(reply, options)
    if not options.json and not options.jsonl:
        note(reply_summary(done))
    if cache is not None and options.prompt_cache_file:
        try:
            cache.save(options.prompt_cache_file)
        except OSError as error:
            log(f"warning: cannot write the prompt cache {options.prompt_cache_file}: {error.strerror}")
    if done.finish_reason == "repetition":
        note("the reply repeated itself and was stopped; LG's advice for this case: --presence-penalty 1.5")
    return 130 if done.finish_reason == "cancelled" else 0


def _response_format(options: argparse.Namespace) -> dict[str, Any] | None:
    """The `response_format` of --json-schema, --grammar or --regex."""
    if options.json_schema:
        schema = parse_json(read_text(options.json_schema), f"--json-schema: {options.json_schema}")
        return {"type": "json_schema", "json_schema": {"schema": schema}}
    if options.grammar:
        return {"type": "grammar", "grammar": read_text(options.grammar)}
    return None if options.regex is None else {"type": "regex", "regex": options.regex}


def _check_flags(options: argparse.Namespace) -> None:
    error = options.parser.error
    is_text = options.prompt is not None or options.prompt_file is not None
    if is_text + (options.messages is not None) + (options.batch is not None) != 1:
        error("one of --prompt (with or without --prompt-file), --prompt-file, --messages and --batch is required")
    if (options.batch is None) != (options.output is None):
        error("--batch and -o need each other")
    if options.batch and (options.json or options.jsonl or options.prompt_cache_file or options.prompt_cache_dir):
        error("--batch writes JSON objects to -o: it takes no --json, no --jsonl and no --prompt-cache-file or -dir")
    if options.prompt_cache_file and options.prompt_cache_dir:
        error("--prompt-cache-file and --prompt-cache-dir exclude each other")
    templated = (
        "thinking",
        "system_prompt",
        "system_prompt_file",
        "messages",
        "continue_final_message",
        "tools",
        "builtin_tools",
        "mcp_config",
    )
    if options.raw and any(getattr(options, name) not in (None, False) for name in templated):
        error(
            "--raw uses no chat template: --thinking, a system prompt, --messages, --tools, --builtin-tools and "
            "--mcp-config have no effect with it"
        )
    if options.continue_final_message and not (options.messages or options.batch):
        error("--continue continues the last message of --messages or --batch; --prefill-response begins a reply")
    if options.mcp_config and not options.mcp_server:
        error("--mcp-config needs --mcp-server NAME here: the tools of servers that you name run without a question")
    if options.thinking_budget is not None and not (options.thinking or options.continue_final_message):
        error("--thinking-budget needs --thinking")
    if options.logprobs is not None and not (options.json or options.jsonl or options.batch):
        error("--logprobs needs --json, --jsonl or --batch")
    if options.logprobs is not None and options.hide_thinking:
        error("--logprobs lists the tokens of the thought too: it cannot be combined with --hide-thinking")
    flags.check_flags(options)


# --- the prompt -----------------------------------------------------------------------------------------------


def _read_prompt(options: argparse.Namespace) -> str:
    """The prompt as given: an instruction, the text of a file, or the instruction and then the file."""
    texts = []
    if options.prompt == "-":
        texts.append(without_line_end(read_text(None)))
    elif options.prompt is not None:  # the bytes that the shell passed, independent of the locale
        try:
            texts.append(os.fsencode(options.prompt).decode())
        except UnicodeDecodeError as error:
            raise ValueError("--prompt is not UTF-8 text") from error
    if options.prompt_file:
        texts.append(without_line_end(read_text(options.prompt_file)))
    return "\n\n".join(texts)


def _read_messages(source: str) -> list[dict[str, Any]]:
    """The messages of a file that `read_content` reads, or of standard input."""
    from ..storage.transcript import read_content

    name = "standard input" if source == "-" else source
    text = read_text(None if source == "-" else Path(source))
    try:
        return check_messages(read_content(text)["messages"])
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as messages: {error}") from error


# --- the reply ------------------------------------------------------------------------------------------------


def _print_reply(reply: Generation | Turn, options: argparse.Namespace) -> Done:
    """Prints the reply as text, as JSON or as JSON lines."""
    from ..text.events import Done, Thinking

    has_tools = flags.has_tools(options)
    events: list[TurnEvent] = []
    printer = TextPrinter(runs_calls=has_tools)
    try:
        for event in reply:
            if options.hide_thinking and isinstance(event, Thinking):
                continue
            events.append(event)
            if options.jsonl:
                show_json(event_json(event))
            elif not options.json:
                printer.show(event)
    finally:
        printer.close()
    if options.json:
        show_json({"model": options.model} | reply_json(events, options.logprobs is not None, has_tools))
    assert isinstance(events[-1], Done)
    return events[-1]
