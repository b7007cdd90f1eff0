"""OpenAI's chat completions, /v1/chat/completions.

Notes:
- `reasoning_content` and `reasoning` both hold the thought: clients read one of the two.
- A last message of the assistant is continued.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from .. import __version__
from ..generation.options import Options
from ..text.calls import arguments_text
from ..text.events import Done, Logprobs
from ..text.tokenizer import Tokenizer
from .contract import (
    EFFORTS,
    Collected,
    Contract,
    Effort,
    Object,
    ReplyPart,
    SampledRequest,
    Whole,
    bytes_of,
    is_continued,
    new_id,
    now,
    sse,
    with_seed,
)
from .engine import EngineEvent, Task

#: A reply that only repeats itself was cut off, as one that is too long.
FINISH = {"repetition": "length", "cancelled": "stop"}
FINGERPRINT = f"exaone4_mlx-{__version__}"


class Function(Contract):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class FunctionTool(Contract):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Contract):
    name: str


class NamedChoice(Contract):
    type: Literal["function"] = "function"
    function: NamedFunction


class TemplateVariables(Contract):
    enable_thinking: bool | None = None
    skip_think: bool | None = None


class ChatRequest(SampledRequest):
    """A request to /v1/chat/completions."""

    messages: list[Object] = Field(min_length=1)
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking_budget: Whole | None = None
    chat_template_kwargs: TemplateVariables | None = None
    store: bool | None = Field(None, description="No effect.")
    metadata: Object | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")
    prompt_cache_key: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    prediction: Object | None = Field(None, description="No effect.")

    def task(self, thinks: bool) -> Task:
        """What is asked for. `thinks` is the mode where the request names none. Raises ValueError."""
        variables = self.chat_template_kwargs or TemplateVariables()
        continued = is_continued(self.messages)
        thinking = next(
            (value for value in (self.enable_thinking, variables.enable_thinking) if value is not None),
            EFFORTS[self.reasoning_effort] if self.reasoning_effort else thinks,
        )
        given = self.sampling()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if variables.skip_think is not None:
            given["chat_template_args"] = {"skip_think": variables.skip_think}
        if self.thinking_budget is not None:
            given["thinking_budget"] = self.thinking_budget
        if self.response_format is not None and self.response_format.get("type") != "text":
            given["response_format"] = self.response_format
        tools, forced, strict = chosen_tools(self.tools, self.tool_choice)
        options = Options(**given, thinking=thinking and not continued, continue_final_message=continued)
        return Task(self.messages, options, tools, forced, strict, self.parallel_tool_calls is False)


def chosen_tools(
    tools: Sequence[FunctionTool] | None, choice: str | NamedChoice | None
) -> tuple[tuple[Object, ...], tuple[Object, ...], bool]:
    """(tools that are offered, tools of which one must be called, whether calls follow the schemas)."""
    offered = tuple(tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools or ())
    strict = any(tool.function.strict for tool in tools or ())
    if choice in (None, "auto"):
        return offered, (), strict
    if choice == "none":
        return (), (), False
    forced = offered
    if isinstance(choice, NamedChoice):
        forced = tuple(tool for tool in offered if tool["function"]["name"] == choice.function.name)
        if not forced:
            raise ValueError(f"tool_choice names {choice.function.name!r}, and no tool has this name")
    if not forced:
        raise ValueError("tool_choice requires a call, and there are no tools")
    return offered, forced, True


def numbered(tasks: Sequence[Task], n: int) -> list[Task]:
    """Each task `n` times, each with a seed of its own if there is one."""
    return [dataclasses.replace(task, options=with_seed(task.options, number)) for task in tasks for number in range(n)]


def usage(replies: Sequence[Collected], n: int = 1) -> Object:
    """The counts of all replies. `n` replies share a prompt."""
    counts = [reply.counts for reply in replies]
    prompts = counts[::n]
    completion = sum(one.thinking_tokens + one.answer_tokens for one in counts)
    prompt = sum(one.prompt_tokens for one in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(one.thinking_tokens for one in counts)},
    }


def finish_reason(done: Done) -> str:
    return FINISH.get(done.finish_reason, done.finish_reason)


class ChatWriter:
    """Writes replies as chat completions, whole or as a stream of chunks."""

    def __init__(self, model: str, tokenizer: Tokenizer, request: ChatRequest) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._head = {"id": new_id("chatcmpl-"), "created": now(), "model": model, "system_fingerprint": FINGERPRINT}

    def whole(self, replies: Sequence[Collected]) -> Object:
        choices = []
        for index, reply in enumerate(replies):
            message: Object = {"role": "assistant", "content": reply.content or None if reply.calls else reply.content}
            if reply.thinking:
                message |= {"reasoning_content": reply.thinking, "reasoning": reply.thinking}
            if reply.calls:
                message["tool_calls"] = [
                    {"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments_text(call)}}
                    for id, call in reply.calls
                ]
            choices.append(
                {
                    "index": index,
                    "message": message | {"refusal": None},
                    "logprobs": self._logprobs(reply.logprobs) if self._request.logprobs else None,
                    "finish_reason": finish_reason(reply.counts),
                }
            )
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(replies, len(replies))}

    async def stream(self, events: AsyncIterator[tuple[int, EngineEvent]], count: int) -> AsyncIterator[str]:
        replies = [Collected() for _ in range(count)]
        for index in range(count):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, event in events:
            piece = replies[index].add(event)
            if piece is not None:
                for chunk in self._chunks(index, piece):
                    yield chunk
            elif isinstance(event, Done):
                yield self._chunk(index, {}, finish_reason(event))
        if self._request.stream_options and self._request.stream_options.include_usage:
            end = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(replies, count)}
            yield sse(end)
        yield sse("[DONE]")

    def _chunks(self, index: int, piece: ReplyPart) -> list[str]:
        if (call := piece.call) is not None:
            deltas: list[Object] = [{"index": call.number, "function": {"arguments": piece.arguments}}]
            if piece.opens:
                head = {"name": call.name, "arguments": ""}
                deltas.insert(0, {"index": call.number, "id": call.id, "type": "function", "function": head})
            return [self._chunk(index, {"tool_calls": [delta]}) for delta in deltas[: None if piece.arguments else 1]]
        if piece.thinking:
            return [self._chunk(index, {"reasoning_content": piece.thinking, "reasoning": piece.thinking})]
        logprobs = self._logprobs(piece.logprobs) if self._request.logprobs else None
        return [self._chunk(index, {"content": piece.text}, logprobs=logprobs)]

    def _chunk(self, index: int, delta: Object, finish: str | None = None, logprobs: Object | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _logprobs(self, tokens: Sequence[Logprobs]) -> Object:
        def one(token: Any) -> Object:
            return {"token": token.text, "logprob": token.logprob, "bytes": bytes_of(self._tokenizer, token)}

        return {"content": [one(token) | {"top_logprobs": [one(top) for top in token.top]} for token in tokens]}
