"""OpenAI's text completions, /v1/completions: a prompt is continued, without a chat template.

Control strings in a text prompt are text; token ids are used unchanged.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..generation.options import Options
from ..text.calls import arguments_text
from ..text.events import CallPart, Done, Logprobs
from ..text.tokenizer import Tokenizer
from .contract import Collected, Object, ReplyPart, SampledRequest, Whole, new_id, now, sse
from .engine import EngineEvent, Task
from .openai import FINGERPRINT, finish_reason, usage

MAX_PROMPTS = 64  # of one request


class CompletionRequest(SampledRequest):
    """A request to /v1/completions."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    @field_validator("prompt")
    @classmethod
    def some(cls, value: Any) -> Any:
        if not value:
            raise ValueError("the prompt is empty")
        if isinstance(value, list) and isinstance(value[0], (str, list)) and len(value) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts")
        return value

    def tasks(self, tokenizer: Tokenizer) -> list[Task]:
        given = self.sampling()
        if self.logprobs is not None:
            given["logprobs"] = self.logprobs
        options = Options(**{"max_tokens": 16, **given})
        prompts: list[Any] = [self.prompt]
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], (str, list)):
            prompts = list(self.prompt)
        ids = [tokenizer.encode_plain(one) if isinstance(one, str) else one for one in prompts]
        if not all(ids):
            raise ValueError("the prompt is empty")
        return [Task(one, options) for one in ids]


class CompletionWriter:
    """Writes replies as text completions."""

    def __init__(self, model: str, request: CompletionRequest) -> None:
        self._request, self._n = request, request.n or 1
        self._head = {
            "id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": model,
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip

    def whole(self, replies: Sequence[Collected]) -> Object:
        choices = [
            self._choice(index, whole_text(reply), reply.logprobs, finish_reason(reply.counts), 0, len(reply.thinking))
            for index, reply in enumerate(replies)
        ]
        return {**self._head, "choices": choices, "usage": usage(replies, self._n)}

    async def stream(self, events: AsyncIterator[tuple[int, EngineEvent]], count: int) -> AsyncIterator[str]:
        replies = [Collected() for _ in range(count)]
        async for index, event in events:
            if isinstance(event, CallPart):
                continue  # a call is text here, which is written at its end
            at = 0 if self._request.logprobs is None else len(whole_text(replies[index]))
            piece = replies[index].add(event)
            if piece is not None:
                yield sse({**self._head, "choices": [self._choice(index, text_of(piece), piece.logprobs, None, at)]})
            elif isinstance(event, Done):
                yield sse({**self._head, "choices": [self._choice(index, "", [], finish_reason(event))]})
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield sse({**self._head, "choices": [], "usage": usage(replies, self._n)})
        yield sse("[DONE]")

    def _choice(
        self, index: int, text: str, tokens: Sequence[Logprobs], finish: str | None, at: int = 0, place: int = 0
    ) -> Object:
        """A text after `at` characters of the reply. Its tokens begin at `place` of it."""
        logprobs = None
        if self._request.logprobs is not None:
            offsets = []
            for token in tokens:
                place = max(text.find(token.text, place, place + len(token.text) + 4), place)
                offsets.append(at + place)
                place += len(token.text) * (token.text != "\ufffd")  # of an incomplete character
            logprobs = {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.logprob for token in tokens],
                "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def text_of(piece: ReplyPart) -> str:
    """A piece as the text that the model wrote, near enough."""
    return piece.thinking or piece.text if piece.call is None else call_text(piece.call.name, piece.call.arguments)


def whole_text(reply: Collected) -> str:
    return reply.thinking + reply.text + "".join(call_text(call.name, arguments_text(call)) for _, call in reply.calls)


def call_text(name: str, arguments: str) -> str:
    """A call as the template writes it."""
    return f'<tool_call>{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}</tool_call>'
