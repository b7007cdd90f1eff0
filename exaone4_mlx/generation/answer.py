"""`response_format`, or a call that must come first -> the tokens that are allowed next in an answer.

Notes:
- The answer begins after the thought, and ends with the token that ends the turn.
- Where tools are offered, the model may call them instead. The calls follow their schemas.
- Objects are closed, and the spacing of JSON is that of json.dumps, as in calls of tools (constrain.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..text.reply import ReplyParser
from ..text.tokenizer import Tokenizer
from ..tools.schema import check_schema, normalized
from .constrain import (
    GrammarConstraint,
    ToolConstraint,
    closed_at_every_depth,
    compile_problem,
    forces,
    reason_of,
    spaced,
    vocabulary_of,
)

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class LineEnds:
    """The tokens of one and of two line ends, and how many line ends may still come (`left`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = [tokenizer.encode(text) for text in ("\n", "\n\n")]
        self._counts = {ids[0]: count for count, ids in enumerate(ends, start=1) if len(ids) == 1}
        self.left = 0

    def take(self, token: int) -> bool:
        """Whether `token` is one that may come. It is counted then."""
        count = self._counts.get(token, 0)
        if not 0 < count <= self.left:
            return False
        self.left -= count
        return True

    def added_to(self, mask: bytearray) -> bytes:
        """A mask that allows them, too."""
        for token, count in self._counts.items():
            if count <= self.left:
                mask[token] = 1
        return bytes(mask)


class AnswerConstraint(GrammarConstraint):
    """Restricts the whole answer to a format, from the end of the thought to the end of the turn.

    `kind` and `content` are those of `read_format`. The line ends that follow a thought are allowed before the answer.
    Raises ValueError for a format that cannot be enforced, and RuntimeError if llguidance is not installed.
    """

    what = "the answer"

    def __init__(self, tokenizer: Tokenizer, kind: str, content: Any, vocab_size: int) -> None:
        end_id = tokenizer.eos_token_id
        if end_id is None or end_id >= vocab_size:
            raise ValueError(f"response_format needs the token that ends a turn: {tokenizer.eos_token} is no token")
        vocabulary = vocabulary_of(tokenizer, min(vocab_size, tokenizer.vocab_size), end_id)
        super().__init__(_answer(vocabulary, kind, content, forces(tokenizer, vocab_size)), end_id, vocab_size)
        self._line_ends = LineEnds(tokenizer)  # that may come before the answer

    def begins(self, parser: ReplyParser) -> bool:
        self._line_ends.left = parser.line_ends_left
        return not parser.inside_thought

    def resume(self, parser: ReplyParser, begun: Sequence[int]) -> None:
        if parser.inside_thought or not begun:
            return
        self.begin()
        self._line_ends.left = 2
        try:
            for token in begun:
                self.advance(token)
        except ValueError as error:
            raise ValueError("the begun answer does not follow the format of response_format") from error

    def advance(self, token: int) -> None:
        if self._line_ends.take(token):
            self._known_mask = None
            return
        super().advance(token)
        self._line_ends.left = 0

    def _mask(self) -> bytes:
        return self._line_ends.added_to(bytearray(super()._mask()))


class AnswerOrCalls(AnswerConstraint):
    """An answer in a format, or calls of tools that follow their schemas: the first token of the answer decides."""

    what = "an answer or a call"

    def __init__(
        self, tokenizer: Tokenizer, kind: str, content: Any, vocab_size: int, tools: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(tokenizer, kind, content, vocab_size)
        self._call = ToolConstraint(tokenizer, tools, vocab_size)
        self._is_open, self._called = True, False  # nothing of the answer is written; a call is complete

    def reset(self) -> None:
        super().reset()
        self._call.reset()
        self._is_open, self._called = True, False

    def advance(self, token: int) -> None:
        self._known_mask = None
        if self._call.active:
            self._call.advance(token)
            if token == self._call.end_id:
                self._called, self._line_ends.left = True, 2
        elif self._is_open and token == self._call.start_id:
            self._call.begin()
        elif self._line_ends.take(token):
            return
        elif not self._called:
            super().advance(token)
            self._is_open = False
        elif token == self.end_id:
            self.reset()
        else:
            raise ValueError(f"token {token} was not allowed here: after a call, another one comes, or the end")

    def _mask(self) -> bytes:
        if self._call.active:
            return self._call._mask()
        if self._called:
            mask = bytearray(self._line_ends.added_to(bytearray(self._vocab_size)))
            mask[self.end_id] = 1
        else:
            mask = bytearray(super()._mask())
        mask[self._call.start_id] = self._is_open
        return bytes(mask)


class ForcedCall(ToolConstraint):
    """Forces an answer to begin with a call of one of the tools. Line ends may come before it, as after a thought."""

    def __init__(self, tokenizer: Tokenizer, schemas: Sequence[Mapping[str, Any]], vocab_size: int) -> None:
        super().__init__(tokenizer, schemas, vocab_size)
        self._line_ends = LineEnds(tokenizer)
        self._pending = True  # the call has not begun

    def begins(self, parser: ReplyParser) -> bool:
        if not self._pending:
            return super().begins(parser)
        self._line_ends.left = parser.line_ends_left
        return not parser.inside_thought

    def advance(self, token: int) -> None:
        if not self._pending:
            super().advance(token)
        elif token == self.start_id:
            self._pending = False
            self._known_mask = None
        elif not self._line_ends.take(token):
            raise ValueError(f"token {token} was not allowed here: a call of a tool must come first")

    def _mask(self) -> bytes:
        if not self._pending:
            return super()._mask()
        mask = bytearray(self._vocab_size)
        mask[self.start_id] = 1
        return self._line_ends.added_to(mask)


def _answer(vocabulary: LLTokenizer, kind: str, content: Any, forced: bool) -> LLMatcher:
    """The grammar of an answer. `kind` is "json_schema", "grammar" (llguidance's dialect of Lark) or "regex"."""
    from llguidance import LLMatcher

    options = f"%llguidance {json.dumps({'no_forcing': not forced})}\n"
    try:
        if kind == "json_schema":
            schema = normalized(content)
            check_schema(schema)
            grammar = f"{options}start: %json {spaced(closed_at_every_depth(schema))}\n"
        else:
            grammar = LLMatcher.grammar_from_regex(content) if kind == "regex" else content
        if reason := compile_problem(grammar):
            raise ValueError(reason)
        failed, reports = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the {kind} of response_format cannot be enforced: {error}") from error
    if failed or (reports and kind == "json_schema"):
        raise ValueError(f"the {kind} of response_format cannot be enforced: {reason_of(reports[0])}")
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(f"the {kind} of response_format cannot be enforced: {reason_of(matcher.get_error())}")
    return matcher
