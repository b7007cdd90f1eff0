"""Text <-> ids, and messages -> prompt, with the checkpoint's own tokenizer.json and chat template.

What is peculiar here:
- EXAONE's `<think>` … `<tool_result>` are added tokens that are not "special", and so are runs of spaces and
  tabs. The first are control tokens here, like `[|user|]`; the second are ordinary text.
- In a rendered prompt control tokens come from the template only. The same strings inside a message are
  ordinary text: each is broken by a mark before rendering and mended after, outside the control tokens.
- A past reply is the model's own text and keeps the marks that the model writes (think, tool), but no role.
- Templates come with checkpoints, from anyone: they run in a sandbox, against a deadline.
- No transformers: tokenizers and jinja2 only.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import tokenizers

from ..tools.describe import Tool, schemas
from .template import MARKS, ChatTemplate

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
OWN_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
EOS = "[|endofturn|]"


class Tokenizer:
    """The tokenizer of one checkpoint. Make one with `from_pretrained`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        template: ChatTemplate | None,
        extra_stop_ids: Iterable[int] = (),
    ) -> None:
        self._backend = backend
        self._config = dict(config)
        self._template = template
        added = backend.get_added_tokens_decoder()
        self._added_text = {id: token.content for id, token in added.items()}
        control = [token for token in added.values() if token.content.strip(" \t")]
        self.control_tokens = frozenset(token.content for token in control)
        self._special = frozenset(token.content for token in control if token.special)
        self._control_split = re.compile(
            "(" + "|".join(re.escape(s) for s in sorted(self.control_tokens, key=len, reverse=True)) + ")"
        )
        eos = config.get("eos_token") or EOS
        self.eos_token = str(eos["content"] if isinstance(eos, Mapping) else eos)
        self.eos_token_id = backend.token_to_id(self.eos_token)
        #: Every id that ends a turn: the tokenizer's, and those that generation_config.json adds.
        self.stop_token_ids = frozenset(extra_stop_ids) | ({self.eos_token_id} - {None})
        self.think_start_id = backend.token_to_id("<think>")
        self.think_end_id = backend.token_to_id("</think>")
        #: What a turn that is not the model's own begins with.
        self.turn_start_ids = frozenset(map(backend.token_to_id, ("[|user|]", "[|tool|]"))) - {None}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and the chat template of a local folder.

        Raises FileNotFoundError without a tokenizer.json and ValueError for one that is damaged or not a
        byte-level one. A missing template is an error only when a prompt is to be rendered.
        """
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"{file} cannot be read as a tokenizer: {error}") from error
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            raise ValueError(f"{file} is not the tokenizer of an EXAONE 4 model: it is not a byte-level one")
        config = _read_config(folder / "tokenizer_config.json")
        stop_ids = _read_config(folder / "generation_config.json").get("eos_token_id")
        stop_ids = stop_ids if isinstance(stop_ids, list) else [stop_ids] if isinstance(stop_ids, int) else []
        return cls(backend, config, ChatTemplate.find(folder, config), stop_ids)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and, if there is a template, chat_template.jinja.

        `from_pretrained`, transformers and mlx-lm read them. The folder is made if it is not there; each file takes the
        place of an older one at once, when it is complete. What generation_config.json said is the model's to save.
        """
        from ..files.folders import atomic_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token} | self._config
        config.pop("chat_template", None)  # it gets a file of its own
        files = {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        }
        if self._template is not None:
            files["chat_template.jinja"] = self._template.source
        for name, text in files.items():
            with atomic_file(folder / name) as stream:
                stream.write(text.encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {len(self.control_tokens)} of them control tokens)"

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, in which control strings such as `[|user|]` are control tokens.

        Raises ValueError for half characters (lone surrogates), which are no text.
        """
        return _encode(self._backend, text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises ValueError for an id that does not exist."""
        for id in ids:
            if not self.has_text(id):
                raise ValueError(f"token id {id} does not exist: the tokenizer has ids 0 to {self.vocab_size - 1}")
        decoder = self.stream_decoder(skip_special_tokens)
        return "".join(map(decoder.feed, ids)) + decoder.close()

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """A decoder that takes ids one by one and never returns half a character."""
        return StreamDecoder(self, skip_special_tokens)

    def has_text(self, id: int) -> bool:
        """Whether the tokenizer knows this id. A model's vocabulary may be larger, padded or untrained."""
        return 0 <= id < 2**31 and self._backend.id_to_token(id) is not None

    def token_bytes(self, id: int, skip_special_tokens: bool = False) -> bytes:
        """The bytes that one token stands for: those of U+FFFD for an id that the tokenizer does not know."""
        if (added := self._added_text.get(id)) is not None:
            return b"" if skip_special_tokens and added in self._special else added.encode()
        token = self._backend.id_to_token(id)
        return "\ufffd".encode() if token is None else bytes(map(_byte_of_character().__getitem__, token))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the tokenizer and of its chat template: equal where they make the same ids of the same text."""
        template = "" if self._template is None else self._template.source
        return {
            "tokenizer": hashlib.sha256(self._backend.to_str().encode()).hexdigest(),
            "chat template": hashlib.sha256(template.encode()).hexdigest(),
        }

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        tokenize: Literal[True] = True,
        **template_kwargs: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        *,
        tokenize: Literal[False],
        **template_kwargs: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool = False,
        tokenize: bool = True,
        **template_kwargs: Any,
    ) -> list[int] | str:
        """The prompt of a conversation, as ids or (`tokenize=False`) as text.

        `messages` are OpenAI-style; a message's content is a string or a list of text parts, a tool's may be
        any JSON value. Arguments of tool calls that are JSON strings are parsed. `tools` are functions or JSON
        schemas (`text/tools.py`). Further keywords reach the template, if it knows them: `skip_think=False`
        keeps the thought of a final reply.

        Raises ValueError for malformed messages, for a tokenizer without a template, and for a template
        that fails, oversteps its sandbox or its two seconds.
        """
        if not isinstance(enable_thinking, bool):
            raise ValueError(f"enable_thinking must be true or false, not {enable_thinking!r}")
        if self._template is None:
            raise ValueError(
                "this tokenizer has no chat template (neither chat_template.jinja nor in tokenizer_config.json)"
            )
        checked, offered = check_messages(messages), schemas(tools)
        mark = _unused_mark([checked, offered, template_kwargs])
        rendered = self._template.render(
            self._guard(template_kwargs, mark),
            messages=[self._guard_message(message, mark) for message in checked],
            tools=self._guard(offered, mark) or None,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )
        if not tokenize:
            return rendered.replace(mark, "")
        ids: list[int] = []
        for piece in self._control_split.split(rendered):
            if piece in self.control_tokens:
                ids += self.encode(piece)
            elif mark in piece:
                ids += _encode(self._plain_backend, piece.replace(mark, ""))
            else:
                ids += self.encode(piece)
        return ids

    @functools.cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which control strings are ordinary text. Rarely needed, and slow to make."""
        description = json.loads(self._backend.to_str())
        ordinary = [token for token in description["added_tokens"] if token["content"] not in self.control_tokens]
        return tokenizers.Tokenizer.from_str(
            json.dumps(description | {"added_tokens": ordinary, "post_processor": None})
        )

    def _guard_message(self, message: dict[str, Any], mark: str) -> dict[str, Any]:
        own = ("content", "reasoning_content") if message["role"] == "assistant" else ()
        return {
            key: value
            if key == "role"
            else self._guard(value, mark, self.control_tokens.difference(OWN_MARKS) if key in own else None)
            for key, value in message.items()
        }

    def _guard(self, value: Any, mark: str, forbidden: frozenset[str] | None = None) -> Any:
        """`value` with a mark inside every control string that it holds, however deep."""
        if isinstance(value, str):
            return self._control_split.sub(
                lambda match: (
                    match[0]
                    if forbidden is not None and match[0] not in forbidden
                    else match[0][0] + mark + match[0][1:]
                ),
                value,
            )
        if isinstance(value, Mapping):
            return {
                self._guard(key, mark, forbidden): self._guard(item, mark, forbidden) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._guard(item, mark, forbidden) for item in value]
        return value


class StreamDecoder:
    """Ids -> text, a whole number of characters at a time."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """The text that is complete with this token: often "" while a character's bytes come in pieces."""
        return self._utf8.decode(self._tokenizer.token_bytes(id, self._skip))

    @property
    def pending(self) -> bool:
        """Whether a character has begun and is not complete."""
        return bool(self._utf8.getstate()[0])

    def close(self) -> str:
        """What is left: U+FFFD for a character that never was completed."""
        return self._utf8.decode(b"", final=True)


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, their text parts joined and their tool calls' arguments parsed.

    Raises ValueError naming the message for an unknown role and for content that cannot be rendered.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
    checked = [_check_message(message, f"message {index}") for index, message in enumerate(messages)]
    if not checked:
        raise ValueError("there are no messages")
    return checked


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where} has the unknown role {role!r}; roles are {', '.join(ROLES)}")
    checked = dict(message)
    if role != "tool":
        checked["content"] = _check_text(message.get("content"), role, where)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, (list, tuple)):
            raise ValueError(f"{where}: tool_calls must be a list, not {type(calls).__name__}")
        checked["tool_calls"] = [_check_call(call, where) for call in calls]
    return checked


def _check_text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, (list, tuple)):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise ValueError(f"{where}: content may have text parts only; this model reads no images or files")
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
    raise ValueError(f"{where}: {role} content must be a string or a list of text parts, not {type(content).__name__}")


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function", call), Mapping):
        raise ValueError(f"{where}: a tool call must be an object with name and arguments")
    function = dict(call.get("function", call))
    key = "arguments" if "arguments" in function else "parameters"
    if not isinstance(function.get("name"), str) or key not in function:
        raise ValueError(
            f"{where}: a tool call needs a name and arguments, not {json.dumps(function, default=str)[:200]}"
        )
    if isinstance(function[key], str):  # OpenAI's form; rendered as it is, it would be quoted twice
        with contextlib.suppress(ValueError, RecursionError):  # else it is a bare value, a text
            function[key] = json.loads(function[key] or "{}")
    return {**call, "function": function} if "function" in call else function


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds half a character (a lone surrogate) at position {error.start}") from error
    return backend.encode(text, add_special_tokens=False).ids


def _unused_mark(content: Any) -> str:
    """A noncharacter that `content` does not hold. Raises ValueError for what is no JSON."""
    try:
        text = json.dumps(content, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages and tools must be JSON values: {error}") from error
    for mark in MARKS:
        if mark not in text:
            return mark
    raise ValueError("the messages hold every noncharacter of Unicode; at least one must be free")


def _read_config(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return config


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells every byte as one printable character: itself, or one from U+0100 on in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
