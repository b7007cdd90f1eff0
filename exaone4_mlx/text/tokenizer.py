"""Text <-> ids, and messages -> prompt, with the checkpoint's own tokenizer.json and chat template.

Notes:
- EXAONE's `<think>` … `<tool_result>` are added tokens that are not "special", and so are runs of spaces and tabs.
  Here the first are control tokens, like `[|user|]`. The second are ordinary text.
- In a rendered prompt, control tokens come from the template only (see input_messages.py). `encode` reads them in any
  text. A normalizer (NFKC, lowercase) may turn other text into a control string: this text, too, is encoded without
  control tokens.
- macOS takes Hangul apart in file names (NFD): 서울 is five characters there, and many more tokens. Text is composed to
  NFC before it is encoded. What a template, a schema of a tool or the model itself wrote stays as it is.
- This module uses tokenizers and jinja2. It does not use transformers.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import tokenizers

from ..files.folders import atomic_file, find_folder, read_json, read_token, read_tokenizer
from ..tools.describe import Tool, schemas
from .encoding import EncodesBatches, Encoding, read_ids, without_tokens
from .input_messages import Guard, Message, check_messages, composed
from .template import ChatTemplate

EOS = "[|endofturn|]"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
Conversation = Sequence[Message]


class Tokenizer(EncodesBatches):
    """The tokenizer of one checkpoint. `from_pretrained` creates it.

    With `nfc`, which may be changed at any time, text is composed to Unicode's form NFC before it is encoded.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        template: ChatTemplate | None,
        extra_stop_ids: Iterable[int] = (),
        nfc: bool = True,
    ) -> None:
        backend.no_truncation()  # tokenizer.json may ask for both
        backend.no_padding()
        self._backend = backend
        self.nfc = nfc
        self._config = dict(config)
        self._template = template
        added = backend.get_added_tokens_decoder()
        self._added_text = {id: token.content for id, token in added.items()}
        control = {id: token for id, token in added.items() if token.content.strip(" \t")}
        self.control_ids = frozenset(control)
        self._control_id = {token.content: id for id, token in control.items()}
        self.control_tokens = frozenset(self._control_id)
        self._special = frozenset(token.content for token in control.values() if token.special)
        any_control = "|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True))) or "(?!)"
        self._control_split = re.compile(f"({any_control})")
        begins = re.escape("\0" + "".join({text[0] for text in self.control_tokens}))  # "\0": it may not be empty
        #: A template may change the case of a message. The lookahead makes the search ten times faster.
        self._control_like = re.compile(rf"(?=[{begins}])(?:{any_control})", re.IGNORECASE)
        self.eos_token, self.pad_token = read_token(config, "eos_token") or EOS, read_token(config, "pad_token")
        self.eos_token_id = backend.token_to_id(self.eos_token)
        self.padding_side = config.get("padding_side") or "right"
        #: Every id that ends a turn: the tokenizer's, and those of generation_config.json.
        self.stop_token_ids = frozenset(id for id in (*extra_stop_ids, self.eos_token_id) if id is not None)
        self.think_start_id = backend.token_to_id("<think>")
        self.think_end_id = backend.token_to_id("</think>")
        #: The first token of a turn that the model does not write.
        self.turn_start_ids = frozenset(map(backend.token_to_id, ("[|user|]", "[|tool|]"))) - {None}

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, revision: str | None = None, padding_side: str | None = None, nfc: bool = True
    ) -> Tokenizer:
        """The tokenizer of a folder, a hub id (nothing else is downloaded), or "demo", with its chat template.

        `padding_side` "left" is for batches that `model.generate` continues. `nfc=False` encodes decomposed characters
        as they are. Raises FileNotFoundError if there is no tokenizer.json, and ValueError if it is damaged or not
        byte-level. A missing template is an error only when a prompt is rendered.
        """
        folder = find_folder(path_or_repo, revision, TOKENIZER_FILES)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json")
        with _library_errors(f"{file} cannot be read as a tokenizer"):
            backend = tokenizers.Tokenizer.from_buffer(read_tokenizer(file))
        byte_level = isinstance(backend.decoder, tokenizers.decoders.ByteLevel)
        if not byte_level or not isinstance(backend.model, tokenizers.models.BPE):
            raise ValueError(f"{file} is not the tokenizer of an EXAONE 4 model: it is not a byte-level one")
        files = (folder / "tokenizer_config.json", folder / "generation_config.json")
        config, generation = (read_json(file) if file.is_file() else {} for file in files)
        stop_ids = generation.get("eos_token_id")
        stop_ids = stop_ids if isinstance(stop_ids, list) else [] if stop_ids is None else [stop_ids]
        if wrong := [id for id in stop_ids if type(id) is not int]:
            raise ValueError(f"{files[1]}: eos_token_id must be a token id or a list of them, not {wrong[0]!r:.99}")
        if padding_side is not None:
            config = {**config, "padding_side": padding_side}
        return cls(backend, config, ChatTemplate.find(folder, config), stop_ids, nfc)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and, if there is a template, chat_template.jinja.

        `from_pretrained`, transformers and mlx-lm read them. A missing folder is created. Each file replaces an older
        one in one step, when it is complete. The model saves what generation_config.json contains.
        """
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

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`. Control strings such as `[|user|]` become control tokens.

        EXAONE's tokenizer has no special tokens to add, whatever `add_special_tokens` is. Raises ValueError for half
        characters (lone surrogates), which are not text.
        """
        return _encode(self._backend, composed(text) if self.nfc else text)

    def encode_plain(self, text: str) -> list[int]:
        """The ids of `text` as ordinary text: control strings in it become ordinary tokens."""
        return self._encode_plain(composed(text) if self.nfc else text)

    def _encode_plain(self, text: str) -> list[int]:
        ids = _encode(self._backend, text)
        return ids if self.control_ids.isdisjoint(ids) else _encode(self._plain_backend, text)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of one row: an id, a sequence of ids, or an integer array. Invalid UTF-8 becomes U+FFFD.

        Raises ValueError for several rows, for what are no integers, and for an id that does not exist.
        """
        ids = read_ids(token_ids)
        for id in ids:
            if not self.has_text(id):
                raise ValueError(f"token id {id} does not exist: the tokenizer has ids 0 to {self.vocab_size - 1}")
        decoder = self.stream_decoder(skip_special_tokens)
        return "".join(map(decoder.feed, ids)) + decoder.close()

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of an array [B, L] or of a list of rows; errors as for `decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

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
        self, messages: Conversation, tools: Sequence[Tool] | None = None, *, tokenize: Literal[False], **options: Any
    ) -> str: ...

    @overload
    def apply_chat_template(
        self, messages: Conversation, tools: Sequence[Tool] | None = None, *, return_dict: Literal[True], **options: Any
    ) -> Encoding: ...

    @overload
    def apply_chat_template(
        self, messages: Conversation, tools: Sequence[Tool] | None = None, *, return_tensors: str, **options: Any
    ) -> Any: ...

    @overload
    def apply_chat_template(
        self,
        messages: Conversation,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool = False,
        **options: Any,
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Conversation | Sequence[Conversation],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool = False,
        tokenize: bool = True,
        *,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        padding: bool | str = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **template_kwargs: Any,
    ) -> Any:
        """The prompt of a conversation, as a list of ids or (`tokenize=False`) as text.

        `messages` have OpenAI's form. `tools` are functions or JSON schemas. `chat_template` is the source of another
        template. `documents` and other keywords are variables of the template: `skip_think=False` keeps the thought of
        a final reply.

        `continue_final_message` leaves the turn of the last message open, so that the model continues its text. A last
        message with a `reasoning_content` and no content is a begun thought, and needs `enable_thinking`. Without it
        the prompt opens a new turn of the assistant, unless `add_generation_prompt` is false.

        `return_tensors` "mlx" or "np" gives an array [1, L], and `return_dict` an `Encoding` with an attention mask. A
        list of conversations gives a list, or [B, L] with `padding`, which is as for `tokenizer(…)`.

        Raises ValueError for malformed messages, for a last message that cannot be continued, for a tokenizer without a
        template, and for a template that fails, that has no such variable, that leaves its sandbox, or that does not
        end within two seconds.
        """
        opens_turn = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        for name, value in (
            ("enable_thinking", enable_thinking),
            ("continue_final_message", continue_final_message),
            ("add_generation_prompt", opens_turn),
            ("return_dict", return_dict),
        ):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
        if continue_final_message and opens_turn:
            raise ValueError("continue_final_message continues a turn, and add_generation_prompt opens one; use one")
        if not tokenize and (return_dict or padding or return_tensors is not None):
            raise ValueError("return_dict, return_tensors and padding are for ids, and tokenize=False gives text")
        template = self._template if chat_template is None else ChatTemplate(chat_template, "chat_template")
        if documents is not None:
            template_kwargs["documents"] = documents
        variables = {"add_generation_prompt": opens_turn, "enable_thinking": enable_thinking}
        several = isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[0], (list, tuple))
        rendered = [
            self._render(template, conversation, tools, continue_final_message, variables, template_kwargs)
            for conversation in (messages if several else [messages])
        ]
        if not tokenize:
            texts = [(text + begun).replace(mark, "") for text, begun, mark in rendered]
            return texts if several else texts[0]
        rows = [self._prompt_ids(text, mark) + self._prompt_ids(begun, mark) for text, begun, mark in rendered]
        if not (return_dict or padding or return_tensors is not None):
            return rows if several else rows[0]
        encoded = self._encoding(rows, several=several, padding=padding, return_tensors=return_tensors)
        return encoded if return_dict else encoded["input_ids"]

    def begun_prompt(
        self, messages: Conversation, tools: Sequence[Tool] | None, enable_thinking: bool, **template_kwargs: Any
    ) -> tuple[list[int], int]:
        """The prompt that continues the last message, and the number of tokens at its end that are a begun reply.

        It is that of `apply_chat_template(continue_final_message=True)`; errors as there.
        """
        variables = {"add_generation_prompt": False, "enable_thinking": enable_thinking}
        source = template_kwargs.pop("chat_template", None)
        template = self._template if source is None else ChatTemplate(source, "chat_template")
        text, begun, mark = self._render(template, messages, tools, True, variables, template_kwargs)
        begun_ids = self._prompt_ids(begun, mark)
        return self._prompt_ids(text, mark) + begun_ids, len(begun_ids)

    def _render(
        self,
        template: ChatTemplate | None,
        messages: Any,
        tools: Sequence[Tool] | None,
        continued: bool,
        variables: Mapping[str, bool],
        options: Mapping[str, Any],
    ) -> tuple[str, str, str]:
        """What `Guard.render` returns, and the mark inside control strings that are not the template's."""
        if template is None:
            raise ValueError(
                "this tokenizer has no chat template (neither chat_template.jinja nor in tokenizer_config.json)"
            )
        try:
            checked, offered = check_messages(messages), [] if tools is None else schemas(tools)
            guard = Guard.of(self._control_like, [checked, offered, options])
            if self.nfc:
                checked = [message if message["role"] == "assistant" else composed(message) for message in checked]
                options = composed(options)
            return *guard.render(template.render, checked, offered, continued, variables, options), guard.mark
        except RecursionError as error:
            raise ValueError("the messages, tools or options are nested too deeply") from error

    def _prompt_ids(self, rendered: str, mark: str) -> list[int]:
        first, *pieces = self._control_split.split(rendered)
        ids = self._encode_plain(first.replace(mark, ""))
        for control, text in zip(pieces[::2], pieces[1::2], strict=True):  # of the template, and after it
            ids += [self._control_id[control], *self._encode_plain(text.replace(mark, ""))]
        return ids

    @functools.cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer without control tokens. It is slow to create and rarely needed."""
        return tokenizers.Tokenizer.from_str(without_tokens(self._backend.to_str(), self.control_ids))


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
    with _library_errors("the tokenizer cannot encode this text"):
        return backend.encode(text, add_special_tokens=False).ids


@contextlib.contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """The tokenizers library raises plain Exception, and a BaseException after a panic. Both become ValueErrors."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{what}: {str(error)[:500]}") from error
        raise


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
