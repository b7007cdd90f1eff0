"""`exaone4-mlx generate --batch FILE.jsonl -o OUT.jsonl`: a reply to each line of a file, in order.

Notes:
- A line is an object with `prompt` or `messages`. It may have an `id`, a `system_prompt`, and options of the reply,
  which override the flags.
- The output has one object for each line: what `--json` prints, with `index`, `id` and `input`, or `error` in place of
  the reply. `input` is a digest of the line and the flags.
- Each object is written when its reply is complete. After an interruption the same command keeps the complete objects
  and continues with the line after them.
- `--batch-size` replies are made together. One that is complete before an earlier line waits for that line.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.attachments import read_text
from ..files.text import json_text, parse_json
from ..generation.options import Options
from ..generation.worker import WAIT_SECONDS
from ..text.input_messages import as_messages
from . import INTERRUPTED, flags, loading
from .main import on_ctrl_c
from .output import note, progress_bar, reply_json

if TYPE_CHECKING:
    from ..conversation.turn import Turn
    from ..generation.generate import Generation
    from ..generation.request import Request

#: Keys of a line that are no options of a reply.
KEYS = ("id", "prompt", "messages", "system_prompt")
#: Flags that do not change the replies.
IRRELEVANT = {"command", "batch", "output", "parser", "run", "debug", "verbose", "ignore_memory", "batch_size"}
LONGEST_TRIED = 8  # lines that may be invalid before the check of the memory is left out


def run(options: argparse.Namespace) -> int:
    """Makes the replies that are missing in the output. The exit code is 1 if any line has an error."""
    with _locked(options.output):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    text = read_text(None if options.batch == "-" else Path(options.batch))
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("--batch has no lines")
    chosen, tools = Options(**flags.given_options(options)), flags.read_tools(options)
    digests = [_digest(line, options) for line in lines]
    done = _kept(options.output, digests)
    if missing := lines[len(done) :]:
        files = loading.find_model(options)
        _check_memory(files, options, chosen, tools, missing)
        made = loading.load(files, options)

        def ask(line: dict[str, Any]) -> Generation | Turn:
            request, messages = _request(files, options, chosen, tools, line)
            return made.reply(request, messages, tools)

        with options.output.open("ab") as output, progress_bar("replies", " lines") as progress:
            for index, reply in enumerate(_replies(missing, ask, options), start=len(done)):
                output.write(json_text({"index": index, "input": digests[index]} | reply).encode() + b"\n")
                output.flush()
                done.append("error" in reply)
                progress(len(done), len(lines))
    errors = f", {sum(done)} with an error" if any(done) else ""
    note(f"[{len(done)} of {len(lines)} replies{errors}, in {options.output}]")
    return INTERRUPTED if len(done) < len(lines) else int(any(done))


def _replies(
    lines: Sequence[str], ask: Callable[[dict[str, Any]], Generation | Turn], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The object of each line in order, until Ctrl-C, which ends the replies in progress and drops them."""
    stopped, current = threading.Event(), list[Any]()

    def stop() -> None:  # in threads: the signal handler may interrupt code that holds the locks of a reply
        stopped.set()
        for reply in list(current):
            threading.Thread(target=reply.cancel, daemon=True).start()

    def made(line: str) -> dict[str, Any] | None:
        given: dict[str, Any] = {}
        try:
            given = _parsed(line)
            reply = ask(given)
            current.append(reply)
            if stopped.is_set():
                reply.cancel()
            events = list(reply)
            current.remove(reply)
            found = {"model": options.model} | _object(events, given, options)
        except Exception as error:
            found = {"error": " ".join(str(error).split()) or type(error).__name__}
        return None if stopped.is_set() else {name: given[name] for name in ("id",) if name in given} | found

    with on_ctrl_c(stop), ThreadPoolExecutor(options.batch_size) as pool:
        try:
            for future in [pool.submit(made, line) for line in lines]:
                while not future.done() and not stopped.is_set():
                    wait([future], WAIT_SECONDS)
                if not future.done() or (found := future.result()) is None:
                    return
                yield found
        finally:
            stop()
            pool.shutdown(cancel_futures=True)


def _object(events: list[Any], given: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    from ..text.events import Thinking

    events = [event for event in events if not (options.hide_thinking and isinstance(event, Thinking))]
    has_logprobs = given.get("logprobs", options.logprobs) is not None
    return reply_json(events, has_logprobs, flags.has_tools(options))


def _parsed(line: str) -> dict[str, Any]:
    given = parse_json(line, "the line")
    if not isinstance(given, dict) or ("prompt" in given) == ("messages" in given):
        raise ValueError("the line must be an object with prompt or messages")
    if not isinstance(given.get("prompt", ""), str) or not isinstance(given.get("messages", []), list):
        raise ValueError("prompt must be a text, and messages a list")
    return given


def _request(
    files: loading.ModelFiles,
    options: argparse.Namespace,
    chosen: Options,
    tools: Sequence[Callable[..., Any]],
    line: dict[str, Any],
) -> tuple[Request, Any]:
    """The request of a line, and its messages. Raises ValueError and TypeError for what is wrong in it."""
    own = Options.read({name: value for name, value in line.items() if name not in KEYS}, chosen, also=KEYS)
    given: Any = line.get("prompt", line.get("messages"))
    if options.raw:
        if "prompt" not in line or "system_prompt" in line:
            raise ValueError("--raw uses no chat template: a line has a prompt, and no messages and no system_prompt")
        return files.request(files.tokenizer.encode(given), own), None
    messages = as_messages(given, line.get("system_prompt", options.system_prompt))
    return files.request(messages, own, tools or None), messages


def _check_memory(
    files: loading.ModelFiles,
    options: argparse.Namespace,
    chosen: Options,
    tools: Sequence[Callable[..., Any]],
    lines: Sequence[str],
) -> None:
    """Checks the memory for the longest line without an error. Errors of lines are part of the output."""
    for line in sorted(lines, key=len, reverse=True)[:LONGEST_TRIED]:
        with contextlib.suppress(ValueError, TypeError):
            request, _ = _request(files, options, chosen, tools, _parsed(line))
            tokens = min(len(lines), options.batch_size) * (len(request.ids) + request.max_tokens)
            loading.check_memory(files, options, min(tokens, files.context), len(request.ids))
            return


# --- the output -----------------------------------------------------------------------------------------------


def _digest(line: str, options: argparse.Namespace) -> str:
    settings = {name: value for name, value in vars(options).items() if name not in IRRELEVANT}
    text = json.dumps([line.strip(), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises ValueError if another run writes this output. Leaves no empty file."""
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        yield  # `_kept` refuses it
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--output: another run writes {path}; choose another file, or wait for its end"
            ) from error
        except OSError:  # some network folders have no locks
            pass
        try:
            yield
        finally:
            if not path.stat().st_size:
                path.unlink()


def _kept(path: Path, digests: Sequence[str]) -> list[bool]:
    """Whether each object of an earlier output has an error. Removes an incomplete last line from the file.

    Raises ValueError for a file that does not belong to these lines.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder {path.parent}")
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"--output: {path} is no file")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = []
    for index, line in enumerate(whole.splitlines()):
        try:
            found = json.loads(line)
            belongs = found["index"] == index and found["input"] == digests[index]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            belongs = False
        if not belongs:
            raise ValueError(
                f"--output: line {index + 1} of {path} belongs to another input, or to other flags; choose another file"
            )
        done.append("error" in found)
    if len(whole) < len(data):
        begun = f'{{"index": 0, "input": "{digests[0]}"'.encode()
        if not whole and not data.startswith(begun[: len(data)]):
            raise ValueError(f"--output: {path} is no output of --batch; choose another file")
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return done
