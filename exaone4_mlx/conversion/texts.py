"""Texts for calibration and evaluation: files -> passages -> token ids.

Notes:
- A passage is data: a control string in it, such as `[|endofturn|]`, becomes ordinary tokens. Control tokens come from
  the checkpoint's chat template and, in the last reply of a chat, from this module.
- The last reply is written as the model would write it, with its thought, which the template omits.
- The package's two files have no eight consecutive words in common. `overlap` checks this, also for a user's files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files.text import decode_text, parse_json
from ..text.input_messages import Message, check_messages, split_thought
from ..text.tokenizer import Tokenizer
from ..tools.describe import schemas

_FOLDER = Path(__file__).parents[1] / "texts"
CALIBRATION, HELD_OUT = _FOLDER / "calibration.jsonl", _FOLDER / "held_out.jsonl"

RUN = 8  # consecutive words that two texts do not share by chance


@dataclass(frozen=True)
class Passage:
    """A text, or a conversation with its tools that ends with a message of the assistant.

    `place` is the file and line that it was read from.
    """

    kind: str
    language: str
    text: str | None = None
    messages: tuple[Message, ...] | None = field(default=None, hash=False)
    tools: tuple[Message, ...] = field(default=(), hash=False)
    place: str = field(default="", compare=False)


def read_passages(path: Path) -> list[Passage]:
    """The passages of one file, in order.

    A .jsonl file has an object on each line, as `read_passage` takes it. A .txt or .md file is one passage, or several,
    separated by form feeds or by lines of three or more dashes. Blank lines and blank parts are skipped.

    Raises FileNotFoundError, and ValueError for a malformed line (with file and line number), for a file of another
    type, and for a file without passages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} with texts")
    readers = {".jsonl": _lines, ".txt": _parts, ".md": _parts}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} must end with one of {', '.join(readers)}")
    content = decode_text(path.read_bytes(), str(path))
    passages = list(readers[path.suffix.lower()](content, path))
    if not passages:
        raise ValueError(f"{path} contains no text")
    return passages


def read_passage(entry: Any, place: str) -> Passage:
    """The passage of one object, in one of the forms of mlx-lm's datasets.

    {"text": ...}, {"messages": [...], "tools": [...]} ("tools" is optional), or {"prompt": ..., "completion": ...},
    which is a conversation of two messages. "kind" is "text" or "chat" by default, "language" is "und"; other keys are
    ignored. Raises ValueError, which begins with `place`.
    """
    try:
        return replace(_passage(entry), place=place)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def encode(passage: Passage, tokenizer: Tokenizer) -> list[int]:
    """The token ids of a passage, as `encode_reply` returns them."""
    return encode_reply(passage, tokenizer)[0]


def encode_reply(passage: Passage, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The token ids of a passage, at least one, and how many are before its last reply: none, if it is a text.

    A conversation becomes the prompt for its last message, by the checkpoint's chat template (in thinking mode if the
    message has a thought), then the message as the model would write it, and the end of the turn.

    Raises ValueError for a passage without text, and for a template that refuses it.
    """
    if passage.messages:
        return _chat(passage, tokenizer)
    ids = tokenizer.encode_plain(passage.text or "")
    if not ids:
        raise ValueError(f"a passage of the kind {passage.kind!r} has no text")
    return ids, 0


def windows(ids: list[int], size: int) -> list[list[int]]:
    """Token ids in consecutive parts of `size`; the last one may be shorter. Each is read without the ones before."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def fingerprints(passages: Iterable[Passage]) -> set[str]:
    """Digests of every eight consecutive words (of all words, if there are fewer), in lower case.

    Words are separated by spaces and punctuation, in Korean too. Two texts with an equal digest share a sentence.
    """
    return {_digest(run) for passage in passages for run in _runs(_words(passage))}


def overlap(a: Iterable[Passage], b: Iterable[Passage]) -> list[str]:
    """The sequences of eight or more words of `a` that are also in `b`."""
    known = fingerprints(b)
    shared: list[str] = []
    for passage in a:
        words, end = _words(passage), 0
        for start, run in enumerate(_runs(words)):
            if _digest(run) not in known:
                continue
            if start < end:  # continues the sequence before
                shared[-1] += "".join(f" {word}" for word in words[end : start + len(run)])
            else:
                shared.append(" ".join(run))
            end = start + len(run)
    return shared


def _lines(content: str, path: Path) -> Iterator[Passage]:
    for number, line in enumerate(content.split("\n"), start=1):  # not splitlines(): JSON may hold U+2028
        if line.strip():
            place = f"{path}, line {number}"
            yield read_passage(parse_json(line, place), place)


def _parts(content: str, path: Path) -> Iterator[Passage]:
    for part in re.split(r"^-{3,}[ \t]*$|\f", content, flags=re.MULTILINE):
        if part.strip():
            yield Passage("text", "und", part.strip())


def _passage(entry: Any) -> Passage:
    forms = [form for form in ("text", "messages", "prompt") if isinstance(entry, dict) and form in entry]
    if len(forms) != 1:
        raise ValueError('a passage is an object with one of "text", "messages" and "prompt"')
    kind, language = entry.get("kind", "text" if "text" in entry else "chat"), entry.get("language", "und")
    if not isinstance(kind, str) or not isinstance(language, str):
        raise ValueError(f'"kind" and "language" must be strings, not {kind!r} and {language!r}')
    json.dumps(entry, ensure_ascii=False).encode()  # a ValueError for an unpaired surrogate
    if forms == ["text"]:
        return Passage(kind, language, _text(entry, "text"))
    given = entry.get("messages")
    if forms == ["prompt"]:
        given = [{"role": "user", "content": _text(entry, "prompt")}]
        given.append({"role": "assistant", "content": _text(entry, "completion")})
    messages = tuple(check_messages(given))
    last = messages[-1]
    if last["role"] != "assistant" or not (last["content"].strip() or last.get("tool_calls")):
        raise ValueError("a conversation must end with a message of the assistant that has content")
    if len(messages) < 2:
        raise ValueError("a conversation needs a message before the answer of the assistant")
    return Passage(kind, language, None, messages, tuple(schemas(entry.get("tools"))))


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{name}" must be a string that is not blank')
    return value


def _chat(passage: Passage, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Prompt, thought, answer, calls, end of turn; and the length of the prompt."""
    *before, last = passage.messages or ()
    thought, answer = _thought_and_answer(last)
    ids = tokenizer.apply_chat_template(before, passage.tools, enable_thinking=bool(thought))
    prompt_tokens = len(ids)
    if thought:
        ids += tokenizer.encode_plain(thought + "\n") + tokenizer.encode("</think>")
        answer = "\n\n" + answer
    if calls := last.get("tool_calls"):
        ids += tokenizer.encode_plain(answer + "\n" * bool(answer.strip())) + _calls(passage, calls, tokenizer)
    else:
        ids += tokenizer.encode_plain(answer)
    return ids + tokenizer.encode(tokenizer.eos_token), prompt_tokens


def _thought_and_answer(message: Message) -> tuple[str, str]:
    """Thought and answer, also of a content like `<think>` … `</think>` …, as in some datasets."""
    thought, answer = message.get("reasoning_content") or "", message["content"]
    if not thought:
        thought, answer = split_thought(answer)
    return thought.strip(), answer


def _calls(passage: Passage, calls: Sequence[Any], tokenizer: Tokenizer) -> list[int]:
    """The ids of tool calls, as the template renders them in a turn without other content."""
    before = (passage.messages or ())[:-1]
    prompt = tokenizer.apply_chat_template(before, passage.tools)
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    whole = tokenizer.apply_chat_template([*before, turn], passage.tools, add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise ValueError("the chat template does not render a turn with tool calls as a continuation of its own prompt")
    (eos,) = tokenizer.encode(tokenizer.eos_token)
    return whole[len(prompt) : len(whole) - 1 - whole[::-1].index(eos)]


def _words(passage: Passage) -> list[str]:
    """All words of the text or the messages, without tools."""
    parts = [passage.text or ""]
    for message in passage.messages or ():
        parts += [str(message.get("reasoning_content") or ""), str(message.get("content") or "")]
    return re.findall(r"\w+", "\n".join(parts).casefold())


def _runs(words: list[str]) -> Iterator[list[str]]:
    if words:
        yield from (words[start : start + RUN] for start in range(max(1, len(words) - RUN + 1)))


def _digest(words: list[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()
