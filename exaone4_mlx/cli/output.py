"""Output of the commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from ..files.text import json_text
from ..text.format import ENDS, call_text, clean, count_text, cut_to_width, size_text

if TYPE_CHECKING:
    from ..text.events import Done
    from ..text.message import TurnEvent

#: The text by which a progress bar moves the cursor, as one write.
MOVES = re.compile(r"(?:\n|\x1b\[A)*")
#: Seconds until a bar appears, and between two lines of progress where there is no terminal.
BAR_SECONDS, LINE_SECONDS = 0.5, 10.0
_quiet = False
_bars: list[Any] = []  # open ones; the last one is drawn
DIM, NORMAL = "\x1b[2m", "\x1b[0m"

_own: TextIO | None = None  # the stream of results inside `results_alone`


def results() -> TextIO:
    """The stream of results: standard output, also inside `results_alone`."""
    return _own or sys.stdout


@contextmanager
def results_alone() -> Iterator[None]:
    """Reserves standard output for results. What tools and their child processes print goes to standard error."""
    global _own
    sys.stdout.flush()
    stream = _own = before = sys.stdout
    number = kept = None
    with suppress(OSError, ValueError, AttributeError):  # a stream without a file, as in a notebook
        number = before.fileno()
    if number is not None:
        kept = os.dup(number)
        stream = _own = clean_stream(open(kept, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115 (closed below)
        os.dup2(sys.stderr.fileno(), number)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout, _own = before, None
        if number is not None and kept is not None:
            os.dup2(kept, number)
            with suppress(BrokenPipeError):  # raised before, where it was written
                stream.close()


def show(text: str) -> None:
    """Prints a part of the result."""
    print(text, file=results(), flush=True)


def show_json(value: dict[str, Any]) -> None:
    show(json_text(value))


def log(text: str) -> None:
    """Prints an error, a warning or an answer to Ctrl-C."""
    print(text, file=sys.stderr, flush=True)


def set_quiet(quiet: bool) -> None:
    """Whether `note` and `progress_bar` print nothing."""
    global _quiet
    _quiet = quiet


def note(text: str) -> None:
    """Prints a remark, which --quiet hides. An open bar is drawn again below it."""
    if not _quiet:
        for bar in _bars[-1:]:
            bar.clear()
        log(text)


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A function (done, total) that draws a bar with the time left. Without a terminal it prints a line now and then.

    A third argument is a text behind the numbers. The bar appears after half a second, also before the first call. It
    replaces an open one until it ends.
    """
    if _quiet or not sys.stderr.isatty():
        yield _progress_lines(what, unit)
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=unit == "B", delay=BAR_SECONDS, leave=False, position=0) as bar:
        for other in _bars:
            other.clear()
        _bars.append(bar)
        ended = threading.Event()

        def refresh() -> None:
            while not ended.wait(BAR_SECONDS):
                if any(bar is last for last in _bars[-1:]):
                    bar.refresh()

        def report(done: int, total: int, text: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)
            if done >= total:
                ended.set()
                bar.close()

        threading.Thread(target=refresh, daemon=True).start()
        try:
            yield report
        finally:
            ended.set()
            _bars.pop()


def _progress_lines(what: str, unit: str) -> Callable[..., None]:
    printed = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal printed
        if done < total and time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            bytes = f"{size_text(done)} of {size_text(total)}"
            note(f"{what}: {bytes if unit == 'B' else f'{done} of {total}{unit}'}" + f", {text}" * bool(text))

    return report


class CleanStream:
    """A stream of a terminal on which all that is printed is clean: by `print`, argparse, warnings and tracebacks.

    What draws (rich, prompt_toolkit, our own styles) writes to `drawing`, the stream itself, and cleans its texts.
    """

    def __init__(self, stream: TextIO) -> None:
        self.drawing = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drawing, name)

    def write(self, text: str) -> int:
        if sys._getframe(1).f_globals.get("__name__", "").startswith("tqdm"):  # bars, those of the hub too
            cleaned = text if MOVES.fullmatch(text) else "\r" * text.startswith("\r") + clean(text)
        else:
            cleaned = clean(text)
        self.drawing.write(cleaned)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def clean_stream(stream: TextIO) -> TextIO:
    """The stream, which cleans what is written to it if it is a terminal."""
    return cast(TextIO, CleanStream(stream)) if stream.isatty() and not isinstance(stream, CleanStream) else stream


def can_draw(stream: TextIO) -> bool:
    """Whether it is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def has_styles(stream: TextIO) -> bool:
    """Whether it is a terminal with styles, and the user wants them (no-color.org)."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def prepare_streams() -> None:
    """Replaces closed standard streams by empty ones, sets UTF-8 independently of the locale, and cleans terminals."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    os.environ.setdefault("PYTHON_COLORS", "0")  # of tracebacks and argparse: they are escape codes too
    sys.stdout, sys.stderr = clean_stream(sys.stdout), clean_stream(sys.stderr)


# --- replies ----------------------------------------------------------------------------------------------------


class TextPrinter:
    """Prints events as text. A thought is dim on a terminal; elsewhere it is enclosed in the model's own tags.

    A thought that was cut off has no closing tag. Calls that are run, and their results, go to standard error.
    """

    def __init__(self, runs_calls: bool) -> None:
        self._runs_calls, self._styles = runs_calls, has_styles(results())
        self._open, self._close = ("", "\n\n") if self._styles else ("<think>\n", "\n</think>\n\n")
        self._inside_thought = False
        self._at_line_start = True

    def show(self, event: TurnEvent) -> None:
        from ..text.events import CallPart, Done, Logprobs, Thinking
        from ..tools.call import ToolCall, ToolResult

        if isinstance(event, (Logprobs, CallPart)):
            return
        if isinstance(event, Done):
            self.close()
            return
        if isinstance(event, Thinking) != self._inside_thought:
            if self._inside_thought:
                self._style(NORMAL)
            self._write(self._close if self._inside_thought else self._open)
            self._inside_thought = not self._inside_thought
            if self._inside_thought:
                self._style(DIM)
        if isinstance(event, ToolResult):
            self.close()
            result = json.dumps(event.content, ensure_ascii=False)
            note(f"[{event.call.name} {'failed' if event.failed else 'returned'}: {cut_to_width(result, 200)}]")
        elif isinstance(event, ToolCall) and self._runs_calls:
            self.close()
            note(f"[calls {cut_to_width(call_text(event), 200)}]")
        elif isinstance(event, ToolCall):
            call = json.dumps({"name": event.name, "arguments": event.arguments}, ensure_ascii=False)
            self._write(f"<tool_call>{call}</tool_call>")
        else:
            self._write(event.text)

    def close(self) -> None:
        """Ends the line and the dim style."""
        if self._inside_thought and self._styles:
            self._style(NORMAL)
            self._inside_thought = False
        if not self._at_line_start:
            self._write("\n")

    def _style(self, code: str) -> None:
        if self._styles:
            getattr(results(), "drawing", results()).write(code)

    def _write(self, text: str) -> None:
        results().write(text)
        results().flush()
        self._at_line_start = text.endswith("\n") if text else self._at_line_start


def event_json(event: TurnEvent) -> dict[str, Any]:
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


def reply_json(events: Sequence[TurnEvent], has_logprobs: bool, has_tools: bool) -> dict[str, Any]:
    """A whole reply: the fields of `Reply` without the token ids, and the results of tools."""
    from ..text.message import Reply
    from ..tools.call import ToolResult

    fields = dataclasses.asdict(Reply.from_events(events))
    del fields["token_ids"]
    if not has_logprobs:
        del fields["logprobs"]
    if has_tools:
        fields["tool_results"] = [event_json(event) for event in events if isinstance(event, ToolResult)]
    return fields


def reply_summary(done: Done) -> str:
    """The counts and speeds of a reply on one line."""
    generated = done.thinking_tokens + done.answer_tokens
    thought = f" ({done.thinking_tokens} of them thought)" if done.thinking_tokens else ""
    cached = f" ({done.cached_tokens} of them cached)" if done.cached_tokens else ""
    drafted = f" ({done.accepted_tokens} of {done.drafted_tokens} draft tokens accepted)" if done.drafted_tokens else ""
    rate = f", {generated / done.decode_seconds:.1f} tokens/s" if generated and done.decode_seconds else ""
    ended = f", {ENDS[done.finish_reason]}" if done.finish_reason in ENDS else ""
    return (
        f"[prompt {count_text(done.prompt_tokens, 'token')}{cached} in {done.prefill_seconds:.2f} s | "
        f"reply {count_text(generated, 'token')}{thought}{drafted} in {done.decode_seconds:.2f} s{rate}{ended} | "
        f"peak memory {size_text(done.peak_bytes)}]"
    )
