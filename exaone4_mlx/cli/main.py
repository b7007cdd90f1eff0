"""Every command line: arguments in, events out.

What is peculiar here:
- The reply goes to standard output as it is made, everything else to standard error.
- What can be checked without the weights is checked before they are read.
- Exit codes: 0, 1 (an error, in one line), 2 (wrong usage), 130 (Ctrl-C; what came so far is kept).
- Nothing heavy is imported before the arguments are read.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..files.format import size_text as size_text

if TYPE_CHECKING:
    from ..conversation.turn import Turn
    from ..generation.generate import Generation
    from ..generation.options import Options
    from ..generation.prompt_cache import PromptCache
    from ..generation.request import Request
    from ..text.events import Done, Event, Logprobs
    from ..tools.describe import Tool
    from ..tools.toolbox import ToolResult
    from .loading import Found, Loaded

DIM, NORMAL = "\x1b[2m", "\x1b[0m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `arguments` default to those of the process."""
    parser = argparse.ArgumentParser(prog="exaone4-mlx", description="EXAONE 4.0 on MLX.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_chat(commands)
    _add_convert(commands)
    _prepare_streams()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # said by the command's own parser, with its usage
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.check:
        options.check(options)
    try:
        if message := _unsupported_platform():
            raise RuntimeError(message)
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        say(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        return 1


# --- generate -------------------------------------------------------------------------------------------------


def _add_generate(commands: Any) -> None:
    from . import loading

    parser = commands.add_parser(
        "generate",
        help="stream one reply to a prompt",
        description="Streams the reply to one prompt to standard output.",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument(
        "-p",
        "--prompt",
        help="the prompt, taken literally (--prompt=TEXT if it begins with a dash); - reads standard input",
    )
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="a text file that holds the prompt")
    prompt.add_argument(
        "--messages",
        metavar="FILE",
        help="a JSON list of OpenAI-style messages, or a saved chat; - reads standard input",
    )
    parser.add_argument("--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before TEXT; may be repeated"
    )
    parser.add_argument(
        "--prompt-cache-file",
        type=Path,
        metavar="FILE",
        help="keep in FILE what was read of the prompt, and take it from there the next time",
    )
    add_thinking_flags(parser)
    add_tool_flags(parser)
    loading.add_model_flags(parser)
    loading.add_draft_flags(parser)
    add_sampling_flags(parser)

    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object at the end")
    form.add_argument("--jsonl", action="store_true", help="one JSON object per event, as it comes")
    output.add_argument(
        "--logprobs", type=int, metavar="N", help="with each token its log-probability and the N most probable ones"
    )
    output.add_argument("--hide-thinking", action="store_true", help="leave the thought out")
    output.add_argument("-v", "--verbose", action="store_true", help="tell about the model and the sampling")
    output.add_argument("--debug", action="store_true", help="show tracebacks")

    def check(options: argparse.Namespace) -> None:
        templated = (options.thinking, options.system_prompt, options.messages, options.tools, options.builtin_tools)
        if options.raw and any(given not in (None, False) for given in templated):
            parser.error(
                "--raw uses no chat template, so --thinking, --system-prompt, --messages and tools have no place in it"
            )
        if options.thinking_budget is not None and not options.thinking:
            parser.error("--thinking-budget bounds a thought: it needs --thinking")
        if options.logprobs is not None and not (options.json or options.jsonl):
            parser.error("--logprobs are numbers for a program: they need --json or --jsonl")
        if options.logprobs is not None and options.hide_thinking:
            parser.error("--logprobs tell the tokens of a thought, too, so --hide-thinking has no place beside them")
        _check_tools(parser, options)
        loading.check_usage(parser, options)

    parser.set_defaults(run=_generate, check=check, parser=parser)


def add_thinking_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let the model think first (default: no)",
    )
    parser.add_argument(
        "--thinking-budget", type=int, metavar="N", help="end the thought after N tokens; the answer always comes"
    )


def add_tool_flags(parser: argparse.ArgumentParser) -> None:
    tools = parser.add_argument_group("tools", "functions that the model may have run")
    tools.add_argument("--tools", type=Path, metavar="FILE.py", help="the functions of this file, which is run")
    tools.add_argument(
        "--builtin-tools",
        action="store_true",
        help="calculator, current_time, roll_dice and convert_units, which can do no harm",
    )
    tools.add_argument(
        "--constrain-tools", action="store_true", help="hold calls to the tools' schemas while they are written"
    )


def _check_tools(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.constrain_tools and not (options.tools or options.builtin_tools):
        parser.error("--constrain-tools needs --tools or --builtin-tools")


def add_kv_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--kv-bits", type=int, choices=(8, 4), help="quantize the caches (default: as computed)")
    parser.add_argument("--kv-bits-keys", type=int, choices=(8, 4), help="the same, of keys")
    parser.add_argument("--kv-bits-values", type=int, choices=(8, 4), help="the same, of values")
    parser.add_argument(
        "--kv-group-size", type=int, metavar="N", help="numbers per scale (default: 64, or 32 where that divides)"
    )
    parser.add_argument(
        "--kv-layers", choices=("all", "global"), help="which layers' caches are quantized (default: global)"
    )


def kv_options(options: argparse.Namespace) -> dict[str, Any]:
    """How caches are to be quantized, as `fit`, `Chat` and `stream_generate` take it: what was given of it."""
    names = ("kv_bits", "kv_bits_keys", "kv_bits_values", "kv_group_size", "kv_layers")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group(
        "sampling", "unless given, LG's advice: with a thought temperature 0.6 and top-p 0.95, else temperature 0.1"
    )
    sampling.add_argument("--temp", type=float, metavar="X", help="temperature; 0 takes the most probable token")
    sampling.add_argument("--top-p", type=float, metavar="X", help="only the most probable tokens that make up X")
    sampling.add_argument("--top-k", type=int, default=0, metavar="N", help="only the N most probable tokens")
    sampling.add_argument(
        "--min-p", type=float, default=0.0, metavar="X", help="only tokens at least X times as probable as the best"
    )
    sampling.add_argument(
        "--presence-penalty", type=float, default=0.0, metavar="X", help="LG advises 1.5 against loops"
    )
    sampling.add_argument(
        "--frequency-penalty", type=float, default=0.0, metavar="X", help="against tokens as often as they came"
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 against all that came, the prompt too",
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same reply")
    sampling.add_argument(
        "-m", "--max-tokens", type=int, metavar="N", help="of thought and answer together (default: 8192)"
    )
    sampling.add_argument(
        "--stop-on-repetition",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end a reply that does nothing but repeat itself (default: yes)",
    )
    sampling.add_argument("--prefill-step-size", type=int, default=2048, metavar="N", help="prompt tokens per chunk")


def _generate(options: argparse.Namespace) -> int:
    from . import loading

    given = _read_messages(options) if options.messages else _read_prompt(options)
    _check_cache_file(options.prompt_cache_file)
    chosen, tools = reply_options(options), read_tools(options)
    found = loading.find_model(options)
    prompt = given if options.raw else _as_messages(given, options.system_prompt)
    request = _check_prompt(prompt, tools, chosen, options, found)
    loading.check_memory(found, options, len(request.ids) + request.max_tokens, len(request.ids))
    made = loading.load(found, options)
    cache = _open_prompt_cache(options.prompt_cache_file, made)
    with progress_bar("reading the prompt", " tokens") as progress:
        request = dataclasses.replace(request, options=dataclasses.replace(chosen, progress=progress))
        reply = _reply(made, prompt, tools, request, cache)
        if options.verbose:
            say(f"{len(request.ids)} prompt tokens; {chosen.resolved(chosen.thinking)}")
        with _cancelled_by_ctrl_c(reply):
            done = _show(reply, options)
    if not options.json and not options.jsonl:
        say(_summary(done))
    if cache is not None:
        try:
            cache.save(options.prompt_cache_file)
        except OSError as error:
            say(f"warning: the prompt cache {options.prompt_cache_file} could not be written: {error.strerror}")
    if done.finish_reason == "repetition":
        say("the reply went round in a loop and was ended; LG's advice against that: --presence-penalty 1.5")
    return 130 if done.finish_reason == "cancelled" else 0


def _reply(
    made: Loaded,
    prompt: str | list[dict[str, Any]],
    tools: Sequence[Tool],
    request: Request,
    cache: PromptCache | None,
) -> Generation | Turn:
    """The reply to be shown: of the model alone, or of a chat, which runs tools."""
    if isinstance(prompt, str) or not tools:
        from ..generation.generate import Generation, make_draft

        return Generation(made.model, request, prompt_cache=cache, draft=make_draft(made.draft))
    from ..conversation.chat import Chat

    chat = Chat(
        made.model, made.tokenizer, tools=tools, messages=prompt, settle=False, prompt_cache=cache, **made.settings
    )
    return chat.reply(**vars(request.options))


def reply_options(options: argparse.Namespace) -> Options:
    """How replies are made, checked before anything is loaded."""
    from ..generation.options import Options

    return Options(
        temperature=options.temp,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        thinking=bool(options.thinking),
        max_tokens=options.max_tokens,
        thinking_budget=options.thinking_budget,
        stop=getattr(options, "stop", ()),
        stop_on_repetition=options.stop_on_repetition,
        constrain_tools=options.constrain_tools,
        prefill_step_size=options.prefill_step_size,
        prompt_lookup=options.prompt_lookup,
        num_draft_tokens=options.num_draft_tokens,
        logprobs=getattr(options, "logprobs", None),
    )


def read_tools(options: argparse.Namespace) -> list[Callable[..., Any]]:
    """The functions that --tools and --builtin-tools name. The file is run, and this is said."""
    tools: list[Callable[..., Any]] = []
    if options.tools:
        from ..tools.load import load_tools

        if options.tools.is_file():
            say(f"running {options.tools} for its tools")
        tools += load_tools(options.tools)
    if options.builtin_tools:
        from ..tools.builtin import BUILTIN_TOOLS

        tools += BUILTIN_TOOLS
    if tools:
        from ..tools.describe import schemas

        schemas(tools)  # raises for two of one name
    return tools


def _as_messages(given: str | list[dict[str, Any]], system_prompt: str | None) -> list[dict[str, Any]]:
    if isinstance(given, str):
        if not given.strip():
            raise ValueError("the prompt is empty")
        given = [{"role": "user", "content": given}]
    if system_prompt is None:
        return given
    if given and given[0].get("role") == "system":
        raise ValueError("the messages begin with a system prompt, and --system-prompt gives another")
    return [{"role": "system", "content": system_prompt}, *given]


def _check_prompt(
    prompt: str | list[dict[str, Any]],
    tools: Sequence[Tool],
    chosen: Options,
    options: argparse.Namespace,
    found: Found,
) -> Request:
    """The prompt, rendered and checked without weights."""
    from ..generation.request import Request, check_answerable, prompt_ids
    from . import loading

    if isinstance(prompt, str):
        ids = found.tokenizer.encode(prompt)
    else:
        ids = prompt_ids(found.tokenizer, prompt, thinking=chosen.thinking, tools=tools or None)
        check_answerable(prompt)
    if len(ids) >= (limit := found.context(options)):
        what, more = "the model's context", "make it shorter, or ask about one part of it at a time"
        if options.max_kv_size is not None:
            what, more = "--max-kv-size", "make it shorter, or N larger"
        raise ValueError(f"the prompt has {len(ids)} tokens, and {what} of {limit} must hold it and a reply: {more}")
    kv, draft = loading.read_kv(found.config, options), found.draft_sizes
    return Request(
        found.config, found.tokenizer, tuple(ids), chosen, options.max_kv_size, kv, draft.config if draft else None
    )


def _read_messages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The messages of a JSON list, or of an object that has them as `messages`, such as a saved chat."""
    source = "standard input" if options.messages == "-" else options.messages
    try:
        content = json.loads(_read_text(None if options.messages == "-" else Path(options.messages), source))
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f'{source} must hold a list of messages: [{{"role": …, "content": …}}, …]')
    return messages


def _check_cache_file(path: Path | None) -> None:
    """Raises OSError, before any work, for a place where no prompt cache can be kept."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to keep the prompt cache in")
    if path.is_dir():
        raise IsADirectoryError(f"the prompt cache {path} must be a file, and is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the prompt cache {path} cannot be written: its folder is read-only")


def _open_prompt_cache(path: Path | None, made: Loaded) -> PromptCache | None:
    if path is None:
        return None

    from ..generation.prompt_cache import PromptCache

    if not path.exists():
        return PromptCache(made.model, made.tokenizer, kv=made.kv)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = PromptCache.load(path, made.model, made.tokenizer, kv=made.kv)
    for warning in caught:
        say(f"warning: {warning.message}")
    return cache


def _read_prompt(options: argparse.Namespace) -> str:
    """The prompt as it was given. The line end that closes a file or a pipe is not part of it."""
    if options.prompt_file:
        text = _read_text(options.prompt_file, str(options.prompt_file))
    elif options.prompt == "-":
        text = _read_text(None, "standard input")
    else:  # as the bytes that the shell gave, whatever the locale
        return _decoded(os.fsencode(options.prompt), "--prompt")
    return text.removesuffix("\n").removesuffix("\r")


def _read_text(path: Path | None, source: str) -> str:
    """A text file, or standard input without a path; errors name the `source`."""
    try:
        data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {source}: {error.strerror}") from error
    return _decoded(data, source)


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text") from error


def _show(reply: Generation | Turn, options: argparse.Namespace) -> Done:
    """Prints the reply in the form that was asked for."""
    from ..generation.generate import Reply
    from ..text.events import Done, Logprobs, Thinking
    from ..tools.schema import shortened
    from ..tools.toolbox import ToolResult

    events: list[Event | Logprobs | Done] = []
    results: list[ToolResult] = []
    printer = _TextPrinter(terminal=sys.stdout.isatty())
    try:
        for event in reply:
            if options.hide_thinking and isinstance(event, Thinking):
                continue
            if isinstance(event, ToolResult):
                results.append(event)
            else:
                events.append(event)
            if options.jsonl:
                print_json(_as_json(event))
            elif options.json:
                continue
            elif isinstance(event, ToolResult):
                printer.close()
                result = json.dumps(event.content, ensure_ascii=False)
                say(f"[{event.call.name} {'failed' if event.failed else 'returned'}: {shortened(result, 200)}]")
            elif not isinstance(event, Logprobs):
                printer.show(event)
    finally:
        printer.close()
    if options.json:
        told = {"model": options.model} | dataclasses.asdict(Reply.from_events(events))
        if options.logprobs is None:
            del told["logprobs"]
        if options.tools or options.builtin_tools:
            told["tool_results"] = [_as_json(result) for result in results]
        print_json(told)
    assert isinstance(events[-1], Done)
    return events[-1]


class _TextPrinter:
    """Prints events as text: on a terminal the thought is dim, elsewhere it stands between the model's own tags.

    A thought that was cut off has no closing tag.
    """

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._open, self._close = (DIM, NORMAL + "\n\n") if terminal else ("<think>\n", "\n</think>\n\n")
        self._inside_thought = False
        self._at_line_start = True

    def show(self, event: Event | Done) -> None:
        from ..text.events import Done, Thinking
        from ..tools.call import ToolCall

        if isinstance(event, Done):
            self.close()
            return
        if isinstance(event, Thinking) != self._inside_thought:
            self._write(self._close if self._inside_thought else self._open)
            self._inside_thought = not self._inside_thought
        if isinstance(event, ToolCall):
            call = json.dumps({"name": event.name, "arguments": event.arguments}, ensure_ascii=False)
            self._write(f"<tool_call>{call}</tool_call>")
        else:
            self._write(event.text)

    def close(self) -> None:
        """Ends the line, and the dimness."""
        if self._inside_thought and self._terminal:
            self._write(NORMAL)
            self._inside_thought = False
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start


def _as_json(event: Event | Logprobs | ToolResult | Done) -> dict[str, Any]:
    kinds = {
        "Thinking": "thinking",
        "Answer": "answer",
        "ToolCall": "tool_call",
        "ToolResult": "tool_result",
        "Logprobs": "logprobs",
        "Done": "done",
    }
    fields = {name: value for name, value in dataclasses.asdict(event).items() if name != "problem" or value}
    return {"type": kinds[type(event).__name__]} | fields


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: they are null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(done: Done) -> str:
    """One line of counts and speeds."""
    generated = done.thinking_tokens + done.answer_tokens
    thought = f" ({done.thinking_tokens} of them thought)" if done.thinking_tokens else ""
    cached = f" ({done.cached_tokens} of them cached)" if done.cached_tokens else ""
    ends = {
        "length": ", cut off by --max-tokens or the context",
        "cancelled": ", cancelled",
        "repetition": ", ended in a loop",
    }
    ended = ends.get(done.finish_reason, "")
    drafted = f" ({done.accepted_tokens} of {done.drafted_tokens} drafted ones accepted)" if done.drafted_tokens else ""
    rate = f", {generated / done.decode_seconds:.1f} tokens/s" if generated and done.decode_seconds else ""
    return (
        f"[prompt {done.prompt_tokens} tokens{cached} in {done.prefill_seconds:.2f} s | "
        f"reply {generated} tokens{thought}{drafted} in {done.decode_seconds:.2f} s{rate}{ended} | "
        f"peak memory {size_text(done.peak_bytes)}]"
    )


@contextmanager
def _cancelled_by_ctrl_c(reply: Generation | Turn) -> Iterator[None]:
    """The first Ctrl-C ends the reply in good order, the second one at once."""

    def cancel(signal_number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        reply.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- chat -----------------------------------------------------------------------------------------------------


def _add_chat(commands: Any) -> None:
    from ..terminal import repl
    from . import loading

    parser = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="A conversation in the terminal; without one, a line of standard input is a turn.",
    )
    repl.add_arguments(parser)

    def check(options: argparse.Namespace) -> None:
        _check_tools(parser, options)
        loading.check_usage(parser, options)

    parser.set_defaults(run=repl.run, check=check, parser=parser)


# --- convert, evaluate, fit, bench and doctor -----------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    from . import bench, convert, doctor, evaluate, fit

    for command in (convert, evaluate, fit, bench, doctor):
        name = command.__name__.rpartition(".")[2]
        parser = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        command.add_arguments(parser)
        parser.set_defaults(run=command.run, check=None, parser=parser)


# --- for all --------------------------------------------------------------------------------------------------


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that draws a bar with the time left, on a terminal and after half a second."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=True, delay=0.5, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        yield report


def _unsupported_platform() -> str | None:
    if platform.system() != "Darwin" or platform.machine() == "arm64":
        return None
    return (
        "MLX needs a native Python on Apple silicon, and this one is an x86-64 build (on an M-series Mac it runs "
        "under Rosetta): install an arm64 Python, for instance with `arch -arm64 brew install python`"
    )


def _prepare_streams() -> None:
    """Streams that were closed become empty, and text is UTF-8 whatever the locale says."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def say(text: str) -> None:
    """To standard error: what is not the result."""
    print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """To standard output: the result."""
    print(text, flush=True)


def run_command(command: str) -> NoReturn:
    """The front of `python -m exaone4_mlx.COMMAND`."""
    raise SystemExit(main([command, *sys.argv[1:]]))
