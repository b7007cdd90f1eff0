"""Text <-> ids, and messages -> prompt, with the checkpoint's own tokenizer.json and chat template.

Notes:
- EXAONE's `<think>` … `<tool_result>` are added tokens that are not "special", and so are runs of spaces and tabs.
  Here the first are control tokens, like `[|user|]`. The second are ordinary text.
- In a rendered prompt, control tokens come from the template only (see input_messages.py). `encode` reads them in any
  text.
- Anyone can publish a checkpoint with a chat template. The template runs in a sandbox, with a deadline.
- This module uses tokenizers and jinja2. It does not use transformers.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import tokenizers

from ..tools.describe import Tool, schemas
from .input_messages import Guard, Message, check_continued, check_messages, is_begun_thought
from .template import ChatTemplate

EOS = "[|endofturn|]"


class Tokenizer:
    """The tokenizer of one checkpoint. `from_pretrained` creates it."""

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
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        self._control_split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        eos = config.get("eos_token") or EOS
        self.eos_token = str(eos["content"] if isinstance(eos, Mapping) else eos)
        self.eos_token_id = backend.token_to_id(self.eos_token)
        #: Every id that ends a turn: the tokenizer's, and those of generation_config.json.
        self.stop_token_ids = frozenset(extra_stop_ids) | ({self.eos_token_id} - {None})
        self.think_start_id = backend.token_to_id("<think>")
        self.think_end_id = backend.token_to_id("</think>")
        #: The first token of a turn that the model does not write.
        self.turn_start_ids = frozenset(map(backend.token_to_id, ("[|user|]", "[|tool|]"))) - {None}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and the chat template of a local folder.

        Raises FileNotFoundError if there is no tokenizer.json, and ValueError if it is damaged or not byte-level.
        A missing template is an error only when a prompt is rendered.
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

        `from_pretrained`, transformers and mlx-lm read them. A missing folder is created. Each file replaces an older
        one in one step, when it is complete. The model saves what generation_config.json contains.
        """
        from ..files.folders import atomic_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token} | self._config
        config.pop("chat_template", None)  # it is saved in its own file
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
        """The ids of `text`. Control strings such as `[|user|]` become control tokens.

        Raises ValueError for half characters (lone surrogates), which are not text.
        """
        return _encode(self._backend, text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD. Raises ValueError for an id that does not exist."""
        for id in ids:
            if not self.has_text(id):
                raise ValueError(f"token id {id} does not exist: the tokenizer has ids 0 to {self.vocab_size - 1}")
        decoder = self.stream_decoder(skip_special_tokens)
        return "".join(map(decoder.feed, ids)) + decoder.close()

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time and never returns half a character."""
        return StreamDecoder(self, skip_special_tokens)

    def has_text(self, id: int) -> bool:
        """Whether the tokenizer has this id. The vocabulary of a model may be larger: padded or untrained."""
        return 0 <= id < 2**31 and self._backend.id_to_token(id) is not None

    def token_bytes(self, id: int, skip_special_tokens: bool = False) -> bytes:
        """The bytes of one token; those of U+FFFD for an id that the tokenizer does not have."""
        if (added := self._added_text.get(id)) is not None:
            return b"" if skip_special_tokens and added in self._special else added.encode()
        token = self._backend.id_to_token(id)
        return "\ufffd".encode() if token is None else bytes(map(_byte_of_character().__getitem__, token))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the tokenizer and of its chat template. Equal digests mean equal ids for equal messages."""
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
        add_generation_prompt: bool | None = None,
        enable_thinking: bool = False,
        tokenize: Literal[True] = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool = False,
        *,
        tokenize: Literal[False],
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool = False,
        tokenize: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> list[int] | str:
        """The prompt of a conversation, as ids or (`tokenize=False`) as text.

        `messages` have OpenAI's form. `tools` are functions or JSON schemas. Other keywords are variables of the
        template: `skip_think=False` keeps the thought of a final reply.

        `continue_final_message` leaves the turn of the last message open, so that the model continues its text. A last
        message with a `reasoning_content` and no content is a begun thought, and needs `enable_thinking`. Without it
        the prompt opens a new turn of the assistant, unless `add_generation_prompt` is false.

        Raises ValueError for malformed messages, for a last message that cannot be continued, for a tokenizer without a
        template, and for a template that fails, that has no such variable, that leaves its sandbox, or that does not
        end within two seconds.
        """
        for name, value in (
            ("enable_thinking", enable_thinking),
            ("continue_final_message", continue_final_message),
            ("add_generation_prompt", True if add_generation_prompt is None else add_generation_prompt),
        ):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message continues a turn, and add_generation_prompt opens one; use one")
        if self._template is None:
            raise ValueError(
                "this tokenizer has no chat template (neither chat_template.jinja nor in tokenizer_config.json)"
            )
        checked, offered = check_messages(messages), [] if tools is None else schemas(tools)
        guard = Guard.of(self._control_split, [checked, offered, template_kwargs])
        protected, thought = [guard.protect_message(message) for message in checked], None
        if continue_final_message:
            check_continued(checked[-1], enable_thinking)
            if is_begun_thought(checked[-1]):
                thought = protected.pop()["reasoning_content"]
            else:
                protected[-1]["content"] += guard.end + " "
        rendered = self._template.render(
            guard.protect(template_kwargs),
            messages=protected,
            tools=guard.protect(offered) or None,
            add_generation_prompt=thought is not None or not (continue_final_message or add_generation_prompt is False),
            enable_thinking=enable_thinking,
        )
        if thought is not None:
            rendered += thought
        elif continue_final_message:
            rendered = guard.cut(rendered)
        if not tokenize:
            return rendered.replace(guard.mark, "")
        ids: list[int] = []
        for piece in self._control_split.split(rendered):
            plain = piece.replace(guard.mark, "")
            ids += self.encode(piece) if plain == piece else _encode(self._plain_backend, plain)
        return ids

    @functools.cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer without control tokens. It is slow to create and rarely needed."""
        description = json.loads(self._backend.to_str())
        ordinary = [token for token in description["added_tokens"] if token["content"] not in self.control_tokens]
        return tokenizers.Tokenizer.from_str(
            json.dumps(description | {"added_tokens": ordinary, "post_processor": None})
        )


class StreamDecoder:
    """Ids -> text, in whole characters."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.token_bytes(id, self._skip))

    @property
    def pending(self) -> bool:
        """Whether a character is incomplete."""
        return bool(self._utf8.getstate()[0])

    def close(self) -> str:
        """The end of the text: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", final=True)


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a character (a lone surrogate) at position {error.start}") from error
    return backend.encode(text, add_special_tokens=False).ids


def _read_config(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a JSON object")
    return config


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
