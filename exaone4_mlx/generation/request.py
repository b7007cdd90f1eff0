"""A prompt and its options, rendered and checked once, without weights.

Notes:
- `Request` raises for everything that a caller can get wrong, before anything is computed.
- Whether the reply begins inside a thought is read from the prompt, not from an option.
- The chat template is rendered once; everything after that uses the ids.
- A reply may be begun: the last tokens of the prompt are its first ones. It goes on as the same reply, with the same
  state of its thought, its penalties and its seeded random numbers.
- A thought whose budget is used up ends with one fixed sentence and the tokens with which the model ends a thought. A
  part of `max_tokens` is reserved for the answer, so that an answer always follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..model.config import Exaone4Config
from ..model.kv import KVQuantization
from ..text.encoding import read_ids
from ..text.input_messages import Message, check_messages
from ..text.reply import ReplyParser
from ..text.tokenizer import Tokenizer
from ..tools.describe import Tool, schemas
from .answer import AnswerConstraint, AnswerOrCalls
from .formats import read_format
from .options import Options, check
from .truncation import check_bias

#: The text that ends a thought whose budget is used up. Its last part is that of the template.
WRAP_UP = "\nI will answer now.\n</think>\n\n"
ANSWER_PART, ANSWER_TOKENS = 4, 512  # the answer has a quarter of max_tokens, but at most 512, reserved

#: Text, messages, or the ids of one row: a list, or an integer array [L] or [1, L] of MLX or NumPy.
Prompt = str | Sequence[Message] | Sequence[int] | mx.array


@dataclass(frozen=True, eq=False)
class Request:
    """A reply to make: the ids of the prompt, its options and its limits. Needs a config, and no weights.

    `max_kv_size` limits prompt and reply together; None means the model's context. `kv` says how caches are stored.
    `draft` is the config of a draft model. The last `begun` of the ids are the beginning of the reply. `tools`
    are the schemas of tools that may be called instead of an answer in a format. Raises ValueError for what no reply
    can be made to.
    """

    config: Exaone4Config
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    options: Options
    max_kv_size: int | None = None
    kv: KVQuantization | None = None
    draft: Exaone4Config | None = None
    begun: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def render(
        cls,
        config: Exaone4Config,
        tokenizer: Tokenizer,
        prompt: Prompt,
        options: Options,
        *,
        tools: Sequence[Tool] | None = None,
        max_kv_size: int | None = None,
        kv: KVQuantization | int | None = None,
        draft: Exaone4Config | None = None,
    ) -> Request:
        """A request for a reply to `prompt`: text, messages, or ids. Renders the chat template."""
        ids, begun = prompt_ids(tokenizer, prompt, options=options, tools=tools)
        stored, offered = KVQuantization.coerce(kv, config), tuple(schemas(tools)) if tools else ()
        return cls(config, tokenizer, tuple(ids), options, max_kv_size, stored, draft, begun, offered)

    def __post_init__(self) -> None:
        ids, config, options = self.ids, self.config, self.options
        if not ids:
            raise ValueError("the prompt is empty")
        if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
            raise ValueError(f"the prompt holds token id {wrong[0]}; this model has ids 0 to {config.vocab_size - 1}")
        longest = config.max_position_embeddings
        if len(ids) >= longest:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, but the model's context of {longest} must hold it and a reply: "
                "make it shorter, or ask about it in parts"
            )
        check_kv_size(self.max_kv_size, config)
        if len(ids) >= self.limit:
            raise ValueError(f"the prompt has {len(ids)} tokens, and max_kv_size {self.limit} must hold it and a reply")
        stop_ids = self.stop_ids  # raises for a text that is no token
        if options.logit_bias:
            check_bias(options.logit_bias, config.vocab_size, stop_ids if options.min_tokens else ())
        if not options.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens {options.min_tokens} does not fit: the prompt leaves {self.max_tokens} tokens for a reply"
            )
        check_drafting(config, options, self.draft)
        _ = self.answer_constraint  # raises for a format that cannot be enforced
        if options.thinking_budget is None:
            return
        if not self.inside_thought:
            raise ValueError("thinking_budget limits a thought, and this prompt opens none; set thinking=True")
        if thought_limit(options.thinking_budget, options.reply_limit, len(self.wrap_up)) < 0:
            raise ValueError(
                f"max_tokens {options.reply_limit} is too small for a thinking budget: ending the thought takes "
                f"{len(self.wrap_up)} tokens, and the answer needs some"
            )

    def __repr__(self) -> str:
        return f"Request({len(self.ids)} prompt tokens, {self.options})"

    @cached_property
    def inside_thought(self) -> bool:
        """Whether the reply begins inside a thought: the last think mark before it opens one."""
        marks = {self.tokenizer.think_start_id, self.tokenizer.think_end_id} - {None}
        before = self.ids[: len(self.ids) - self.begun]
        last = next((id for id in reversed(before) if id in marks), None)
        return last is not None and last == self.tokenizer.think_start_id

    @property
    def begun_ids(self) -> tuple[int, ...]:
        """The tokens of the reply that the prompt ends with."""
        return self.ids[len(self.ids) - self.begun :]

    @property
    def begun_thought(self) -> int:
        """How many of `begun_ids` belong to the thought, with the token that ends it."""
        if not self.inside_thought:
            return 0
        end = self.tokenizer.think_end_id
        return next((count for count, id in enumerate(self.begun_ids, start=1) if id == end), self.begun)

    def begun_reply(self) -> tuple[ReplyParser, tuple[int, ...], str]:
        """A parser for what follows the begun reply, and the answer in it as tokens and text. Calls in it are text."""
        ids, count = self.begun_ids, self.begun_thought
        inside = self.inside_thought and self.tokenizer.think_end_id not in ids
        decoder = self.tokenizer.stream_decoder()
        text = "".join(map(decoder.feed, ids if inside else ids[count:]))
        return ReplyParser(inside, text, thought_before=count > 0), ids[count:], "" if inside else text

    @cached_property
    def wrap_up(self) -> list[int]:
        """The tokens that end a thought whose budget is used up; none without a budget."""
        return [] if self.options.thinking_budget is None else self.tokenizer.encode(WRAP_UP)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end the reply: those of the config, the tokenizer and `extra_eos_token`."""
        found = {*self.config.stop_token_ids, *self.tokenizer.stop_token_ids}
        for token in self.options.extra_eos_tokens:
            ids = self.tokenizer.encode(token) if isinstance(token, str) and not token.isdecimal() else [int(token)]
            if len(ids) != 1 or not 0 <= ids[0] < self.config.vocab_size:
                raise ValueError(f"extra_eos_token {token!r} is no token of this model")
            found |= set(ids)
        return frozenset(found)

    @cached_property
    def answer_constraint(self) -> AnswerConstraint | None:
        """The constraint of `response_format`, which leaves calls of the tools."""
        found = None if self.options.response_format is None else read_format(self.options.response_format)
        if found is None:
            return None
        if self.tools:
            return AnswerOrCalls(self.tokenizer, *found, self.config.vocab_size, self.tools)
        return AnswerConstraint(self.tokenizer, *found, self.config.vocab_size)

    @property
    def limit(self) -> int:
        """Tokens that prompt and reply may have together."""
        return self.max_kv_size or self.config.max_position_embeddings

    @property
    def max_tokens(self) -> int:
        """Tokens that the reply may have."""
        return min(self.options.reply_limit, self.limit - len(self.ids))


def prompt_ids(
    tokenizer: Tokenizer, prompt: Prompt, options: Options | None = None, tools: Sequence[Tool] | None = None
) -> tuple[list[int], int]:
    """The ids of a prompt in any of its three forms, and how many of the last ones are a begun reply.

    Raises ValueError for an empty or malformed one.
    """
    options = options or Options()
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, Mapping):
        raise ValueError("a message goes into a list of messages: [{'role': …, 'content': …}]")
    if not isinstance(prompt, Sequence) and not hasattr(prompt, "tolist"):
        raise ValueError(f"the prompt must be text, a list of messages or token ids, not {type(prompt).__name__}")
    items: Any = list(prompt) if isinstance(prompt, Sequence) else prompt.tolist()
    items = items if isinstance(items, list) else [items]
    rows = [item for item in items if isinstance(item, (list, tuple)) or getattr(item, "shape", None)]
    if len(rows) > 1:
        raise ValueError(f"the prompt has {len(rows)} rows; give one, or a batch to model.generate")
    if len(rows) == len(items) == 1:  # [1, L]
        items = list(rows[0])
    if not items:
        raise ValueError("the prompt is empty")
    if isinstance(items[0], (Mapping, str, bool, type(None))):
        ids, begun = render(tokenizer, items, options, tools)
        if not options.continue_final_message:
            check_answerable(items)
        return ids, begun
    if options.thinking or tools:
        raise ValueError("thinking and tools belong to the chat template; a prompt of token ids is used unchanged")
    for name in ("prefill_response", "continue_final_message", "chat_template_args"):
        if getattr(options, name) not in (None, False):
            raise ValueError(f"{name} belongs to the chat template; a prompt of token ids is used unchanged")
    return read_ids(items), 0


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    options: Options,
    tools: Sequence[Tool] | None,
    written: Sequence[int] = (),
) -> tuple[list[int], int]:
    """The prompt of a reply to `messages`, and the number of tokens at its end that are a begun reply.

    It opens a turn of the assistant. The reply is begun by tokens that the model has `written`, by `prefill_response`,
    or, with `continue_final_message`, by the last message; whether it has a thought then follows from this message.
    """
    variables, offered = options.chat_template_args or {}, tools or None
    if options.prefill_response is not None:
        messages = [*messages, {"role": "assistant", "content": options.prefill_response}]
    elif not options.continue_final_message:
        ids = tokenizer.apply_chat_template(messages, offered, enable_thinking=options.thinking, **variables)
        return [*ids, *written], len(written)
    *before, last = check_messages(messages)
    if last["role"] != "assistant" or last.get("tool_calls"):
        is_call = "an assistant's with tool calls" if last.get("tool_calls") else f"that of the {last['role']}"
        raise ValueError(
            f"continue_final_message continues the text of an assistant, and the last message is {is_call}"
        )
    has_thought = bool(last.get("reasoning_content"))
    if options.thinking and not has_thought:
        raise ValueError("thinking belongs to a new reply, and the reply that is continued has no thought")
    if not (last["content"] or has_thought):
        raise ValueError("the last message is empty: there is nothing to continue")
    return tokenizer.begun_prompt([*before, last], offered, has_thought, **variables)


def thought_limit(budget: int, max_tokens: int, wrap_up: int) -> int:
    """The limit of a thought in tokens, so that `wrap_up` tokens and an answer still fit.

    It is negative if `max_tokens` is too small for both.
    """
    return min(budget, max_tokens - wrap_up - min(max_tokens // ANSWER_PART, ANSWER_TOKENS))


def check_answerable(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for messages that do not end with a message of the user or a tool."""
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            "there is nothing to reply to: the last message is neither the user's nor a tool's; "
            "continue_final_message=True continues it"
        )


def check_kv_size(size: int | None, config: Exaone4Config) -> None:
    """Raises ValueError for a `max_kv_size` that the model does not reach. None is the model's context."""
    longest = config.max_position_embeddings
    holds = size is None or (type(size) is int and 1 < size <= longest)
    check("max_kv_size", size, holds, f"a number of tokens from 2 to the model's {longest}")


def check_drafting(config: Exaone4Config, options: Options, draft: Exaone4Config | None) -> None:
    """Raises ValueError for drafts that cannot be made, or not be verified."""
    if draft is None and not options.prompt_lookup:
        if options.num_draft_tokens is not None:
            raise ValueError("num_draft_tokens limits drafts, and there is neither a draft model nor prompt_lookup")
        return
    if options.logits_processors:
        raise ValueError("logits_processors cannot be combined with drafts (draft_model, prompt_lookup)")
    if draft is not None and options.prompt_lookup:
        raise ValueError("there are a draft model and prompt_lookup; use one of them")
    if draft is not None and draft.vocab_size != config.vocab_size:
        raise ValueError(
            f"the draft model has a vocabulary of {draft.vocab_size} tokens, and the model one of {config.vocab_size}"
        )
    if config.rope_parameters.depends_on_length:
        raise ValueError(
            f"RoPE of type {config.rope_parameters.rope_type!r} depends on the length that is processed at once, so "
            "several drafts cannot be verified together; omit the draft model and prompt_lookup"
        )
