"""Messages -> HTML for the page. Texts of a model, a user or a tool add no elements of their own to the page.

Notes:
- An item is a message as the page shows it: a list of parts, each a piece of HTML. While a reply is generated only its
  last parts change, and the page replaces only those.
- Keys of items come from their content, so that the page fetches a message once.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from exaone4_mlx.files.text import HALF, number, objects
from exaone4_mlx.text.format import arguments_text, indented, value_text
from exaone4_mlx.text.message import Message

from .details import reply_details
from .i18n import Words
from .markdown import blocks

Item = dict[str, Any]

ENDS = {"cancelled": "was_stopped", "length": "was_cut", "repetition": "was_loop", "error": "was_error"}
SHORT = 60  # characters of a value in a title
LONG = 20_000  # characters of a value in a panel
CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")


def items(
    messages: Sequence[Message], words: Words, start: int = 0, *, live: bool = False, known: Collection[str] = ()
) -> list[Item]:
    """The messages from `start` on as the page shows them. With `live` they are those of a reply in progress.

    Items whose keys are `known` are not rendered: they have their key and `at`, the index of their last message. A file
    that `ConversationStore` reads may hold any values in their fields: all of them can be shown.
    """
    turn = sum(message["role"] == "user" for message in messages[:start]) - 1
    result: list[Item] = []
    calls = 0  # whose results are shown with them
    for index, message in enumerate(messages[start:], start):
        role, results = message["role"], tool_results(messages, index)
        turn += role == "user"
        if role in ("user", "assistant") or (role == "tool" and not calls):
            content = repr([message, results, live, words.language])
            key = f"{index}-{zlib.crc32(content.encode('utf-8', 'surrogatepass')):x}"
            made: Item = {} if key in known else _item(message, results, words, live, turn)
            if made and role == "assistant" and not live and _ends_turn(messages, index + len(results)):
                made["details"] = reply_details(_replies(messages, index), words)
            result.append({"key": key, "at": index + len(results), **made})
        calls = calls - 1 if role == "tool" and calls else len(objects(message.get("tool_calls")))
    return result


def _ends_turn(messages: Sequence[Message], index: int) -> bool:
    return index + 1 >= len(messages) or messages[index + 1]["role"] == "user"


def _replies(messages: Sequence[Message], index: int) -> list[Message]:
    """The messages of the model in the turn that ends with `index`."""
    first = next((i for i in range(index, -1, -1) if messages[i]["role"] == "user"), -1) + 1
    return [message for message in messages[first : index + 1] if message["role"] == "assistant"]


def _item(message: Message, results: Sequence[Message], words: Words, live: bool, turn: int) -> Item:
    if message["role"] == "user":
        parts = user_parts(message, words)
    elif message["role"] == "assistant":
        parts = list(reply_parts(message, results, words, live))
    else:
        parts = [_result(message, words)]  # a result without a call: the model reads it, too
    calls = message.get("tool_calls")
    return {
        "role": "user" if message["role"] == "user" else "assistant",
        "turn": turn,
        "parts": [HALF.sub("\ufffd", CONTROLS.sub("", part)) for part in parts],
        "ending": "cut" if str(message.get("finish_reason")) in ENDS else "calls" if results or calls else "whole",
        "source": HALF.sub("\ufffd", str(message.get("text", message.get("content")) or "")),
    }


def user_parts(message: Message, words: Words) -> list[str]:
    """The files of a message, and its text exactly as it was typed."""
    parts = []
    for file in objects(message.get("files")):
        title = words("attached", name=str(file.get("name")), tokens=f"{number(file.get('tokens')):,}")
        parts.append(_panel("file", escape(title), _preformatted(str(file.get("text", "")))))
    return [*parts, f'<div class="said">{escape(str(message.get("text", message.get("content")) or ""))}</div>']


def reply_parts(message: Message, results: Sequence[Message], words: Words, live: bool = False) -> Iterator[str]:
    """The thought, the answer block by block, the calls with their results, and how the reply ended."""
    answer, calls = str(message.get("content") or "").strip(), objects(message.get("tool_calls"))
    if thought := message.get("reasoning_content"):
        growing = live and not answer and not calls
        title = escape(thought_title(message.get("stats"), growing, words))
        yield _panel("thought", title, "".join(blocks(str(thought).strip(), words)), is_open=growing, grows=growing)
    yield from blocks(answer, words)
    asking: Mapping[int, Any] = message.get("asking", {}) if live else {}
    for place, call in enumerate(calls):
        shown = _call(call.get("function", call), results[place] if place < len(results) else None, words, live)
        yield _question(shown, asking[place], words) if place in asking else shown
    if (end := ENDS.get(str(message.get("finish_reason")))) is not None:
        yield f'<p class="ended">{escape(words(end))}</p>'


def tool_results(messages: Sequence[Message], index: int) -> list[Message]:
    """The results that follow the reply at `index`."""
    results = []
    for message in messages[index + 1 :]:
        if message["role"] != "tool":
            break
        results.append(message)
    return results


def _call(call: Any, result: Message | None, words: Words, live: bool) -> str:
    """A call with its arguments and its result."""
    name, given = (str(call.get("name")), call.get("arguments")) if isinstance(call, Mapping) else (str(call), None)
    title = f"<code>{escape(call_text(name, given))}</code>"
    inside = "" if given is None else _preformatted(pretty(given))
    if result is None:
        return _panel("call", title, inside, grows=live)
    failed, outcome = _outcome(result, words)
    label = words("failed" if failed else "result")
    title += f" → {escape(label) + ': ' if failed else ''}<code>{escape(short(value_text(outcome)))}</code>"
    if (seconds := number(result.get("seconds"))) >= 0.1:
        title += f' <span class="quiet">{escape(words.seconds(seconds))}</span>'
    return _panel(
        "call failed" if failed else "call", title, f"{inside}<h6>{escape(label)}</h6>{_preformatted(pretty(outcome))}"
    )


def _question(call: str, asking: tuple[int, str, str], words: Words) -> str:
    """A call that waits for the user, open, with the answers below it."""
    number, kind, name = asking
    answers = [("yes", "primary", "allow"), ("no", "secondary", "deny"), ("always", "secondary", "allow_always")]
    buttons = "".join(
        f'<button type="button" class="{look}" data-do="answer" data-call="{number}" data-word="{word}">'
        f"{escape(words(key))}</button>"
        for word, look, key in answers
    )
    said = (
        f'<strong>{escape(words("waits_for_you"))}</strong> <span class="quiet">{escape(words(kind, name=name))}</span>'
    )
    opened, id = call.replace("<details ", "<details open ", 1), f"asks-{number}"
    return f'{opened}<div class="question" role="group" aria-labelledby="{id}"><p id="{id}">{said}</p>{buttons}</div>'


def _result(message: Message, words: Words) -> str:
    """A result without its call."""
    failed, outcome = _outcome(message, words)
    return _panel("call", escape(words("failed" if failed else "result")), _preformatted(pretty(outcome)))


def _outcome(result: Message, words: Words) -> tuple[bool, Any]:
    """Whether a call failed, and its result. An error without other fields is its text."""
    content, failed = result.get("content"), bool(result.get("failed"))
    if failed and isinstance(content, Mapping) and content.keys() == {"error"}:
        content = content["error"]
    return failed, words.error(content) if failed and isinstance(content, str) else content


def _panel(kind: str, title: str, inside: str, is_open: bool = False, grows: bool = False) -> str:
    state = (" open" if is_open else "") + (' data-grows=""' if grows else "")
    return (
        f'<details class="panel {kind}"{state}><summary>{title}</summary><div class="inside">{inside}</div></details>'
    )


def _preformatted(text: str) -> str:
    cut = text if len(text) <= LONG else f"{text[:LONG]}…"
    return f'<pre tabindex="0">{escape(cut)}</pre>' if cut else ""


def call_text(name: str, arguments: Any) -> str:
    """A call as one line of Python: `roll_dice(max_num=6)`."""
    return f"{short(name)}({short(arguments_text(arguments))})"


def thought_title(stats: Any, growing: bool, words: Words) -> str:
    stats = stats if isinstance(stats, Mapping) else {}
    if not (tokens := number(stats.get("thinking_tokens"))):
        return words("thinking_now" if growing else "thought")
    seconds = words.seconds(number(stats.get("thinking_seconds")))
    begin = f"{words('thinking_now')} · {seconds}" if growing else words("thought_for", seconds=seconds)
    return f"{begin} · {words('tokens', count=f'{tokens:,}')}"


def pretty(value: Any) -> str:
    return value if isinstance(value, str) else indented(value)


def short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
