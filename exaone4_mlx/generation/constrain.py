"""Tool schemas -> the tokens that are allowed next inside a tool call. `GrammarConstraint` serves answers too.

Notes:
- A call is `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`. Its tags are single tokens, although they are
  not "special" in tokenizer.json. So no text can contain the token that ends the call. The grammar never allows control
  tokens, also those that other software treats as text. `</tool_call>` is its end-of-text token.
- The library is llguidance (the extra `constrain`). If the schemas allow only one text, its tokens must be those of the
  tokenizer, because the model was trained on them. Elsewhere any tokens of the text are allowed.
- The grammar is compiled once and reset for every call.
- Schemas are closed: an object may have the listed properties only, unless its schema says otherwise. JSON Schema
  itself allows more properties, and a model that may invent arguments does so.
- A schema is refused, with the name of its tool, if a part of it cannot be enforced.
- A few lines of a grammar can take llguidance minutes or overflow its stack, so a child process compiles it first.
"""

from __future__ import annotations

import copy
import functools
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..files.folders import without_middle
from ..text.reply import CALL_END, CALL_START, ReplyParser
from ..text.tokenizer import Tokenizer
from ..tools.describe import name_of
from ..tools.schema import COMPOSING, normalized

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: The spacing of json.dumps, which is that of the calls in the model's prompt.
SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
#: CPU time and memory in which the child process must compile a grammar for a vocabulary of single bytes.
COMPILE_SECONDS, COMPILE_BYTES = 2, 2**31
COMPILE = """
import resource, sys, threading
sys.path.insert(0, sys.argv[1])
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
class Bytes:
    bos_token_id, eos_token_id, special_token_ids = None, 256, [256]
    tokens = [bytes([i]) for i in range(256)] + [b"end"]
    __call__ = lambda self, text: list(text)
vocabulary, grammar = LLTokenizer(TokenizerWrapper(Bytes())), sys.stdin.read()
for limit, value in ((resource.RLIMIT_CPU, int(sys.argv[2])), (resource.RLIMIT_AS, int(sys.argv[3]))):
    try: resource.setrlimit(limit, (value, value))
    except (ValueError, OSError): pass  # macOS has no limit of memory
threading.stack_size(2**21)  # smaller than that of any thread that compiles it afterwards
thread = threading.Thread(target=lambda: LLMatcher(vocabulary, grammar, log_level=0).compute_logit_bias())
thread.start(), thread.join()
"""
NEEDS_PACKAGE = "a constrained reply needs the package llguidance: pip install 'exaone4_mlx[constrain]'"


class GrammarConstraint:
    """Restricts the tokens from `begin` until `end_id`. `vocab_size` is the model's; the tokenizer's may differ."""

    what = "the text"

    def __init__(self, matcher: LLMatcher, end_id: int, vocab_size: int) -> None:
        self.end_id = end_id
        #: Whether the reply is inside the restricted text.
        self.active = False
        self._matcher, self._vocab_size = matcher, vocab_size
        self._known_mask: bytes | None = None  # at this position

    def begins(self, parser: ReplyParser) -> bool:
        """Whether the restricted text begins after the text that `parser` has read."""
        raise NotImplementedError

    def resume(self, parser: ReplyParser, begun: Sequence[int]) -> None:
        """Processes the tokens of a begun answer, after which the reply goes on. `parser` has read the begun reply."""

    def begin(self) -> None:
        """Starts the restricted text."""
        self.reset()
        self.active = True

    def allowed(self) -> mx.array:
        """The allowed next tokens: booleans [vocab_size]. Raises RuntimeError before `begin`."""
        mask = self._mask()
        padded: Any = memoryview(mask + bytes(self._vocab_size - len(mask)))
        return mx.array(padded) != 0

    def advance(self, token: int) -> None:
        """Processes the sampled token. `active` is False after `end_id`.

        Raises ValueError for a token that is not allowed; the state does not change then.
        """
        mask = self._mask()
        if not (0 <= token < len(mask) and mask[token]):
            raise ValueError(f"token {token} was not allowed here: {self.what} must follow its schema")
        if token == self.end_id:
            self.reset()
        else:
            self._known_mask = None
            self._matcher.consume_token(token)

    def reset(self) -> None:
        """Prepares the next text. An incomplete one is dropped."""
        self.active, self._known_mask = False, None
        self._matcher.reset()

    def _mask(self) -> bytes:
        """The grammar's mask at this position: one byte per token, 0 if the token is not allowed."""
        if not self.active:
            raise RuntimeError(f"there is no {self.what.split(maxsplit=1)[1]} in progress: call begin() first")
        if self._known_mask is None:
            self._known_mask = self._matcher.compute_logit_bias()
            if self._matcher.is_error():  # llguidance limits the work for one token
                raise RuntimeError(f"the schema cannot be enforced: {reason_of(self._matcher.get_error())}")
        return self._known_mask


class ToolConstraint(GrammarConstraint):
    """Restricts the name and the arguments of a tool call to the schemas, from <tool_call> to </tool_call>.

    `schemas` are OpenAI's tool objects, or only their function objects. Raises ValueError without tools, for a schema
    that cannot be enforced (with the name of the tool), and for a tokenizer without the two tags. Raises RuntimeError
    if llguidance is not installed.
    """

    what = "a tool call"

    def __init__(self, tokenizer: Tokenizer, schemas: Sequence[Mapping[str, Any]], vocab_size: int) -> None:
        self.start_id = _control_id(tokenizer, CALL_START, vocab_size)
        end_id = _control_id(tokenizer, CALL_END, vocab_size)
        vocabulary = vocabulary_of(tokenizer, min(vocab_size, tokenizer.vocab_size), end_id)
        super().__init__(_compiled(vocabulary, schemas, forces(tokenizer, vocab_size)), end_id, vocab_size)

    def begins(self, parser: ReplyParser) -> bool:
        return parser.opens_call


def _control_id(tokenizer: Tokenizer, text: str, vocab_size: int) -> int:
    ids = tokenizer.encode(text)
    if text not in tokenizer.control_tokens or len(ids) != 1 or ids[0] >= vocab_size:
        raise ValueError(f"tool calls cannot be constrained: {text} is no token of this model")
    return ids[0]


# The vocabulary as the grammar sees it


def forces(tokenizer: Tokenizer, vocab_size: int) -> bool:
    """Whether text without an alternative can have the tokenizer's own tokens: all of them must be allowed."""
    return tokenizer.vocab_size <= vocab_size and tokenizer.stop_token_ids <= tokenizer.control_ids


@functools.lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Tokenizer, size: int, end_id: int) -> LLTokenizer:
    """The first `size` tokens in llguidance's form. 102,400 tokens take half a second, so the result is cached."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise RuntimeError(NEEDS_PACKAGE) from error
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, size, end_id)), slices=LLTokenizer.json_slices())


class _Vocabulary:
    """The attributes that llguidance reads. Special tokens are allowed only where a grammar names them, so never."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, end_id: int) -> None:
        self._tokenizer = copy.copy(tokenizer)
        self._tokenizer.nfc = False  # forced text is the grammar's
        special = tokenizer.control_ids | tokenizer.stop_token_ids
        self.eos_token_id = end_id
        self.special_token_ids = [id for id in range(size) if id in special]
        # An id without a text has no bytes, and is never allowed.
        self.tokens = [tokenizer.token_bytes(id) if tokenizer.has_text(id) else b"" for id in range(size)]

    def __call__(self, text: bytes) -> list[int]:
        """The ids of forced text. Control strings in a schema (in an enum, for example) are ordinary text."""
        return self._tokenizer.encode_plain(text.decode())


# Schemas -> grammar


def _compiled(vocabulary: LLTokenizer, schemas: Sequence[Mapping[str, Any]], forced: bool) -> LLMatcher:
    """The grammar of one call of any of the tools.

    With `forced`, text without an alternative must have the tokenizer's own tokens; this needs all text tokens.
    """
    from llguidance import LLMatcher

    if not schemas:
        raise ValueError("there are no tools to constrain calls to")
    rules = [_rule(number, schema) for number, schema in enumerate(schemas)]
    options = f"%llguidance {json.dumps({'no_forcing': not forced})}"
    start = "start: " + " | ".join(f"call_{number}" for number in range(len(schemas)))
    grammar = "\n".join([options, *(rule for _, rule in rules), start])
    if reason := compile_problem(grammar):
        alone = enumerate(rules)
        costly = (f"tool {name!r}" for n, (name, rule) in alone if compile_problem(f"start: call_{n}\n{rule}"))
        raise ValueError(f"the schema of {next(costly, 'all tools')} cannot be enforced: {reason}")
    for number, (name, rule) in enumerate(rules):
        failed, reports = LLMatcher.validate_grammar_with_warnings(f"start: call_{number}\n{rule}", vocabulary)
        if failed or reports:
            raise ValueError(f"the schema of tool {name!r} cannot be enforced: {reason_of(reports[0])}")
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(f"the schemas of the tools cannot be enforced: {reason_of(matcher.get_error())}")
    return matcher


def _rule(number: int, schema: Mapping[str, Any]) -> tuple[str, str]:
    """The name of a tool, and the rule of its call in llguidance's dialect of Lark.

    Each tool has its own `%json`, so that a `$ref` is resolved in the schema of its tool.
    """
    function, name = schema.get("function", schema), name_of(schema)
    if not isinstance(name, str) or not name:
        raise ValueError(f"tool {number + 1} has no name")
    try:
        arguments = spaced(_arguments(function.get("parameters") or {}))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"the schema of tool {name!r} cannot be enforced: {error}") from error
    lines = [
        f'call_{number}: "{{\\"name\\": " name_{number} ", \\"arguments\\": " arguments_{number} "}}"',
        f"name_{number}: %json {spaced({'const': name})}",
        f"arguments_{number}: %json {arguments}",
    ]
    return name, "\n".join(lines) + "\n"


def spaced(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": SPACING})


def _arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments of a call: an object, which is {} for a tool without parameters."""
    given = normalized(parameters)
    if given.get("type", "object") != "object":
        raise ValueError(f"its parameters must be of type object, not {given['type']!r}")
    schema = {"type": "object", **given}
    if not schema.keys() & COMPOSING:
        schema.setdefault("properties", {})
    return closed_at_every_depth(schema)


def closed_at_every_depth(schema: dict[str, Any]) -> dict[str, Any]:
    # Closed parts of an allOf would exclude each other, at any depth.
    return schema if '"allOf"' in json.dumps(schema) else _closed(schema)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which objects with listed properties allow no others, unless their schema says otherwise."""
    result = {key: _closed_part(key, value, "properties" in schema) for key, value in schema.items()}
    if "properties" in schema and not schema.keys() & COMPOSING:
        result.setdefault("additionalProperties", False)
    return result


def _closed_part(key: str, value: Any, listed: bool) -> Any:
    if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
        return {name: _closed(part) if isinstance(part, Mapping) else part for name, part in value.items()}
    # Alternatives next to listed properties are parts of that object, so they stay open.
    if (key == "prefixItems" or (key in ("anyOf", "oneOf") and not listed)) and isinstance(value, (list, tuple)):
        return [_closed(part) if isinstance(part, Mapping) else part for part in value]
    if key in ("items", "additionalProperties") and isinstance(value, Mapping):
        return _closed(value)
    return value


@functools.lru_cache(maxsize=64)
def compile_problem(grammar: str) -> str:
    """Why a grammar costs too much to compile, or ""."""
    import llguidance

    limits = (str(Path(llguidance.__file__).parents[1]), str(COMPILE_SECONDS), str(COMPILE_BYTES))
    command = [sys.executable, "-I", "-S", "-c", COMPILE, *limits]
    code = subprocess.run(command, input=grammar.encode(), stderr=subprocess.DEVNULL).returncode
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it takes more than {COMPILE_SECONDS} s to compile"
    return "it is too large to compile" if code else ""


def reason_of(report: str) -> str:
    """The reason of a report, without the position in the generated grammar."""
    return without_middle(report.splitlines()[0].rpartition("failed to compile JSON schema: ")[2])
